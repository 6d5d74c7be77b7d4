package compose

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/text/language"
)

// roots are the variables that Logto and gatepost fill in. An invitation may have others.
var roots = []string{"code", "link", "locale", "uiLocales", "user", "organization", "application", "inviter",
	"senderName", "companyInformation", "appLogo", "brandColor"}

// template cuts up one source and checks it.
func (l *loader) template(kind Type, tag language.Tag, s *source) *template {
	t := &template{locale: tag, files: s.files, subject: cut(s.about.subject.value), preview: cut(s.about.preheader.value)}
	t.from = l.sender(s.about, "from", s.about.from)
	t.replyTo = l.sender(s.about, "reply_to", s.about.replyTo)
	if s.html.content != "" {
		t.html = l.markup(s.html, t.preview)
	}
	if s.text.content != "" {
		t.text = cut(s.text.content)
	}
	t.upstream = providers(s.about.upstream)
	if s.linked != nil {
		t.linked = sync.OnceValue(func() *template { // many never need it
			linked := *t
			linked.html, _ = parseMarkup(s.linked.html.content, t.preview)
			linked.text = cut(s.linked.text.content)
			return &linked
		})
	}
	if len(s.files) > 0 {
		l.check(kind, t, s)
	}
	return t
}

func (l *loader) sender(about settings, key string, e entry) *sender {
	if e.value == "" {
		return nil
	}
	s, err := parseSender(e.value)
	if err != nil {
		l.bad(about.file, e.line, key, "", "%v", err)
		return nil
	}
	if key == "reply_to" && len(s.address) == 0 {
		if len(s.name) == 1 && s.name[0].path != "" { // as Logto has it: {{ user.primaryEmail }}
			return &sender{address: s.name}
		}
		l.warn(about.file, e.line, `write reply_to = "help@example.com"`, "reply_to has no address: it is used only where a request brings one")
	}
	return s
}

// markup cuts up an HTML file and tells what is misplaced in it.
func (l *loader) markup(d document, preview plain) markup {
	m, problems := parseMarkup(d.content, preview)
	for _, p := range problems[:min(len(problems), maxTold)] {
		l.bad(d.file, d.lineOf(p.offset), "", "", "%s", p.text)
	}
	return m
}

// check looks at a template of the directory for what would make its mail useless, and for what looks like a mistake.
func (l *loader) check(kind Type, t *template, s *source) {
	if t.html == nil && t.text == nil {
		l.bad(s.files[0], 1, "", "add "+t.locale.String()+".html or .txt beside it", "has no text, and there is no built-in one of this type and language")
		return
	}
	if len(t.subject) == 0 && s.about.subject.line == 0 {
		l.bad(s.files[0], 1, "", "write subject = \"…\" in "+t.locale.String()+".toml beside it", "has no subject")
	}
	if t.html == nil && len(t.preview) > 0 && s.about.preheader.line > 0 {
		l.warn(s.about.file, s.about.preheader.line, "", "preheader is not used: there is no HTML to hide it in")
	}
	for _, d := range []struct {
		document
		names bool
	}{{s.html, t.html.names(kind.Needs)}, {s.text, t.text.names(kind.Needs)}} {
		if d.file == "" {
			continue
		}
		if kind.Needs != "" && !d.names {
			l.bad(d.file, 1, "", "write {{ "+kind.Needs+" }} where it belongs", "does not have the %s, without which mail of type %s is of no use", kind.Needs, kind.Name)
		}
		l.checkPlaceholders(d.document)
		if len(d.content) > clipped {
			l.warn(d.file, 1, "make it smaller", "is larger than %d KB: Gmail shows only the beginning", clipped>>10)
		}
	}
}

// maxTold bounds what is told of one file. Who writes it mends the first ones and asks again.
const maxTold = 20

// checkPlaceholders warns of what looks like a placeholder and is none that will ever be filled in.
func (l *loader) checkPlaceholders(d document) {
	before := len(l.warnings)
	for at := 0; len(l.warnings) < before+maxTold; {
		i := strings.Index(d.content[at:], "{{")
		if i < 0 {
			return
		}
		at += i
		m := placeholder.FindStringSubmatchIndex(d.content[at:min(len(d.content), at+250)])
		if m == nil || m[0] > 1 { // {{{ code }}} is { and a placeholder
			l.warn(d.file, d.lineOf(at), "placeholders are {{ name }} or {{ dotted.name }}, without conditions and loops", "{{ stands here as it is")
			at += 2
			continue
		}
		path := d.content[at+m[2] : at+m[3]]
		if root, _, _ := strings.Cut(path, "."); !slices.Contains(roots, root) {
			l.warn(d.file, d.lineOf(at), "", "%q is filled in only where the auth server sends it", path)
		}
		at += m[1]
	}
}

// names reports whether the mail has a placeholder for path.
func (t *template) names(path string) bool {
	return t.subject.names(path) || t.preview.names(path) || t.html.names(path) || t.text.names(path)
}
