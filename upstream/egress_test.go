package upstream

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/config"
)

// names is a resolver of one host.
type names []netip.Addr

func (n names) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) { return n, nil }

func addrs(ss ...string) names {
	var n names
	for _, s := range ss {
		n = append(n, netip.MustParseAddr(s))
	}
	return n
}

// listener counts connections at address, and tells where the last came from.
func listener(t *testing.T, address string) (port string, accepted *atomic.Int32, peers chan netip.Addr) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted, peers = new(atomic.Int32), make(chan netip.Addr, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			peers <- conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
			conn.Close()
		}
	}()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), accepted, peers
}

func pinned(v4, v6 string) *Egress {
	c := &config.Egress{Name: "auth"}
	if v4 != "" {
		c.IPv4 = netip.MustParseAddr(v4)
	}
	if v6 != "" {
		c.IPv6 = netip.MustParseAddr(v6)
	}
	return NewEgress(c)
}

func TestConnectionsLeaveFromThePinnedAddressOfTheHostsFamily(t *testing.T) {
	e := pinned("127.0.0.3", "::1")
	for address, want := range map[string]string{"127.0.0.1:0": "127.0.0.3", "[::1]:0": "::1"} {
		port, _, peers := listener(t, address)
		host, _, _ := net.SplitHostPort(address)
		conn, err := e.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		if local := localAddr(conn); local.String() != want {
			t.Errorf("to %s from %s, want %s", address, local, want)
		}
		if peer := <-peers; peer.String() != want {
			t.Errorf("%s saw %s, want %s", address, peer, want)
		}
		conn.Close()
	}
}

func TestAnEgressNeverUsesAFamilyItDoesNotHave(t *testing.T) {
	port, accepted, _ := listener(t, "127.0.0.1:0")
	_, accepted6, _ := listener(t, "[::1]:"+port)
	for name, tt := range map[string]struct {
		egress *Egress
		host   names
		want   string
	}{
		"IPv4 only, host of IPv6 only":  {pinned("127.0.0.3", ""), addrs("::1"), "no address of a family that this egress has"},
		"IPv6 only, host of IPv4 only":  {pinned("", "::1"), addrs("127.0.0.1"), "no address of a family that this egress has"},
		"IPv6 only, IPv4 in disguise":   {pinned("", "::1"), addrs("::ffff:127.0.0.1"), "no address of a family that this egress has"},
		"no address":                    {pinned("", ""), addrs("127.0.0.1", "::1"), "has no address: set ipv4 or ipv6"},
		"an unspecified IPv4 address":   {pinned("0.0.0.0", ""), addrs("127.0.0.1"), "does not name one address"},
		"an unspecified IPv6 address":   {pinned("", "::"), addrs("::1"), "does not name one address"},
		"an address of another host":    {pinned("192.0.2.1", ""), addrs("127.0.0.1"), "192.0.2.1 is not an address of this host"},
		"an address of another host, 6": {pinned("", "2001:db8::1"), addrs("::1"), "2001:db8::1 is not an address of this host"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.egress.resolver = tt.host
			conn, err := tt.egress.DialContext(t.Context(), "tcp", "sink.example.com:"+port)
			if err == nil {
				conn.Close()
				t.Fatalf("connected from %s", conn.LocalAddr())
			}
			if !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "egress auth") {
				t.Errorf("err = %v, want it to say %q of egress auth", err, tt.want)
			}
		})
	}
	if n := accepted.Load() + accepted6.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

func TestEveryAddressOfTheHostIsTriedAndNamed(t *testing.T) {
	port, _, peers := listener(t, "127.0.0.1:0")
	e := pinned("127.0.0.3", "::1")
	e.resolver = addrs("::1", "127.0.0.9", "127.0.0.1")
	conn, err := e.DialContext(t.Context(), "tcp", "sink.example.com:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if peer := <-peers; peer.String() != "127.0.0.3" {
		t.Errorf("came from %s, want 127.0.0.3", peer)
	}

	e.resolver = addrs("::1", "127.0.0.9")
	_, err = e.DialContext(t.Context(), "tcp", "sink.example.com:"+port)
	if err == nil || !strings.Contains(err.Error(), "::1 from ::1") || !strings.Contains(err.Error(), "127.0.0.9 from 127.0.0.3") {
		t.Errorf("err = %v, want one that names both addresses", err)
	}
}

func TestAnyEgressConnectsFromWhereTheHostLikes(t *testing.T) {
	port, _, _ := listener(t, "127.0.0.1:0")
	e := NewEgress(nil)
	if err := e.Check(); err != nil || e.Name() != config.Any {
		t.Errorf("egress %s: Check() = %v", e.Name(), err)
	}
	conn, err := e.DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestCheckSaysWhichAddressIsNotHere(t *testing.T) {
	for _, here := range []*Egress{pinned("127.0.0.2", ""), pinned("", "::1"), pinned("127.0.0.2", "::1"), pinned("::ffff:127.0.0.2", "")} {
		if err := here.Check(); err != nil {
			t.Errorf("Check of an address of this host: %v", err)
		}
	}
	for want, e := range map[string]*Egress{
		"egress auth: 192.0.2.1 is not an address of this host: add it to an interface": pinned("192.0.2.1", "::1"),
		"egress auth: 2001:db8::1 is not an address of this host":                       pinned("127.0.0.2", "2001:db8::1"),
		"egress auth: has no address":                                                   pinned("", ""),
		"egress auth: 0.0.0.0 does not name one address":                                pinned("0.0.0.0", ""),
	} {
		if err := e.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check() = %v, want %q", err, want)
		}
	}
}

func TestOnlyTCPToAPortIsDialled(t *testing.T) {
	for _, to := range [][2]string{{"udp", "127.0.0.1:25"}, {"tcp", "127.0.0.1"}, {"tcp", "127.0.0.1:0"}, {"tcp", "127.0.0.1:smtp"}} {
		if conn, err := NewEgress(nil).DialContext(t.Context(), to[0], to[1]); err == nil {
			conn.Close()
			t.Errorf("connected to %v", to)
		}
	}
}

// strayConn claims to have been connected from another address.
type strayConn struct{ net.Conn }

func (strayConn) LocalAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 4), Port: 1} }

func TestAConnectionFromAnotherAddressIsClosedUnused(t *testing.T) {
	near, far := net.Pipe()
	if conn, err := pinned("127.0.0.3", "").verified(strayConn{near}, netip.MustParseAddr("127.0.0.3")); err == nil {
		t.Errorf("got %v, want an error", conn.LocalAddr())
	}
	if n, err := far.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the peer read %d octets, %v; want the end", n, err)
	}
}

// silent makes port of 127.0.0.9 let no connection through and refuse none: its queue is full.
func silent(t *testing.T, port int) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 9}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn, err := net.DialTimeout("tcp", "127.0.0.9:"+strconv.Itoa(port), 100*time.Millisecond)
		if err != nil {
			return
		}
		t.Cleanup(func() { conn.Close() })
	}
	t.Fatal("the queue of the listener does not fill")
}

func TestAnAddressThatSaysNothingLeavesTimeForTheNext(t *testing.T) {
	free, _, _ := listener(t, "127.0.0.1:0")
	port, err := strconv.Atoi(free)
	if err != nil {
		t.Fatal(err)
	}
	silent(t, port)
	e := pinned("127.0.0.3", "")
	e.resolver = addrs("127.0.0.9", "127.0.0.1")
	ctx, cancel := context.WithTimeout(t.Context(), 3*minDialTime)
	defer cancel()
	conn, err := e.DialContext(ctx, "tcp", "sink.example.com:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
