package relay

import (
	"bytes"
	"encoding/base64"
	"mime"
	"mime/quotedprintable"
	"slices"
	"strings"
	"unicode/utf8"

	"gatepost/message"
)

const (
	maxBoundary  = 200 // RFC 2046 §5.1.1 says 70; some writers take more
	encodedWidth = 76  // octets of an encoded line (RFC 2045 §6.7, §6.8)
)

// entity writes a message or part: its header field by field, its body encoded where it must be.
func (r *renderer) entity(w *bytes.Buffer, raw message.Raw, e entity) error {
	if e.depth > maxDepth {
		return unfit("5.6.0", "The message nests more than %d levels deep", maxDepth)
	}
	header, body := raw.Header(), raw.Body()
	fields := slices.Collect(message.Fields(header))
	if !look(body).fits(r.eightBit) {
		var err error
		if fields, body, err = r.body(fields, body, e); err != nil {
			return err
		}
	}
	for _, f := range fields {
		if e.strip && isSignature(f) {
			continue
		}
		if err := writeField(w, f, e.utf8); err != nil {
			return err
		}
	}
	if len(raw) > len(header) {
		w.WriteString("\r\n")
	}
	w.Write(body)
	return nil
}

// body returns a body that fits, and the header fields that describe it.
func (r *renderer) body(fields []message.Field, body []byte, e entity) ([]message.Field, []byte, error) {
	kind, params := mediaType(fields, e.inDigest)
	encoding := transferEncoding(fields)
	switch {
	case kind == "multipart/signed" || kind == "multipart/encrypted":
		return nil, nil, unfit("5.6.3", "The message is signed or encrypted (%s) and has 8-bit text or long lines that the next hop does not take", kind)
	case strings.HasPrefix(kind, "multipart/"), kind == "message/rfc822", kind == "message/news":
		if !isIdentity(encoding) {
			return nil, nil, unfit("5.6.0", "A part of type %s has a transfer encoding, which RFC 2045 section 6.4 forbids", clipped(kind))
		}
		var out bytes.Buffer
		var err error
		below := entity{utf8: r.eightBit, inDigest: kind == "multipart/digest", depth: e.depth + 1}
		if strings.HasPrefix(kind, "multipart/") {
			err = r.multipart(&out, body, params["boundary"], below)
		} else {
			below.isMessage = true
			err = r.entity(&out, body, below)
		}
		if err != nil {
			return nil, nil, err
		}
		if encoding != "" && isASCII(out.Bytes()) {
			fields = withField(fields, "Content-Transfer-Encoding", "7bit")
		}
		return fields, out.Bytes(), nil
	case strings.HasPrefix(kind, "message/") && kind != "message/global":
		return nil, nil, unfit("5.6.3", "A part of type %s has 8-bit text or long lines and cannot be encoded", clipped(kind))
	}
	return leaf(fields, body, kind, encoding, e.isMessage)
}

// leaf encodes a body without parts: quoted-printable for text, base64 for the rest. One that is encoded already has
// only its offending lines mended.
func leaf(fields []message.Field, body []byte, kind, encoding string, isMessage bool) ([]message.Field, []byte, error) {
	switch {
	case encoding == "quoted-printable":
		return fields, mendLines(body, mendQuotedPrintable), nil
	case encoding == "base64":
		return fields, mendLines(body, mendBase64), nil
	case !isIdentity(encoding):
		return nil, nil, unfit("5.6.3", "A part with the transfer encoding %q has 8-bit text or long lines", clipped(encoding))
	}
	if !has(fields, "Content-Type") && !isASCII(body) {
		charset := "utf-8"
		if !utf8.Valid(body) {
			charset = "unknown-8bit" // RFC 1428
		}
		fields = withField(fields, "Content-Type", "text/plain; charset="+charset)
	}
	if isMessage && !has(fields, "MIME-Version") {
		fields = withField(fields, "MIME-Version", "1.0")
	}
	if strings.HasPrefix(kind, "text/") {
		return withField(fields, "Content-Transfer-Encoding", "quoted-printable"), quotedPrintable(body), nil
	}
	encoded := base64.StdEncoding.AppendEncode(nil, body)
	return withField(fields, "Content-Transfer-Encoding", "base64"), wrapBase64(encoded), nil
}

// multipart writes a body made of parts. Preamble and epilogue, which readers ignore (RFC 2046 §5.1.1), are dropped
// where they do not fit.
func (r *renderer) multipart(w *bytes.Buffer, body []byte, boundary string, e entity) error {
	if boundary == "" || len(boundary) > maxBoundary || !isASCIIString(boundary) || strings.ContainsAny(boundary, "\r\n") {
		return unfit("5.6.0", "A multipart has no usable boundary")
	}
	cuts := delimiters(body, boundary)
	if len(cuts) == 0 {
		return unfit("5.6.0", "A multipart has no part")
	}
	if preamble := body[:cuts[0].start]; look(preamble).fits(r.eightBit) {
		w.Write(preamble)
	}
	for i, c := range cuts {
		w.WriteString(c.text(boundary))
		end := len(body)
		if i+1 < len(cuts) {
			end = cuts[i+1].start
		}
		part := message.Raw(body[c.end:end])
		switch fits := look(part).fits(r.eightBit); {
		case fits:
			w.Write(part)
		case !c.last:
			if err := r.entity(w, part, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// delimiter is where a boundary line stands in a body. The CRLF in front of it belongs to it (RFC 2046 §5.1.1).
type delimiter struct {
	start, end    int
	before, after bool // it has the CRLF in front, the CRLF behind
	last          bool // it closes the multipart: an epilogue follows
}

// text returns the delimiter without the white space that may pad it.
func (d delimiter) text(boundary string) string {
	s := "--" + boundary
	if d.before {
		s = "\r\n" + s
	}
	if d.last {
		s += "--"
	}
	if d.after {
		s += "\r\n"
	}
	return s
}

// delimiters finds the boundary lines of body up to the closing one.
func delimiters(body []byte, boundary string) []delimiter {
	var ds []delimiter
	dashed := []byte("--" + boundary)
	previous := 0 // end of the delimiter before: its CRLF is not also the next one's
	for at := 0; at < len(body); {
		end := len(body)
		if n := bytes.IndexByte(body[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if rest, ok := bytes.CutPrefix(body[at:end], dashed); ok {
			rest, last := bytes.CutPrefix(rest, []byte("--"))
			if len(bytes.Trim(rest, " \t\r\n")) == 0 {
				d := delimiter{start: at, end: end, after: bytes.HasSuffix(rest, []byte("\r\n")), last: last}
				if at-2 >= previous {
					d.start, d.before = at-2, true
				}
				ds = append(ds, d)
				if previous = end; last {
					return ds
				}
			}
		}
		at = end
	}
	return ds
}

// mediaType returns the type that decides how a body may be encoded, in lower case. What cannot be read counts by its
// beginning.
func mediaType(fields []message.Field, inDigest bool) (string, map[string]string) {
	for _, f := range fields {
		if f.Is("Content-Type") {
			kind, params, err := mime.ParseMediaType(f.Value())
			if err != nil {
				kind, _, _ = strings.Cut(f.Value(), ";")
				kind = strings.ToLower(strings.TrimSpace(kind))
			}
			return kind, params
		}
	}
	if inDigest {
		return "message/rfc822", nil
	}
	return "text/plain", nil
}

// transferEncoding returns the value of Content-Transfer-Encoding in lower case, "" where there is none.
func transferEncoding(fields []message.Field) string {
	for _, f := range fields {
		if f.Is("Content-Transfer-Encoding") {
			v, _, _ := strings.Cut(f.Value(), ";")
			v, _, _ = strings.Cut(v, "(")
			return strings.ToLower(strings.TrimSpace(v))
		}
	}
	return ""
}

// isIdentity reports whether a transfer encoding leaves the octets as they are.
func isIdentity(encoding string) bool {
	return slices.Contains([]string{"", "7bit", "8bit", "binary"}, encoding)
}

func has(fields []message.Field, name string) bool {
	return slices.ContainsFunc(fields, func(f message.Field) bool { return f.Is(name) })
}

// withField returns fields with one field of that name: in its old place, or at the end.
func withField(fields []message.Field, name, value string) []message.Field {
	set := message.Field(name + ": " + value + "\r\n")
	var out []message.Field
	for _, f := range fields {
		switch {
		case !f.Is(name):
			out = append(out, f)
		case set != nil:
			out, set = append(out, set), nil
		}
	}
	if set != nil {
		out = append(out, set)
	}
	return out
}

// quotedPrintable encodes text with CRLF line ends (RFC 2045 §6.7).
func quotedPrintable(b []byte) []byte {
	var out bytes.Buffer
	w := quotedprintable.NewWriter(&out)
	w.Write(b) // a bytes.Buffer takes everything
	w.Close()
	return out.Bytes()
}

// mendLines replaces the lines of an encoded body that have octets over 127 or are too long.
func mendLines(body []byte, mend func(line []byte) []byte) []byte {
	var out bytes.Buffer
	for line := range bytes.SplitAfterSeq(body, []byte("\r\n")) {
		if !look(line).fits(false) {
			line = mend(line)
		}
		out.Write(line)
	}
	return out.Bytes()
}

// mendQuotedPrintable encodes stray 8-bit octets and inserts soft line breaks.
func mendQuotedPrintable(line []byte) []byte {
	const hex = "0123456789ABCDEF"
	var out []byte
	text := bytes.TrimSuffix(line, []byte("\r\n"))
	end := line[len(text):]
	width := 0
	for len(text) > 0 {
		token := text[:1]
		if len(text) >= 3 && text[0] == '=' && isHex(text[1]) && isHex(text[2]) {
			token = text[:3]
		}
		text = text[len(token):]
		if c := token[0]; c >= 0x80 {
			token = []byte{'=', hex[c>>4], hex[c&15]}
		}
		if width += len(token); width >= encodedWidth {
			out = append(out, "=\r\n"...)
			width = len(token)
		}
		out = append(out, token...)
	}
	return append(out, end...)
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f'
}

// mendBase64 drops what decoders ignore (RFC 2045 §6.8) and breaks the line.
func mendBase64(line []byte) []byte {
	kept := bytes.Map(func(r rune) rune {
		if r < 0x80 && (isHex(byte(r)) || r >= 'g' && r <= 'z' || r >= 'G' && r <= 'Z' || r == '+' || r == '/' || r == '=') {
			return r
		}
		return -1
	}, line)
	return wrapBase64(kept)
}

// wrapBase64 breaks b into lines, each with its CRLF.
func wrapBase64(b []byte) []byte {
	out := make([]byte, 0, len(b)+len(b)/encodedWidth*2+2)
	for line := range slices.Chunk(b, encodedWidth) {
		out = append(append(out, line...), "\r\n"...)
	}
	return out
}

// clipped shortens a name from the message for a reply text, and makes it printable.
func clipped(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
	return s[:min(len(s), 60)]
}
