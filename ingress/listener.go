package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gatepost/reply"
)

// listener lets only those connections through that belong to a client and fit the limits. The others get one line
// and are closed, so that strangers and floods cost neither a goroutine nor a place.
type listener struct {
	net.Listener
	smtp   *SMTP
	warned rate.Sometimes
}

// Accept implements net.Listener. What it returns is a *conn.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, err := l.admit(raw)
		if err == nil {
			return c, nil
		}
		l.turnAway(raw, reply.Of(err))
	}
}

// admit finds out who raw is and gives it a place.
func (l *listener) admit(raw net.Conn) (*conn, error) {
	remote := addrPort(raw.RemoteAddr())
	client, err := l.identify(remote.Addr())
	if err != nil {
		return nil, l.greeting(err)
	}
	c := newConn(l.smtp, raw, client, remote)
	if err := l.smtp.table.add(c); err != nil {
		return nil, err
	}
	return c, nil
}

// identify asks the Acceptor.
func (l *listener) identify(from netip.Addr) (client string, err error) {
	defer recovered(&err)
	return l.smtp.Acceptor.Identify(l.smtp.Listen.Name, from)
}

// greeting is what one who could not be identified is greeted with. A stranger is refused here (RFC 5321 §3.1: 554)
// and not at MAIL: its mail would be refused whatever it says, and clients show the greeting's text.
func (l *listener) greeting(err error) *reply.Error {
	if reply.Of(err).Temporary() {
		return &reply.Error{Code: 421, Enhanced: "4.3.0", Text: "Temporary failure, please try again later", Err: err}
	}
	return &reply.Error{Code: 554, Enhanced: "5.7.1", Err: err,
		Text: fmt.Sprintf("listener %q: your address is in no client's networks, so mail from it is not accepted", l.smtp.Listen.Name)}
}

// turnAway greets with a refusal. The few octets fit every send buffer, so the accept loop does not wait for the peer.
func (l *listener) turnAway(raw net.Conn, e *reply.Error) {
	raw.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	fmt.Fprintf(raw, "%d %s %s %s\r\n", e.Code, e.Enhanced, l.smtp.Hostname, e.Text)
	raw.Close()
	attrs := []slog.Attr{
		slog.String("listener", l.smtp.Listen.Name), slog.String("remote", raw.RemoteAddr().String()),
		slog.Int("code", e.Code), slog.String("reply", e.Text),
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", e.Err.Error()))
	}
	level := slog.LevelDebug
	l.warned.Interval = 10 * time.Second // a flood must not fill the log
	l.warned.Do(func() { level = slog.LevelWarn })
	l.smtp.Log.LogAttrs(context.Background(), level, "connection refused", attrs...)
}

// addrPort returns a's IP address and port, without IPv4 mapping or zone; zero where it has none.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// table holds the connections of a listener and counts them.
type table struct {
	max       int // in all
	perSource int

	mu      sync.Mutex
	conns   map[*conn]struct{}
	sources map[netip.Addr]int
	drained chan struct{} // made by drain, closed when the last connection is gone
}

func newTable(max, perSource int) *table {
	return &table{max: max, perSource: perSource, conns: make(map[*conn]struct{}), sources: make(map[netip.Addr]int)}
}

// add gives c a place, or a 421 where there is none.
func (t *table) add(c *conn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch from := c.remote.Addr(); {
	case len(t.conns) >= t.max:
		return reply.New(421, "4.7.0", "too many connections, try again later (max_connections)")
	case t.sources[from] >= t.perSource:
		return reply.New(421, "4.7.0", "too many connections from your address, try again later (max_per_source)")
	default:
		t.conns[c] = struct{}{}
		t.sources[from]++
		return nil
	}
}

func (t *table) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := c.remote.Addr()
	if t.sources[from]--; t.sources[from] == 0 {
		delete(t.sources, from)
	}
	delete(t.conns, c)
	if t.drained != nil && len(t.conns) == 0 {
		close(t.drained)
	}
}

// drain tells all connections to end, at the latest at until. The channel is closed when they are gone. No connection
// may be added from now on.
func (t *table) drain(until time.Time) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drained = make(chan struct{})
	for c := range t.conns {
		c.drain(until)
	}
	if len(t.conns) == 0 {
		close(t.drained)
	}
	return t.drained
}

// cut breaks the connections that are left and returns how many they were. Their sessions go on until they notice.
func (t *table) cut() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		c.raw.Close()
	}
	return len(t.conns)
}
