package letter

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/emersion/go-message/charset"
)

// wordDecoder decodes encoded-words (RFC 2047) of every character set that go-message knows.
var wordDecoder = &mime.WordDecoder{CharsetReader: charset.Reader}

var addressParser = mail.AddressParser{WordDecoder: wordDecoder}

var errMojibake = errors.New("it has octets that its character set does not")

// decodeWords decodes the encoded-words of a header value, which may hold raw UTF-8 as well (RFC 6532).
func decodeWords(s string) (string, error) {
	decoded, err := wordDecoder.DecodeHeader(s)
	if err != nil {
		return "", errors.New("the character set of an encoded-word is not known")
	}
	return decoded, sound(decoded)
}

// sound returns an error where text could not be decoded whole.
func sound(s string) error {
	if !utf8.ValidString(s) || strings.ContainsRune(s, utf8.RuneError) {
		return errMojibake
	}
	return nil
}

// spaced puts a space in the place of each control character and line end, so that a decoded value cannot become two
// header fields when a service writes it into one.
func spaced(s string) string {
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s))
}

// decodeText returns text of a character set as UTF-8. Without a name it must be UTF-8 already, of which ASCII is a
// part; that is what many writers of "us-ascii" send, too.
func decodeText(b []byte, name string) (string, error) {
	switch name = strings.ToLower(name); name {
	case "", "us-ascii", "ascii", "utf-8", "utf8":
		if !utf8.Valid(b) {
			return "", unfit("5.6.3", "A text has 8-bit characters that are not UTF-8, and does not say what they are")
		}
		return string(b), nil
	}
	r, err := charset.Reader(name, bytes.NewReader(b))
	if err != nil {
		return "", unfit("5.6.3", "A text is in the character set %q, which is not known", printable(name))
	}
	decoded, err := io.ReadAll(r)
	if err == nil {
		err = sound(string(decoded))
	}
	if err != nil {
		return "", unfit("5.6.3", "A text in the character set %q cannot be decoded: %v", printable(name), errMojibake)
	}
	return string(decoded), nil
}

// decodeTransfer undoes a Content-Transfer-Encoding (RFC 2045 §6).
func decodeTransfer(body []byte, encoding string) ([]byte, error) {
	var r io.Reader
	switch {
	case isIdentity(encoding):
		return body, nil
	case encoding == "quoted-printable":
		// The decoder wants a line at a time in the buffer, however long it is.
		r = quotedprintable.NewReader(bufio.NewReaderSize(bytes.NewReader(body), longestLine(body)+1))
	case encoding == "base64":
		r = base64.NewDecoder(base64.StdEncoding, &alphabetReader{bytes.NewReader(body)})
	default:
		return nil, unfit("5.6.1", "A part has the transfer encoding %q, which is not known", printable(encoding))
	}
	decoded := bytes.NewBuffer(make([]byte, 0, len(body)+bytes.MinRead)) // it gets no longer
	if _, err := decoded.ReadFrom(r); err != nil {
		return nil, unfit("5.6.0", "A part is not what its transfer encoding (%s) says", encoding)
	}
	return decoded.Bytes(), nil
}

// isIdentity reports whether a transfer encoding leaves the octets as they are.
func isIdentity(encoding string) bool {
	return encoding == "" || encoding == "7bit" || encoding == "8bit" || encoding == "binary"
}

// longestLine returns the length of the longest line of b with its end.
func longestLine(b []byte) int {
	longest := 0
	for line := range bytes.SplitAfterSeq(b, []byte("\n")) {
		longest = max(longest, len(line))
	}
	return longest
}

// alphabetReader leaves out what a decoder of base64 ignores (RFC 2045 §6.8).
type alphabetReader struct{ r io.Reader }

func (a *alphabetReader) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	kept := p[:0]
	for _, c := range p[:n] {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '=' {
			kept = append(kept, c)
		}
	}
	return len(kept), err
}

// printable makes a word of the message fit for a reply text.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 60)]
}
