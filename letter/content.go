package letter

import (
	"net/url"
	"regexp"
	"slices"
)

// Content is what a mail says, or a piece of it: its text, as plain text, as HTML or both, and its files.
//
// Left out of it are an alternative that a later one of its type stands in for (RFC 2046 §5.1.4), text of white space
// alone, the preamble and epilogue of multiparts, and the fields of parts but for type, transfer encoding, disposition,
// name and Content-ID. Of a type's parameters only character set and name count, and an invitation's method; that of a
// text among the files is left out. A file without a name gets one.
type Content struct {
	Text         string // "" for none
	HTML         string // "" for none
	Alternatives []Alternative
	Files        []File
}

// Alternative is the text once more in another text type, such as an invitation.
type Alternative struct {
	Type   string // in lower case, without parameters
	Method string // of text/calendar; "" for none
	Text   string
}

// File is a part that is not the text: an attachment, or what the text shows.
type File struct {
	Name   string // never empty
	Type   string // in lower case, without parameters
	CID    string // Content-ID without brackets; "" for none
	Inline bool   // shown in the text, which refers to CID
	Data   []byte
}

// HasText reports whether there is any text at all.
func (c *Content) HasText() bool { return c.Text != "" || c.HTML != "" || len(c.Alternatives) > 0 }

// follow adds what stands behind c in a multipart/mixed. Where both are text of one and the same type it is read on;
// other text behind the first becomes a file.
func (c *Content) follow(next Content) {
	others := len(c.Alternatives) + len(next.Alternatives)
	switch {
	case !c.HasText():
		c.Text, c.HTML, c.Alternatives = next.Text, next.HTML, next.Alternatives
	case !next.HasText():
	case c.HTML == "" && next.HTML == "" && others == 0:
		c.Text = lined(c.Text) + next.Text
	case c.Text == "" && next.Text == "" && others == 0:
		c.HTML = lined(c.HTML) + next.HTML
	default:
		c.Files = append(c.Files, next.textFiles()...)
	}
	c.Files = append(c.Files, next.Files...)
}

// lined ends text with a line end: that of a part's last line belongs to the delimiter behind it.
func lined(text string) string {
	if text[len(text)-1] == '\n' {
		return text
	}
	return text + "\r\n"
}

// replace lets next, which stands behind c in a multipart/alternative, stand in for what it has too.
func (c *Content) replace(next Content) {
	if next.Text != "" {
		c.Text = next.Text
	}
	if next.HTML != "" {
		c.HTML = next.HTML
	}
	for _, n := range next.Alternatives {
		c.Alternatives = slices.DeleteFunc(c.Alternatives, func(a Alternative) bool { return a.Type == n.Type })
	}
	c.Alternatives = append(c.Alternatives, next.Alternatives...)
	c.Files = append(c.Files, next.Files...)
}

// textFiles returns the text of c as files.
func (c *Content) textFiles() []File {
	var files []File
	for _, a := range slices.Concat([]Alternative{{Type: "text/plain", Text: c.Text}, {Type: "text/html", Text: c.HTML}}, c.Alternatives) {
		if a.Text != "" {
			files = append(files, a.File())
		}
	}
	return files
}

// File returns the alternative as a file, for services that know no alternative of its type.
func (a Alternative) File() File {
	return File{Name: defaultName(a.Type), Type: a.Type, Data: []byte(a.Text)}
}

// settle names the files and says which of them the text shows. It can show none without a Content-ID.
func (c *Content) settle() {
	var shown map[string]bool
	if len(c.Files) > 0 {
		shown = references(c.HTML)
	}
	for i := range c.Files {
		f := &c.Files[i]
		f.Inline = f.CID != "" && (f.Inline || shown[f.CID])
		if f.Name == "" {
			f.Name = defaultName(f.Type)
		}
	}
}

// maxReferences bounds the references that are looked at.
const maxReferences = 10_000

var reference = regexp.MustCompile(`cid:([^\s"'<>)]{1,250})`)

// references returns the Content-IDs that html refers to (RFC 2392).
func references(html string) map[string]bool {
	ids := map[string]bool{}
	for _, m := range reference.FindAllStringSubmatch(html, maxReferences) {
		ids[m[1]] = true
		if id, err := url.PathUnescape(m[1]); err == nil {
			ids[id] = true
		}
	}
	return ids
}

// defaultName makes a name for a file of a type, so that the right program opens it.
func defaultName(kind string) string {
	known := map[string]string{
		"message/rfc822": "message.eml", "text/calendar": "invite.ics", "text/plain": "text.txt", "text/html": "text.html",
		"image/png": "image.png", "image/jpeg": "image.jpg", "image/gif": "image.gif", "application/pdf": "document.pdf",
	}
	if name := known[kind]; name != "" {
		return name
	}
	return "attachment"
}
