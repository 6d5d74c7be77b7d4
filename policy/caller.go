package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// caller is a client as an HTTP listener knows it. Which one it is the path of a request tells; these say whether it may
// be that one.
type caller struct {
	networks []netip.Prefix // none for anywhere
	names    []string       // in certificates; none for any, or none
	uids     []int          // on a unix socket; none for everybody who may open it
	tokens   []config.Secret
}

func newCaller(c *config.Client, masked []netip.Prefix) caller {
	return caller{networks: masked, names: c.TLSNames, uids: c.UnixUsers, tokens: c.Tokens}
}

// Admits returns nil if peer may be client on an HTTP listener: it comes from the client's networks, shows one of its
// certificates, or is one of its users, whatever of these the client has. Others get 550 5.7.1.
func (p *Policy) Admits(listener, client string, peer message.Peer) error {
	door := p.listeners[listener]
	if door == nil {
		return fmt.Errorf("admit a caller: listener %q is not in the configuration", listener)
	}
	c, ok := door.callers[client]
	peer.Addr = plain(peer.Addr)
	switch {
	case !ok:
	case len(c.networks) > 0 && !contains(c.networks, peer.Addr):
	case len(c.names) > 0 && !slices.ContainsFunc(peer.Names, c.named):
	case len(c.uids) > 0 && !slices.Contains(c.uids, peer.UID):
	default:
		return nil
	}
	return reply.New(550, "5.7.1", "This caller is not accepted from where you are")
}

// named reports whether a DNS name of a certificate is one of c's.
func (c caller) named(name string) bool {
	domain, err := message.ParseDomain(name)
	return err == nil && slices.Contains(c.names, domain)
}

// AdmitsAny reports whether peer, whose certificate is not known yet, may be any client of an HTTP listener.
func (p *Policy) AdmitsAny(listener string, peer message.Peer) bool {
	door := p.listeners[listener]
	if door == nil {
		return false
	}
	peer.Addr = plain(peer.Addr)
	for _, c := range door.callers {
		if (len(c.networks) == 0 || contains(c.networks, peer.Addr)) && (len(c.uids) == 0 || slices.Contains(c.uids, peer.UID)) {
			return true
		}
	}
	return false
}

// Token returns nil if token is one of client's on an HTTP listener, 535 5.7.8 if it is not, and 454 4.7.0 if none of
// them can be read. It compares in a time that tells nothing of them.
func (p *Policy) Token(listener, client, token string) error {
	door := p.listeners[listener]
	if door == nil {
		return fmt.Errorf("check a token: listener %q is not in the configuration", listener)
	}
	var errs []error
	found, tokens := 0, door.callers[client].tokens
	for _, secret := range tokens {
		right, err := secret.Read()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found |= equal(right, token)
	}
	switch {
	case found == 1 && token != "":
		return nil
	case len(errs) > 0 && len(errs) == len(tokens):
		return &reply.Error{Code: 454, Enhanced: "4.7.0", Text: "Tokens cannot be checked for now, please try again later", Err: errors.Join(errs...)}
	}
	why := errors.New("the token is in no file of the client's token_files")
	if token == "" {
		why = errors.New("the request shows no token")
	}
	return &reply.Error{Code: 535, Enhanced: "5.7.8", Text: "Authentication failed", Err: errors.Join(append(errs, why)...)}
}
