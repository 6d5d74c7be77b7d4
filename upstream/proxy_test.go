package upstream_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// socksProxy is a SOCKS5 server (RFC 1928) that connects from 127.0.0.5 and knows the name service.test.
type socksProxy struct {
	addr string

	mu    sync.Mutex
	asked []string // hosts, as the client named them
}

var behindProxy = netip.MustParseAddr("127.0.0.5")

func newSOCKSProxy(t *testing.T) *socksProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &socksProxy{addr: l.Addr().String()}
	var tasks sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() {
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				defer conn.Close()
				p.serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		stop()
		l.Close()
		tasks.Wait()
	})
	return p
}

func (p *socksProxy) serve(conn net.Conn) {
	b := make([]byte, 256)
	read := func(n int) []byte {
		io.ReadFull(conn, b[:n])
		return b[:n]
	}
	read(int(read(2)[1]))
	conn.Write([]byte{5, 0})
	host := ""
	switch read(4)[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	port := read(2)
	p.mu.Lock()
	p.asked = append(p.asked, host)
	p.mu.Unlock()
	if host == "service.test" {
		host = "127.0.0.1"
	}
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: behindProxy.AsSlice()}}
	far, err := d.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(port[0])<<8|int(port[1]))))
	if err != nil {
		conn.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	defer far.Close()
	conn.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	var both sync.WaitGroup
	both.Go(func() {
		io.Copy(far, conn)
		far.Close()
	})
	both.Go(func() {
		io.Copy(conn, far)
		conn.Close()
	})
	both.Wait()
}

func (p *socksProxy) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

func TestAProxyIsTheOnlyWayOutAndLooksUpNamesItself(t *testing.T) {
	p := newSOCKSProxy(t)
	through := upstream.NewEgress(&config.Egress{Name: "proxied", Proxy: p.addr})
	if err := through.Check(); err != nil {
		t.Error(err)
	}
	h := upstreamtest.NewHost(t, upstreamtest.HostOptions{})
	c := configFor(t, h, upstreamtest.HostOptions{})
	_, port, _ := net.SplitHostPort(h.Addr())
	c.Address, c.Host = "service.test:"+port, "service.test"
	smtp, err := upstream.New(c, "gw.example.com", through, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, smtp)

	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
	api, err := upstream.New(mailgunConfig(t, s), "gw.example.com", through, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, api)

	for _, u := range []upstream.Upstream{smtp, api, smtp, api} {
		slot := reserve(t, u)
		if local := slot.Local(); local != "" {
			t.Errorf("Local() = %s, which is not where the service sees us", local)
		}
		slot.Release()
		wantClasses(t, send(t, u, envelope()), message.Accepted)
	}
	for _, peer := range append(h.Peers(), s.Peers()...) {
		if peer.Addr() != behindProxy {
			t.Errorf("a connection came from %s, want the proxy's %s", peer.Addr(), behindProxy)
		}
	}
	if got := p.names(); !slices.Equal(got, []string{"service.test", "127.0.0.1"}) {
		t.Errorf("the proxy was asked for %q, want each host once, by its name", got)
	}
}

func TestWithoutItsProxyNothingConnects(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	l.Close()
	refusing := newSOCKSProxy(t)
	for name, tt := range map[string]struct{ proxy, endpoint, want string }{
		"a proxy that is down":               {gone, s.URL(), "connection refused"},
		"a proxy that cannot reach the host": {refusing.addr, "https://127.0.0.9:1", "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			c := mailgunConfig(t, s)
			c.Endpoint = tt.endpoint
			u, err := upstream.New(c, "gw.example.com", upstream.NewEgress(&config.Egress{Name: "proxied", Proxy: tt.proxy}), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer closeNow(t, u)
			_, err = u.Reserve(t.Context(), "auth")
			p, ok := errors.AsType[*upstream.Paused](err)
			if !ok || !strings.Contains(p.Verdict.Text, "through the proxy "+tt.proxy) || !strings.Contains(p.Verdict.Text, tt.want) {
				t.Errorf("Reserve: %v, want %q of the proxy", err, tt.want)
			}
		})
	}
	if n := len(s.Peers()); n != 0 {
		t.Errorf("%d connections were made without the proxy", n)
	}
}
