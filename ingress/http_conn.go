package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/message"
)

// httpListener gives each connection its place. Those for which there is none, or who are nobody's, are served too, for a
// moment: they are told so, or turn out to be in the reserve.
type httpListener struct {
	net.Listener
	door   *HTTP
	settle time.Duration // how long nobody must have come before it is closed; set before until
	until  atomic.Int64  // when Accept ends at the latest, in nanoseconds; 0 while it goes on
	closed sync.Once
	err    error
}

// lingerTime is how long a connection that broke is read from.
const lingerTime = 500 * time.Millisecond

// A listener that stops is closed once nobody new has come for settleTime. Where connections go on being made it is closed
// the moment that nobody waits, or after settleMost.
const (
	settleTime = 50 * time.Millisecond
	settleMost = time.Second
)

// Accept implements net.Listener. What it returns is a *httpConn, or TLS on one.
func (l *httpListener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil && l.goesOn(err) {
			continue
		}
		if err != nil {
			return nil, l.ended(err)
		}
		if until := l.until.Load(); until > 0 {
			l.setDeadline(earlier(time.Now().Add(l.settle), time.Unix(0, until)))
		}
		c := l.door.newHTTPConn(raw)
		if !c.enter() {
			raw.Close() // a flood of strangers: one more that is told nothing
			continue
		}
		if c.set.tls != nil {
			c.secure = tls.Server(c, c.set.tls.current())
			return c.secure, nil
		}
		return c, nil
	}
}

// goesOn reports whether the listener, which stops, still has somebody to take in. A deadline may have passed without a look,
// where the processor was busy.
func (l *httpListener) goesOn(err error) bool {
	until := l.until.Load()
	return errors.Is(err, os.ErrDeadlineExceeded) && time.Now().UnixNano() < until && waiting(l.Listener) && l.setDeadline(time.Now().Add(settleTime))
}

// ended closes the listener where err says that nobody has come for long enough.
func (l *httpListener) ended(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.Close()
		return net.ErrClosed
	}
	return err
}

// stop ends Accept, once those are taken in who have connected already. Whoever comes from now on is told by the kernel,
// or waits for whoever listens next.
func (l *httpListener) stop() {
	shared := strings.HasPrefix(l.door.settings.Load().Address, "systemd:") // goes on listening without us
	if shared {
		l.setDeadline(time.Now())
		return
	}
	if refuseNew(l.Listener) {
		l.settle = settleTime // for handshakes under way
	}
	l.until.Store(time.Now().Add(settleMost).UnixNano())
	l.door.draining.Store(true)
	if !l.setDeadline(time.Now().Add(l.settle)) {
		l.Close()
	}
}

func (l *httpListener) setDeadline(t time.Time) bool {
	d, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
	return ok && d.SetDeadline(t) == nil
}

// Close implements net.Listener. It closes once.
func (l *httpListener) Close() error {
	l.closed.Do(func() {
		l.err = l.Listener.Close()
		close(l.door.unbound)
	})
	return l.err
}

// refusal is why a connection is served nothing.
type refusal struct {
	status int
	text   string
	wait   time.Duration // for Retry-After; 0 for none
	full   bool          // not for clients that send auth mail: what the others take is not to keep them out
	err    error         // for the log
}

var (
	errHTTPFull   = &refusal{http.StatusServiceUnavailable, "Too many connections, please try again in a moment.", tryAgain, true, errors.New("max_connections")}
	errHTTPSource = &refusal{http.StatusServiceUnavailable, "Too many connections, please try again in a moment.", tryAgain, true, errors.New("max_per_source")}
	errStops      = &refusal{http.StatusServiceUnavailable, "The service restarts, please try again in a moment.", tryAgain, false, errors.New("gatepost stops")}
	errForbidden  = &refusal{http.StatusForbidden, "Requests from here are not accepted.", 0, false, errors.New("the address is in no client's networks")}
)

// httpConn is a caller's connection as net/http sees it.
type httpConn struct {
	net.Conn
	door    *HTTP
	set     *httpSettings // as it was accepted
	refusal *refusal      // nil where it is served
	beyond  bool          // it has one of the places beyond max_connections
	source  source        // that it is counted at
	opened  time.Time
	until   atomic.Pointer[time.Time] // the end of one that is refused; nil where there is none

	proxy   sync.Once // a PROXY header comes first
	proxied bool
	remote  netip.AddrPort // who called, or the balancer until its header is read
	peer    message.Peer
	secure  *tls.Conn   // over it; nil without TLS
	shaken  atomic.Bool // the handshake is over

	idle    atomic.Bool               // the next octet begins a request
	begun   atomic.Pointer[time.Time] // when the last request did
	active  atomic.Int64              // when it was opened, or a request on it last ended, in nanoseconds
	serving atomic.Int32              // requests that are answered
	stopped atomic.Bool               // net/http has ended a read of its own
	told    atomic.Bool               // there has been an answer that net/http does not know of
	hurried atomic.Bool               // it made room for another
	closing sync.Once
}

func (h *HTTP) newHTTPConn(raw net.Conn) *httpConn {
	c := &httpConn{Conn: raw, door: h, set: h.settings.Load(), remote: addrPort(raw.RemoteAddr()), source: unknown, opened: time.Now()}
	c.peer = message.Peer{Addr: c.remote.Addr(), UID: peerUID(raw)}
	c.proxied = slices.ContainsFunc(c.set.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(c.peer.Addr) })
	c.idle.Store(true)
	c.active.Store(c.opened.UnixNano())
	return c
}

// enter gives c a place, and reports whether it got one, if only to be refused on.
func (c *httpConn) enter() bool {
	behind := c.proxied || c.trusted(c.peer.Addr)
	switch {
	case !behind && !c.door.Caller.AdmitsAny(c.set.Name, c.peer):
		c.refusal = c.door.stranger()
	case c.proxied:
		c.refusal = c.door.places.enter(c, unknown)
	default:
		c.source = sourceOf(c.peer)
		c.refusal = c.door.places.enter(c, c.source)
	}
	if c.refusal == nil {
		return true
	}
	c.source, c.beyond = unknown, true
	c.until.Store(new(time.Now().Add(c.door.Timeouts.Refused)))
	return c.door.places.enterBeyond(c)
}

// stranger is the refusal of a caller who can be no client. Where the listener goes, a reload may have taken its clients
// away before: they are to try again, wherever they are served now.
func (h *HTTP) stranger() *refusal {
	if h.draining.Load() {
		return errStops
	}
	return errForbidden
}

// trusted reports whether a proxy that may name the caller is at a.
func (c *httpConn) trusted(a netip.Addr) bool {
	return slices.ContainsFunc(c.set.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Read implements net.Conn.
func (c *httpConn) Read(p []byte) (int, error) {
	var err error
	c.proxy.Do(func() { err = c.introduce() })
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) && !c.stopped.Load() && !c.idle.Load() && c.serving.Load() == 0 {
		c.tellLate()
	}
	if n > 0 && c.idle.CompareAndSwap(true, false) {
		c.begun.Store(new(time.Now()))
	}
	return n, err
}

// introduce reads the PROXY header of a balancer.
func (c *httpConn) introduce() error {
	if !c.proxied {
		return nil
	}
	remote, err := readProxy(c.Conn)
	if err != nil {
		c.idle.Store(false)
		c.door.logTurned("no PROXY header from a balancer in proxy_from", c.remote.String(), err)
		return err
	}
	if remote.IsValid() {
		c.remote, c.peer.Addr = remote, remote.Addr()
	}
	from := sourceOf(c.peer)
	if r := c.door.places.move(from); r != nil {
		c.refusal = r
		return nil
	}
	c.source = from
	return nil
}

// SetReadDeadline implements net.Conn. One that is refused does not get longer than that takes. net/http ends its own
// reads by a time long ago, and sets none when a handshake is over.
func (c *httpConn) SetReadDeadline(t time.Time) error {
	if t.IsZero() {
		c.shaken.Store(true)
	}
	c.stopped.Store(!t.IsZero() && t.Before(c.opened))
	return c.Conn.SetReadDeadline(c.bound(t))
}

// SetWriteDeadline implements net.Conn.
func (c *httpConn) SetWriteDeadline(t time.Time) error { return c.Conn.SetWriteDeadline(c.bound(t)) }

// SetDeadline implements net.Conn.
func (c *httpConn) SetDeadline(t time.Time) error { return c.Conn.SetDeadline(c.bound(t)) }

func (c *httpConn) bound(t time.Time) time.Time {
	until := c.until.Load()
	if until == nil || !t.IsZero() && t.Before(*until) {
		return t
	}
	return *until
}

// stay lifts the bound of one that is refused: it is served after all.
func (c *httpConn) stay() {
	if c.beyond && c.until.Load() != nil {
		c.door.places.stay(c)
		_ = c.Conn.SetDeadline(time.Now().Add(c.door.Timeouts.Answer)) // where it fails the answer does
	}
}

// hurry ends the reading of one that is refused, so that it is told so now. places holds it off from stay.
func (c *httpConn) hurry() {
	c.hurried.Store(true)
	c.until.Store(new(time.Now()))
	_ = c.Conn.SetReadDeadline(time.Now()) // where it fails the connection has ended
}

// tellLate answers where the header of a request did not come in time: net/http closes such connections without a word, or
// takes what there is for the whole.
func (c *httpConn) tellLate() {
	over := net.Conn(c)
	if c.secure != nil {
		if !c.shaken.Load() || c.speaksTwo() {
			return
		}
		over = c.secure
	}
	status, text, wait := http.StatusRequestTimeout, errSlow.Text, ""
	r := c.refusal
	if r == nil && c.door.draining.Load() {
		r = errStops
	}
	if r != nil {
		status, text = r.status, r.text
		if r.wait > 0 {
			wait = fmt.Sprintf("Retry-After: %d\r\n", int(r.wait.Seconds()))
		}
	}
	c.door.logTurned("request refused", c.from(), errors.New("its header did not come in time"))
	if c.Conn.SetWriteDeadline(time.Now().Add(lingerTime)) == nil {
		fmt.Fprintf(over, "HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\nConnection: close\r\n%s\r\n%s\n",
			status, http.StatusText(status), len(text)+1, wait, text)
	}
	if c.secure != nil {
		_ = c.secure.CloseWrite() // it is closed soon in any case
	}
	c.told.Store(true)
}

// speaksTwo reports whether HTTP/2 was agreed on. During a handshake that is not known.
func (c *httpConn) speaksTwo() bool {
	return c.secure != nil && c.shaken.Load() && c.secure.ConnectionState().NegotiatedProtocol == "h2"
}

// Write implements net.Conn. After an answer of ours net/http has nothing to say.
func (c *httpConn) Write(p []byte) (int, error) {
	if c.told.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// CloseWrite ends our side only, so that the answer arrives.
func (c *httpConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Close implements net.Conn. It gives the connection's place up.
func (c *httpConn) Close() (err error) {
	c.closing.Do(func() {
		if c.door.life.Err() == nil && (!c.idle.Load() && !c.hurried.Load() || waiting(c.Conn)) {
			c.drop()
		}
		err = c.Conn.Close()
		c.door.places.leave(c)
	})
	return err
}

// drop reads for a moment what follows a request that was refused: octets that nobody read would make the kernel reset the
// connection, and the answer be lost.
func (c *httpConn) drop() {
	if c.CloseWrite() == nil && c.Conn.SetReadDeadline(time.Now().Add(lingerTime)) == nil {
		_, _ = io.CopyN(io.Discard, c.Conn, maxUnread)
	}
}

// from names the other end for the log.
func (c *httpConn) from() string {
	if c.peer.UID >= 0 {
		return fmt.Sprintf("unix uid %d", c.peer.UID)
	}
	return c.remote.String()
}

type connKey struct{}

// withConn hands the connection on to the requests that come over it.
func withConn(ctx context.Context, conn net.Conn) context.Context {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, conn)
}

// places counts the connections of an HTTP door, and the requests under way.
type places struct {
	mu        sync.Mutex
	open      map[*httpConn]struct{}
	busy      int // requests
	max       int // of those that are served
	perSource int
	taken     int
	beyond    int         // of those that are told no, or use the reserve
	unproved  []*httpConn // of those that may use the reserve, oldest first
	sources   map[source]int
	waiting   chan struct{} // closed when all is over; nil while nobody waits for that
}

func newPlaces() *places { return &places{open: map[*httpConn]struct{}{}, sources: map[source]int{}} }

func (p *places) resize(max, perSource int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.max, p.perSource = max, perSource
}

// enter takes a place for c, from a source, or says why there is none.
func (p *places) enter(c *httpConn, from source) *refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.max {
		return errHTTPFull
	}
	if r := p.countAt(from); r != nil {
		return r
	}
	p.taken++
	p.open[c] = struct{}{}
	return nil
}

// move counts a connection, whose source was unknown, where it comes from.
func (p *places) move(from source) *refusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.countAt(from)
}

func (p *places) countAt(from source) *refusal {
	if from == unknown {
		return nil
	}
	if p.sources[from] >= p.perSource {
		return errHTTPSource
	}
	p.sources[from]++
	return nil
}

// enterBeyond takes one of the places beyond max, where connections are told no and auth clients are served all the same:
// a quarter as many, and as many again for those who may be a client. When these are taken, the one of them that has
// shown nothing for longest is told no at once.
func (p *places) enterBeyond(c *httpConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := max(64, p.max/4)
	for n := 0; c.refusal.full && p.beyond >= 3*most && n < 100; n++ { // those who were hurried are still being told
		p.mu.Unlock()
		time.Sleep(time.Millisecond)
		p.mu.Lock()
	}
	switch {
	case !c.refusal.full && p.beyond >= most, p.beyond >= 3*most:
		return false
	case c.refusal.full && p.beyond >= 2*most && len(p.unproved) > 0:
		p.unproved[0].hurry()
		p.unproved = p.unproved[1:]
	}
	p.beyond++
	p.open[c] = struct{}{}
	if c.refusal.full {
		p.unproved = append(p.unproved, c)
	}
	return true
}

// stay notes that c is served.
func (p *places) stay(c *httpConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.proved(c)
	c.until.Store(nil)
}

func (p *places) proved(c *httpConn) {
	if i := slices.Index(p.unproved, c); i >= 0 {
		p.unproved = slices.Delete(p.unproved, i, i+1)
	}
}

// begin counts a request, end counts it off.
func (p *places) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy++
}

func (p *places) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy--
	p.tell()
}

func (p *places) leave(c *httpConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, c)
	if c.source != unknown {
		if p.sources[c.source]--; p.sources[c.source] == 0 {
			delete(p.sources, c.source)
		}
	}
	if c.beyond {
		p.beyond--
		p.proved(c)
	} else {
		p.taken--
	}
	p.tell()
}

// tell ends the waiting for empty where nothing is left. mu is held.
func (p *places) tell() {
	if p.waiting != nil && p.taken+p.beyond+p.busy == 0 {
		close(p.waiting)
		p.waiting = nil
	}
}

// empty returns a channel that is closed when no connection and no request is left. One at a time may wait.
func (p *places) empty() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	done := make(chan struct{})
	p.waiting = done
	p.tell()
	return done
}

// lastCall ends at until the reading of connections on which something has come. HTTP/2 is not to be ended so.
func (p *places) lastCall(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		if !c.idle.Load() && !c.speaksTwo() {
			c.until.Store(&until)
			_ = c.Conn.SetReadDeadline(until) // where it fails the connection has ended
		}
	}
}

// closeIdle closes the connections on which nothing has gone on for a time, and nothing has come that nobody has read yet.
func (p *places) closeIdle(quiet time.Duration) {
	p.mu.Lock()
	all := slices.Collect(maps.Keys(p.open))
	p.mu.Unlock()
	before := time.Now().Add(-quiet).UnixNano()
	for _, c := range all {
		if c.idle.Load() && c.active.Load() <= before && !waiting(c.Conn) {
			_ = c.CloseWrite() // the caller is to know now: a socket is closed when its reader lets go of it
			c.Close()
		}
	}
}

func (p *places) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken + p.beyond
}
