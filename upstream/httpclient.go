package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatepost/config"
	"gatepost/message"
)

const (
	keptTime  = 50 * time.Second // an idle connection is kept so long: services close theirs after a minute or more
	pingAfter = 5 * time.Second  // an HTTP/2 connection that says nothing for so long is asked
	pingTime  = 3 * time.Second  // for its answer
)

// lines are the connections to the one host of a service. They are made from the egress and before a request needs them,
// so that what keeps us from the host shows ahead of any mail, and the handshakes are over by the time it comes.
type lines struct {
	name    string // of the upstream
	egress  *Egress
	address string      // host:port
	tls     *tls.Config // nil for http, which only leads to this machine
	one     chan struct{}

	mu     sync.Mutex
	open   map[*line]bool
	spares []*spare // made, but not taken by net/http yet
	users  int
	shared bool // the service speaks HTTP/2: one connection is enough for all
	closed bool
}

// line is one TCP connection. TLS lies above it.
type line struct {
	net.Conn
	lines  *lines
	shared bool
	writes atomic.Int64 // that may have left octets with the system
}

// spare is a connection ready for net/http.
type spare struct {
	line  *line
	conn  net.Conn // line, or TLS over it
	since time.Time
}

func newLines(c *config.Upstream, to *url.URL, egress *Egress) (*lines, error) {
	l := &lines{name: c.Name, egress: egress, address: to.Host, one: make(chan struct{}, 1), open: map[*line]bool{}}
	port := "80"
	if to.Scheme == "https" {
		port = "443"
		verify := *c
		verify.TLS, verify.Host = "implicit", to.Hostname()
		t, err := tlsConfig(&verify)
		if err != nil {
			return nil, err
		}
		t.NextProtos = []string{"h2", "http/1.1"}
		t.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		l.tls = t
	}
	if to.Port() == "" {
		l.address = net.JoinHostPort(to.Hostname(), port)
	}
	return l, nil
}

// transport returns what makes the upstream's requests. It knows no proxy from the environment and has no timeout of its
// own: the timers of a hand-over are the relay's. It is used without an http.Client, which would follow redirects.
func (l *lines) transport(connections int) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext:            l.take,
		DialTLSContext:         l.take,
		Protocols:              &protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
		MaxConnsPerHost:        connections,
		MaxIdleConns:           connections,
		MaxIdleConnsPerHost:    connections,
		IdleConnTimeout:        keptTime,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true,
	}
}

// use counts one more who will make requests; leave ends that.
func (l *lines) use() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users++
}

func (l *lines) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
}

// ready makes a connection where there are fewer than users, and returns the local IP address. Its error is *Paused,
// ctx's own, or errClosed.
func (l *lines) ready(ctx context.Context) (local string, err error) {
	if local, ok := l.enough(); ok {
		return local, nil
	}
	if l.isShared() {
		// Who comes meanwhile finds the connection that the first one made.
		select {
		case l.one <- struct{}{}:
			defer func() { <-l.one }()
		case <-ctx.Done():
			return "", ctx.Err()
		}
		if local, ok := l.enough(); ok {
			return local, nil
		}
	}
	s, err := l.connect(ctx)
	if err != nil {
		return "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		s.conn.Close()
		return "", errClosed
	}
	l.spares = append(l.spares, s)
	return s.line.local(), nil
}

func (l *lines) isShared() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shared
}

// enough reports whether there is a connection for every user, and the local address of one.
func (l *lines) enough() (local string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sortOut()
	for c := range l.open {
		local = c.local()
		if c.shared {
			return local, true
		}
	}
	return local, len(l.open) >= l.users
}

// sortOut closes the spares that are too old, or that the host has closed.
func (l *lines) sortOut() {
	l.spares = slices.DeleteFunc(l.spares, func(s *spare) bool {
		bad := time.Since(s.since) >= keptTime || s.line.closedByPeer()
		if bad {
			delete(l.open, s.line)
			s.line.Conn.Close()
		}
		return bad
	})
}

// take gives net/http a connection: a spare, or a new one.
func (l *lines) take(ctx context.Context, _, _ string) (net.Conn, error) {
	l.mu.Lock()
	l.sortOut()
	if n := len(l.spares); n > 0 {
		s := l.spares[n-1]
		l.spares = l.spares[:n-1]
		l.mu.Unlock()
		return s.conn, nil
	}
	l.mu.Unlock()
	s, err := l.connect(ctx)
	if err != nil {
		return nil, err
	}
	return s.conn, nil
}

// connect makes a connection within connectTime. Its error is *Paused, ctx's own, or errClosed.
func (l *lines) connect(ctx context.Context) (*spare, error) {
	dialing, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	s, err := l.dial(dialing)
	switch {
	case err == nil:
		return s, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errClosed):
		return nil, err
	case dialing.Err() != nil:
		err = fmt.Errorf("%s: not connected within %v", l.address, connectTime)
	}
	return nil, &Paused{Verdict: upstreamDown(message.Temporary, err.Error())}
}

func (l *lines) dial(ctx context.Context) (*spare, error) {
	tcp, err := l.egress.DialContext(ctx, "tcp", l.address)
	if err != nil {
		return nil, err
	}
	c := &line{Conn: tcp, lines: l}
	s := &spare{line: c, conn: c, since: time.Now()}
	if l.tls != nil {
		t := tls.Client(c, l.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			tcp.Close()
			return nil, l.unsafe(err)
		}
		s.conn, c.shared = t, t.ConnectionState().NegotiatedProtocol == "h2"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		tcp.Close()
		return nil, errClosed
	}
	l.open[c], l.shared = true, c.shared
	return s, nil
}

// unsafe says what is wrong with the host's TLS.
func (l *lines) unsafe(err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%s: TLS: %w: somebody between may be reading along; look at endpoint and tls_ca_file of [upstream.%s]", l.address, err, l.name)
	}
	return fmt.Errorf("%s: TLS: %w", l.address, cause(err))
}

// close ends all connections.
func (l *lines) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.spares = true, nil
	for c := range l.open {
		c.Conn.Close()
	}
	clear(l.open)
}

// Write implements net.Conn. What may have got out is counted before it does.
func (c *line) Write(p []byte) (int, error) {
	c.writes.Add(1)
	n, err := c.Conn.Write(p)
	if n == 0 && err != nil {
		c.writes.Add(-1)
	}
	return n, err
}

// Close implements net.Conn.
func (c *line) Close() error {
	c.lines.mu.Lock()
	delete(c.lines.open, c)
	c.lines.mu.Unlock()
	return c.Conn.Close()
}

// local returns the local IP address; "" where it says nothing of where the service sees us.
func (c *line) local() string {
	if a := localAddr(c.Conn); a.IsValid() {
		return a.String()
	}
	return ""
}

// closedByPeer reports whether the host has ended the connection. It does not wait.
func (c *line) closedByPeer() bool {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	err = raw.Control(func(fd uintptr) { // not Read, which would wait for net/http's own
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = n == 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN)
	})
	return err != nil || closed
}
