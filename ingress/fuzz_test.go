package ingress

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// scriptConn is a client that has said all it will say, a piece at a time, and listens to nothing.
type scriptConn struct {
	script []byte
	piece  int
	closed chan struct{}
}

func (c *scriptConn) Read(p []byte) (int, error) {
	if len(c.script) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.script[:min(c.piece, len(c.script))])
	c.script = c.script[n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *scriptConn) Close() error                     { close(c.closed); return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// FuzzSession checks that whatever a client sends, a message that reaches the relay has CRLF line ends only, no NUL,
// is within its size, was ended by a real end of data, lies in the session whole and in order, and is a client's for
// whom a login was made, if one was.
func FuzzSession(f *testing.F) {
	envelope := "MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n"
	for _, s := range []string{
		mail + ".\r\nQUIT\r\n", "x\n.\r\n" + evil, "x\r.\r" + evil, "x\r\r\n.\r\n" + evil, "x\r\n.\n" + evil, "x\r\n.\r" + evil,
		"\x00\r\n.\r\n" + evil, "..\r\n.\r\n", ".\r\n", ".\r\n" + envelope + mail + ".\r\n", "BDAT 5\r\n.\r\n", mail,
	} {
		f.Add([]byte("EHLO x\r\n"+envelope+s), uint8(255))
		f.Add([]byte("EHLO x\r\n"+envelope+s), uint8(0))
	}
	f.Add([]byte("EHLO x\r\n"+envelope[:len(envelope)-6]+"BDAT 5 LAST\r\nab"), uint8(7))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"+evil), uint8(7))
	f.Add([]byte("EHLO x\r\n"+envelope+strings.Repeat("x\r\n", 1000)+".\r\nNOOP\r\n"), uint8(100))

	login := "EHLO x\r\nAUTH PLAIN " + b64(right) + "\r\n"
	f.Add([]byte(login+envelope+mail+".\r\n"), uint8(255))
	f.Add([]byte("EHLO x\r\nAUTH LOGIN\r\n"+b64("kratos")+"\r\n"+b64("swordfish")+"\r\n"+envelope+mail+".\r\n"), uint8(3))
	f.Add([]byte("EHLO x\r\nAUTH LOGIN\r\nMAIL FROM:<>\r\n"+envelope+mail+".\r\n*\r\n"), uint8(255))
	f.Add([]byte("EHLO x\r\nAUTH PLAIN\r\n"), uint8(255))
	f.Add([]byte(strings.Repeat("EHLO x\r\nAUTH PLAIN =\r\nAUTH PLAIN "+b64("\x00a\x00b")+"\r\n", 20)), uint8(255))
	f.Add([]byte("EHLO x\r\n"+envelope[:len(envelope)-6]+"AUTH PLAIN "+b64(right)+"\r\nDATA\r\n"+mail+".\r\n"), uint8(255))
	for _, piece := range []uint8{255, 9, 0} { // all at once, STARTTLS by itself, an octet at a time
		f.Add([]byte("STARTTLS\r\nEHLO x\r\n"+envelope+mail+".\r\n"), piece)
		f.Add([]byte("EHLO x\r\nSTARTTLS\r\n\x16\x03\x01\x00\x05"+login+envelope+mail+".\r\n"), piece)
		f.Add([]byte(login+"STARTTLS\r\n"+envelope+mail+".\r\n"), piece)
		f.Add([]byte("MAIL FROM:<>\r\nDATA\r\nEHLO x\r\nRCPT TO:<@a:b@c> X=Y\r\nSTARTTLS x\r\n"+envelope+mail+".\r\n"), piece)
	}

	l := newConnListener()
	d := open(f, l, withTLS(f, newAuthority(f), "starttls", func(o *SMTPOptions, relay *fakeRelay) {
		byPassword(o, relay)
		relay.identify = nil // also without a login
		o.Listen.MaxSize = 2048
	}))
	f.Fuzz(func(t *testing.T, session []byte, piece uint8) {
		c := &scriptConn{session, int(piece) + 1, make(chan struct{})}
		l.conns <- c
		<-c.closed
		d.gone(t)
		d.relay.mu.Lock()
		got := d.relay.got
		d.relay.got = nil
		d.relay.mu.Unlock()
		rest := string(session)
		for _, s := range got {
			checkWhole(t, s.Raw)
			if strings.Contains(s.With, "SMTPS") {
				t.Errorf("a message came with %s, although no handshake can have been made", s.With)
			}
			if (s.Client == "kratos") != strings.HasSuffix(s.With, "A") {
				t.Errorf("a message of %q came with %s", s.Client, s.With)
			}
			if len(s.Raw) > 2048 {
				t.Errorf("a message of %d octets was accepted", len(s.Raw))
			}
			end := endOf(string(s.Raw), rest)
			if end < 0 {
				t.Fatalf("%q was accepted, which is not in what is left of the session with an end of data", s.Raw)
			}
			rest = rest[end:]
		}
		if n := d.Budget.InUse(); n != 0 {
			t.Errorf("%d octets of the budget were not given back", n)
		}
	})
}

// endOf finds raw in a session, from the start of a line to a line with a single dot, and returns where that ends, or
// -1. It reads lines in the way of the RFC and not of decoder: it splits at CRLF.
func endOf(raw, session string) int {
	for start := range len(session) {
		if start > 0 && session[start-1] != '\n' {
			continue
		}
		var got strings.Builder
		at := start
		for line := range strings.SplitSeq(session[start:], "\r\n") {
			at += len(line) + 2
			if line == "." && at <= len(session) && got.String() == raw {
				return at
			}
			if line == "." {
				break
			}
			got.WriteString(strings.TrimPrefix(line, ".") + "\r\n")
		}
	}
	return -1
}
