package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// positions tells on which line each key of a TOML document stands. Keys are paths as toml.Key writes them, with the
// index of list elements: stream.auth.dkim[1].selector. The TOML library knows the keys but not their lines.
type positions map[string]int

// line returns the line of the key at path, or where it is not written, of the innermost table around it.
func (p positions) line(path string) int {
	for path != "" {
		if n, ok := p[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 1
}

// Lines returns what tells on which line of a TOML document each key stands, by its path as toml.Key writes it. src must
// be a document that the TOML library has accepted. A key that it does not have is on the line of the table around it.
func Lines(src string) func(path string) int { return index(src).line }

// index walks over the source of a document that the TOML library has accepted. What it does not understand it steps
// over: a missing key only costs precision, since line then answers with the table around it.
func index(src string) positions {
	s := scanner{src: strings.TrimPrefix(src, "\ufeff"), line: 1, found: positions{}, elements: map[string]int{}}
	s.document()
	return s.found
}

type scanner struct {
	src      string // what is left
	line     int    // of src[0]
	found    positions
	elements map[string]int // of each [[list of tables]] so far
}

func (s *scanner) document() {
	table := ""
	for s.blank(); s.src != ""; s.blank() {
		if s.accept("[[") {
			table = s.header(true)
		} else if s.accept("[") {
			table = s.header(false)
		} else {
			s.pair(table)
		}
	}
}

// header reads what follows [ or [[ and returns the path of the table it opens. A table inside a list of tables
// belongs to the list's last element.
func (s *scanner) header(list bool) (path string) {
	names := s.key()
	for i, name := range names {
		path = join(path, name)
		last := i == len(names)-1
		if last && list {
			s.elements[path]++
		}
		s.mark(path, last && !list)
		if n := s.elements[path]; n > 0 {
			path = element(path, n-1)
			s.mark(path, last)
		}
	}
	s.accept("]")
	if list {
		s.accept("]")
	}
	return path
}

// pair reads key = value inside the table at path.
func (s *scanner) pair(path string) {
	names := s.key()
	for i, name := range names {
		path = join(path, name)
		s.mark(path, i == len(names)-1)
	}
	s.space()
	if !s.accept("=") {
		s.advance(1)
		return
	}
	s.space()
	s.value(path)
}

// mark notes the current line for path. Its own line wins over one where it is only the beginning of a longer key.
func (s *scanner) mark(path string, own bool) {
	if _, known := s.found[path]; own || !known {
		s.found[path] = s.line
	}
}

func (s *scanner) value(path string) {
	switch {
	case s.accept(`"""`):
		s.until(`"""`, true)
		s.accept(`"`) // up to two quotes may stand before the closing three
		s.accept(`"`)
	case s.accept(`'''`):
		s.until(`'''`, false)
		s.accept(`'`)
		s.accept(`'`)
	case s.accept(`"`):
		s.until(`"`, true)
	case s.accept(`'`):
		s.until(`'`, false)
	case s.accept("["):
		s.list(path)
	case s.accept("{"):
		s.inline(path)
	default:
		s.advance(span(s.src, ",]}#\n"))
	}
}

// list reads the elements of [ … ]. Lists inside lists are not told apart: no key of ours has one.
func (s *scanner) list(path string) {
	for i := 0; ; i++ {
		s.blank()
		if s.src == "" || s.accept("]") {
			return
		}
		before := len(s.src)
		inner := path
		if s.src[0] != '[' {
			inner = element(path, i)
			s.mark(inner, true)
		}
		s.value(inner)
		s.separator(before)
	}
}

// inline reads the pairs of { … }.
func (s *scanner) inline(path string) {
	for {
		s.blank()
		if s.src == "" || s.accept("}") {
			return
		}
		before := len(s.src)
		s.pair(path)
		s.separator(before)
	}
}

// separator steps over the comma after an element, and over one octet where nothing was read since before.
func (s *scanner) separator(before int) {
	s.blank()
	s.accept(",")
	if len(s.src) == before {
		s.advance(1)
	}
}

// key reads a dotted key.
func (s *scanner) key() (names []string) {
	for {
		s.space()
		names = append(names, s.name())
		s.space()
		if !s.accept(".") {
			return names
		}
	}
}

// name reads one part of a key: bare, "basic" or 'literal'.
func (s *scanner) name() string {
	start := s.src
	read := func() string { return start[:len(start)-len(s.src)] }
	switch {
	case s.accept(`"`):
		s.until(`"`, true)
		if unquoted, err := strconv.Unquote(read()); err == nil {
			return unquoted
		}
		return read()
	case s.accept(`'`):
		s.until(`'`, false)
		return strings.Trim(read(), "'")
	default:
		s.advance(span(s.src, " \t\r\n.=[]{}\"',#"))
		return read()
	}
}

// until steps behind the next end, past backslash escapes where there are such.
func (s *scanner) until(end string, escapes bool) {
	for s.src != "" && !s.accept(end) {
		if escapes && s.src[0] == '\\' {
			s.advance(min(2, len(s.src)))
			continue
		}
		s.advance(1)
	}
}

// blank steps over white space, line ends and comments.
func (s *scanner) blank() {
	for s.src != "" {
		switch s.src[0] {
		case ' ', '\t', '\r', '\n':
			s.advance(1)
		case '#':
			s.advance(span(s.src, "\n"))
		default:
			return
		}
	}
}

// space steps over white space inside a line.
func (s *scanner) space() {
	s.advance(len(s.src) - len(strings.TrimLeft(s.src, " \t")))
}

func (s *scanner) accept(prefix string) bool {
	if !strings.HasPrefix(s.src, prefix) {
		return false
	}
	s.advance(len(prefix))
	return true
}

func (s *scanner) advance(n int) {
	n = min(n, len(s.src))
	s.line += strings.Count(s.src[:n], "\n")
	s.src = s.src[n:]
}

// span returns the number of octets of s before the first of chars.
func span(s, chars string) int {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return i
	}
	return len(s)
}

// join returns the path of the key name inside the table at path.
func join(path, name string) string {
	name = toml.Key{name}.String()
	if path == "" {
		return name
	}
	return path + "." + name
}

// element returns the path of the i-th element, from 0, of the list at path.
func element(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }
