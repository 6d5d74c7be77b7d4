package letter

import (
	"errors"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxParameters bounds a field with parameters, in octets.
const maxParameters = 8 << 10

var errParameters = errors.New("it is not a value with parameters")

// parameters reads the value and the parameters of a Content-Type or Content-Disposition field (RFC 2045 §5.1, RFC
// 2183): continued and in any character set (RFC 2231), or in the encoded-words that RFC 2047 forbids here and many
// write. The names are in lower case. Package mime drops a parameter in a character set that it does not know.
func parameters(field string) (value string, params map[string]string, err error) {
	if len(field) > maxParameters {
		return "", nil, errParameters
	}
	pieces, err := splitParameters(field)
	if err != nil {
		return "", nil, err
	}
	plain, extended := map[string]string{}, map[string]sections{}
	for _, piece := range pieces[1:] {
		name, v, ok := strings.Cut(piece, "=")
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || name == "" {
			return "", nil, errParameters
		}
		if v, err = unquoted(v); err != nil {
			return "", nil, err
		}
		base, rest, ok := strings.Cut(name, "*")
		switch {
		case ok && extended[base] == nil:
			extended[base] = sections{}
			fallthrough
		case ok:
			err = extended[base].add(rest, v)
		case plain[name] != "" && plain[name] != v:
			err = errParameters
		default:
			plain[name], err = decodeWords(v)
		}
		if err != nil {
			return "", nil, err
		}
	}
	for name, s := range extended { // beside a plain one for old readers, this is the one that is meant
		if plain[name], err = s.join(); err != nil {
			return "", nil, err
		}
	}
	return strings.ToLower(strings.TrimSpace(pieces[0])), plain, nil
}

// splitParameters cuts a field at the semicolons outside quoted strings and leaves out comments and empty pieces.
func splitParameters(s string) ([]string, error) {
	pieces := []string{""}
	depth, quoted := 0, false
	for i := 0; i < len(s); i++ {
		c, n := s[i], 1
		if c == '\\' && (quoted || depth > 0) && i+1 < len(s) {
			n = 2
		}
		switch {
		case c == '"' && depth == 0:
			quoted = !quoted
		case c == '(' && !quoted:
			depth++
		case c == ';' && !quoted && depth == 0:
			pieces = append(pieces, "")
			continue
		}
		if depth == 0 {
			pieces[len(pieces)-1] += s[i : i+n]
		}
		if c == ')' && !quoted && depth > 0 {
			depth--
		}
		i += n - 1
	}
	if quoted || depth > 0 {
		return nil, errParameters
	}
	named := slices.DeleteFunc(pieces[1:], func(p string) bool { return strings.TrimSpace(p) == "" })
	return append(pieces[:1], named...), nil
}

// unquoted returns what a quoted string holds, or a bare value as it is. A backslash that escapes nothing stays: it
// stands in the paths of careless writers.
func unquoted(s string) (string, error) {
	s = strings.TrimSpace(s)
	if !strings.HasPrefix(s, `"`) {
		return s, nil
	}
	inner, ok := strings.CutSuffix(s[1:], `"`)
	if !ok {
		return "", errParameters
	}
	var out strings.Builder
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) && (inner[i+1] == '"' || inner[i+1] == '\\') {
			i++
		} else if inner[i] == '"' {
			return "", errParameters
		}
		out.WriteByte(inner[i])
	}
	return out.String(), nil
}

// sections are the pieces of an extended parameter (RFC 2231 §3, §4) by number.
type sections map[int]section

type section struct {
	text    string
	encoded bool // with %XX
}

// add takes in the piece whose name ended in rest behind the first asterisk: "", "0", "0*", "1" …
func (s sections) add(rest, text string) error {
	number, encoded := strings.CutSuffix(rest, "*")
	if rest == "" {
		number, encoded = "0", true
	}
	n, err := strconv.Atoi(number)
	if _, twice := s[n]; err != nil || n < 0 || strconv.Itoa(n) != number || twice {
		return errParameters
	}
	s[n] = section{text, encoded}
	return nil
}

// join returns the whole parameter as UTF-8.
func (s sections) join() (string, error) {
	charset, octets := "", ""
	for i, n := range slices.Sorted(maps.Keys(s)) {
		text := s[n].text
		if n != i {
			return "", errParameters
		}
		if !s[n].encoded {
			octets += text
			continue
		}
		if n == 0 {
			parts := strings.SplitN(text, "'", 3) // character set, language, text
			if len(parts) < 3 {
				return "", errParameters
			}
			charset, text = parts[0], parts[2]
		}
		decoded, err := url.PathUnescape(text)
		if err != nil {
			return "", errParameters
		}
		octets += decoded
	}
	return decodeText([]byte(octets), charset)
}
