package ingress

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"gatepost/message"
)

// countingListener counts the writes to every connection it accepts.
type countingListener struct {
	net.Listener
	mu     sync.Mutex
	writes []string
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &countingConn{c, l}, err
}

type countingConn struct {
	net.Conn
	l *countingListener
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.l.mu.Lock()
	c.l.writes = append(c.l.writes, string(p))
	c.l.mu.Unlock()
	return c.Conn.Write(p)
}

func openCounting(t *testing.T) (*door, *countingListener) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &countingListener{Listener: ln}
	return open(t, l, nil), l
}

func TestRepliesLeaveInOneWritePerBurst(t *testing.T) {
	d, l := openCounting(t)
	c := d.dial(t)
	c.want("220 ")
	c.do("EHLO x", "250-")
	c.send("MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nRCPT TO:<c@example.net>\r\nDATA\r\n")
	for _, want := range []string{"250 ", "250 ", "250 ", "354 "} {
		c.want(want)
	}
	c.do(mail+".", "250 ")
	c.do("QUIT", "221 ")
	c.rest()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.writes) != 5 {
		t.Errorf("%d writes, want 5 (banner, EHLO, envelope, message, QUIT): %q", len(l.writes), l.writes)
	}
}

func TestAWholeSessionMayComeInOneWrite(t *testing.T) {
	d, l := openCounting(t)
	c := d.dial(t)
	one := "MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	c.send("EHLO x\r\n" + strings.Repeat(one, 500) + "QUIT\r\n")
	answer := c.rest()
	if n := strings.Count(answer, "queued as"); n != 500 || !strings.HasSuffix(answer, "221 2.0.0 Bye\r\n") {
		t.Errorf("%d mails were queued, and the last words were %q", n, answer[max(0, len(answer)-60):])
	}
	for _, s := range d.relay.submissions() {
		if string(s.Raw) != mail {
			t.Fatalf("arrived as %q", s.Raw)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.writes) > 510 { // what was answered leaves before the next message is handed over
		t.Errorf("%d writes for 500 mails", len(l.writes))
	}
}

func TestAnAnswerDoesNotWaitForTheNextMessage(t *testing.T) {
	hold := make(chan struct{})
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.accept = func(context.Context, *message.Submission) error {
			if len(f.submissions()) == 2 {
				<-hold
			}
			return nil
		}
	})
	c := d.dial(t)
	c.hello()
	one := "MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	c.send(one + one)
	for _, want := range []string{"250 ", "250 ", "354 ", "250 2.0.0 queued", "250 ", "250 ", "354 "} {
		c.want(want)
	}
	close(hold)
	c.want("250 2.0.0 queued")
}

func TestOtherProtocolsAreNotListenedTo(t *testing.T) {
	smtp := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	for name, send := range map[string]string{
		"an HTTP request":               "GET / HTTP/1.1\r\nHost: gw\r\n\r\n",
		"an HTTP request with commands": "POST / HTTP/1.1\r\nHost: gw\r\n\r\n" + smtp,
		"a TLS hello":                   "\x16\x03\x01\x02\x00\x01\x00",
		"a word":                        "hello?\r\n" + smtp,
		"nothing but a line end":        "\r\n" + smtp,
		"a PROXY header":                "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + smtp,
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, nil)
			c := d.dial(t)
			c.want("220 ")
			c.send(send)
			c.want("500 5.5.2 ")
			if rest := c.rest(); rest != "" || len(d.relay.submissions()) != 0 {
				t.Errorf("then came %q, and %d messages were accepted", rest, len(d.relay.submissions()))
			}
		})
	}
}

func TestBDATIsRefusedAndItsChunkNotObeyed(t *testing.T) {
	for _, command := range []string{"BDAT 120", "bdat 120 LAST", "BDAT", "BDATA 5", "Bdat 99999999999999999999"} {
		t.Run(command, func(t *testing.T) {
			d := openTCP(t, nil)
			c := d.dial(t)
			c.want("220 ")
			if answer := c.do("EHLO x", "250-"); strings.Contains(answer, "CHUNKING") {
				t.Errorf("CHUNKING is offered: %q", answer)
			}
			c.do("MAIL FROM:<>", "250 ")
			c.do("RCPT TO:<b@example.net>", "250 ")
			c.send(command + "\r\nRSET\r\n" + evil)
			c.want("502 5.5.1 ")
			if rest := c.rest(); rest != "" || len(d.relay.submissions()) != 0 {
				t.Errorf("then came %q, and %d messages were accepted", rest, len(d.relay.submissions()))
			}
		})
	}
}

func TestCommandLinesAreBounded(t *testing.T) {
	for name, tt := range map[string]struct{ send, want string }{
		"12,288 octets are read": {"NOOP " + strings.Repeat("x", maxCommand-7) + "\r\n", "250 "},
		"one more is not":        {"NOOP " + strings.Repeat("x", maxCommand-6) + "\r\n", "500 5.5.2 "},
		"nor a line without end": {"NOOP " + strings.Repeat("x", 4<<20), "500 5.5.2 "},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, nil)
			c := d.dial(t)
			c.hello()
			go fmt.Fprint(c, tt.send) // fails when the door has closed
			c.want(tt.want)
			if tt.want == "250 " {
				c.do("NOOP", "250 ")
				return
			}
			c.rest()
		})
	}
}

func TestClientsThatDoNothingButErrAreSentAway(t *testing.T) {
	for name, tt := range map[string]struct {
		line string
		last string
	}{
		"with lines that we refuse":       {"NOOP \x00", "421 4.7.0 "},
		"with commands that do not exist": {"XYZZ", "500 5.5.1 "},
	} {
		t.Run(name, func(t *testing.T) {
			c := openTCP(t, nil).dial(t)
			c.hello()
			c.send(strings.Repeat(tt.line+"\r\n", 100))
			lines := strings.Split(strings.TrimSpace(c.rest()), "\r\n")
			if len(lines) > maxStrikes+1 || !strings.HasPrefix(lines[len(lines)-1], tt.last) {
				t.Errorf("answered %q", lines)
			}
		})
	}
}

func TestLinesTypedIntoNetcatAreCommands(t *testing.T) {
	c := openTCP(t, nil).dial(t)
	c.want("220 ")
	c.send("EHLO x\nMAIL FROM:<>\nNOOP\n")
	for _, want := range []string{"250-", "250 ", "250 "} {
		c.want(want)
	}
}
