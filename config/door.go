package config

import (
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// maxSocketPath bounds the path of a unix socket: sun_path has room for 108 octets with a NUL behind them.
const maxSocketPath = 107

func (l *loader) listen(t *table, name string) *Listen {
	s := &Listen{Name: name}
	s.Protocol = l.protocol(t, name)
	s.Address = l.listenAddress(t)
	s.Clients = t.list("clients", "name the clients that this listener serves")
	s.MaxSize = t.size("max_size", 25*megabyte)
	s.MaxRecipients = t.count("max_recipients", 100, 100000)
	s.MaxConnections = t.count("max_connections", 1000, 1000000)
	s.MaxPerSource = t.count("max_per_source", min(200, s.MaxConnections), 1000000)
	s.ReceivedFrom = t.choice("received_from", "public", "public", "always", "never")
	s.Auth = t.choice("auth", "", "any")
	s.Mixed = t.flag("mixed")
	s.ProxyFrom = l.balancers(t, s, "proxy_from")
	s.TrustedProxies = l.balancers(t, s, "trusted_proxies")
	s.SocketMode = l.socketMode(t, s)
	l.listenTLS(t, s)
	if s.MaxPerSource > s.MaxConnections {
		t.warn(t.at("max_per_source"), "", "%d is more than max_connections (%d), so it limits nothing", s.MaxPerSource, s.MaxConnections)
	}
	return s
}

// protocol is given, or the listener's own name.
func (l *loader) protocol(t *table, name string) string {
	protocols := []string{"smtp", "http"}
	if !t.has("protocol") && !slices.Contains(protocols, name) {
		t.bad(t.at("protocol"), `write protocol = "smtp" or "http"`, "is missing, and the listener's name %q is none", name)
	}
	if !t.has("protocol") && name == "http" {
		return name
	}
	return t.choice("protocol", "smtp", protocols...)
}

// balancers returns the networks, at key, of those that name the real client. Whoever is in them can claim any address.
func (l *loader) balancers(t *table, s *Listen, key string) []netip.Prefix {
	texts := t.optionalList(key, fmt.Sprintf(`name them: %s = ["10.0.0.5"]`, key))
	if key == "trusted_proxies" && t.has(key) && !s.HTTP() {
		t.bad(t.at(key), "use proxy_from, with a balancer that speaks the PROXY protocol", `has no place where protocol is not "http"`)
	}
	if texts == nil {
		return nil
	}
	if s.OnUnix() {
		t.bad(t.at(key), "remove it, or listen on host:port", "has no place on a unix socket, whose peers have no address")
	}
	found := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		path := element(t.at(key), i)
		if found[i] = l.prefix(path, text); found[i].IsValid() && isOpen(found[i]) {
			l.bad(path, "name the balancers alone", "strangers in %q could claim to be any client", text)
		}
	}
	return found
}

// socketMode returns the permissions of a unix socket; 0 where the listener makes none.
func (l *loader) socketMode(t *table, s *Listen) uint32 {
	text := t.text("socket_mode")
	if text != "" && s.Address != "" && !s.OnUnix() {
		t.bad(t.at("socket_mode"), "remove it; for systemd set SocketMode= in the .socket unit", "has no meaning where the address is not unix:PATH")
		return 0
	}
	if !s.OnUnix() {
		return 0
	}
	if text == "" {
		return 0o660
	}
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil || mode > 0o777 || mode&0o600 != 0o600 {
		t.bad(t.at("socket_mode"), `write "0660" for owner and group, "0666" for everybody`, "%q is not an octal mode that lets the owner connect", text)
		return 0o660
	}
	return uint32(mode)
}

func (l *loader) client(t *table, name string) *Client {
	c := &Client{Name: name}
	c.Username = t.text("username")
	c.Password = l.passwords(t)
	c.TLSNames = l.tlsNames(t)
	c.UnixUsers = l.unixUsers(t)
	l.tokens(t, c)
	c.Networks = l.networks(t, !c.ByAddress())
	c.Streams = t.list("streams", "name the streams that this client may use")
	c.MaxSize = t.size("max_size", 0)
	c.MaxConnections = t.count("max_connections", 0, 1000000)
	switch {
	case t.has("username") && !t.has("password_file"):
		t.bad(t.at("username"), "put a password or the output of gatepost hash-password into a file with mode 0600 and name that in password_file", "has no password_file")
	case t.has("password_file") && !t.has("username"):
		t.bad(t.at("password_file"), "add username", "has no username")
	}
	return c
}

// tlsNames returns the DNS names of client certificates in their canonical form. Wildcards would let one certificate be
// many clients.
func (l *loader) tlsNames(t *table) []string {
	found := t.optionalList("tls_names", `name the certificate: tls_names = ["logto.internal"]`)
	for i, s := range found {
		found[i] = l.domainOf(element(t.at("tls_names"), i), s)
	}
	return found
}

// unixUsers returns the user ids at unix_users, where users stand by name or number.
func (l *loader) unixUsers(t *table) []int {
	texts := t.optionalList("unix_users", `name the users whose processes connect: unix_users = ["logto", "1000"]`)
	var found []int
	for i, text := range texts {
		path := element(t.at("unix_users"), i)
		id, ok := l.unixUser(path, text)
		if ok && slices.Contains(found, id) {
			l.bad(path, "", "%q stands here twice", text)
		} else if ok {
			found = append(found, id)
		}
	}
	return found
}

func (l *loader) unixUser(path, text string) (id int, ok bool) {
	if text == "" {
		return 0, false
	}
	number := text
	if strings.Trim(text, "0123456789") != "" {
		u, err := user.Lookup(text)
		if err != nil {
			l.bad(path, "write the number of its user id if it is not in /etc/passwd", "there is no user %q on this host", text)
			return 0, false
		}
		number = u.Uid
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 1<<32-1 { // (uid_t)-1 stands for no user
		l.bad(path, "", "%q is not a user id", text)
		return 0, false
	}
	return int(n), true
}
