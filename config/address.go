package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"gatepost/message"
)

// listenAddress returns where a listener binds: host:port with an address of this host, or no host for all of them, and
// port 0 for a free one; unix:PATH with an absolute path; or systemd:NAME for a socket that systemd hands over.
func (l *loader) listenAddress(t *table) string {
	s := t.needed("address", `write address = "127.0.0.1:2525"`)
	if s == "" {
		return ""
	}
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		return l.unixAddress(t, path)
	}
	if name, ok := strings.CutPrefix(s, "systemd:"); ok {
		return l.systemdAddress(t, name)
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		t.bad(t.at("address"), `write address = "127.0.0.1:2525", "unix:PATH" or "systemd:NAME"`, "%q %v", s, err)
		return ""
	}
	ip, err := netip.ParseAddr(host)
	if host != "" && host != "localhost" && err != nil {
		t.bad(t.at("address"), "a name could resolve to another address tomorrow", "%q is not an IP address", host)
		return ""
	}
	if ip.IsMulticast() {
		t.bad(t.at("address"), "", "%s is a multicast address", ip)
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// unixAddress returns the address of a unix socket, whose path starts at the config's directory.
func (l *loader) unixAddress(t *table, path string) string {
	if path == "" || strings.HasSuffix(path, "/") {
		t.bad(t.at("address"), `write address = "unix:/run/gatepost/smtp.sock"`, "%q names no file for a unix socket", "unix:"+path)
		return ""
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(l.c.Dir, path)
	}
	path = filepath.Clean(path)
	if len(path) > maxSocketPath {
		t.bad(t.at("address"), "choose a shorter one", "the path of a unix socket has %d octets at most, %s has %d", maxSocketPath, path, len(path))
		return ""
	}
	return "unix:" + path
}

// systemdAddress returns the address of a socket that systemd knows by name: FileDescriptorName= of the unit, which is
// the unit's own name by default.
func (l *loader) systemdAddress(t *table, name string) string {
	if !isName(strings.NewReplacer(".", "-", "@", "-").Replace(name)) {
		t.bad(t.at("address"), `write address = "systemd:gatepost.socket", or what FileDescriptorName= says`, "%q names no socket of systemd", "systemd:"+name)
		return ""
	}
	return "systemd:" + name
}

// OnUnix reports whether s is a unix socket of our own making.
func (s *Listen) OnUnix() bool { return strings.HasPrefix(s.Address, "unix:") }

// OnSystemd reports whether s is a socket that systemd hands over: of which family is only known then.
func (s *Listen) OnSystemd() bool { return strings.HasPrefix(s.Address, "systemd:") }

// splitHostPort takes host:port apart; the error continues a sentence that begins with s.
func splitHostPort(s string) (host string, port int, err error) {
	host, digits, err := net.SplitHostPort(s)
	if err != nil {
		return "", 0, fmt.Errorf("is not host:port")
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("has no port from 0 to 65535")
	}
	return host, int(n), nil
}

// sourceAddress returns the address at key, which must be one that a connection can come from; invalid where absent.
func (l *loader) sourceAddress(t *table, key string, v6 bool) netip.Addr {
	s := t.text(key)
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		t.bad(t.at(key), "", "%q is not an IP address", s)
	case a.Is4In6() || a.Is4() == v6:
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		t.bad(t.at(key), "", "%q is not an %s address", s, family)
	case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
		t.bad(t.at(key), "", "%q is link-local and reaches no upstream", s)
	case a.IsUnspecified():
		t.bad(t.at(key), `egress = "any" on the stream says that the host may choose`, "%q pins nothing: it stands for every address", s)
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		t.bad(t.at(key), "", "%q is a multicast or broadcast address and sends nothing", s)
	default:
		return a
	}
	return netip.Addr{}
}

// networks parses prefixes and single addresses; an invalid prefix stands for what was refused. Where credentials or a
// certificate must come with the address (narrows), a network may be as wide as one likes.
func (l *loader) networks(t *table, narrows bool) []netip.Prefix {
	texts := t.optionalList("networks", `name where it connects from: networks = ["127.0.0.1", "10.1.2.0/24"]`)
	if texts == nil {
		return nil
	}
	found := make([]netip.Prefix, len(texts))
	for i, s := range texts {
		path := element(t.at("networks"), i)
		p := l.prefix(path, s)
		switch {
		case narrows || !p.IsValid():
		case isOpen(p):
			l.bad(path, "name the networks that your own systems send from", "%q would make this an open relay", s)
			p = netip.Prefix{}
		case isWide(p):
			l.warn(path, "", "everybody in %q, a public network, may send as this client", s)
		}
		found[i] = p
	}
	return found
}

// prefix parses a prefix or an address; invalid where it cannot be used or s is empty, which has been told.
func (l *loader) prefix(path, s string) netip.Prefix {
	if s == "" {
		return netip.Prefix{}
	}
	p, err := parsePrefix(s)
	switch {
	case err != nil:
		l.bad(path, `write "127.0.0.1" or "10.1.2.0/24"`, "%q is not a network or an address", s)
	case p != p.Masked():
		l.bad(path, fmt.Sprintf("write %q for the network, %q for the address", p.Masked(), p.Addr()), "%q has bits set beyond its length", s)
	default:
		return p
	}
	return netip.Prefix{}
}

// parsePrefix reads a prefix or an address. IPv4 in its IPv6 form becomes IPv4, as the addresses of clients do.
func parsePrefix(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96), nil
		}
		return p, nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("parse %q", s)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// inside lists the ranges that the outside cannot send from: loopback, private, unique local and link-local.
var inside = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("fc00::/7"), netip.MustParsePrefix("fe80::/10"),
}

func isInside(p netip.Prefix) bool {
	for _, r := range inside {
		if r.Bits() <= p.Bits() && r.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// isOpen reports whether a network is so wide that strangers are in it for sure.
func isOpen(p netip.Prefix) bool {
	least := 8
	if p.Addr().Is6() {
		least = 16
	}
	return p.Bits() < least && !isInside(p)
}

// isWide reports whether a network is public and larger than one site has.
func isWide(p netip.Prefix) bool {
	least := 24
	if p.Addr().Is6() {
		least = 48
	}
	return p.Bits() < least && !isInside(p)
}

// upstreamAddress fills Address, Host and Port.
func (l *loader) upstreamAddress(t *table, u *Upstream) {
	s := t.needed("address", `write address = "smtp.example.com:587"`)
	if s == "" {
		return
	}
	host, port, err := splitHostPort(s)
	if err != nil {
		t.bad(t.at("address"), fmt.Sprintf("add a port, as in %q", net.JoinHostPort(s, "587")), "%q %v", s, err)
		return
	}
	if port == 0 {
		t.bad(t.at("address"), "587 with STARTTLS, 465 with implicit TLS", "port 0 cannot be connected to")
		return
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && (ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "") {
		t.bad(t.at("address"), "", "%q is not the address of a host", host)
		return
	}
	if err == nil {
		host = ip.Unmap().String()
	} else if host, err = message.ParseDomain(host); err != nil {
		t.bad(t.at("address"), "", "%q is not host:port: %v", s, err)
		return
	}
	u.Host, u.Port = host, port
	u.Address = net.JoinHostPort(host, strconv.Itoa(port))
}

// isLoopback reports whether a connection to host stays on this machine.
func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
