package letter

import (
	"fmt"
	"slices"
	"strings"

	nethtml "golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// TextOf says in plain text what HTML says: blocks become paragraphs, links are followed by where they lead,
// pictures are what their alt text says, and what is hidden is left out.
func TextOf(src string) (string, error) {
	root, err := nethtml.Parse(strings.NewReader(src))
	if err != nil {
		return "", fmt.Errorf("the HTML cannot be read: %w", err)
	}
	var w textWriter
	w.node(root)
	return CloseUp(w.b.String()), nil
}

// CloseUp trims the ends of lines, and makes one empty line of several.
func CloseUp(s string) string {
	var b strings.Builder
	empty := 0
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, " \t\r\n")
		if empty++; line != "" {
			empty = 0
		}
		if empty < 2 && (line != "" || b.Len() > 0) {
			b.WriteString(line + "\n")
		}
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

// textWriter collects text. Line ends are owed until more text comes, so that nested blocks do not add theirs up.
type textWriter struct {
	b     strings.Builder
	lines int  // owed
	space bool // owed
	pre   bool // inside <pre>, where white space stands as it is
}

// node writes what n says.
func (w *textWriter) node(n *nethtml.Node) {
	switch n.Type {
	case nethtml.TextNode:
		w.text(n.Data)
		return
	case nethtml.ElementNode:
		if isHidden(n) {
			return
		}
	case nethtml.CommentNode, nethtml.DoctypeNode:
		return
	}
	before, after := spacing(n.DataAtom)
	w.endLines(before)
	w.open(n)
	for c := range n.ChildNodes() {
		w.node(c)
	}
	w.close(n)
	w.endLines(after)
}

// open writes what an element itself stands for.
func (w *textWriter) open(n *nethtml.Node) {
	switch n.DataAtom {
	case atom.Br:
		w.b.WriteString("\n")
		w.space = false
	case atom.Li:
		w.text("- ")
	case atom.Img:
		w.text(value(n, "alt"))
	case atom.Hr:
		w.text("--")
	case atom.Td, atom.Th:
		w.space = true
	case atom.Pre:
		w.pre = true
	}
}

// close writes what belongs behind the contents of an element.
func (w *textWriter) close(n *nethtml.Node) {
	switch n.DataAtom {
	case atom.A:
		w.link(n)
	case atom.Pre:
		w.pre = false
	}
}

// link writes where a link leads, unless its text says so.
func (w *textWriter) link(n *nethtml.Node) {
	to := strings.TrimSpace(value(n, "href"))
	said := strings.TrimSpace(contents(n))
	if to == "" || strings.HasPrefix(to, "#") || to == said || strings.TrimPrefix(to, "mailto:") == said {
		return
	}
	if said != "" {
		to = ": " + to
	}
	w.text(to)
	w.space = true // what follows is no part of it
}

// text writes s, with white space as HTML has it.
func (w *textWriter) text(s string) {
	if w.pre {
		w.settle()
		w.b.WriteString(s)
		return
	}
	for i, word := range strings.FieldsFunc(s, isHTMLSpace) {
		if i > 0 || isHTMLSpace(rune(s[0])) {
			w.space = true
		}
		w.settle()
		w.b.WriteString(word)
	}
	if s != "" && isHTMLSpace(rune(s[len(s)-1])) {
		w.space = true
	}
}

// settle writes the line ends or the space that is owed.
func (w *textWriter) settle() {
	begins := w.b.Len() == 0 || strings.HasSuffix(w.b.String(), "\n")
	switch {
	case w.b.Len() == 0:
	case w.lines > 0:
		w.b.WriteString(strings.Repeat("\n", w.lines))
	case w.space && !begins:
		w.b.WriteByte(' ')
	}
	w.lines, w.space = 0, false
}

// endLines owes at least that many line ends.
func (w *textWriter) endLines(lines int) { w.lines = max(w.lines, lines) }

// isHTMLSpace tells of ASCII white space: a no-break space is a character like others.
func isHTMLSpace(r rune) bool { return r == ' ' || r == '\n' || r == '\t' || r == '\r' || r == '\f' }

// spacing returns the line ends before and after an element.
func spacing(a atom.Atom) (before, after int) {
	switch a {
	case atom.P, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6, atom.Ul, atom.Ol, atom.Blockquote, atom.Pre, atom.Table, atom.Hr:
		return 2, 2
	case atom.Div, atom.Section, atom.Article, atom.Header, atom.Footer, atom.Main, atom.Tr, atom.Li, atom.Dt, atom.Dd, atom.Center,
		atom.Address, atom.Body:
		return 1, 1
	}
	return 0, 0
}

// isHidden reports whether n shows nothing to a reader.
func isHidden(n *nethtml.Node) bool {
	switch n.DataAtom {
	case atom.Head, atom.Style, atom.Script, atom.Title, atom.Template, atom.Noscript:
		return true
	}
	if slices.ContainsFunc(n.Attr, func(a nethtml.Attribute) bool { return a.Key == "hidden" }) {
		return true
	}
	style := strings.ToLower(strings.Join(strings.Fields(value(n, "style")), ""))
	for declaration := range strings.SplitSeq(style, ";") {
		switch strings.TrimSuffix(declaration, "!important") {
		case "display:none", "visibility:hidden", "max-height:0", "max-height:0px", "opacity:0":
			return true
		}
	}
	return false
}

func value(n *nethtml.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name && a.Namespace == "" {
			return a.Val
		}
	}
	return ""
}

// contents returns the text inside n, that of pictures too.
func contents(n *nethtml.Node) string {
	if n.Type == nethtml.TextNode {
		return n.Data
	}
	if n.DataAtom == atom.Img {
		return value(n, "alt")
	}
	var b strings.Builder
	for c := range n.ChildNodes() {
		b.WriteString(contents(c))
	}
	return b.String()
}
