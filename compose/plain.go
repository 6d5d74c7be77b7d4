package compose

import (
	"strings"

	"gatepost/letter"
)

// plain is a template in plain text, cut at its placeholders.
type plain []part

// part is a literal, or where path is set, a placeholder.
type part struct{ literal, path string }

// cut splits s at its placeholders.
func cut(s string) plain {
	p := plain{}
	done := 0
	for _, m := range placeholder.FindAllStringSubmatchIndex(s, -1) {
		if m[0] > done {
			p = append(p, part{literal: s[done:m[0]]})
		}
		p = append(p, part{path: s[m[2]:m[3]]})
		done = m[1]
	}
	if done < len(s) {
		p = append(p, part{literal: s[done:]})
	}
	return p
}

// names reports whether p has a placeholder for path.
func (p plain) names(path string) bool {
	for _, q := range p {
		if q.path == path {
			return true
		}
	}
	return false
}

// fill puts values in their places as they are on one line.
func (p plain) fill(v *values) string {
	var b strings.Builder
	for _, q := range p {
		b.WriteString(q.literal)
		if q.path != "" {
			b.WriteString(v.text(q.path))
		}
	}
	return b.String()
}

// body fills p in as a part of the mail. Lines that hold nothing for want of a value close up.
func (p plain) body(v *values) (string, error) {
	s := letter.CloseUp(p.fill(v))
	if len(s) > maxBody {
		return "", bad("", "the text would be longer than %d octets", maxBody)
	}
	return s, nil
}

// header fills p in as the value of a header field: one line, cut to a bearable length, in which nothing passes for an
// encoded-word (RFC 2047) that was not written as one.
func (p plain) header(v *values) string {
	s := []rune(clean(p.fill(v)))
	if len(s) > maxLine {
		s = append(s[:maxLine], '…')
	}
	return strings.ReplaceAll(string(s), "=?", "= ?")
}

// String returns p as it was written.
func (p plain) String() string {
	var b strings.Builder
	for _, q := range p {
		b.WriteString(q.literal)
		if q.path != "" {
			b.WriteString("{{ " + q.path + " }}")
		}
	}
	return b.String()
}
