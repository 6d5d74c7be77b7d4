// Package policy decides whose mail passes and as what: the client by its user id, certificate, address or login, the
// stream by the domain of the header From, the envelope sender by that stream. What it lets through it completes (Message-ID, Date, one Received
// field) and frees of what must not leave (Bcc, Return-Path, fields that steer an upstream); every other byte stays.
//
// It promises that all the domains DMARC looks at belong to one stream, and that this stream is one of the client's.
// It looks nothing up, and about mail it keeps no state: the same submission under the same configuration gets the same
// answer. Of logins it remembers which were right, so that they cost no hash, and who guesses, so that they are slowed. Every
// refusal is a *reply.Error whose text names the rule for whoever runs the client, without an address of a person.
package policy

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// Policy is the rules of one configuration. It is immutable, but for what is remembered of logins, and safe for
// concurrent use.
type Policy struct {
	hostname  string
	listeners map[string]*listener
	clients   map[string]*client
	domains   domains
	logins    *logins
}

// client is who submits, with the streams it may use.
type client struct {
	name    string
	maxSize int64 // octets of one message; 0 for the listener's
	streams []*config.Stream
}

// New makes the policy that cfg describes. An error means that cfg names something it does not have, which
// config.Load refuses.
func New(cfg *config.Config) (*Policy, error) { return build(cfg, newLogins()) }

// Renew makes the policy that cfg describes as the successor of p: what p remembers of logins stays in force, so that a
// reload neither costs every client a hash nor gives whoever guesses a new start.
func (p *Policy) Renew(cfg *config.Config) (*Policy, error) { return build(cfg, p.logins) }

func build(cfg *config.Config, logins *logins) (*Policy, error) {
	p := &Policy{hostname: cfg.Hostname, listeners: map[string]*listener{}, clients: map[string]*client{}, logins: logins}
	for name, c := range cfg.Client {
		p.clients[name] = &client{name: name, maxSize: c.MaxSize}
		for _, s := range c.Streams {
			if cfg.Stream[s] == nil {
				return nil, fmt.Errorf("client %s: stream %q is not in the configuration", name, s)
			}
			p.clients[name].streams = append(p.clients[name].streams, cfg.Stream[s])
		}
	}
	for name, l := range cfg.Listen {
		door, err := p.newListener(l, cfg.Client)
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", name, err)
		}
		p.listeners[name] = door
	}
	var err error
	p.domains, err = newDomains(slices.Collect(maps.Values(cfg.Stream)))
	return p, err
}

// Check decides about s and returns it as the message to be queued under id: complete but for Need of its
// recipients, who are due now. Its Raw is a new slice, or the room of s, whose Raw is then used up. The errors are *reply.Error, but for a client that the
// configuration does not have.
func (p *Policy) Check(s *message.Submission, id message.ID, now time.Time) (*message.Message, error) {
	c := p.clients[s.Client]
	if c == nil {
		return nil, fmt.Errorf("check a message: client %q is not in the configuration", s.Client)
	}
	h, err := readHeader(s.Raw)
	if err != nil {
		return nil, err
	}
	if err := checkNesting(h.contentType, h.body); err != nil {
		return nil, err
	}
	stream, authors, err := p.stream(c, h)
	if err != nil {
		return nil, err
	}
	sender, err := p.envelopeSender(stream, s.MailFrom)
	if err != nil {
		return nil, err
	}
	rule := ruleFor(stream, h)
	if s.Order != nil {
		if rule, err = ordered(s.Order, stream, rule); err != nil {
			return nil, err
		}
		h.application = s.Order.Application
	}
	expires, err := lifetimeEnd(s, h, stream, rule, now)
	if err != nil {
		return nil, err
	}
	recipients, err := recipientsOf(s.To, stream.Name, now)
	if err != nil {
		return nil, err
	}
	m := &message.Message{
		ID: id, Stream: stream.Name, Kind: stream.Kind, Client: c.name,
		MailFrom: sender, HeaderFrom: authors[0].Domain, SMTPUTF8: needsUTF8(s, h, authors),
		AcceptedAt: now, ExpiresAt: expires, Recipients: recipients,
		Purpose: rule.Purpose, Verdict: rule.Verdict,
	}
	if s.Order != nil {
		m.Key, m.Print = s.Order.Key, s.Order.Fingerprint
		m.SetOrdered(s.Order.Hook, s.Order.Type)
	}
	m.Supersede = supersedeKey(stream, m, h.application)
	m.Raw = p.repair(s, h, m)
	m.Size = len(m.Raw)
	m.Provided = s.Provided
	if m.Kind != message.Auth && len(m.Provided) == 0 {
		hash := sha256.Sum256(m.Raw)
		m.BodyHash = hash[:]
	}
	return m, nil
}

// stream returns the one stream of c that all of the header's senders belong to, and the mailboxes of From. Domains
// are looked up over the whole configuration first, so that a wildcard of this client never takes in what another
// stream names.
func (p *Policy) stream(c *client, h *header) (*config.Stream, []mailbox, error) {
	if h.from == nil {
		if err := c.defaultFrom(h); err != nil {
			return nil, nil, err
		}
	}
	authors, err := senders(h.from)
	if err != nil {
		return nil, nil, err
	}
	stream := p.domains.stream(authors[0].Domain)
	if stream == nil || !slices.Contains(c.streams, stream) {
		return nil, nil, reply.New(550, "5.7.1", "From domain %s belongs to no stream of client %q; use an address in %s",
			clip(authors[0].Domain), c.name, c.allowed())
	}
	for _, a := range authors[1:] {
		if p.domains.stream(a.Domain) != stream {
			return nil, nil, reply.New(550, "5.7.1", "The From field names domains of more than one stream; all of them must be in %s", listed(stream.Domains))
		}
	}
	if err := p.checkNames(stream, h.from, authors); err != nil {
		return nil, nil, err
	}
	for _, f := range h.senders {
		if err := p.ofStream(stream, f); err != nil {
			return nil, nil, err
		}
	}
	return stream, authors, nil
}

// defaultFrom gives a message without From the one that a stream of c has for that, where no other stream has one too.
// Logto sends such mail where the sender of a template is a display name alone.
func (c *client) defaultFrom(h *header) error {
	with := slices.Collect(func(yield func(*config.Stream) bool) {
		for _, s := range c.streams {
			if s.DefaultFrom != "" && !yield(s) {
				return
			}
		}
	})
	switch len(with) {
	case 0:
		return reply.New(550, "5.6.0", "The message has no From field; set the sender to an address in %s (Logto: sendFrom must hold an address, not only a name), or set default_from for a stream of client %q",
			c.allowed(), c.name)
	case 1:
		h.from = message.Field("From: " + with[0].DefaultFrom + "\r\n")
		h.added = h.from
		return nil
	}
	return reply.New(550, "5.6.0", "The message has no From field, and %d streams of client %q have a default_from; set the sender to an address in %s",
		len(with), c.name, c.allowed())
}

// ofStream checks a Sender, Resent-From or Resent-Sender field: its mailboxes must belong to the stream of From.
func (p *Policy) ofStream(stream *config.Stream, f message.Field) error {
	as, err := senders(f)
	if err != nil {
		return err
	}
	if len(as) > 1 && !f.Is("Resent-From") {
		return reply.New(550, "5.6.0", "The %s field must name one address (RFC 5322 section 3.6)", f.Name())
	}
	if err := p.checkNames(stream, f, as); err != nil {
		return err
	}
	for _, a := range as {
		if p.domains.stream(a.Domain) != stream {
			return reply.New(550, "5.7.1", "%s domain %s is not one of stream %q, which From belongs to; use an address in %s",
				f.Name(), clip(a.Domain), stream.Name, listed(stream.Domains))
		}
	}
	return nil
}

// envelopeSender returns the address that bounces go to: the client's own where it belongs to the stream, as SPF
// alignment needs it, else the stream's return_path.
func (p *Policy) envelopeSender(stream *config.Stream, from string) (string, error) {
	if from == "" {
		return stream.ReturnPath, nil
	}
	a, err := message.ParseAddress(from)
	if err != nil {
		return "", reply.New(550, "5.1.7", "The envelope sender cannot be used: %v", err)
	}
	switch {
	case p.domains.stream(a.Domain) == stream:
		return a.String(), nil
	case stream.ReturnPath != "":
		return stream.ReturnPath, nil
	}
	return "", reply.New(550, "5.7.1", "Envelope sender domain %s is not one of stream %q; use an address in %s, or set return_path for the stream",
		clip(a.Domain), stream.Name, listed(stream.Domains))
}

// recipientsOf returns each address of to once, in order.
func recipientsOf(to []message.Address, lane string, now time.Time) ([]message.Recipient, error) {
	if len(to) == 0 {
		return nil, reply.New(554, "5.5.1", "The message has no recipients")
	}
	seen := make(map[message.Address]bool, len(to))
	rs := make([]message.Recipient, 0, len(to))
	for _, a := range to {
		if !seen[a] {
			seen[a] = true
			rs = append(rs, message.Recipient{N: len(rs), Address: a.String(), Lane: lane, DueAt: now})
		}
	}
	return rs, nil
}

// needsUTF8 reports whether the next hop must speak SMTPUTF8 (RFC 6531): for an address that cannot be written
// otherwise, or to pass on a header that the client declared to be internationalised. Raw 8-bit text that was never
// declared can be encoded and needs nothing.
func needsUTF8(s *message.Submission, h *header, authors []mailbox) bool {
	from, _ := message.ParseAddress(s.MailFrom)
	return s.SMTPUTF8 && h.eightBit || from.UTF8() ||
		slices.ContainsFunc(authors, mailbox.UTF8) || slices.ContainsFunc(s.To, message.Address.UTF8)
}

// allowed names the domains that c may send from, for a refusal.
func (c *client) allowed() string {
	var ds []string
	for _, s := range c.streams {
		ds = append(ds, s.Domains...)
	}
	return listed(ds)
}

// listed names up to two domains, so that a refusal fits a reply line.
func listed(domains []string) string {
	var ds []string
	for _, d := range domains[:min(len(domains), 2)] {
		ds = append(ds, clip(d))
	}
	text := strings.Join(ds, " or ")
	if n := len(domains) - len(ds); n > 0 {
		text += fmt.Sprintf(" (or %d more)", n)
	}
	return text
}

// clip shortens a domain for a reply line, which RFC 5321 §4.5.3.1.5 limits to 512 octets.
func clip(domain string) string {
	const most = 80
	if len(domain) > most {
		return domain[:most] + "..."
	}
	return domain
}
