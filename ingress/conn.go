package ingress

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

const (
	maxCommand = 12288    // octets of a command line with its CRLF: room for an AUTH response (RFC 4954 §4)
	maxBurst   = 8 << 10  // octets of replies that wait for the end of a burst
	maxIdleBuf = 1 << 10  // octets of buffer that an idle connection keeps
	maxStrikes = 10       // refused command lines until the connection is closed
	maxLinger  = 64 << 10 // octets that are read and dropped when closing, so that the last reply arrives
)

var errBroken = reply.New(421, "4.3.0", "Temporary failure, please try again later")

// conn is a client's connection as go-smtp sees it. It hands go-smtp one vetted command line per Read, so it always
// knows what the octets in its buffer are: the next command, an answer to AUTH, or, while Session.Data runs, a message,
// which the session takes from it directly (readData). Of messages, credentials and TLS go-smtp sees nothing. Replies
// are collected and leave in one write before conn waits for the client. All deadlines are set here.
//
// Its methods are called by the session's goroutine, except drain, and what admit does before there is one.
type conn struct {
	raw     net.Conn // the socket
	link    net.Conn // what is read and written: raw, or TLS on it
	smtp    *SMTP
	set     *settings
	proxied bool           // a PROXY header comes first
	begun   bool           // PROXY header and implicit TLS are done with
	secure  bool           // link is TLS
	remote  netip.AddrPort // of the client, also where it is behind a balancer; zero on a unix socket
	peer    message.Peer

	client        string // "" while a login must tell
	known         string // the client that peer is without a login
	loggedIn      bool
	authenticated bool      // and credentials made it the client, not its address
	failures      int       // logins that were refused
	end           time.Time // of the session
	loginBy       time.Time // end of a session that has no client by then

	buf      []byte // buf[r:w] was received and not yet used
	r, w     int
	line     []byte   // what of the current command go-smtp has not read yet
	out      []byte   // replies that wait for the end of the burst
	spoken   bool     // the first command was one of SMTP
	helo     string   // what the client calls itself; "" before it has greeted; untrusted
	extended bool     // the last greeting was EHLO
	session  *session // nil before the first greeting
	strikes  int
	deaf     error // why replies can't be sent any more
	over     bool  // nothing more is read: the session ends when go-smtp notices
	linger   bool  // the client may still be sending: closing at once would destroy the last reply
	closing  sync.Once

	mu      sync.Mutex // guards what drain shares with the session
	inMail  bool       // between MAIL and the answer to its data
	drainAt time.Time  // zero until the door is stopping
}

func newConn(s *SMTP, raw net.Conn) *conn {
	now := time.Now()
	c := &conn{raw: raw, link: raw, smtp: s, set: s.settings.Load(), remote: addrPort(raw.RemoteAddr()),
		end: now.Add(s.Timeouts.Session), loginBy: now.Add(s.Timeouts.Login)}
	c.peer = message.Peer{Addr: c.remote.Addr(), UID: peerUID(raw)}
	c.proxied = slices.ContainsFunc(c.set.ProxyFrom, func(p netip.Prefix) bool { return p.Contains(c.peer.Addr) })
	return c
}

// Read implements net.Conn. It returns the next command line, or io.EOF when the session is over, whatever ended it.
func (c *conn) Read(p []byte) (int, error) {
	if len(c.line) == 0 {
		line, err := c.next()
		if errors.Is(err, errPanic) {
			c.log(slog.LevelError, "session ended", slog.String("err", err.Error()))
			c.final(errBroken)
		}
		if err != nil {
			return 0, io.EOF
		}
		c.line = line
	}
	n := copy(p, c.line)
	c.line = c.line[n:]
	return n, nil
}

// next returns what Read hands on, or io.EOF. go-smtp recovers from panics only where it calls us itself.
func (c *conn) next() (line []byte, err error) {
	defer recovered(&err)
	c.begin()
	if line, ok := c.nextCommand(); ok {
		return line, nil
	}
	return nil, io.EOF
}

// begin does, once, what comes before the banner. go-smtp has written that by then, and conn still holds it back.
func (c *conn) begin() {
	if c.begun {
		return
	}
	c.begun = true
	if c.proxied {
		c.introduce()
	}
	if c.set.TLS == "implicit" && !c.over {
		c.upgrade()
	}
}

// instead ends the session with e in place of the banner.
func (c *conn) instead(e *reply.Error) {
	c.out = c.out[:0]
	c.hangUp(&reply.Error{Code: e.Code, Enhanced: e.Enhanced, Text: c.set.hostname + " " + e.Text})
	c.logTurned("connection refused", e)
}

// silence ends the session without a word: there is nobody who would understand one.
func (c *conn) silence(why error) {
	c.out, c.over, c.deaf = nil, true, why
}

// nextCommand returns the next line that go-smtp may see. Others are answered here.
func (c *conn) nextCommand() (line []byte, ok bool) {
	for !c.over {
		if end := c.mustEnd(); end != nil {
			c.final(end)
			break
		}
		line, ok := c.readLine()
		if ok && c.vet(line) {
			return line, true
		}
	}
	return nil, false
}

// readLine reads a line with its line end. It is valid until the next read.
func (c *conn) readLine() (line []byte, ok bool) {
	until := time.Now().Add(c.smtp.Timeouts.Idle) // for the whole line, so that an octet now and then gains nothing
	for {
		pending := c.buf[c.r:c.w]
		i := bytes.IndexByte(pending, '\n')
		switch {
		case i >= 0 && i < maxCommand:
			c.r += i + 1
			return pending[:i+1], true
		case len(pending) >= maxCommand:
			c.hangUp(errLongCommand)
			return nil, false
		case !c.spoken && len(pending) > 0 && !isLetter(pending[0]):
			c.hangUp(errNotSMTP) // TLS, or some other binary protocol: no line end will come
			return nil, false
		}
		if err := c.fill(until); err != nil {
			c.lost(err)
			return nil, false
		}
	}
}

// fill waits for octets and appends them to the buffer.
func (c *conn) fill(until time.Time) error {
	c.w = copy(c.buf, c.buf[c.r:c.w])
	c.r = 0
	if c.w == 0 && len(c.buf) > maxIdleBuf {
		c.buf = nil
	}
	if c.w == len(c.buf) {
		c.buf = append(c.buf, make([]byte, max(512, len(c.buf)))...)
	}
	n, err := c.receive(c.buf[c.w:], until)
	c.w += n
	if n > 0 {
		return nil
	}
	return err
}

// receive sends the replies that wait and reads from the network.
func (c *conn) receive(p []byte, until time.Time) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	if err := c.armRead(until); err != nil {
		return 0, err
	}
	return c.link.Read(p)
}

// armRead sets the read deadline to until or what ends the session before.
func (c *conn) armRead(until time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	until = earlier(until, c.sessionEnd())
	if !c.drainAt.IsZero() {
		until = earlier(until, c.drainDeadline())
	}
	return c.raw.SetReadDeadline(until)
}

// sessionEnd returns until when the session may last.
func (c *conn) sessionEnd() time.Time {
	switch {
	case c.client == "":
		return earlier(c.end, c.loginBy)
	case c.inMail:
		return c.end.Add(c.smtp.Timeouts.Idle)
	}
	return c.end
}

// drainDeadline returns until when the client may be listened to, now that the door is stopping.
func (c *conn) drainDeadline() time.Time {
	if c.inMail {
		return c.drainAt
	}
	return time.Unix(1, 0)
}

// drain makes the session end: at once where it is between mails, else at until.
func (c *conn) drain(until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drainAt = until
	c.raw.SetReadDeadline(c.drainDeadline())
}

// setInMail notes that a transaction has begun or ended.
func (c *conn) setInMail(in bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inMail = in
}

// mustEnd returns the last reply of a session that may read no further command, or nil.
func (c *conn) mustEnd() *reply.Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inMail {
		return nil
	}
	return c.ended()
}

// timedOut is the last reply to a client whose read deadline has passed: because of reason where nothing else ended
// the session.
func (c *conn) timedOut(reason string) *reply.Error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.ended(), reply.New(421, "4.4.2", "%s %s", c.set.hostname, reason))
}

// ended says why the session as a whole is at its end, or nil.
func (c *conn) ended() *reply.Error {
	switch {
	case !c.drainAt.IsZero():
		return reply.New(421, "4.3.2", "%s is shutting down, try again later", c.set.hostname)
	case !time.Now().Before(c.end):
		return reply.New(421, "4.4.2", "%s ends this session, it has lasted too long", c.set.hostname)
	case c.client == "" && !time.Now().Before(c.loginBy):
		return reply.New(421, "4.4.2", "%s has waited too long for a login", c.set.hostname)
	}
	return nil
}

// lost ends the session after a failed read, with a last reply where the client may still be there.
func (c *conn) lost(err error) {
	c.over = true
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.final(c.timedOut("has waited too long for a command"))
	}
}

// say puts a reply of our own behind those of go-smtp.
func (c *conn) say(e *reply.Error) {
	c.out = fmt.Appendf(c.out, "%d %s %s\r\n", e.Code, e.Enhanced, oneLine(e.Text))
}

// final says the session's last reply.
func (c *conn) final(e *reply.Error) {
	c.say(e)
	c.over = true
}

// hangUp says the last reply to a client that is still sending.
func (c *conn) hangUp(e *reply.Error) {
	c.final(e)
	c.linger = true
}

// Write implements net.Conn for go-smtp's replies, which come a line at a time.
func (c *conn) Write(p []byte) (int, error) {
	c.out = append(c.out, c.edit(p)...)
	if len(c.out) < maxBurst {
		return len(p), nil
	}
	return len(p), c.flush()
}

// edit makes the banner and the answer to the greeting ours: RFC 5321 §4.1.1.1 wants our name first, the client's name
// is not echoed, CHUNKING is not offered, and of what is offered a part depends on the connection.
func (c *conn) edit(line []byte) []byte {
	switch {
	case bytes.HasPrefix(line, []byte("220 ")):
		return []byte("220 " + c.set.hostname + " ESMTP Service Ready\r\n")
	case bytes.Equal(line, []byte("250-CHUNKING\r\n")):
		return nil
	case bytes.Equal(line, []byte("250 SIZE\r\n")):
		return c.offers()
	case bytes.HasPrefix(line, []byte("250-Hello ")):
		return []byte("250-" + c.set.hostname + "\r\n")
	case bytes.HasPrefix(line, []byte("250 2.0.0 Hello ")):
		return []byte("250 " + c.set.hostname + "\r\n")
	}
	return line
}

// offers returns the last lines of the answer to EHLO: what this client may use now.
func (c *conn) offers() (lines []byte) {
	if c.offersTLS() {
		lines = append(lines, "250-STARTTLS\r\n"...)
	}
	if c.offersAuth() && c.private() {
		lines = append(lines, "250-AUTH PLAIN LOGIN\r\n"...)
	}
	return fmt.Appendf(lines, "250 SIZE %d\r\n", c.limit(nil))
}

// limit returns how many octets a message may have, with that header or, where it is nil, at all.
func (c *conn) limit(header []byte) int64 {
	if n := c.smtp.Acceptor.Limit(c.client, header); n > 0 {
		return min(n, c.set.MaxSize)
	}
	return c.set.MaxSize
}

// flush sends the replies that wait.
func (c *conn) flush() error {
	if len(c.out) == 0 || c.deaf != nil {
		return c.deaf
	}
	c.raw.SetWriteDeadline(time.Now().Add(c.smtp.Timeouts.Write))
	_, c.deaf = c.link.Write(c.out)
	if c.out = c.out[:0]; cap(c.out) > maxIdleBuf {
		c.out = nil
	}
	c.over = c.over || c.deaf != nil
	return c.deaf
}

// Close implements net.Conn. It sends the replies that wait and gives the connection's place up.
func (c *conn) Close() error {
	var err error
	c.closing.Do(func() {
		c.over = true
		if c.flush() == nil && c.linger {
			c.drop()
		}
		err = c.link.Close()
		c.smtp.Connections.release(c.client)
		c.smtp.table.remove(c)
	})
	return err
}

// drop reads for a moment what the client is still sending: octets that nobody read would make the kernel reset the
// connection, and the client would not see why it was refused.
func (c *conn) drop() {
	if t, ok := c.link.(*tls.Conn); ok {
		t.CloseWrite()
	}
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		c.raw.SetReadDeadline(time.Now().Add(time.Second))
		io.CopyN(io.Discard, c.raw, maxLinger)
	}
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }

// The deadlines are conn's own. go-smtp, told of no timeouts, does not set any.

// SetDeadline implements net.Conn and does nothing.
func (c *conn) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn and does nothing.
func (c *conn) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn and does nothing.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
