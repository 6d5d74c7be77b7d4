package policy

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// listener is one door: who may come through it and how that is told, and what its Received fields may tell.
type listener struct {
	uids         map[int]string
	certificates map[string]certificate // by a DNS name in them
	networks     []network              // of clients that need no more than their address; longest prefix first
	logins       map[string]*login      // by user name
	users        []string               // keys of logins, in order
	first        bool                   // a client that logs in is of an auth stream
	anyLogin     bool                   // every login is accepted and the address decides
	receivedFrom string
	http         bool              // clients are known by the hook they call, and these are what is asked of them beside it
	callers      map[string]caller // by client
}

type network struct {
	prefix netip.Prefix
	client string
}

type certificate struct {
	client   string
	networks []netip.Prefix // none for anywhere
}

func (p *Policy) newListener(l *config.Listen, clients map[string]*config.Client) (*listener, error) {
	door := &listener{
		uids: map[int]string{}, certificates: map[string]certificate{}, logins: map[string]*login{},
		anyLogin: l.Auth == "any", receivedFrom: l.ReceivedFrom, http: l.HTTP(), callers: map[string]caller{},
	}
	for _, name := range l.Clients {
		if clients[name] == nil {
			return nil, fmt.Errorf("client %q is not in the configuration", name)
		}
		if err := door.add(clients[name], p.clients[name].kind()); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(door.networks, func(a, b network) int { return b.prefix.Bits() - a.prefix.Bits() })
	door.users = slices.Sorted(maps.Keys(door.logins))
	return door, nil
}

// kind is auth where one of c's streams is.
func (c *client) kind() message.Kind {
	if slices.ContainsFunc(c.streams, func(s *config.Stream) bool { return s.Kind == message.Auth }) {
		return message.Auth
	}
	return message.Marketing
}

// add lets c through the door, by each way that it can be told.
func (l *listener) add(c *config.Client, kind message.Kind) error {
	masked := make([]netip.Prefix, len(c.Networks))
	for i, n := range c.Networks {
		masked[i] = n.Masked()
		if c.ByAddress() && !l.http {
			l.networks = append(l.networks, network{masked[i], c.Name})
		}
	}
	if l.http {
		l.callers[c.Name] = newCaller(c, masked)
		return nil
	}
	for _, id := range c.UnixUsers {
		l.uids[id] = c.Name
	}
	for _, name := range c.TLSNames {
		l.certificates[name] = certificate{c.Name, masked}
	}
	if c.Username == "" {
		return nil
	}
	if l.logins[c.Username] != nil {
		return fmt.Errorf("clients %q and %q have one username", l.logins[c.Username].client, c.Name)
	}
	l.logins[c.Username] = &login{client: c.Name, networks: masked, password: c.Password, first: kind == message.Auth}
	l.first = l.first || kind == message.Auth
	return nil
}

// Identify returns the client of listener that peer is without a login: by its user id on a unix socket, by its
// certificate, or by its address, where the longest network that holds it decides. "" means that peer may become one yet,
// by a login or by the certificate that it shows in TLS. A stranger gets 550 5.7.1.
func (p *Policy) Identify(listener string, peer message.Peer) (string, error) {
	door := p.listeners[listener]
	if door == nil {
		return "", fmt.Errorf("identify a client: listener %q is not in the configuration", listener)
	}
	peer.Addr = plain(peer.Addr)
	if client, ok := door.byUser(peer); ok {
		return client, nil
	}
	client, err := door.byCertificate(peer)
	if client != "" || err != nil {
		return client, err
	}
	if client, ok := door.byAddress(peer.Addr); ok {
		return client, nil
	}
	if door.awaits(peer) {
		return "", nil
	}
	if !peer.Addr.IsValid() {
		return "", reply.New(550, "5.7.1", "Your user is no client of this listener")
	}
	return "", reply.New(550, "5.7.1", "Your address is in no network of a client of this listener")
}

// byUser looks at the user id, which only a peer without an address has.
func (l *listener) byUser(peer message.Peer) (string, bool) {
	if peer.Addr.IsValid() {
		return "", false
	}
	client, ok := l.uids[peer.UID]
	return client, ok
}

// byCertificate returns the client that the names of a certificate stand for, from where that may come. A certificate of
// two clients is none: which one would it be?
func (l *listener) byCertificate(peer message.Peer) (client string, err error) {
	for _, name := range peer.Names {
		domain, err := message.ParseDomain(name)
		c, ok := l.certificates[domain]
		if err != nil || !ok || len(c.networks) > 0 && !contains(c.networks, peer.Addr) {
			continue
		}
		if client != "" && client != c.client {
			return "", reply.New(550, "5.7.1", "Your certificate has the names of two clients of this listener")
		}
		client = c.client
	}
	return client, nil
}

func (l *listener) byAddress(a netip.Addr) (string, bool) {
	for _, n := range l.networks {
		if n.prefix.Contains(a) {
			return n.client, true
		}
	}
	return "", false
}

// awaits reports whether a login, or a certificate that has not been shown yet, could make peer a client.
func (l *listener) awaits(peer message.Peer) bool {
	for _, who := range l.logins {
		if who.admits(peer) {
			return true
		}
	}
	for _, c := range l.certificates {
		if peer.Addr.IsValid() && len(peer.Names) == 0 && (len(c.networks) == 0 || contains(c.networks, peer.Addr)) {
			return true
		}
	}
	return false
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// plain returns a in the form that networks are in: IPv4 as such, and no zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
