package ingress

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/message"
)

// evil is what a smuggler wants to be read as commands. Its last line is a real end of data.
const evil = "MAIL FROM:<evil@auth.example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: injected\r\n\r\nx\r\n.\r\n"

func TestNoFormOfSmugglingGetsASecondMessageIn(t *testing.T) {
	ends := []string{"\r\n", "\n", "\r", "\r\r\n", "\n\r", "\r\r", "\n\n", "\x00", "\r\x00\n", " \r\n", "\x85", ""}
	for _, before := range ends {
		for _, dots := range []string{".", ".."} {
			for _, after := range ends {
				end := before + dots + after
				if strings.HasSuffix(end, "\r\n.\r\n") {
					continue // a true end
				}
				t.Run(fmt.Sprintf("%q", end), func(t *testing.T) {
					t.Parallel()
					smuggle(t, end)
				})
			}
		}
	}
}

// smuggle sends a message with evil behind what might be taken for the end of data, at places where the parts fall
// into different reads.
func smuggle(t *testing.T, end string) {
	var mails atomic.Int32
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.ready = func(string) error { mails.Add(1); return nil }
	})
	for _, split := range []int{-1, 1, 2, 3} {
		mails.Store(0)
		before := len(d.relay.submissions())
		head := "From: a@auth.example.com\r\n\r\n"
		if split >= 0 { // so that a chunk ends inside of what is tried
			head += strings.Repeat("x\r\n", (chunkSize-len(head))/3-4)
			head += strings.Repeat("y", chunkSize-len(head)-min(split, len(end)))
		} else {
			head += "x"
		}
		c := d.dial(t)
		c.hello()
		c.toData()
		c.send(head + end + evil)
		reply := c.reply()
		c.CloseWrite()
		c.rest()
		d.gone(t)
		if n := mails.Load(); n != 1 {
			t.Errorf("%d MAIL commands were obeyed, want 1", n)
		}
		got := d.relay.submissions()[before:]
		switch {
		case len(got) > 1:
			t.Errorf("%d messages were accepted", len(got))
		case len(got) == 1 && !strings.Contains(string(got[0].Raw), "Subject: injected\r\n"):
			t.Errorf("the message ended too early: %.80q", got[0].Raw)
		case len(got) == 1:
			checkWhole(t, got[0].Raw)
		case !strings.HasPrefix(reply, "550 5.6.0 "):
			t.Errorf("reply %q, want 550 5.6.0", reply)
		}
	}
}

// CloseWrite says that no more will be sent.
func (c *client) CloseWrite() { c.Conn.(*net.TCPConn).CloseWrite() }

// checkWhole checks what the package promises of every message.
func checkWhole(t testing.TB, raw message.Raw) {
	t.Helper()
	s := string(raw)
	if strings.ContainsAny(strings.ReplaceAll(s, "\r\n", ""), "\r\n\x00") {
		t.Errorf("a bare CR, bare LF or NUL was let through: %.80q", s)
	}
	if s != "" && !strings.HasSuffix(s, "\r\n") {
		t.Errorf("the message ends inside a line: %q", s[max(0, len(s)-40):])
	}
}

func TestAfterBrokenLineEndsTheConnectionIsClosed(t *testing.T) {
	for name, tt := range map[string]struct{ data, want string }{
		"bare LF":                  {"a\nb\r\n.\r\n", "550 5.6.0 "},
		"bare CR":                  {"a\rb\r\n.\r\n", "550 5.6.0 "},
		"CR before the last CRLF":  {"a\r\r\n.\r\n", "550 5.6.0 "},
		"a line that is too long":  {"\r\n" + strings.Repeat("x", maxLine+1) + "\r\n.\r\n", "554 5.6.0 "},
		"LF after another fault":   {"\x00\r\na\nb\r\n.\r\n", "550 5.6.0 The message has a bare CR or LF"},
		"LF in a message too long": {strings.Repeat("x\r\n", 400_000) + "a\nb\r\n.\r\n", "550 5.6.0 "},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, func(o *SMTPOptions, _ *fakeRelay) { o.Listen.MaxSize = maxLine + 1000 })
			c := d.dial(t)
			c.hello()
			c.toData()
			c.send(tt.data + "NOOP\r\n")
			c.want(tt.want)
			if rest := c.rest(); rest != "" {
				t.Errorf("after the refusal came %q", rest)
			}
			if n := len(d.relay.submissions()); n != 0 {
				t.Errorf("%d messages were accepted", n)
			}
		})
	}
}

func TestAClientThatEndsItsMessageWithBareLinesIsAnsweredSoon(t *testing.T) {
	c := openTCP(t, nil).dial(t)
	c.hello()
	c.toData()
	c.send("Subject: x\n\nx\n.\n")
	c.SetReadDeadline(time.Now().Add(2 * doubtWait))
	c.want("550 5.6.0 ")
}

func TestRefusedMessagesAreReadToTheirEndAndTheSessionGoesOn(t *testing.T) {
	received := "Received: x\r\n"
	for name, tt := range map[string]struct{ data, want string }{
		"empty":                        {"", "250 "},
		"of the maximum size":          {"\r\n" + strings.Repeat("x", 1<<20-4) + "\r\n", "250 "},
		"stuffed dots don't count":     {"\r\n" + strings.Repeat("..\r\n", 1<<20/3-1), "250 "},
		"one octet over it":            {"\r\n" + strings.Repeat("x", 1<<20-3) + "\r\n", "552 5.3.4 The message is too big"},
		"twice the size":               {strings.Repeat("0123456\r\n", 2<<20/9), "552 5.3.4 "},
		"with a NUL":                   {"a\x00b\r\n", "550 5.6.0 "},
		"with a NUL alone on its line": {"\x00\r\n", "550 5.6.0 "},
		"through 50 hosts":             {strings.Repeat(received, 50) + "\r\n" + received, "250 "},
		"through 51 hosts":             {strings.Repeat(received, 51) + "\r\n", "554 5.4.6 "},
		"with a header of 256 KiB":     {strings.Repeat("X: 4567890123\r\n", 1<<18/15-1) + "X: 45678901234567\r\n\r\nx\r\n", "250 "},
		"with a longer header":         {strings.Repeat("X: 4567890123\r\n", 1<<18/15-1) + "X: 456789012345678\r\n\r\nx\r\n", "552 5.3.4 The header"},
		"with lines that look like BDAT": {"Subject: BDAT\r\n\r\nBDAT 5\r\nBDAT 5 LAST\r\nQUIT\r\nRSET\r\n354 Go ahead\r\n" +
			"250-CHUNKING\r\n", "250 "},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, nil)
			c := d.dial(t)
			c.hello()
			for i := range 2 {
				c.toData()
				c.send(tt.data + ".\r\n")
				c.want(tt.want)
				got := d.relay.submissions()
				want := strings.ReplaceAll(tt.data, "..\r\n", ".\r\n")
				if tt.want == "250 " && (len(got) != i+1 || string(got[i].Raw) != want) {
					t.Fatalf("%d messages accepted, or not as sent", len(got))
				}
				if tt.want != "250 " && len(got) != 0 {
					t.Fatalf("%d messages were accepted", len(got))
				}
			}
		})
	}
}

func TestALineMayHaveAMegabyte(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, _ *fakeRelay) { o.Listen.MaxSize = 3 << 20 })
	c := d.dial(t)
	c.hello()
	c.toData()
	long := strings.Repeat("x", maxLine) + "\r\n"
	c.do("\r\n"+long+long+".", "250 ")
	if got := d.relay.submissions()[0].Raw; string(got) != "\r\n"+long+long {
		t.Errorf("%d octets arrived, or not as sent", len(got))
	}
}

func TestAnEndlessMessageIsCutOff(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.toData()
	go io.Copy(c, io.LimitReader(endless{}, 64<<20)) // fails when the door has closed
	c.want("552 5.3.4 ")
	c.rest()
	d.gone(t)
}

// endless reads as lines without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	n := 0
	for n+5 <= len(p) {
		n += copy(p[n:], "abc\r\n")
	}
	return n, nil
}

func TestBytesInFlightAreBoundedAndAuthKeepsAReserve(t *testing.T) {
	hold := make(chan struct{})
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		o.Budget = NewBudget(8 * 100 << 10) // a message counts twice while it is copied
		o.Reserve = func(client string) bool { return client == "logto" }
		clients := make(chan string, 3)
		for _, c := range []string{"news", "news", "logto"} {
			clients <- c
		}
		f.identify = func(string, message.Peer) (string, error) { return <-clients, nil }
		f.accept = func(context.Context, *message.Submission) error { <-hold; return nil }
	})
	big := strings.Repeat("0123456789012345678901234567890\r\n", (200<<10)/33)
	var cs []*client
	for range 3 {
		c := d.dial(t)
		c.hello()
		c.toData()
		cs = append(cs, c)
	}
	cs[0].send(big + ".\r\n")
	d.until(t, "the first message is with the relay", func() bool { return len(d.relay.submissions()) == 1 })
	if n, want := d.Budget.InUse(), int64(len(big)+2*chunkSize); n != want {
		t.Errorf("%d octets are counted for a message of %d and two that may begin, want %d", n, len(big), want)
	}
	cs[1].send(big + ".\r\n")
	cs[1].want("452 4.3.1 ")
	cs[2].send(big[33*1000:] + ".\r\n")
	d.until(t, "the reserve has taken a second message", func() bool { return len(d.relay.submissions()) == 2 })
	close(hold)
	cs[0].want("250 ")
	cs[2].want("250 ")
	cs[1].toData()
	cs[1].send(big + ".\r\n")
	cs[1].want("250 ")
}

func TestAClientThatLeavesBeforeTheEndOfDataLeavesNothing(t *testing.T) {
	d := openTCP(t, nil)
	session := "EHLO x\r\nMAIL FROM:<a@auth.example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	for n := range len(session) {
		c := d.dial(t)
		c.send(session[:n])
		c.CloseWrite()
		c.rest()
		if got := len(d.relay.submissions()); got != 0 {
			t.Fatalf("%d messages were accepted of a client that left after %q", got, session[:n])
		}
	}
	c := d.dial(t)
	c.send(session)
	c.CloseWrite()
	if rest := c.rest(); !strings.Contains(rest, "queued as") || len(d.relay.submissions()) != 1 {
		t.Errorf("the whole session was answered %q", rest)
	}
}

func TestAClientThatLeavesAfterTheEndOfDataCancelsNothing(t *testing.T) {
	left := make(chan struct{})
	result := make(chan error, 1)
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.accept = func(ctx context.Context, _ *message.Submission) error {
			<-left
			time.Sleep(20 * time.Millisecond)
			result <- ctx.Err()
			return nil
		}
	})
	c := d.dial(t)
	c.hello()
	c.toData()
	c.send(mail + ".\r\n")
	d.until(t, "the message is with the relay", func() bool { return len(d.relay.submissions()) == 1 })
	c.Conn.(*net.TCPConn).SetLinger(0) // a reset, not a polite end
	c.Close()
	close(left)
	if err := <-result; err != nil {
		t.Errorf("the context ended: %v", err)
	}
}

func BenchmarkDecoder(b *testing.B) {
	src := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", chunkSize/78))
	p := make([]byte, len(src))
	b.SetBytes(int64(len(src)))
	var d decoder
	for b.Loop() {
		copy(p, src)
		d.decode(p)
	}
}
