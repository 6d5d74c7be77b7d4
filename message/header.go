package message

import (
	"bytes"
	"iter"
	"strings"
)

// Field is one header field as it stands in the message: name, colon, value, folds and final CRLF.
type Field []byte

// Name returns the field's name as written, without white space before the colon. A line without a colon has no name.
func (f Field) Name() string {
	before, _, ok := bytes.Cut(f, []byte{':'})
	if !ok {
		return ""
	}
	return string(bytes.TrimRight(before, " \t"))
}

// Is reports whether the field has that name, in any case.
func (f Field) Is(name string) bool { return strings.EqualFold(f.Name(), name) }

// Value returns what follows the colon, unfolded (RFC 5322 §2.2.3) and trimmed.
func (f Field) Value() string {
	_, v, _ := bytes.Cut(f, []byte(":"))
	return strings.TrimSpace(strings.ReplaceAll(string(v), "\r\n", ""))
}

// Fields walks over the fields of a header in order.
func Fields(header []byte) iter.Seq[Field] {
	return func(yield func(Field) bool) {
		for len(header) > 0 {
			end := len(header)
			for i := 0; i < len(header); {
				n := bytes.Index(header[i:], []byte("\r\n"))
				if n < 0 {
					break
				}
				i += n + 2
				if i >= len(header) || header[i] != ' ' && header[i] != '\t' {
					end = i
					break
				}
			}
			if !yield(Field(header[:end:end])) {
				return
			}
			header = header[end:]
		}
	}
}
