package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// fakeRelay is an Acceptor that remembers. Its functions, where set, decide.
type fakeRelay struct {
	identify func(listener string, p message.Peer) (string, error)
	login    func(p message.Peer, user, password string) (string, error) // nil: AUTH is not offered
	limit    func(client string, header []byte) int64
	ready    func(client string) error
	accept   func(ctx context.Context, s *message.Submission) error

	mu  sync.Mutex
	got []*message.Submission
}

func (f *fakeRelay) Identify(listener string, p message.Peer) (string, error) {
	if f.identify != nil {
		return f.identify(listener, p)
	}
	return "logto", nil
}

func (f *fakeRelay) Login(_ context.Context, _ string, p message.Peer, user, password string) (string, error) {
	return f.login(p, user, password)
}

func (f *fakeRelay) Offers(string) bool { return f.login != nil }

func (f *fakeRelay) Limit(client string, header []byte) int64 {
	if f.limit != nil {
		return f.limit(client, header)
	}
	return 0
}

func (f *fakeRelay) Ready(client, _ string) error {
	if f.ready != nil {
		return f.ready(client)
	}
	return nil
}

func (f *fakeRelay) Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error) {
	if len(s) != 1 {
		return nil, fmt.Errorf("%d submissions at once, want 1", len(s))
	}
	f.mu.Lock()
	f.got = append(f.got, s[0])
	n := len(f.got)
	f.mu.Unlock()
	if f.accept != nil {
		if err := f.accept(ctx, s[0]); err != nil {
			return nil, err
		}
	}
	return []message.Receipt{{ID: message.ID(n)}}, nil
}

func (f *fakeRelay) submissions() []*message.Submission {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.got
}

// door is an SMTP door under test.
type door struct {
	*SMTP
	relay *fakeRelay
	ln    net.Listener
	stop  context.CancelFunc
	ended chan error // what Serve returned
	log   *logBuffer
}

// logBuffer collects the log as text.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// open starts a door on ln and stops it when the test ends. change may set options before.
func open(t testing.TB, ln net.Listener, change func(o *SMTPOptions, f *fakeRelay)) *door {
	t.Helper()
	f := &fakeRelay{}
	log := &logBuffer{}
	o := SMTPOptions{
		Listen:   listen(),
		Hostname: "gw.example.com",
		Acceptor: f,
		Budget:   NewBudget(64 << 20),
		Log:      slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if change != nil {
		change(&o, f)
	}
	smtp, err := NewSMTP(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &door{SMTP: smtp, relay: f, ln: ln, stop: stop, ended: make(chan error, 1), log: log}
	go func() { d.ended <- d.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-d.ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := d.Budget.InUse(); n != 0 {
			t.Errorf("%d octets of the budget were not given back", n)
		}
	})
	return d
}

// listen is a listener's configuration.
func listen() *config.Listen {
	return &config.Listen{
		Name: "smtp", Protocol: "smtp", Clients: []string{"logto"}, TLS: "none",
		MaxSize: 1 << 20, MaxRecipients: 100, MaxConnections: 1000, MaxPerSource: 1000,
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// openTCP starts a door on a free port of loopback.
func openTCP(t testing.TB, change func(o *SMTPOptions, f *fakeRelay)) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return open(t, ln, change)
}

func (d *door) addr() string { return d.ln.Addr().String() }

// wait returns what Serve returned, once.
func (d *door) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-d.ended:
		d.ended <- nil
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("Serve does not return")
		return nil
	}
}

// client speaks raw SMTP.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func (d *door) dial(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	return &client{conn, t, bufio.NewReader(conn)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("send %.40q: %v", s, err)
	}
}

// reply reads a reply with all its lines.
func (c *client) reply() string {
	c.t.Helper()
	var all strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read a reply: %v, after %q", err, all.String()+line)
		}
		all.WriteString(line)
		if len(line) < 4 || line[3] != '-' {
			return all.String()
		}
	}
}

// want reads one reply and checks how it begins.
func (c *client) want(prefix string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("reply %q, want %q", got, prefix)
	}
	return got
}

// do sends a command and checks how its reply begins.
func (c *client) do(command, prefix string) string {
	c.t.Helper()
	c.send(command + "\r\n")
	return c.want(prefix)
}

// hello begins a session.
func (c *client) hello() {
	c.t.Helper()
	c.want("220 gw.example.com ")
	c.do("EHLO client.example", "250-gw.example.com\r\n")
}

// toData goes on to where the message may come.
func (c *client) toData() {
	c.t.Helper()
	c.do("MAIL FROM:<a@auth.example.com>", "250 2.0.0 ")
	c.do("RCPT TO:<b@example.net>", "250 2.0.0 ")
	c.do("DATA", "354 ")
}

// rest reads until the connection ends. A reset is an end, too.
func (c *client) rest() string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c.r)
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		c.t.Fatalf("the connection stays open, after %q", b)
	}
	return string(b)
}

// gone waits until the door has no connection left.
func (d *door) gone(t testing.TB) {
	t.Helper()
	d.until(t, "no connection is left", func() bool { return d.count() == 0 })
}

func (d *door) count() int {
	d.table.mu.Lock()
	defer d.table.mu.Unlock()
	return len(d.table.conns)
}

func (d *door) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 10 s until %s", what)
		}
	}
}

// connListener hands out connections that a test made itself.
type connListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *connListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// pipe connects a client through net.Pipe, which has a fake clock inside synctest.
func (l *connListener) pipe(t testing.TB) *client {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return newClient(t, ours)
}

const mail = "From: a@auth.example.com\r\nTo: b@example.net\r\nSubject: code\r\n\r\nhello\r\n"

var errStranger = reply.New(550, "5.7.1", "no client of this listener")

// placed is a connection that seems to come from elsewhere.
type placed struct {
	net.Conn
	remote net.Addr
}

func (c placed) RemoteAddr() net.Addr { return c.remote }

// from is pipe for a client at an address.
func (l *connListener) from(t testing.TB, remote net.Addr) *client {
	ours, theirs := net.Pipe()
	l.conns <- placed{theirs, remote}
	return newClient(t, ours)
}

// addr is a TCP address.
func addr(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }

// tls makes c one that speaks TLS from now on.
func (c *client) tls(config *tls.Config) *client {
	conn := tls.Client(c.Conn, config)
	return &client{conn, c.t, bufio.NewReader(conn)}
}
