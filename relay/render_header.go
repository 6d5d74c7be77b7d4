package relay

import (
	"bytes"
	"encoding/base64"
	"mime"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"gatepost/message"
)

// headerWidth is where a field that must be folded is folded (RFC 5322 §2.1.1).
const headerWidth = 78

// writeField writes a header field: as it is where it fits, else encoded and folded.
func writeField(w *bytes.Buffer, f message.Field, utf8OK bool) error {
	o := look(f)
	if o.fits(utf8OK) {
		w.Write(f)
		return nil
	}
	head, rest, ok := bytes.Cut(f, []byte(":"))
	if !ok || !isASCII(head) {
		return unfit("5.6.0", "A header line has no field name")
	}
	name := f.Name()
	value := strings.Trim(strings.ReplaceAll(string(rest), "\r\n", ""), " \t\r\n")
	if o.eightBit && !utf8OK {
		var err error
		if value, err = encodeValue(name, value); err != nil {
			return err
		}
	}
	folded := []byte(fold(name+": "+value) + "\r\n")
	if look(folded).long {
		return unfit("5.6.0", "The %s field has more than %d octets without a place to fold", clipped(name), maxLine)
	}
	w.Write(folded)
	return nil
}

// fold breaks a field at white space into lines of 78 octets, or longer ones where it has none.
func fold(s string) string {
	var out strings.Builder
	for len(s) > headerWidth {
		at := foldPoint(s)
		if at < 0 {
			break
		}
		out.WriteString(s[:at] + "\r\n")
		s = s[at:]
	}
	out.WriteString(s)
	return out.String()
}

// foldPoint returns the last white space of s that a line of 78 octets may end before, else the first one behind;
// -1 for none. Neither line is left without text.
func foldPoint(s string) int {
	first := len(s) - len(strings.TrimLeft(s, " \t"))
	last := len(strings.TrimRight(s, " \t")) - 1
	at := -1
	for i := first + 1; i < last && (i <= headerWidth || at < 0); i++ {
		if s[i] == ' ' || s[i] == '\t' {
			at = i
		}
	}
	return at
}

// What a field holds decides how its 8-bit text can be encoded; fields in neither list are free text.
var (
	addressFields = []string{
		"from", "sender", "reply-to", "to", "cc", "resent-from", "resent-sender", "resent-to", "resent-cc", "resent-reply-to",
		"disposition-notification-to", "return-receipt-to", "errors-to",
	}
	opaqueFields = []string{
		"message-id", "in-reply-to", "references", "resent-message-id", "date", "resent-date", "return-path", "mime-version",
		"content-id", "content-transfer-encoding", "dkim-signature", "arc-seal", "arc-message-signature",
		"arc-authentication-results", "authentication-results",
	}
)

// encodeValue puts the unfolded value of a field into ASCII: words as RFC 2047, parameters as RFC 2231, domains as
// A-labels.
func encodeValue(name, value string) (string, error) {
	switch lower := strings.ToLower(name); {
	case slices.Contains(addressFields, lower) || strings.HasPrefix(lower, "list-"):
		return encodeAddresses(name, value)
	case lower == "content-type" || lower == "content-disposition":
		kind, params, err := mime.ParseMediaType(value)
		if err != nil {
			return "", unfit("5.6.0", "The %s field of a part cannot be read", name)
		}
		if value = mime.FormatMediaType(kind, params); value == "" {
			return "", unfit("5.6.0", "The %s field of a part cannot be encoded", name)
		}
		return value, nil
	case slices.Contains(opaqueFields, lower):
		return "", unfit("5.6.3", "The %s field has 8-bit characters, which the next hop does not take", clipped(name))
	case lower == "received":
		return clipTrace(value), nil
	}
	return encodeText(value), nil
}

// clipTrace replaces 8-bit characters in a trace field of another host: nothing reads them.
func clipTrace(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return '?'
		}
		return r
	}, s)
}

// rawWord is what Zitadel makes of a subject: an encoded-word whose text was never encoded.
var rawWord = regexp.MustCompile(`^=\?(?i:utf-8\?q)\?([^?]*[^\x00-\x7f][^?]*)\?=$`)

var textWord = regexp.MustCompile(`[^ \t]+`)

// encodeText encodes the runs of words with 8-bit characters and leaves the other words, encoded ones too, alone.
// White space between two encoded-words vanishes when they are decoded (RFC 2047 §6.2), so it goes into the run.
func encodeText(s string) string {
	if m := rawWord.FindStringSubmatch(s); m != nil {
		s = m[1]
	}
	words := textWord.FindAllStringIndex(s, -1)
	word := func(i int) string {
		if i < 0 || i >= len(words) {
			return ""
		}
		return s[words[i][0]:words[i][1]]
	}
	var out strings.Builder
	done := 0 // s[:done] is written
	for i := 0; i < len(words); i++ {
		if isASCIIString(word(i)) {
			continue
		}
		last := i
		for last+1 < len(words) && !isASCIIString(word(last+1)) {
			last++
		}
		from, to, behind := words[i][0], words[last][1], ""
		if isEncodedWord(word(i - 1)) {
			from = words[i-1][1]
		}
		if isEncodedWord(word(last + 1)) {
			to, behind = words[last+1][0], " "
		}
		out.WriteString(s[done:from])
		if from < words[i][0] {
			out.WriteByte(' ')
		}
		out.WriteString(encodedWords(s[from:to]) + behind)
		i, done = last, to
	}
	return out.String() + s[done:]
}

func isEncodedWord(s string) bool { return strings.HasPrefix(s, "=?") && strings.HasSuffix(s, "?=") }

// encodedWords writes s as RFC 2047 B-words of at most 75 octets. B is fit for every place, also for phrases.
func encodedWords(s string) string {
	charset := "utf-8"
	if !utf8.ValidString(s) {
		charset = "unknown-8bit" // RFC 1428
	}
	var words []string
	for s != "" {
		n := min(len(s), 39) // 52 octets of base64
		for charset == "utf-8" && n < len(s) && !utf8.RuneStart(s[n]) {
			n--
		}
		words = append(words, "=?"+charset+"?B?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, " ")
}

// encodeAddresses encodes the display names and comments of an address list, and puts domains into A-labels. What
// stands between them keeps its form.
func encodeAddresses(name, s string) (string, error) {
	var out []byte
	for s != "" {
		n := tokenLen(s)
		if n == 0 {
			return "", unfit("5.6.0", "The %s field is not a list of addresses", clipped(name))
		}
		token, rest := s[:n], s[n:]
		s = rest
		if isASCIIString(token) {
			out = append(out, token...)
			continue
		}
		if token[0] == '"' && strings.HasPrefix(strings.TrimLeft(rest, " \t"), "@") {
			return "", errAddress
		}
		encoded, err := encodeToken(token)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(encoded, "=?") && len(out) > 0 && !isSpace(out[len(out)-1]) {
			out = append(out, ' ') // encoded-words stand on their own (RFC 2047 §5)
		}
		out = append(out, encoded...)
		if strings.HasSuffix(encoded, "?=") && rest != "" && !isSpace(rest[0]) {
			out = append(out, ' ')
		}
	}
	return string(out), nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }

// tokenLen returns the length of the quoted string, comment, bracketed address, separator or run of other text that s
// starts with; 0 where it is not closed.
func tokenLen(s string) int {
	switch s[0] {
	case '"':
		return closing(s, '"', '"')
	case '(':
		return closing(s, '(', ')')
	case '<':
		return strings.IndexByte(s, '>') + 1
	case ',', ':', ';', ')', '>':
		return 1
	}
	if n := strings.IndexAny(s, `"(<,:;)>`); n > 0 {
		return n
	}
	return len(s)
}

// closing returns the length of what s opens, minding backslashes and, for comments, nesting.
func closing(s string, open, end byte) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == end && depth > 0:
			if depth--; depth == 0 {
				return i + 1
			}
		case c == open:
			depth++
		}
	}
	return 0
}

var unquote = regexp.MustCompile(`\\(.)`)

func encodeToken(token string) (string, error) {
	switch token[0] {
	case '"':
		return encodedWords(unquote.ReplaceAllString(token[1:len(token)-1], "$1")), nil
	case '(':
		return "(" + encodeText(token[1:len(token)-1]) + ")", nil
	case '<':
		a, err := asciiAddress(token[1 : len(token)-1])
		return "<" + a + ">", err
	}
	if strings.Contains(token, "@") {
		return asciiAddress(token)
	}
	return encodeText(token), nil
}

// errAddress is about an address that has no ASCII form (RFC 6531 §3.2).
var errAddress = unfit("5.6.7", "The header has an address with 8-bit characters, and the next hop does not take SMTPUTF8")

// asciiAddress puts the domain of an address into A-labels. A local part has no such form.
func asciiAddress(s string) (string, error) {
	at := strings.LastIndexByte(s, '@')
	if at < 0 || !isASCIIString(s[:at]) {
		return "", errAddress
	}
	domain := strings.TrimRight(s[at+1:], " \t")
	d, err := message.ParseDomain(domain)
	if err != nil || !utf8.ValidString(domain) {
		return "", unfit("5.6.7", "The header has an address whose domain has 8-bit characters and is no valid name")
	}
	return s[:at+1] + d + s[at+1+len(domain):], nil
}
