package compose

import (
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what a request can bring into a mail.
const (
	maxValue   = 1000 // characters of a value; more are cut off
	maxCode    = 64   // octets of a code
	maxLink    = 4000 // octets of a link: some hold a signed token
	maxLine    = 250  // characters of a header field
	maxPath    = 8    // names in a placeholder, and levels of what a provider is given
	maxMembers = 200  // of one object or list that a provider is given
	maxBody    = 1 << 20

	maxVariables = 64 << 10 // octets of JSON that a provider is given
	maxProviders = 16       // of one template
)

// placeholder is Logto's: {{ dotted.path }}. There is one pass: what a value looks like does not matter.
var placeholder = regexp.MustCompile(`\{\{\s*([\w.]+)\s*\}\}`)

// values is what the placeholders of one mail stand for.
type values struct {
	variables map[string]any
	brand     map[string]string
	schemes   []string // of links, beside https
}

// values checks what a mail of a type cannot do without.
func (t *Templates) values(kind Type, found *template, r *Request) (*values, error) {
	v := &values{r.Variables, t.brand, r.LinkSchemes}
	for _, name := range []string{"code", "link"} {
		used := found.names(name) || len(found.upstream) > 0
		needed := kind.Needs == name || kind.Needs == "" && found.names(name)
		s := v.get(name)
		switch {
		case clean(s) == "" && needed:
			return nil, bad(name, "is missing: a mail of type %s is of no use without it", kind.Name)
		case s == "" || !used:
		case name == "code" && !isCode(s):
			return nil, bad(name, "is longer than %d octets or has control characters", maxCode)
		case name == "link" && !v.isLink(s):
			return nil, bad(name, "is not an https URL, nor one of a scheme in link_schemes, of up to %d octets", maxLink)
		}
	}
	return v, nil
}

// isCode reports whether s can be shown in full and typed in.
func isCode(s string) bool {
	return len(s) <= maxCode && !strings.ContainsFunc(s, func(r rune) bool {
		return unicode.IsControl(r) || isInvisible(r) || unicode.Is(unicode.Join_Control, r)
	})
}

// get returns what the variable at a dotted path says, as Logto would print it: "" for what is missing, null or an object.
// Only a value's own members count.
func (v *values) get(path string) string {
	if s, ok := v.brand[path]; ok {
		return s
	}
	var at any = v.variables
	for i, name := range strings.SplitN(path, ".", maxPath+1) {
		if i == maxPath {
			return ""
		}
		at = member(at, name)
	}
	return printed(at, 0)
}

// member returns the member of an object or list, nil where there is none.
func member(of any, name string) any {
	switch of := of.(type) {
	case map[string]any:
		return of[name]
	case []any:
		if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(of) {
			return of[i]
		}
	}
	return nil
}

// printed writes a JSON value as JavaScript prints it, but objects as nothing.
func printed(v any, depth int) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case int:
		return strconv.Itoa(v)
	case bool:
		return strconv.FormatBool(v)
	case interface{ String() string }: // json.Number
		return v.String()
	case []any:
		if depth == maxPath {
			return ""
		}
		var all []string
		for _, e := range v[:min(len(v), maxMembers)] {
			all = append(all, printed(e, depth+1))
		}
		return strings.Join(all, ",")
	}
	return ""
}

// text returns the value at path as one line of bounded length. A link is whole or of no use.
func (v *values) text(path string) string {
	s := v.get(path)
	if v.isLink(s) {
		return s
	}
	return clean(s)
}

// clean makes of s one line that cannot change how what stands around it is read: white space and control characters
// become single spaces, characters that show nothing or turn the direction of what follows (UAX #9 §2) go, and so does what is too long.
func clean(s string) string { return cleanUpTo(s, maxValue) }

// cleanUpTo is clean for another number of characters.
func cleanUpTo(s string, most int) string {
	var b strings.Builder
	n, space := 0, false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r) || unicode.IsControl(r):
			space = true
			continue
		case isInvisible(r):
			continue
		case n == most:
			return b.String() + "…"
		}
		if space && n > 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
		space = false
		n++
	}
	return b.String()
}

// isInvisible tells of format characters, such as bidirectional marks and overrides, zero-width spaces and tags, of
// noncharacters, and of what is not UTF-8. Joiners are part of words and emoji, and signs that enclose numbers are seen.
func isInvisible(r rune) bool {
	return unicode.Is(unicode.Cf, r) && !unicode.In(r, unicode.Join_Control, unicode.Prepended_Concatenation_Mark) ||
		r == utf8.RuneError || unicode.Is(unicode.Noncharacter_Code_Point, r)
}
