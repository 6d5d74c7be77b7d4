package policy

import (
	"strings"
	"unicode"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// mailbox is an address with the display name in front of it.
type mailbox struct {
	message.Address
	name string // as written, without quotes; may hold RFC 2047 words
}

// UTF8 reports whether the address needs SMTPUTF8; the name can be encoded.
func (m mailbox) UTF8() bool { return m.Address.UTF8() }

// checkNames refuses a display name that shows an address of somebody else: many mail programs show the name alone, so
// that it is what people take for the sender.
func (p *Policy) checkNames(stream *config.Stream, f message.Field, as []mailbox) error {
	for _, a := range as {
		for _, domain := range shownDomains(a.name) {
			d, err := message.ParseDomain(domain)
			if err != nil || p.domains.stream(d) != stream {
				return reply.New(550, "5.7.1", "The display name in %s looks like an address in another domain; take the address out of it, or use one in %s",
					f.Name(), listed(stream.Domains))
			}
		}
	}
	return nil
}

// shownDomains returns what stands right behind each @ of a display name and has a dot in it, as it looks once decoded:
// also in the other characters that look like an @, and with those left out that cannot be seen.
func shownDomains(name string) (domains []string) {
	_, after, found := strings.Cut(visible(decodeWords(name)), "@")
	for found {
		var piece string
		piece, after, found = strings.Cut(after, "@")
		end := strings.IndexFunc(piece+" ", func(r rune) bool { return !isHostRune(r) })
		if domain := strings.Trim(piece[:end], ".-"); strings.Contains(domain, ".") {
			domains = append(domains, domain)
		}
	}
	return domains
}

func isHostRune(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.Is(unicode.Mn, r) || strings.ContainsRune(".-_", r)
}

// visible leaves out format characters, such as zero-width joiners and marks of direction, and makes every dot and @
// the plain one.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.Is(unicode.Cf, r) || r == '\u034f':
			return -1
		case strings.ContainsRune("。．｡", r):
			return '.'
		case strings.ContainsRune("＠﹫", r):
			return '@'
		}
		return r
	}, s)
}
