package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/proxy"

	"gatepost/config"
)

// minDialTime is what each of a host's addresses gets at least while others are still to be tried.
const minDialTime = 500 * time.Millisecond

// keepAlive finds out that a host is gone, and keeps what lies between from forgetting a connection.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 4}

// Egress is a way out: a source address of each family it has, a proxy that owns one, or any the host likes. A pinned
// Egress fails closed: it never connects from another address, family or interface. What DNS asks is not pinned; with a
// proxy nothing is asked here.
type Egress struct {
	name     string
	pinned   bool
	proxy    string     // host:port; "" for none
	v4, v6   netip.Addr // invalid where the egress lacks the family
	resolver interface {
		LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	}
}

// NewEgress makes the egress that c describes; nil stands for config.Any.
func NewEgress(c *config.Egress) *Egress {
	if c == nil {
		return &Egress{name: config.Any, resolver: net.DefaultResolver}
	}
	if c.Proxy != "" {
		return &Egress{name: c.Name, proxy: c.Proxy, resolver: net.DefaultResolver}
	}
	return &Egress{name: c.Name, pinned: true, v4: c.IPv4.Unmap(), v6: c.IPv6, resolver: net.DefaultResolver}
}

// Name returns the name in the config, or config.Any.
func (e *Egress) Name() string { return e.name }

// Check reports whether every pinned address can be used on this host now, by binding it as each connection will. An
// error names the addresses that cannot.
func (e *Egress) Check() error {
	if !e.pinned {
		return nil
	}
	pins := e.pins()
	if len(pins) == 0 {
		return e.errNoAddress()
	}
	var errs []error
	for _, pin := range pins {
		if pin.IsUnspecified() {
			errs = append(errs, e.errUnspecified(pin))
			continue
		}
		l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(pin, 0)))
		switch {
		case errors.Is(err, syscall.EADDRNOTAVAIL):
			errs = append(errs, e.errNotHere(pin))
		case err != nil:
			errs = append(errs, fmt.Errorf("egress %s: bind %s: %w", e.name, pin, cause(err)))
		default:
			l.Close()
		}
	}
	return errors.Join(errs...)
}

// pins returns the pinned addresses.
func (e *Egress) pins() []netip.Addr {
	var pins []netip.Addr
	for _, a := range []netip.Addr{e.v4, e.v6} {
		if a.IsValid() {
			pins = append(pins, a)
		}
	}
	return pins
}

// DialContext connects to host:port over TCP. It tries those of the host's addresses whose family the egress has, in
// the resolver's order, each from the local address of that family. What it returns is connected from there: the
// local address is read back before anything is written. Its error names every address tried.
func (e *Egress) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("egress %s: network %q is not TCP", e.name, network)
	}
	host, port, err := splitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("egress %s: connect to %s: %w", e.name, address, err)
	}
	if e.proxy != "" {
		return e.dialThrough(ctx, address)
	}
	addrs, err := e.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	var tried []string
	for i, a := range addrs {
		conn, err := e.dial(ctx, netip.AddrPortFrom(a, port), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		tried = append(tried, err.Error())
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("connect to %s: %s", address, strings.Join(tried, "; "))
}

func splitHostPort(address string) (host string, port uint16, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("port %q is not a number from 1 to 65535", service)
	}
	return host, uint16(n), nil
}

// resolve returns the addresses of host that this egress can reach.
func (e *Egress) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if e.pinned && len(e.pins()) == 0 {
		return nil, e.errNoAddress()
	}
	all, err := e.resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("egress %s: look up %s: %w", e.name, host, err)
	}
	var usable []netip.Addr
	for _, a := range all {
		a = a.Unmap()
		if !e.pinned || e.pin(a).IsValid() {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return nil, fmt.Errorf("egress %s: %s has no address of a family that this egress has: set ipv4 or ipv6 of [egress.%s] to match", e.name, host, e.name)
	}
	return usable, nil
}

// pin returns the local address to reach remote from; invalid where there is none of that family.
func (e *Egress) pin(remote netip.Addr) netip.Addr {
	if remote.Is4() {
		return e.v4
	}
	return e.v6
}

// dial connects to one address; left is how many there are still to try, this one included, and shares the time.
func (e *Egress) dial(ctx context.Context, remote netip.AddrPort, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(time.Until(deadline)/time.Duration(left), minDialTime)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	// Go sets TCP_NODELAY on its own; the fallback delay has no effect on a literal address, and says what we mean.
	d := net.Dialer{FallbackDelay: -1, KeepAliveConfig: keepAlive}
	if !e.pinned {
		conn, err := d.DialContext(ctx, "tcp", remote.String())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", remote.Addr(), cause(err))
		}
		return conn, nil
	}
	return e.dialPinned(ctx, &d, remote)
}

func (e *Egress) dialPinned(ctx context.Context, d *net.Dialer, remote netip.AddrPort) (net.Conn, error) {
	pin := e.pin(remote.Addr())
	// A zero or unspecified local address would let the kernel choose.
	if !pin.IsValid() || pin.IsUnspecified() {
		return nil, e.errUnspecified(pin)
	}
	conn, err := d.DialTCP(ctx, "tcp", netip.AddrPortFrom(pin, 0), remote)
	if err != nil {
		if s, ok := errors.AsType[*os.SyscallError](err); ok && s.Syscall == "bind" && errors.Is(err, syscall.EADDRNOTAVAIL) {
			return nil, e.errNotHere(pin)
		}
		return nil, fmt.Errorf("%s from %s: %w", remote.Addr(), pin, cause(err))
	}
	return e.verified(conn, pin)
}

// verified returns conn where it does leave from pin, and closes it where it does not.
func (e *Egress) verified(conn net.Conn, pin netip.Addr) (net.Conn, error) {
	if local := localAddr(conn); local != pin {
		conn.Close()
		return nil, fmt.Errorf("egress %s: the connection to %s left from %s instead of %s: closed before anything was sent; look for address translation or policy on this host", e.name, conn.RemoteAddr(), local, pin)
	}
	return conn, nil
}

// proxied is a connection by way of a proxy: where the far end sees it from is the proxy's to know.
type proxied struct{ *net.TCPConn }

// dialThrough connects to address by way of the proxy (SOCKS5, RFC 1928), which looks up the host's name too.
func (e *Egress) dialThrough(ctx context.Context, address string) (net.Conn, error) {
	failed := func(err error) error {
		return fmt.Errorf("egress %s: connect to %s through the proxy %s: %w", e.name, address, e.proxy, cause(err))
	}
	var tcp *net.TCPConn
	dialer, err := proxy.SOCKS5("tcp", e.proxy, nil, toProxy(func(ctx context.Context, _, address string) (net.Conn, error) {
		d := net.Dialer{KeepAliveConfig: keepAlive}
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			tcp = conn.(*net.TCPConn)
		}
		return conn, err
	}))
	if err != nil {
		return nil, failed(err)
	}
	// What it returns hides the TCP connection, which is looked at later; after the handshake there is nothing else to it.
	if _, err := dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", address); err != nil {
		return nil, failed(err)
	}
	return &proxied{tcp}, nil
}

// toProxy is how a proxy is reached.
type toProxy func(ctx context.Context, network, address string) (net.Conn, error)

// Dial implements proxy.Dialer.
func (f toProxy) Dial(network, address string) (net.Conn, error) {
	return f(context.Background(), network, address)
}

// DialContext implements proxy.ContextDialer.
func (f toProxy) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// localAddr returns the local IP address of conn; invalid where it has none, or where a proxy has it.
func localAddr(conn net.Conn) netip.Addr {
	if _, ok := conn.(*proxied); ok {
		return netip.Addr{}
	}
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// cause strips what package net wraps around an error: the addresses are in our own text already.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}

func (e *Egress) errNotHere(pin netip.Addr) error {
	return fmt.Errorf("egress %s: %s is not an address of this host: add it to an interface, or change [egress.%s]", e.name, pin, e.name)
}

func (e *Egress) errNoAddress() error {
	return fmt.Errorf("egress %s: has no address: set ipv4 or ipv6 of [egress.%s]", e.name, e.name)
}

func (e *Egress) errUnspecified(pin netip.Addr) error {
	return fmt.Errorf("egress %s: %s does not name one address: set ipv4 or ipv6 of [egress.%s] to an address of this host", e.name, pin, e.name)
}
