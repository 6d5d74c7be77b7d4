package test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// client is an SMTP session of the test's own, for when every reply counts.
type client struct {
	conn net.Conn
	text *textproto.Conn
}

// dial connects from the address local, reads the banner and says EHLO.
func dial(addr, local string) (*client, error) {
	conn, err := connect(addr, local)
	if err != nil {
		return nil, err
	}
	return greet(conn)
}

func connect(addr, local string) (net.Conn, error) {
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	conn, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	return conn, nil
}

// greet reads the banner and says EHLO.
func greet(conn net.Conn) (*client, error) {
	c := &client{conn, textproto.NewConn(conn)}
	_, err := c.expect(220)
	if err == nil {
		_, err = c.command(250, "EHLO test.example.com")
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// refusal is a reply other than the one that was hoped for.
type refusal string // "451 4.3.0 …"

func (r refusal) Error() string { return string(r) }

// expect reads a reply. One with another code is a refusal; any other error means that the session is over.
func (c *client) expect(code int) (string, error) {
	got, text, err := c.text.ReadResponse(0)
	if err != nil {
		return "", err
	}
	reply := fmt.Sprintf("%d %s", got, text)
	if got != code {
		return "", refusal(reply)
	}
	return reply, nil
}

// command writes a line and reads the reply. Where writing fails there may be one all the same: 421 comes unasked.
func (c *client) command(code int, format string, args ...any) (string, error) {
	werr := c.text.PrintfLine(format, args...)
	reply, err := c.expect(code)
	if _, refused := errors.AsType[refusal](err); werr != nil && !refused {
		return "", werr
	}
	return reply, err
}

// send hands over one mail and returns the reply to it. raw has CRLF line ends. The whole of it and the final dot go
// out in one write.
func (c *client) send(from, to, raw string) (string, error) {
	if _, err := c.command(250, "MAIL FROM:<%s>", from); err != nil {
		return "", err
	}
	if _, err := c.command(250, "RCPT TO:<%s>", to); err != nil {
		return "", err
	}
	if _, err := c.command(354, "DATA"); err != nil {
		return "", err
	}
	if _, err := c.conn.Write([]byte(strings.ReplaceAll("\r\n"+raw, "\r\n.", "\r\n..")[2:] + ".\r\n")); err != nil {
		return "", err
	}
	return c.expect(250)
}

func (c *client) quit() {
	c.text.PrintfLine("QUIT") // whether that arrives is all the same to the caller
	c.close()
}

func (c *client) close() { c.text.Close() }

// queuedAs returns the id in "250 2.0.0 queued as ID".
func queuedAs(reply string) string {
	_, id, _ := strings.Cut(reply, "queued as ")
	return id
}

// stream is what a client of one of the two streams uses.
type stream struct{ domain, client string }

var (
	authStream = stream{authDomain, authClient}
	bulkStream = stream{bulkDomain, bulkClient}
)

func (s stream) sender() string { return "no-reply@" + s.domain }

// letter composes a mail of the stream that carries id and a code. fields are further header fields.
func (s stream) letter(id, code string, fields ...string) string {
	header := append([]string{
		"From: Example <" + s.sender() + ">",
		"To: <" + id + "@example.net>",
		"Subject: Your code is " + code,
		"Message-ID: <" + id + "@" + s.domain + ">",
		"Date: Sun, 22 Nov 2026 12:00:00 +0000",
	}, fields...)
	return strings.Join(header, "\r\n") + "\r\n\r\nUse " + code + " to sign in.\r\n"
}

// post sends one letter on a connection of its own and returns the reply.
func (s stream) post(addr, id, code string, fields ...string) (string, error) {
	c, err := dial(addr, s.client)
	if err != nil {
		return "", err
	}
	defer c.quit()
	return c.send(s.sender(), id+"@example.net", s.letter(id, code, fields...))
}

// mustPost is post for a mail that has to be taken. It returns the id that gatepost gave to it.
func (s stream) mustPost(t *testing.T, addr, id, code string, fields ...string) string {
	t.Helper()
	reply, err := s.post(addr, id, code, fields...)
	if err != nil || queuedAs(reply) == "" {
		t.Fatalf("mail %s was answered %q, %v", id, reply, err)
	}
	return queuedAs(reply)
}

// load is mail from many sessions at once, until it is stopped. Sessions that break are begun anew.
type load struct {
	end  chan struct{}
	wg   sync.WaitGroup
	last atomic.Int64

	mu      sync.Mutex
	taken   map[string]string // ids of the test, answered 250: ids of gatepost
	refused map[string]string // ids of the test, answered otherwise: the reply
	silent  int               // sessions that ended without a word, not while connecting
	missed  []error           // tries to connect, and to log in, that failed
}

func newLoad() *load {
	return &load{end: make(chan struct{}), taken: make(map[string]string), refused: make(map[string]string)}
}

// startLoad starts sessions of each stream.
func startLoad(addr string, sessions int, streams ...stream) *load {
	l := newLoad()
	for _, s := range streams {
		l.add(sessions, s, func() (*client, error) { return dial(addr, s.client) })
	}
	return l
}

// add starts sessions of s that begin with enter.
func (l *load) add(sessions int, s stream, enter func() (*client, error)) {
	for range sessions {
		l.wg.Go(func() {
			for !l.ended() {
				l.session(s, enter)
			}
		})
	}
}

func (l *load) ended() bool {
	select {
	case <-l.end:
		return true
	default:
		return false
	}
}

// session sends a few mails over one connection.
func (l *load) session(s stream, enter func() (*client, error)) {
	c, err := enter()
	if err != nil {
		l.mu.Lock()
		l.missed = append(l.missed, err)
		l.mu.Unlock()
		time.Sleep(5 * time.Millisecond) // gatepost is not there just now
		return
	}
	defer c.quit()
	for range 5 {
		if l.ended() || !l.mail(c, s) {
			return
		}
	}
}

// mail sends one and notes how it was answered. It reports whether the session goes on.
func (l *load) mail(c *client, s stream) bool {
	id := fmt.Sprintf("m%d", l.last.Add(1))
	reply, err := c.send(s.sender(), id+"@example.net", s.letter(id, "123456"))
	l.mu.Lock()
	defer l.mu.Unlock()
	r, refused := errors.AsType[refusal](err)
	switch {
	case err == nil:
		l.taken[id] = queuedAs(reply)
	case refused:
		l.refused[id] = string(r)
	default:
		l.silent++
	}
	return err == nil
}

// stop ends the load and returns the ids of all mails that were taken.
func (l *load) stop() map[string]string {
	close(l.end)
	l.wg.Wait()
	return l.sofar()
}

// waitMore waits until n more mails were taken.
func (l *load) waitMore(t *testing.T, n int) {
	t.Helper()
	n += len(l.sofar())
	eventually(t, 30*time.Second, "more mail is taken", func() bool { return len(l.sofar()) >= n })
}

// sofar returns the ids of the mails that were taken up to now.
func (l *load) sofar() map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.taken)
}

// waitArrived waits until every mail of taken is at the far end, and fails the test with those that are lost.
func (s *site) waitArrived(taken map[string]string, within time.Duration) {
	s.t.Helper()
	lost := maps.Clone(taken)
	for deadline := time.Now().Add(within); len(lost) > 0; time.Sleep(50 * time.Millisecond) {
		for _, far := range []*sink{s.auth, s.bulk} {
			for id := range far.copies() {
				delete(lost, id)
			}
		}
		if len(lost) > 0 && time.Now().After(deadline) {
			s.t.Fatalf("%d of %d mails that were taken are lost: %v", len(lost), len(taken), lost)
		}
	}
}
