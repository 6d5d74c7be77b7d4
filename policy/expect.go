package policy

import (
	"slices"
	"strings"

	"gatepost/config"
	"gatepost/message"
)

// ExpectsAuth reports whether what client sends from the reverse-path from is sign-in mail, as far as MAIL tells: its domain
// is of an auth stream of client's, or client has no other streams. Check decides, by the From field.
func (p *Policy) ExpectsAuth(client, from string) bool {
	c := p.clients[client]
	if c == nil || len(c.streams) == 0 {
		return false
	}
	if s := p.domains.stream(from[strings.LastIndexByte(from, '@')+1:]); s != nil && slices.Contains(c.streams, s) {
		return s.Kind == message.Auth
	}
	return !slices.ContainsFunc(c.streams, func(s *config.Stream) bool { return s.Kind != message.Auth })
}
