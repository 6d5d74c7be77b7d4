package hook

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gatepost/message"
)

const (
	maxDepth   = 32  // of objects and lists in each other
	maxLocales = 10  // of a request
	maxTag     = 35  // octets of a language tag (RFC 5646 §4.4.1)
	maxSubject = 998 // octets
	maxType    = 64  // octets of the type of a mail
)

// decode reads one JSON value. Fields that v does not have are ignored, and numbers stay as they are written.
func decode(body []byte, v any) error {
	switch {
	case !utf8.Valid(body):
		return invalid("", "it is not valid UTF-8")
	case depth(body) > maxDepth:
		return invalid("", "it is nested more than %d levels deep", maxDepth)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
			return invalid(e.Field, "is not of the type that it must be")
		}
		return invalid("", "it is not a JSON object of this kind")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("", "something follows the JSON object")
	}
	return nil
}

// depth returns how deep objects and lists are nested. The parser would find out by recursion.
func depth(body []byte) (deepest int) {
	n, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			n++
			deepest = max(deepest, n)
		case c == '}' || c == ']':
			n--
		}
	}
	return deepest
}

// address reads a mailbox at a field: one, without a name.
func address(field, s string) (message.Address, error) {
	if s == "" {
		return message.Address{}, invalid(field, "is missing")
	}
	a, err := message.ParseAddress(s)
	if err != nil {
		return a, invalid(field, "is not one address: %v", err)
	}
	return a, nil
}

// text returns the string at a path of an object, "" for anything else.
func text(m map[string]any, path ...string) string {
	for _, name := range path[:len(path)-1] {
		m, _ = m[name].(map[string]any)
	}
	switch v := m[path[len(path)-1]].(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	return ""
}

// clean makes foreign text fit for a header field or a log: one line of printable characters and at most so many octets.
func clean(s string, most int) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r), unicode.IsControl(r):
			return ' '
		case !unicode.IsGraphic(r) && r != '\u200d' && r != '\u200c': // joiners are part of words and emoji
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))), " ")
	for len(s) > most {
		_, n := utf8.DecodeLastRuneInString(s[:most+1])
		s = s[:most+1-n]
	}
	return s
}

// locales returns the tags in texts, each a list with spaces or commas between, best first, as far as they could be
// language tags. Weights (RFC 9110 §12.4.2) and the character set of a POSIX locale are left off.
func locales(texts ...string) (tags []string) {
	for _, t := range texts {
		for tag := range strings.FieldsFuncSeq(t[:min(len(t), 4096)], func(r rune) bool { return unicode.IsSpace(r) || r == ',' }) {
			if i := strings.IndexAny(tag, ";.@"); i >= 0 {
				tag = tag[:i]
			}
			tag = strings.ReplaceAll(tag, "_", "-")
			if tag != "" && len(tag) <= maxTag && len(tags) < maxLocales && !slices.Contains(tags, tag) &&
				strings.Trim(strings.ToLower(tag), "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
				tags = append(tags, tag)
			}
		}
	}
	return tags
}

// personIP reads the address of a person that a request names; invalid where it is none, or one that many share.
func personIP(s string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return netip.Addr{}
	}
	a = a.Unmap().WithZone("")
	if !a.IsGlobalUnicast() || a.IsPrivate() || netip.MustParsePrefix("100.64.0.0/10").Contains(a) {
		return netip.Addr{}
	}
	return a
}
