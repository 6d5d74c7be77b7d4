// Package upstreamtest holds what tests of upstreams and of their users share: an SMTP host whose every answer can be
// scripted, and the conformance suite that every type of upstream passes.
package upstreamtest

import (
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
)

// waitTime is how long Wait waits before it fails the test.
const waitTime = 10 * time.Second

// Special replies for Script and Reply.
const (
	Drop = "drop" // close the connection instead
	Hang = "hang" // answer nothing until the client goes
)

// Where a Host asks its script besides the client's own verbs.
const (
	Greeting = "GREETING" // before the banner
	Body     = "BODY"     // the first line of a mail has come; a reply is sent ahead of time
	Dot      = "DOT"      // the mail is whole
)

// HostOptions says what an SMTP host is like. The zero value listens on an ephemeral port of 127.0.0.1, takes every
// mail in clear text and offers PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES and SIZE.
type HostOptions struct {
	Addr           string   // "127.0.0.1:0" by default
	NoListen       bool     // only Pipe leads to it: for tests in a synctest bubble
	TLS            string   // "", "starttls" or "implicit"
	Username       string   // where set, MAIL needs a login
	Password       string   // for PLAIN and LOGIN
	Token          string   // for XOAUTH2
	Without        []string // keywords not to offer
	Extensions     []string // lines to offer beside the usual
	MaxConnections int      // more at a time get 421; 0 for any number
	SplitReplies   bool     // every octet of a reply is a write of its own
	Chunking       bool     // offers CHUNKING (RFC 3030)
	ReadsRefused   bool     // takes what is in a refused chunk for commands, as no host should
	ReadsWhere     []string // where it does: without MAIL, without RCPT, or what it refuses for its own sake (BDAT); empty for all of them
}

// Step is where a client stands when the script is asked.
type Step struct {
	Verb string // upper case; or Greeting, Body, Dot
	Arg  string // what follows the verb
	Conn int    // number of the connection, from 1
	Mail int    // number of the transaction on it, from 1; 0 before the first MAIL
}

// Action is what the host does at a Step. The zero value is what it does without a script.
type Action struct {
	Reply string        // instead of the usual; lines end in CRLF but for the last; or Drop, Hang
	Delay time.Duration // before it
}

// Mail is one mail that the host took.
type Mail struct {
	Peer   netip.AddrPort // invalid over Pipe
	Helo   string
	User   string // who had logged in
	TLS    bool
	From   string   // as in MAIL, without brackets
	Params string   // of MAIL
	To     []string // as in RCPT, without brackets
	Data   []byte   // unstuffed, CRLF line ends
	At     time.Time
}

// Host is an SMTP host for tests. Its methods may be called from any goroutine.
type Host struct {
	tb    testing.TB
	opts  HostOptions
	tls   *tls.Config
	ca    string // file
	addr  string
	tasks sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	accepted int
	most     int // connections at once
	peers    []netip.AddrPort
	seen     []Step
	mails    []Mail
	changed  chan struct{} // closed at the next mail
	script   func(Step) Action
	replies  map[string][]string
}

// NewHost starts a host that is stopped with the test.
func NewHost(tb testing.TB, o HostOptions) *Host {
	tb.Helper()
	h := &Host{tb: tb, opts: o, conns: map[net.Conn]bool{}, changed: make(chan struct{}), replies: map[string][]string{}}
	if o.TLS != "" {
		h.tls, h.ca = certificate(tb)
	}
	h.addr = o.Addr
	if h.addr == "" {
		h.addr = "127.0.0.1:0"
	}
	if !o.NoListen {
		h.Start()
	}
	tb.Cleanup(h.Stop)
	return h
}

// Start listens again after Stop, on the same port.
func (h *Host) Start() {
	h.tb.Helper()
	l, err := net.Listen("tcp", h.addr)
	if err != nil {
		h.tb.Fatalf("start test host: %v", err)
	}
	h.mu.Lock()
	h.listener, h.addr = l, l.Addr().String()
	h.mu.Unlock()
	h.tasks.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			h.serve(conn)
		}
	})
}

// Stop closes the listener and every connection, and waits for them to end.
func (h *Host) Stop() {
	h.mu.Lock()
	if h.listener != nil {
		h.listener.Close()
		h.listener = nil
	}
	h.mu.Unlock()
	h.DropConnections()
	h.tasks.Wait()
}

// DropConnections closes every connection without a word, and goes on listening.
func (h *Host) DropConnections() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
	}
}

// Pipe returns a new connection to the host that uses no network.
func (h *Host) Pipe() net.Conn {
	client, server := net.Pipe()
	b := &buffered{Conn: server, out: make(chan []byte, 64), closed: make(chan struct{})}
	h.tasks.Go(b.copy)
	h.serve(b)
	return client
}

// buffered is an end of a pipe on which writes do not wait for the reader, as a network's do not.
type buffered struct {
	net.Conn
	out    chan []byte
	closed chan struct{}
	once   sync.Once
}

// Write implements net.Conn.
func (b *buffered) Write(p []byte) (int, error) {
	select {
	case b.out <- slices.Clone(p):
		return len(p), nil
	case <-b.closed:
		return 0, net.ErrClosed
	}
}

// Close implements net.Conn: what was written still arrives, where somebody reads it.
func (b *buffered) Close() error {
	b.once.Do(func() {
		b.SetReadDeadline(time.Unix(1, 0))
		b.SetWriteDeadline(time.Now().Add(time.Second))
		close(b.closed)
	})
	return nil
}

func (b *buffered) copy() {
	defer b.Conn.Close()
	for {
		select {
		case p := <-b.out:
			b.Conn.Write(p)
			continue
		default:
		}
		select {
		case p := <-b.out:
			b.Conn.Write(p)
		case <-b.closed:
			if len(b.out) == 0 {
				return
			}
		}
	}
}

// serve speaks to conn on a goroutine of its own.
func (h *Host) serve(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[conn] = true
	h.most = max(h.most, len(h.conns))
	h.accepted++
	peer := peerOf(conn)
	h.peers = append(h.peers, peer)
	s := &session{host: h, conn: conn, raw: conn, peer: peer, number: h.accepted}
	s.crowded = h.opts.MaxConnections > 0 && len(h.conns) > h.opts.MaxConnections
	h.tasks.Go(func() {
		s.run()
		h.mu.Lock()
		defer h.mu.Unlock()
		conn.Close()
		delete(h.conns, conn)
	})
}

func peerOf(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), a.AddrPort().Port())
	}
	return netip.AddrPort{}
}

// Addr returns host:port.
func (h *Host) Addr() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.addr
}

// CAFile returns the PEM file with the certificate to trust, where the host has TLS. It is valid for 127.0.0.1, ::1 and
// localhost.
func (h *Host) CAFile() string { return h.ca }

// Script lets f decide each answer; nil ends that. f may be called from several goroutines.
func (h *Host) Script(f func(Step) Action) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.script = f
}

// Reply queues replies to verb (or Greeting, Body, Dot): each is used once, whatever the script says.
func (h *Host) Reply(verb string, replies ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.replies[verb] = append(h.replies[verb], replies...)
}

// action returns what to do at step, and records it.
func (h *Host) action(step Step) Action {
	h.mu.Lock()
	h.seen = append(h.seen, step)
	script := h.script
	if queue := h.replies[step.Verb]; len(queue) > 0 {
		h.replies[step.Verb] = queue[1:]
		h.mu.Unlock()
		return Action{Reply: queue[0]}
	}
	h.mu.Unlock()
	if script == nil {
		return Action{}
	}
	return script(step)
}

// take keeps a mail.
func (h *Host) take(m Mail) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m.At = time.Now()
	h.mails = append(h.mails, m)
	close(h.changed)
	h.changed = make(chan struct{})
}

// Messages returns the mails taken so far, in order.
func (h *Host) Messages() []Mail {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mails)
}

// Wait returns the mails once there are at least n, and fails the test where they do not come.
func (h *Host) Wait(n int) []Mail {
	h.tb.Helper()
	timeout := time.NewTimer(waitTime)
	defer timeout.Stop()
	for {
		h.mu.Lock()
		mails, changed := slices.Clone(h.mails), h.changed
		h.mu.Unlock()
		if len(mails) >= n {
			return mails
		}
		select {
		case <-changed:
		case <-timeout.C:
			h.tb.Fatalf("the test host has %d mails after %v, want %d", len(mails), waitTime, n)
		}
	}
}

// Connections returns how many connections are open now.
func (h *Host) Connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

// Most returns how many connections were open at once, at most.
func (h *Host) Most() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.most
}

// Accepted returns how many connections there have been.
func (h *Host) Accepted() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.accepted
}

// Peers returns who connected, in order.
func (h *Host) Peers() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.peers)
}

// Steps returns all that clients did, in order.
func (h *Host) Steps() []Step {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

// Verbs returns the verbs of Steps.
func (h *Host) Verbs() []string {
	var verbs []string
	for _, s := range h.Steps() {
		verbs = append(verbs, s.Verb)
	}
	return verbs
}

// errGone ends a session.
var errGone = errors.New("the connection is to be closed")
