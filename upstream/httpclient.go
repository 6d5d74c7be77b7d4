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
	most    int         // connections

	mu      sync.Mutex
	open    map[*line]bool
	spares  []*spare      // those of them that net/http has not taken yet
	making  int           // more that are on their way
	changed chan struct{} // closed with every change of these
	users   int
	shared  bool // the service speaks HTTP/2: one connection is enough for all
	closed  bool
}

// line is one TCP connection. TLS lies above it.
type line struct {
	net.Conn
	lines  *lines
	shared bool         // it speaks HTTP/2
	waited bool         // as a spare
	writes atomic.Int64 // that may have left octets with the system
}

// spare is a connection ready for net/http.
type spare struct {
	line  *line
	conn  net.Conn // line, or TLS over it
	since time.Time
	old   *time.Timer
}

func newLines(c *config.Upstream, to *url.URL, egress *Egress) (*lines, error) {
	l := &lines{name: c.Name, egress: egress, address: to.Host, most: max(c.Connections, 1), open: map[*line]bool{}, changed: make(chan struct{})}
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
func (l *lines) transport() *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	return &http.Transport{
		DialContext:            l.take,
		DialTLSContext:         l.take,
		Protocols:              &protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
		MaxConnsPerHost:        l.most,
		MaxIdleConns:           l.most,
		MaxIdleConnsPerHost:    l.most,
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
	for {
		l.mu.Lock()
		l.sortOut()
		for c := range l.open {
			local = c.local()
		}
		wanted := min(l.users, l.most)
		if l.shared {
			wanted = 1
		}
		enough := len(l.open)+l.making >= wanted
		switch {
		case enough && len(l.open) > 0:
			l.mu.Unlock()
			return local, nil
		case !enough:
			l.making++
			l.mu.Unlock()
			return l.stock(ctx)
		}
		changed := l.changed
		l.mu.Unlock()
		if err := await(ctx, changed); err != nil {
			return "", err
		}
	}
}

func await(ctx context.Context, changed <-chan struct{}) error {
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// change tells who waits that something changed, with mu held.
func (l *lines) change() {
	close(l.changed)
	l.changed = make(chan struct{})
}

// stock makes a spare, which making counts already.
func (l *lines) stock(ctx context.Context) (local string, err error) {
	s, err := l.connect(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.making--
	l.change()
	if err != nil {
		return "", err
	}
	if l.closed {
		s.conn.Close()
		return "", errClosed
	}
	s.old = time.AfterFunc(keptTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.sortOut()
	})
	l.spares = append(l.spares, s)
	return s.line.local(), nil
}

// sortOut closes the spares that are too old, that the host has closed, or that a shared connection makes needless.
func (l *lines) sortOut() {
	kept := 0
	l.spares = slices.DeleteFunc(l.spares, func(s *spare) bool {
		if time.Since(s.since) < keptTime && !s.line.closedByPeer() && (!l.shared || kept == 0) {
			kept++
			return false
		}
		s.old.Stop()
		delete(l.open, s.line)
		s.line.Conn.Close()
		return true
	})
}

// take gives net/http a connection: a spare, one that is on its way and fills the account, or a new one.
func (l *lines) take(ctx context.Context, _, _ string) (net.Conn, error) {
	for {
		l.mu.Lock()
		l.sortOut()
		if n := len(l.spares); n > 0 {
			s := l.spares[n-1]
			l.spares = l.spares[:n-1]
			s.old.Stop()
			s.line.waited = true
			l.mu.Unlock()
			return s.conn, nil
		}
		coming := l.making > 0 && len(l.open)+l.making >= l.most
		changed := l.changed
		l.mu.Unlock()
		if coming {
			if err := await(ctx, changed); err != nil {
				return nil, err
			}
			continue
		}
		s, err := l.connect(ctx)
		if err != nil {
			return nil, err
		}
		return s.conn, nil
	}
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
	for _, s := range l.spares {
		s.old.Stop()
	}
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
	c.lines.change()
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
