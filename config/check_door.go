package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

func (l *loader) checkListen(s *Listen) {
	path := join("listen", s.Name)
	l.refer(path+".clients", "client", s.Clients, names(l.c.Client))
	l.checkSize(path+".max_size", s.MaxSize)
	if s.HTTP() {
		l.checkHTTP(s)
		return
	}
	l.checkAuth(s)
	for i, name := range s.Clients {
		c := l.c.Client[name]
		if c == nil {
			continue
		}
		l.checkWay(element(path+".clients", i), c, s)
		for _, before := range s.Clients[:i] {
			if b := l.c.Client[before]; b != nil && before != name {
				l.checkOverlap(s, b, c)
				l.checkSameIdentity(s, b, c)
			}
		}
	}
}

// checkWay tells of a client that no peer of the listener could be. A zero Address has been refused, and so is whatever
// the file says but the client does not have.
func (l *loader) checkWay(path string, c *Client, s *Listen) {
	key := func(key string) bool { return l.written(join(join("client", c.Name), key)) }
	switch {
	case key("token_files") && !key("networks") && !key("username") && !key("tls_names") && !key("unix_users"):
		l.bad(path, `serve it on a listener with protocol = "http"`, "client %q is known by a token, which SMTP does not carry", c.Name)
	case s.Address == "" || s.OnSystemd():
	case s.OnUnix() && !key("unix_users") && !key("username"):
		l.bad(path, fmt.Sprintf("add unix_users or a username to [client.%s], or take it from the list", c.Name),
			"client %q cannot be told on a unix socket, whose peers have neither an address nor a certificate", c.Name)
	case s.OnUnix() && !key("unix_users") && key("networks"):
		l.bad(path, fmt.Sprintf("remove its networks, or add unix_users to [client.%s]", c.Name),
			"client %q cannot log in on a unix socket: its peers have no address, and the client has networks", c.Name)
	case s.OnUnix():
	case key("unix_users") && !key("networks") && !key("username") && !key("tls_names"):
		l.bad(path, `serve it on a listener with address = "unix:PATH"`, "client %q is known by its user id, which only a unix socket tells", c.Name)
	case cannotConnect(c, s):
		l.warn(path, "", "client %q cannot connect: %s is only reached from this machine, and its networks are elsewhere", c.Name, s.Address)
	}
	if key("tls_names") && !l.written(join("listen", s.Name)+".tls_client_ca_file") && !s.OnUnix() {
		l.bad(path, "add it with the certificates that signed those of clients", "client %q has tls_names, but the listener has no tls_client_ca_file", c.Name)
	}
}

// checkAuth looks at who logs in on s, and whether that would ever be possible.
func (l *loader) checkAuth(s *Listen) {
	path := join("listen", s.Name)
	var logins, others []string
	for _, name := range s.Clients {
		if c := l.c.Client[name]; c != nil && c.Username != "" {
			logins = append(logins, name)
		} else if c != nil {
			others = append(others, name)
		}
	}
	switch {
	case s.Auth == "any" && len(logins) > 0:
		l.bad(path+".auth", "give clients with credentials a listener of their own", `"any" takes every password, but client %q has one of its own`, logins[0])
	case s.Auth == "" && len(logins) > 0 && len(others) > 0 && !s.Mixed:
		l.bad(path+".clients", "give each sort a listener of its own, or set mixed = true if no client minds that AUTH is offered",
			"client %q logs in and client %q is known without", logins[0], others[0])
	case s.Mixed && (len(logins) == 0 || len(others) == 0):
		l.warn(path+".mixed", "", "changes nothing: clients that log in and clients that do not are not both here")
	}
	if len(logins) > 0 && s.TLS == "none" && !l.written(path+".tls_cert_file") {
		l.checkPlain(s, logins[0])
	}
}

// checkPlain refuses a login where passwords would cross a network in clear text: AUTH is never offered there.
func (l *loader) checkPlain(s *Listen, login string) {
	const hint = "add tls_cert_file and tls_key_file, or listen on loopback or a unix socket"
	ip, _ := socket(s.Address)
	switch {
	case s.Address == "" || s.OnUnix():
	case s.OnSystemd():
		l.warn(join("listen", s.Name)+".tls", hint, "client %q can log in only if systemd's socket is on loopback or a unix socket: there is no certificate", login)
	case len(s.ProxyFrom) > 0 && ip.IsLoopback():
		l.warn(join("listen", s.Name)+".tls", hint, "the password of client %q reaches the balancer in clear text unless that speaks TLS", login)
	case !ip.IsLoopback():
		l.bad(join("listen", s.Name)+".tls", hint, "client %q could never log in: without TLS no password is taken from a network", login)
	}
}

// checkClient looks at what one client names.
func (l *loader) checkClient(c *Client) {
	path := join("client", c.Name)
	l.refer(path+".streams", "stream", c.Streams, names(l.c.Stream))
	l.checkSize(path+".max_size", c.MaxSize)
	key := func(key string) bool { return l.written(join(path, key)) }
	if key("networks") || key("username") || key("tls_names") || key("unix_users") || key("token_files") || l.onlySigned(c) {
		return
	}
	l.bad(path+".networks", `name where it connects from: networks = ["127.0.0.1", "10.1.2.0/24"]; or how else it is known: username and password_file, tls_names, unix_users or token_files`, "is missing")
}

// onlySigned reports whether c does nothing but call hooks with signed requests, which need no other proof.
func (l *loader) onlySigned(c *Client) bool {
	hooks, doors := l.hooksOf(c), l.listenersOf(c)
	return len(hooks) > 0 && len(doors) > 0 && !slices.ContainsFunc(hooks, func(h *Hook) bool { return !h.Signed() }) &&
		!slices.ContainsFunc(doors, func(s *Listen) bool { return !s.HTTP() })
}

// checkSameIdentity refuses a login, certificate or user that would be two clients on one listener.
func (l *loader) checkSameIdentity(s *Listen, a, b *Client) {
	path := join("client", b.Name)
	const hint = "give each client its own, or each a listener of its own"
	if b.Username != "" && b.Username == a.Username {
		l.bad(path+".username", hint, "%q is the login of client %q on listener %q too", b.Username, a.Name, s.Name)
	}
	for i, name := range b.TLSNames {
		if name != "" && slices.Contains(a.TLSNames, name) {
			l.bad(element(path+".tls_names", i), hint, "%q is a name of client %q on listener %q too", name, a.Name, s.Name)
		}
	}
	for _, id := range b.UnixUsers {
		if slices.Contains(a.UnixUsers, id) {
			l.bad(path+".unix_users", hint, "user id %d is client %q on listener %q too", id, a.Name, s.Name)
		}
	}
}

// cannotConnect reports whether s is reached over loopback only and none of c's networks is there.
func cannotConnect(c *Client, s *Listen) bool {
	ip, _ := socket(s.Address)
	isLocal := func(p netip.Prefix) bool {
		return !p.IsValid() || p.Addr().IsLoopback() || p.Bits() == 0 && p.Addr().Is4() == ip.Is4()
	}
	return ip.IsLoopback() && len(s.ProxyFrom) == 0 && len(c.Networks) > 0 && !slices.ContainsFunc(c.Networks, isLocal)
}

// checkOverlap refuses an address that would be two clients on one listener.
func (l *loader) checkOverlap(s *Listen, a, b *Client) {
	if !a.ByAddress() || !b.ByAddress() {
		return
	}
	for i, p := range b.Networks {
		for _, q := range a.Networks {
			if p.IsValid() && q.IsValid() && p.Overlaps(q) {
				l.bad(element(join("client", b.Name)+".networks", i), "give each client networks of its own, or each a listener of its own",
					"%s overlaps %s of client %q on listener %q: which client would it be?", p, q, a.Name, s.Name)
			}
		}
	}
}

// checkListenAddresses refuses two listeners of which the second could not bind.
func (l *loader) checkListenAddresses() {
	all := inOrder(l, "listen", l.c.Listen)
	for i, s := range all {
		for _, before := range all[:i] {
			if sameSocket(before.Address, s.Address) {
				l.bad(join("listen", s.Name)+".address", "", "%s is taken by listener %q (%s)", s.Address, before.Name, before.Address)
			}
		}
	}
}

// sameSocket reports whether binding a and b at once fails: one port, and one address or every address.
func sameSocket(a, b string) bool {
	if named(a) || named(b) {
		return a == b
	}
	ipA, portA := socket(a)
	ipB, portB := socket(b)
	if a == "" || b == "" || portA != portB || portA == "0" {
		return false
	}
	covers := func(x, y netip.Addr) bool { return x.IsUnspecified() && (x.Is6() || y.Is4()) }
	return ipA == ipB || covers(ipA, ipB) || covers(ipB, ipA)
}

// named reports whether an address is a path or a name instead of host and port.
func named(address string) bool {
	return strings.HasPrefix(address, "unix:") || strings.HasPrefix(address, "systemd:")
}

// socket takes the address of a TCP listener apart; invalid for others.
func socket(address string) (ip netip.Addr, port string) {
	if named(address) {
		return netip.Addr{}, ""
	}
	host, port, _ := net.SplitHostPort(address)
	switch host {
	case "":
		host = "::"
	case "localhost":
		host = "127.0.0.1"
	}
	ip, _ = netip.ParseAddr(host)
	return ip, port
}
