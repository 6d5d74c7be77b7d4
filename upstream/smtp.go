package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// A connection is kept for the next mail, but not for ever: hosts close idle and old ones in their own time, and what
// DNS says of the host should matter again some day.
const (
	idleTime = 25 * time.Second // most hosts wait for 30 s or more; see habits
	maxAge   = 5 * time.Minute
	maxMails = 100
)

// smtpUpstream hands mail to one SMTP host (RFC 5321) over a pool of kept connections, the last used first.
type smtpUpstream struct {
	cfg      *config.Upstream
	hostname string
	dial     func(ctx context.Context) (net.Conn, error)
	tls      *tls.Config
	slots    *slots
	chunks   *chunking
	closing  context.Context // ends with Close
	shut     context.CancelFunc
	leaving  sync.WaitGroup // what is done beside: QUIT, NOOP, spares

	mu      sync.Mutex
	live    map[*smtpConn]bool      // all that are logged in
	pool    []*smtpConn             // those of them that wait for a mail
	wants   []*want                 // mails that wait for one
	making  int                     // that are being opened for mail
	coming  int                     // spares that are being opened
	dialing int                     // of both, those that the host may see
	ending  map[*smtpConn]time.Time // that were told QUIT, and when
	gone    chan struct{}           // closed, and another put in its place, when the host sees one less
	absence absence                 // of spares
	habits  habits
	closed  bool // Close has had its end: nothing is kept or quit politely
}

func newSMTP(c *config.Upstream, hostname string, egress *Egress, lanes []LaneKind) (*smtpUpstream, error) {
	dial := func(ctx context.Context) (net.Conn, error) { return egress.DialContext(ctx, "tcp", c.Address) }
	return newSMTPOver(c, hostname, dial, lanes)
}

// newSMTPOver is newSMTP with the way to the host given.
func newSMTPOver(c *config.Upstream, hostname string, dial func(ctx context.Context) (net.Conn, error), lanes []LaneKind) (*smtpUpstream, error) {
	t, err := tlsConfig(c)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	u := &smtpUpstream{
		cfg: c, hostname: hostname, dial: dial, tls: t,
		slots:  newSlots(c.Connections, c.Rate, lanes),
		chunks: newChunking(c.Chunking),
		live:   map[*smtpConn]bool{},
		ending: map[*smtpConn]time.Time{},
		gone:   make(chan struct{}),
	}
	u.closing, u.shut = context.WithCancel(context.Background())
	return u, nil
}

// beside runs f on a goroutine that Close waits for, and reports false where the upstream closes already.
func (u *smtpUpstream) beside(f func()) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closing.Err() != nil {
		return false
	}
	u.leaving.Go(f)
	return true
}

// tlsConfig returns how the host is verified: always, and against the configured roots.
func tlsConfig(c *config.Upstream) (*tls.Config, error) {
	switch c.TLS {
	case "none":
		return nil, nil
	case "starttls", "implicit":
	default:
		return nil, fmt.Errorf("tls %q is not known", c.TLS)
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.TLSServerName, ClientSessionCache: tls.NewLRUClientSessionCache(0)}
	if t.ServerName == "" {
		t.ServerName = c.Host
	}
	if c.TLSCAFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(c.TLSCAFile)
	if err != nil {
		return nil, fmt.Errorf("read tls_ca_file: %w", err)
	}
	t.RootCAs = x509.NewCertPool()
	if !t.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls_ca_file %s holds no certificate in PEM form", c.TLSCAFile)
	}
	return t, nil
}

// Traits implements Upstream.
func (u *smtpUpstream) Traits() Traits { return Traits{DKIM: u.cfg.DKIM} }

// Reserve implements Upstream. Where the host says that there are too many connections (421) while we have others, or
// are making them, it waits for one of those.
func (u *smtpUpstream) Reserve(ctx context.Context, lane string) (Slot, error) {
	for {
		if err := u.slots.take(ctx, lane); err != nil {
			return nil, u.named(err)
		}
		c, err := u.checkOut(ctx, lane)
		if err == nil {
			u.warm()
			return &smtpSlot{upstream: u, lane: lane, conn: c, caps: c.caps}, nil
		}
		crowded := u.crowded(err)
		u.slots.give(lane)
		if !crowded {
			return nil, u.named(err)
		}
	}
}

// named adds the upstream's name to errClosed.
func (u *smtpUpstream) named(err error) error {
	if errors.Is(err, errClosed) {
		return fmt.Errorf("upstream %s: %w", u.cfg.Name, err)
	}
	return err
}

// crowded reports whether err says that the connections we have are as many as the host wants, and keeps to that.
func (u *smtpUpstream) crowded(err error) bool {
	if !isCrowded(err) {
		return false
	}
	u.mu.Lock()
	open := len(u.live)
	u.mu.Unlock()
	return u.slots.lower(open)
}

// isCrowded reports whether err is a host's 421.
func isCrowded(err error) bool {
	p, ok := errors.AsType[*Paused](err)
	return ok && p.Verdict.Code == 421
}

// pause waits for d, and reports false where there is nothing to wait for or ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return false
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// checkOut returns a kept connection that still works, or else the first that there is: a new one, or one that somebody
// gives back meanwhile.
func (u *smtpUpstream) checkOut(ctx context.Context, lane string) (*smtpConn, error) {
	for {
		c, w := u.pop(ctx, lane)
		if c == nil {
			return u.await(ctx, w)
		}
		if !c.stale() && !c.unfit(ctx) {
			return c, nil
		}
		u.kill(c)
	}
}

// pop takes the connection last used out of the pool. Where there is none the caller has to await one.
func (u *smtpUpstream) pop(ctx context.Context, lane string) (*smtpConn, *want) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pool) == 0 {
		w := newWant(ctx, lane)
		u.wants = append(u.wants, w)
		u.making++
		return nil, w
	}
	c := u.pool[len(u.pool)-1]
	u.pool = u.pool[:len(u.pool)-1]
	c.idle.Stop()
	c.reused = true
	return c, nil
}

// connect returns a new connection for mail of lane, logged in; it was counted as being made. Its error is *Paused, ctx's
// own, or errClosed.
func (u *smtpUpstream) connect(ctx context.Context, lane string) (*smtpConn, error) {
	c, err := u.newConn(ctx, lane)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.making--
	if err == nil {
		u.absence.barred = false
	}
	return c, err
}

// count returns how many connections the host may see. mu is held.
func (u *smtpUpstream) count() int { return len(u.live) + u.making + u.coming + len(u.ending) }

// newConn is connect for who counts for himself.
func (u *smtpUpstream) newConn(ctx context.Context, lane string) (*smtpConn, error) {
	dialing, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	defer context.AfterFunc(u.closing, cancel)()
	c, err := u.enter(dialing, lane)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case u.closing.Err() != nil:
		return nil, errClosed
	case dialing.Err() != nil:
		return nil, &Paused{Verdict: upstreamDown(message.Temporary, fmt.Sprintf("%s: not connected and logged in within %v", u.cfg.Address, connectTime))}
	}
	return nil, err
}

// enter logs in, once there is room, and counts the connection among the live, unless the upstream has closed meanwhile.
func (u *smtpUpstream) enter(ctx context.Context, lane string) (*smtpConn, error) {
	counted, err := u.makeRoom(ctx, lane)
	if err != nil {
		return nil, err
	}
	c, err := u.login(ctx)
	if isCrowded(err) && pause(ctx, time.Until(counted)) {
		c, err = u.login(ctx)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.dialing--
	if err == nil && u.closed {
		c.tcp.Close()
		err = errClosed
	}
	if err != nil {
		u.oneLess()
		return nil, err
	}
	u.live[c] = true
	return c, nil
}

// login connects and makes the connection ready for mail.
func (u *smtpUpstream) login(ctx context.Context) (*smtpConn, error) {
	conn, err := u.dial(ctx)
	if err != nil {
		return nil, &Paused{Verdict: upstreamDown(message.Temporary, err.Error())}
	}
	c := newSMTPConn(conn, u.cfg.Address)
	stop := c.until(ctx)
	err = c.open(u.cfg, u.hostname, u.tls)
	stop()
	if err == nil && c.broken {
		err = c.paused("login", ctx.Err())
	}
	if err != nil {
		c.tcp.Close()
		return nil, err
	}
	return c, nil
}

// kill closes c at once.
func (u *smtpUpstream) kill(c *smtpConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.end(c)
}

// end is kill with mu held.
func (u *smtpUpstream) end(c *smtpConn) {
	c.broken = true
	c.tcp.Close()
	delete(u.live, c)
	u.oneLess()
}

// replace closes c and returns a new connection in its place, for mail of lane, with connect's error.
func (u *smtpUpstream) replace(ctx context.Context, c *smtpConn, lane string) (*smtpConn, error) {
	u.mu.Lock()
	u.end(c)
	u.making++
	u.mu.Unlock()
	return u.connect(ctx, lane)
}

// checkIn takes c back into the pool, or ends it where it is broken, old or not wanted any more.
func (u *smtpUpstream) checkIn(c *smtpConn) {
	if c.broken {
		u.kill(c)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	rest, life := u.habits.bounds()
	if u.closing.Err() != nil || c.mails >= c.maxMails || time.Since(c.born) >= life {
		u.quit(c)
		return
	}
	if c.mails > 0 || c.outlived > 0 && time.Since(c.born) >= shortLife {
		u.absence.fails = 0
	}
	c.restsSince = time.Now()
	if w := u.foremost(); w != nil && u.hand(c, w) {
		return
	}
	c.idle = time.AfterFunc(min(lookTime, rest), func() { u.look(c) })
	u.pool = append(u.pool, c)
}

// retire ends a connection that has waited in the pool for too long.
func (u *smtpUpstream) retire(c *smtpConn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.remove(c) {
		u.quit(c)
	}
}

// remove takes c out of the pool, where it still is there. mu is held.
func (u *smtpUpstream) remove(c *smtpConn) bool {
	i := slices.Index(u.pool, c)
	if i < 0 {
		return false
	}
	u.pool = slices.Delete(u.pool, i, i+1)
	return true
}

// Close implements Upstream. Its error is ctx's, where slots were still in use when it ended.
func (u *smtpUpstream) Close(ctx context.Context) error {
	u.slots.close()
	u.shut()
	u.mu.Lock()
	for _, c := range u.pool {
		c.idle.Stop()
		u.quit(c)
	}
	u.pool = nil
	u.absence.forget()
	u.mu.Unlock()

	err := u.slots.drain(ctx)
	u.mu.Lock()
	u.closed = true
	for c := range u.live {
		c.tcp.Close()
	}
	u.mu.Unlock()
	u.leaving.Wait()
	if err != nil {
		return fmt.Errorf("close upstream %s: mail was still being handed over: %w", u.cfg.Name, err)
	}
	return nil
}
