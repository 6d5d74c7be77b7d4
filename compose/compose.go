// Package compose makes sign-in mail: a template of the right type and language, filled in with what the auth server
// sent, as MIME. Templates hold placeholders, {{ dotted.path }} as Logto has them, and nothing else: no conditions, no
// code. All that can be wrong with a template is told when it is loaded, by file and line, and never when it is used.
//
// It promises that a value cannot leave its place: in HTML it becomes text, in an attribute a part of that attribute, in
// a header field words on that line, in the sender's name no address. It refuses mail that would be of no use: a code
// mail without its code, an invitation without its link, a link that is not https.
package compose

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/language"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
)

// Templates is a complete set of templates: the built-in ones, and before them those of a directory. It is immutable and
// safe for concurrent use.
type Templates struct {
	Warnings []*config.Problem // what works, but somebody should know

	types    map[string]*family
	settings config.Templates
	brand    map[string]string // values by name; names that are missing come from the request
	sums     Sums
}

// Sums are the SHA-256 sums of files, by name.
type Sums map[string]*[sha256.Size]byte

// Sums returns those of the files of the directory, TYPE/LOCALE.EXT: whoever has loaded it anew can tell what has changed.
func (t *Templates) Sums() Sums {
	if t == nil {
		return nil
	}
	return t.sums
}

// family holds the templates of one type.
type family struct {
	Type
	byLocale map[language.Tag]func() *template
	order    []language.Tag // sorted by name
	matcher  language.Matcher
}

// template is one mail in one language.
type template struct {
	locale   language.Tag
	files    []string // of the directory; none for a built-in one
	subject  plain
	preview  plain // the pre-header: what a mailbox shows beside the subject; may be empty
	from     *sender
	replyTo  *sender
	html     markup // nil where there is none
	text     plain  // nil where it is derived from html
	upstream map[string]*provided
	linked   func() *template // of a built-in code: the same for requests that bring a link beside it; nil where there is none
}

// Request asks for one mail.
type Request struct {
	Type        string         // as the auth server calls it; one that is not known is taken for Generic
	Locales     []language.Tag // the reader's languages, best first; see Locales
	Variables   map[string]any // decoded JSON: what placeholders stand for
	From        string         // address, or name and address, of the sender where the template names none
	ReplyTo     string         // likewise; may be empty
	To          string         // address of the one reader
	MessageID   string         // without angle brackets; the same for the same mail, however often it is composed
	Date        time.Time
	LinkSchemes []string // schemes beside https that links may have, such as those of apps
}

// Mail is what a Request became.
type Mail struct {
	Type     Type         // of the request; Generic where its own is not known
	Unknown  bool         // the request's type is not known
	Template string       // the type whose template was taken: its own, or Generic
	Locale   language.Tag // of the template
	From, To message.Address
	Subject  string
	Text     string                      // the part in plain text
	HTML     string                      // the part in HTML; "" where the template has none
	Raw      message.Raw                 // 7-bit but for addresses that are not ASCII
	Provided map[string]message.Provided // by name of the upstream; nil for none
	TooMuch  []string                    // upstreams whose template would be given more than maxVariables: they are sent this mail
}

// Error says why a mail cannot be composed. Its text names the field and is fit to show to a client: it holds no value.
type Error struct {
	Field string // "code", "link", "to", "from", "reply_to", "message_id", or "" for the whole
	Text  string
}

func (e *Error) Error() string {
	if e.Field == "" {
		return e.Text
	}
	return e.Field + " " + e.Text
}

func bad(field, format string, a ...any) *Error { return &Error{field, fmt.Sprintf(format, a...)} }

// Knows reports whether there is a template of that type.
func (t *Templates) Knows(kind string) bool { return t.types[kind] != nil }

// Render composes the mail that r asks for. Its errors are *Error.
func (t *Templates) Render(r Request) (*Mail, error) {
	f, known := t.types[r.Type]
	if !known {
		f = t.types[Generic]
	}
	found, in := t.find(f, r.Locales)
	m, err := t.render(f, found, &r)
	if err != nil {
		return nil, err
	}
	m.Template, m.Unknown = in.Name, !known
	return m, nil
}

// Rendered composes the mail that r asks for of what the caller has filled in already: subject, and text, HTML or both.
// They stand as they are, but for control characters. Type and Variables of r are not used; the first of Locales is the
// mail's language. Its errors are *Error.
func (t *Templates) Rendered(r Request, subject, text, html string) (*Mail, error) {
	m := &Mail{Subject: plain{{literal: subject}}.header(nil), Text: printable(text), HTML: printable(html)}
	if len(r.Locales) > 0 {
		m.Locale = r.Locales[0]
	}
	switch {
	case len(m.Text)+len(m.HTML) > maxBody:
		return nil, bad("", "the mail would be longer than %d octets", maxBody)
	case strings.TrimSpace(m.Text+m.HTML) == "":
		return nil, bad("", "the mail has neither text nor HTML")
	case m.Subject == "":
		return nil, bad("subject", "is missing")
	}
	if m.Text == "" {
		var err error
		if m.Text, err = letter.TextOf(m.HTML); err != nil {
			return nil, bad("", "%v", err)
		}
	}
	if err := t.write(m, &template{}, nil, &r); err != nil {
		return nil, err
	}
	return m, nil
}

// printable returns s as valid UTF-8 without control characters but line ends and tabs.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// render composes a mail of f's type from one template.
func (t *Templates) render(f *family, from *template, r *Request) (*Mail, error) {
	m := &Mail{Type: f.Type, Locale: from.locale}
	v, err := t.values(f.Type, from, r)
	if err != nil {
		return nil, err
	}
	if from.linked != nil && v.isLink(v.get("link")) { // a code is of use also where its link is not
		from = from.linked()
	}
	if err := t.fill(m, from, v); err != nil {
		return nil, err
	}
	if err := t.write(m, from, v, r); err != nil {
		return nil, err
	}
	return m, nil
}

// fill sets the parts of m that people read, and what providers are given for theirs.
func (t *Templates) fill(m *Mail, from *template, v *values) error {
	var err error
	m.Subject = from.subject.header(v)
	if from.html != nil {
		if m.HTML, err = from.html.fill(v); err != nil {
			return err
		}
	}
	if from.text != nil {
		m.Text, err = from.text.body(v)
	} else if m.Text, err = letter.TextOf(m.HTML); err != nil {
		err = bad("", "%v", err)
	}
	if err != nil {
		return err
	}
	return m.provide(from, v)
}

// provide sets what upstreams are given for the templates that they keep.
func (m *Mail) provide(from *template, v *values) error {
	for _, name := range slices.Sorted(maps.Keys(from.upstream)) {
		p := from.upstream[name]
		variables, err := json.Marshal(p.fill(v, from.locale))
		switch {
		case err != nil:
			return bad("variables", "cannot be written as JSON")
		case len(variables) > maxVariables:
			m.TooMuch = append(m.TooMuch, name)
			continue
		case m.Provided == nil:
			m.Provided = map[string]message.Provided{}
		}
		m.Provided[name] = message.Provided{Template: p.name, Variables: variables}
	}
	return nil
}
