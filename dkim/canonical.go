package dkim

import (
	"bytes"
	"crypto/sha256"
	"hash"
)

// The relaxed canonicalization of RFC 6376 §3.4, as go-msgauth has it to the octet, but without a copy of the message:
// what is as it must be is hashed where it lies.

// BodyHash returns the SHA-256 of body, relaxed (§3.4.4), as bh= has it.
func BodyHash(body []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	if rest := bytes.TrimRight(body, " \t\r\n"); len(rest) > 0 {
		hashLines(h, rest)
		h.Write([]byte("\r\n"))
	}
	h.Sum(sum[:0])
	return sum
}

// hashLines writes body, which has neither line end nor white space at its end, to h. Lines that stay as they are go in
// one piece with those around them.
func hashLines(h hash.Hash, body []byte) {
	var scratch []byte
	same := 0 // body[same:start] stays as it is
	for start := 0; start < len(body); {
		end := len(body)
		if n := bytes.IndexByte(body[start:], '\n'); n >= 0 {
			end = start + n + 1
		}
		line := body[start:end]
		if !relaxed(line) {
			h.Write(body[same:start])
			scratch = relax(scratch[:0], line)
			h.Write(scratch)
			same = end
		}
		start = end
	}
	h.Write(body[same:])
}

// relaxed reports whether line, which ends at its LF or at the end of the body, is its own relaxed form.
func relaxed(line []byte) bool {
	text := line
	if n := len(line); line[n-1] == '\n' {
		if n < 2 || line[n-2] != '\r' {
			return false
		}
		text = line[:n-2]
	}
	n := len(text)
	return n == 0 || text[n-1] != ' ' && bytes.IndexByte(text, '\t') < 0 && bytes.IndexByte(text, '\r') < 0 && !bytes.Contains(text, []byte("  "))
}

// relax appends the relaxed form of line to to. A bare LF becomes CRLF; a bare CR stays and ends white space as a line
// end does.
func relax(to, line []byte) []byte {
	space := false
	for i, b := range line {
		switch b {
		case ' ', '\t':
			space = true
			continue
		case '\r':
			space = false
		case '\n':
			space = false
			if i == 0 || line[i-1] != '\r' {
				to = append(to, '\r')
			}
		}
		if space {
			to = append(to, ' ')
			space = false
		}
		to = append(to, b)
	}
	return to
}

// relaxField appends the relaxed form of the field with that name, in lower case, and value (§3.4.2), without its line end.
func relaxField(to []byte, name string, value []byte) []byte {
	to = append(append(to, name...), ':')
	start := len(to)
	space := false
	for _, b := range value {
		switch b {
		case ' ', '\t', '\r', '\n':
			space = true
			continue
		}
		if space && len(to) > start {
			to = append(to, ' ')
		}
		space = false
		to = append(to, b)
	}
	return to
}
