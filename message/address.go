package message

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Address is an RFC 5321 mailbox. Only the narrow form is let through: a dot-atom local part (RFC 6531 letters where
// the text has them) and a domain name. Quoted local parts, source routes and address literals are refused, since
// what is unquoted on the way in and sent on unquoted becomes another address or a parameter.
type Address struct {
	Local  string // as given; case is kept
	Domain string // lower case; A-labels where the domain is an IDN
}

// String returns the address as it goes on the wire.
func (a Address) String() string { return a.Local + "@" + a.Domain }

// UTF8 reports whether the address needs SMTPUTF8 (RFC 6531).
func (a Address) UTF8() bool { return !isASCII(a.Local) }

// ParseAddress reads a mailbox without angle brackets. Its errors name the rule and are fit to show to a client.
func ParseAddress(s string) (Address, error) {
	i := strings.LastIndexByte(s, '@')
	switch {
	case len(s) > 254:
		return Address{}, errors.New("the address is longer than 254 octets")
	case !utf8.ValidString(s):
		return Address{}, errors.New("the address is not valid UTF-8")
	case i < 1:
		return Address{}, errors.New("the address has no local part or no domain")
	}
	local, domain := s[:i], s[i+1:]
	if len(local) > 64 {
		return Address{}, errors.New("the part before the @ is longer than 64 octets")
	}
	if err := dotAtom(local); err != nil {
		return Address{}, err
	}
	domain, err := ParseDomain(domain)
	if err != nil {
		return Address{}, err
	}
	return Address{local, domain}, nil
}

// dotAtom checks an RFC 5321 Dot-string, with the letters of RFC 6531. What looks like an RFC 2047 encoded-word is
// refused although it may stand there: some parsers decode it, and find another mailbox.
func dotAtom(s string) error {
	if strings.Contains(s, "=?") {
		return errors.New("the part before the @ looks like an encoded-word (RFC 2047), which an address cannot be")
	}
	for part := range strings.SplitSeq(s, ".") {
		if part == "" {
			return errors.New("the part before the @ has an empty piece between dots")
		}
	}
	for _, r := range s {
		if r != '.' && !isAtext(r) && !isLetter(r) {
			return fmt.Errorf("the part before the @ has a character that is not allowed (%q)", r)
		}
	}
	return nil
}

// isLetter tells of what RFC 6531 adds and people can tell apart: with spaces and characters that nobody sees, one
// address would look like another. U+FFFD is what is left of broken text.
func isLetter(r rune) bool {
	return r >= 0x80 && r != utf8.RuneError && (unicode.IsGraphic(r) && !unicode.IsSpace(r) || unicode.Is(unicode.Join_Control, r))
}

func isAtext(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r < 0x80 && strings.ContainsRune("!#$%&'*+-/=?^_`{|}~", r)
}

// ParseDomain returns a host name in lower case and, for an IDN, as A-labels. It needs no dot in it.
func ParseDomain(s string) (string, error) {
	if s == "" || len(s) > 253 {
		return "", errors.New("the domain is empty or longer than 253 octets")
	}
	if !isASCII(s) {
		a, err := idna.Lookup.ToASCII(s)
		if err != nil {
			return "", fmt.Errorf("the domain is not a valid internationalised name")
		}
		s = a
	}
	s = strings.ToLower(s)
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", errors.New("the domain has an empty or malformed label")
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", errors.New("the domain has a character that is not allowed")
			}
		}
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return "", errors.New("the domain is an IP address")
	}
	return s, nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
