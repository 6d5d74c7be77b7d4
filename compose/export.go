package compose

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"gatepost/config"
)

// File is one file of a directory of templates.
type File struct {
	Name    string // TYPE/LOCALE.html, .txt or .toml
	Content string
}

// Export returns the built-in templates as files to begin with, in the colour of s and with the places that its brand
// fills. They mean what the built-in ones mean.
func Export(s config.Templates) []File {
	b := newBuiltIns(s)
	var files []File
	for _, kind := range types {
		for tag := range b.names {
			src := b.source(kind.Name, tag)
			name := kind.Name + "/" + tag.String()
			about := fmt.Sprintf("subject   = %s\npreheader = %s\n", quote(src.about.subject.value), quote(src.about.preheader.value))
			files = append(files, File{name + ".html", src.html.content}, File{name + ".txt", src.text.content}, File{name + ".toml", about})
		}
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files
}

// quote writes s as a TOML string of one line.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// Listed is one template for who wants to know which there are.
type Listed struct {
	Type    string            `json:"type"`
	Locale  string            `json:"locale"`
	Subject string            `json:"subject"`
	Files   []string          `json:"files"`              // none for a built-in template
	Kept    map[string]string `json:"upstream,omitempty"` // the templates of upstreams that are used instead, by upstream
}

// List returns all templates, by type and language.
func (t *Templates) List() []Listed {
	var all []Listed
	for _, name := range slices.Sorted(maps.Keys(t.types)) {
		f := t.types[name]
		for _, tag := range f.order {
			in := f.byLocale[tag]()
			l := Listed{Type: name, Locale: tag.String(), Subject: in.subject.String(), Files: append([]string{}, in.files...)}
			for upstream, p := range in.upstream {
				if l.Kept == nil {
					l.Kept = map[string]string{}
				}
				l.Kept[upstream] = p.name
			}
			all = append(all, l)
		}
	}
	return all
}
