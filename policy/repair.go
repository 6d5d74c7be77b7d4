package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// rfc5322Date is the date-time of RFC 5322 §3.3.
const rfc5322Date = "Mon, 02 Jan 2006 15:04:05 -0700"

// repair returns the message as it is stored: our Received field, Message-ID, Date and From where they are missing, the
// fields that stay, a blank line, the body. Where s has room for the header in front of the body, the body is not copied.
func (p *Policy) repair(s *message.Submission, h *header, m *message.Message) message.Raw {
	top := p.received(s, m)
	if !h.messageID {
		top += "Message-ID: <" + m.ID.String() + "@" + m.HeaderFrom + ">\r\n"
	}
	if !h.date {
		top += "Date: " + m.AcceptedAt.UTC().Format(rfc5322Date) + "\r\n"
	}
	top += string(h.added)
	head := slices.Concat(slices.Concat([][]byte{[]byte(top)}, h.kept, [][]byte{[]byte("\r\n")})...)
	start := len(s.Room) - len(h.body) - len(head)
	if start < 0 {
		return slices.Concat(head, h.body)
	}
	copy(s.Room[start:], head)
	return s.Room[start:]
}

// received returns the trace field of RFC 5321 §4.4. It has no "for" clause, which would tell one recipient of
// another, and names the client's address only as the listener's received_from allows.
func (p *Policy) received(s *message.Submission, m *message.Message) string {
	mode := "public"
	if l := p.listeners[s.Listener]; l != nil && l.receivedFrom != "" {
		mode = l.receivedFrom
	}
	from := heloName(s.Helo, mode)
	if a := s.Remote.Addr().Unmap().WithZone(""); mayShow(a, mode) {
		from += " (" + literal(a) + ")"
	}
	with := s.With
	if with == "" || strings.ContainsFunc(with, func(r rune) bool { return !isLetterOrDigit(r) }) {
		with = "ESMTP"
	}
	return "Received: from " + from + "\r\n\tby " + p.hostname + " with " + with + " id " + m.ID.String() + ";\r\n\t" +
		m.AcceptedAt.UTC().Format(rfc5322Date) + "\r\n"
}

// mayShow reports whether a Received field may name a.
func mayShow(a netip.Addr, mode string) bool {
	switch {
	case !a.IsValid() || mode == "never":
		return false
	case mode == "always":
		return true
	}
	return a.IsGlobalUnicast() && !a.IsPrivate() && !carrierGrade.Contains(a)
}

// carrierGrade is the shared address space of RFC 6598, private in all but name.
var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// literal writes a as RFC 5321 §4.1.3 has it.
func literal(a netip.Addr) string {
	if a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}

// heloName returns what the client called itself where that is a plain name or an address that may be shown, else
// "unknown": a Received field is no place for whatever a client thinks up.
func heloName(helo, mode string) string {
	bare := strings.TrimSuffix(strings.TrimPrefix(helo, "["), "]")
	if len(bare) > 5 && strings.EqualFold(bare[:5], "IPv6:") {
		bare = bare[5:]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		if a = a.Unmap().WithZone(""); mayShow(a, mode) {
			return literal(a)
		}
		return "unknown"
	}
	if helo == "" || len(helo) > 255 || strings.ContainsFunc(helo, func(r rune) bool {
		return !isLetterOrDigit(r) && r != '.' && r != '-' && r != '_'
	}) {
		return "unknown"
	}
	return helo
}

func isLetterOrDigit(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// lifetimeEnd returns when the message ends to be worth sending, counted from the end of its data: the stream's ttl, or
// what a rule says in its place, or what the client asks for in X-Gatepost-TTL, up to the longer of the two.
func lifetimeEnd(s *message.Submission, h *header, stream *config.Stream, rule config.Match, now time.Time) (time.Time, error) {
	start := s.StartedAt
	if start.IsZero() {
		start = now
	}
	ttl := cmp.Or(rule.TTL, stream.TTL)
	if h.hasTTL && s.Order == nil {
		asked, ok := parseTTL(h.ttl)
		if !ok {
			return time.Time{}, reply.New(550, "5.6.0", "X-Gatepost-TTL must be a positive number of seconds or a duration such as 10m")
		}
		ttl = min(asked, max(stream.TTL, rule.TTL))
	}
	return start.Add(ttl), nil
}

// parseTTL reads whole seconds ("600") or a Go duration ("10m").
func parseTTL(v string) (time.Duration, bool) {
	d, err := time.ParseDuration(v)
	if seconds, e := strconv.ParseUint(v, 10, 32); e == nil {
		d, err = time.Duration(seconds)*time.Second, nil
	}
	return d, err == nil && d > 0
}
