package message

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	urls   = regexp.MustCompile(`(?i)\b[a-z][a-z0-9+.-]*://\S+`)
	digits = regexp.MustCompile(`[0-9]{4,}`)
)

// maxReply bounds a stored reply text, in octets.
const maxReply = 512

// Mask makes foreign text fit to be stored and logged: URLs and runs of four digits or more become "…" (they may be a
// link or a code), control and invalid characters become spaces, and it is cut at 512 octets.
func Mask(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, s)
	s = digits.ReplaceAllString(urls.ReplaceAllString(s, "…"), "…")
	for len(s) > maxReply {
		_, n := utf8.DecodeLastRuneInString(s[:maxReply+1])
		s = s[:maxReply+1-n]
	}
	return strings.TrimSpace(s)
}

// MaskAddress hides the local part of an address for logs: "a…@example.com".
func MaskAddress(addr string) string {
	local, domain, ok := strings.Cut(addr, "@")
	if i := strings.LastIndexByte(addr, '@'); ok && i > 0 {
		local, domain = addr[:i], addr[i+1:]
	}
	if !ok || local == "" {
		return addr
	}
	r, n := utf8.DecodeRuneInString(local)
	if n == len(local) {
		return "…@" + domain
	}
	return string(r) + "…@" + domain
}
