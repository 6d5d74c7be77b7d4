package compose

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"slices"
	"strings"

	nethtml "golang.org/x/net/html"
)

// markup is a template in HTML, cut into what stands as it is and what is filled in, with what each place takes.
type markup []slot

// slot is one piece of a markup.
type slot struct {
	place place
	parts plain // one literal for asIs; one placeholder for inText and inStyle; a whole attribute for inURL
}

// place is where a value stands, which decides how it is written there.
type place int

const (
	asIs    place = iota
	inText        // text, a comment, or the value of an attribute in quotes
	inURL         // the whole value of an attribute that holds a URL
	inStyle       // CSS, in an attribute or a style element
)

// urlAttributes hold URLs, some more than one.
var urlAttributes = []string{"href", "src", "srcset", "action", "formaction", "background", "poster", "cite", "longdesc", "data", "ping",
	"codebase", "lowsrc", "dynsrc", "usemap", "profile", "classid", "archive", "icon", "manifest"}

// misplaced is a placeholder that no value can be made safe for, or an HTML template that cannot be read.
type misplaced struct {
	offset int
	text   string
}

// parseMarkup cuts an HTML template at its placeholders. preview, if not empty, becomes hidden text at the start of the body.
func parseMarkup(src string, preview plain) (markup, []misplaced) {
	p := &markupParser{src: src, hidden: preview}
	p.fragment(0, len(src))
	if len(p.hidden) > 0 {
		p.bad(0, "has no <body>, so the preheader has no place")
	}
	return p.out, p.problems
}

type markupParser struct {
	src      string
	hidden   plain // still to be placed
	out      markup
	problems []misplaced
	inside   bool // a comment: nothing nests in it
}

func (p *markupParser) bad(offset int, format string, a ...any) {
	p.problems = append(p.problems, misplaced{offset, fmt.Sprintf(format, a...)})
}

// fragment reads src[from:to] as HTML.
func (p *markupParser) fragment(from, to int) {
	z := nethtml.NewTokenizer(strings.NewReader(p.src[from:to]))
	element := ""
	for at := from; ; {
		kind := z.Next()
		raw := len(z.Raw())
		if kind == nethtml.ErrorToken {
			p.text(at, to, asIs) // an unfinished tag
			return
		}
		end := at + raw
		switch kind {
		case nethtml.TextToken:
			p.text(at, end, placeOfText(element))
		case nethtml.CommentToken:
			p.comment(at, end)
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			name, more := z.TagName()
			element = string(name)
			p.checkLinks(at, element, z, more)
			p.tag(at, end, element)
		case nethtml.EndTagToken:
			element = ""
			p.text(at, end, asIs)
		default:
			p.text(at, end, asIs)
		}
		at = end
	}
}

func placeOfText(element string) place {
	switch element {
	case "style":
		return inStyle
	case "script":
		return asIs
	}
	return inText
}

// text takes src[from:to] with its placeholders at place; asIs allows none.
func (p *markupParser) text(from, to int, at place) {
	s := p.src[from:to]
	if at == asIs {
		if m := placeholder.FindStringIndex(s); m != nil {
			p.bad(from+m[0], "%s stands where no value can be made safe; put it into text or the value of an attribute", s[m[0]:m[1]])
		}
		p.literal(s)
		return
	}
	for _, m := range placeholder.FindAllStringIndex(s, -1) {
		if tagBegun.MatchString(s[max(0, m[0]-32):m[0]]) {
			p.bad(from+m[0], "%s stands right behind a <, so its value would become a tag; write &lt;", s[m[0]:m[1]])
		}
	}
	for _, q := range cut(s) {
		if q.path == "" {
			p.literal(q.literal)
			continue
		}
		p.out = append(p.out, slot{at, plain{q}})
	}
}

// tagBegun is text that more text could make a tag of.
var tagBegun = regexp.MustCompile(`<[/!?]?[A-Za-z-]*$`)

func (p *markupParser) literal(s string) {
	if s != "" {
		p.out = append(p.out, slot{asIs, plain{{literal: s}}})
	}
}

// conditional is what Outlook reads of a comment: <!--[if mso]> HTML <![endif]-->.
var conditional = regexp.MustCompile(`(?s)^<!--\[if[^\]]*\]>(.*)<!\[endif\]-->$`)

func (p *markupParser) comment(from, to int) {
	if !strings.HasPrefix(p.src[from:to], "<!--") { // a tag gone wrong, which browsers take for a comment
		p.text(from, to, asIs)
		return
	}
	m := conditional.FindStringSubmatchIndex(p.src[from:to])
	if m == nil || p.inside {
		p.text(from, to, inText)
		return
	}
	p.literal(p.src[from : from+m[2]])
	p.inside = true
	p.fragment(from+m[2], from+m[3])
	p.inside = false
	p.literal(p.src[from+m[3] : to])
}

// attribute is name="value" in the source of a tag, as the HTML standard reads it (§13.2.5.32 to 38): group 1 the name, 2
// the value with its quotes.
var attribute = regexp.MustCompile(`(?s)([^\s>/][^\s>/=]*)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s>"'][^\s>]*))?`)

// checkLinks refuses attributes of the tag at offset that lead to a script.
func (p *markupParser) checkLinks(offset int, tag string, z *nethtml.Tokenizer, more bool) {
	for more {
		var key, value []byte
		key, value, more = z.TagAttr()
		name, scheme := localName(string(key)), schemeOf(string(value))
		if slices.Contains(urlAttributes, name) && isScript(scheme) && (scheme != "data" || placeholder.Match(value)) {
			p.bad(offset, "%s of <%s> leads to a %s: URL, which no mail program opens", name, tag, scheme)
		}
	}
}

// localName returns the name of an attribute without a namespace in front, as v:href has it.
func localName(name string) string {
	if _, local, prefixed := strings.Cut(name, ":"); prefixed {
		return local
	}
	return name
}

// tag reads the start tag src[from:to].
func (p *markupParser) tag(from, to int, name string) {
	before := len(p.out)
	if strings.Contains(p.src[from:to], "{{") {
		p.attributes(from, to, name)
	} else {
		p.literal(p.src[from:to])
	}
	p.checkWhole(from, to, p.out[before:])
	if name == "body" && !p.inside {
		p.preheader()
	}
}

// attributes cuts up the start tag src[from:to], which may hold placeholders.
func (p *markupParser) attributes(from, to int, name string) {
	done := from + 1 + len(name)
	p.literal(p.src[from:done])
	for done < to {
		m := attribute.FindStringSubmatchIndex(p.src[done:to])
		if m == nil {
			break
		}
		start := m[1]
		if m[4] >= 0 {
			start = m[4]
		}
		p.text(done, done+start, asIs)
		if m[4] >= 0 {
			p.attribute(name, localName(strings.ToLower(p.src[done+m[2]:done+m[3]])), done+m[4], done+m[5])
		}
		done += m[1]
	}
	p.text(done, to, asIs)
}

// checkWhole refuses a placeholder of the tag src[from:to] that is in none of its slots: it stands in the tag's name, or
// without quotes, so that the white space in it ends the value.
func (p *markupParser) checkWhole(from, to int, slots markup) {
	found := 0
	for _, s := range slots {
		for _, q := range s.parts {
			if q.path != "" {
				found++
			}
		}
	}
	all := placeholder.FindAllStringIndex(p.src[from:to], -1)
	if len(p.problems) == 0 && found < len(all) {
		m := all[found]
		p.bad(from+m[0], "%s stands in a tag without quotes around it", p.src[from+m[0]:from+m[1]])
	}
}

// attribute takes the value src[from:to] with its quotes.
func (p *markupParser) attribute(tag, name string, from, to int) {
	value := p.src[from:to]
	if !placeholder.MatchString(value) {
		p.literal(value)
		return
	}
	quote := `"` // also where the template has none: without, an empty value would take in what follows
	if value[0] == '"' || value[0] == '\'' {
		quote = value[:1]
		from, to = from+1, to-1
	}
	if p.literal(quote); strings.Contains(p.src[from:to], quote) {
		p.bad(from, "%s stands in a tag without quotes around it", placeholder.FindString(value))
	}
	switch {
	case strings.HasPrefix(name, "on") || name == "srcdoc" || tag == "meta" || tag == "base" || tag == "script":
		p.bad(from, "%s stands in %s of <%s>, where no value can be made safe", placeholder.FindString(value), name, tag)
	case slices.Contains(urlAttributes, name):
		p.out = append(p.out, slot{inURL, cut(p.src[from:to])})
	case name == "style":
		p.text(from, to, inStyle)
	default:
		p.text(from, to, inText)
	}
	p.literal(quote)
}

// preheader puts the pre-header behind the body's tag: hidden, and followed by blanks, so that mailboxes show nothing of
// the body behind it.
func (p *markupParser) preheader() {
	if len(p.hidden) == 0 {
		return
	}
	p.literal("\n" + `<div style="display:none;max-height:0;max-width:0;overflow:hidden;opacity:0;font-size:1px;line-height:1px;mso-hide:all">`)
	for _, q := range p.hidden {
		if q.path == "" {
			p.literal(html.EscapeString(q.literal))
			continue
		}
		p.out = append(p.out, slot{inText, plain{q}})
	}
	p.literal(strings.Repeat("&#847;&zwnj;&nbsp;", 40) + "</div>\n")
	p.hidden = nil
}

// names reports whether m has a placeholder for path.
func (m markup) names(path string) bool {
	return slices.ContainsFunc(m, func(s slot) bool { return s.parts.names(path) })
}

// fill puts values in their places.
func (m markup) fill(v *values) (string, error) {
	var b bytes.Buffer
	for _, s := range m {
		switch s.place {
		case asIs:
			b.WriteString(s.parts[0].literal)
		case inText:
			b.WriteString(html.EscapeString(v.text(s.parts[0].path)))
		case inStyle:
			b.WriteString(v.style(s.parts[0].path))
		case inURL:
			b.WriteString(html.EscapeString(v.url(s.parts)))
		}
		if b.Len() > maxBody {
			return "", bad("", "the HTML would be longer than %d octets", maxBody)
		}
	}
	return b.String(), nil
}

// styleValue is what CSS takes in any place without another declaration, comment or string beginning: words, numbers,
// colours.
var styleValue = regexp.MustCompile(`^[\w .,%#-]*$|^rgba?\([\d., %]*\)$`)

// styleURL is a link whose characters mean nothing to CSS, so that url({{ logo }}) works.
var styleURL = regexp.MustCompile(`^[\w.~:/?#!$+,=%-]*$`)

// style returns the value at path for CSS; "" where it could be read as more than one value.
func (v *values) style(path string) string {
	s := v.text(path)
	if styleValue.MatchString(s) || styleURL.MatchString(s) && v.isLink(s) {
		return s
	}
	return ""
}
