package ingress

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

// byLastOctet takes clients from 127.0.0.10 up for "auth", others for "news".
func byLastOctet(_ string, p message.Peer) (string, error) {
	if p.Addr.As4()[3] >= 10 {
		return "auth", nil
	}
	return "news", nil
}

func TestAQuarterOfTheConnectionsIsKeptForTheReserve(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		o.Listen.MaxConnections, o.Listen.Clients = 8, []string{"auth", "news"}
		o.Reserve = func(client string) bool { return client == "auth" }
		f.identify = byLastOctet
	})
	var news []*client
	for range 6 {
		c := d.dialFrom(t, "127.0.0.2")
		c.hello()
		news = append(news, c)
	}
	if rest := d.dialFrom(t, "127.0.0.2").rest(); !strings.HasPrefix(rest, "421 4.7.0 gw.example.com too many connections,") {
		t.Errorf("the seventh was greeted with %q", rest)
	}
	for range 2 {
		d.dialFrom(t, "127.0.0.10").hello()
	}
	if rest := d.dialFrom(t, "127.0.0.10").rest(); !strings.HasPrefix(rest, "421 4.7.0 ") {
		t.Errorf("the ninth in all was greeted with %q", rest)
	}
	news[0].do("QUIT", "221 ")
	d.until(t, "a place is free", func() bool { return d.count() == 7 })
	d.dialFrom(t, "127.0.0.2").hello()
}

func TestALoginMovesAConnectionIntoTheReserve(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		byPassword(o, f)
		o.Listen.MaxConnections, o.Listen.Clients = 4, []string{"kratos"}
		o.Reserve = func(client string) bool { return client == "kratos" }
	})
	var waiting []*client
	for range 3 {
		c := d.dial(t)
		c.hello()
		waiting = append(waiting, c)
	}
	if rest := d.dial(t).rest(); !strings.HasPrefix(rest, "421 4.7.0 ") {
		t.Errorf("the fourth that nobody knows yet was greeted with %q", rest)
	}
	waiting[0].do("AUTH PLAIN "+b64(right), "235 ")
	d.dial(t).hello()
}

func TestConnectionsOfAClientAreCountedOverAllListeners(t *testing.T) {
	shared := NewConnections(func(client string) int { return map[string]int{"news": 2, "kratos": 1}[client] })
	one := openTCP(t, func(o *SMTPOptions, f *fakeRelay) { o.Connections, f.identify = shared, byLastOctet })
	two := openTCP(t, func(o *SMTPOptions, f *fakeRelay) { o.Connections, f.identify = shared, byLastOctet })
	logins := openTCP(t, func(o *SMTPOptions, f *fakeRelay) { byPassword(o, f); o.Connections = shared })

	first := one.dialFrom(t, "127.0.0.2")
	first.hello()
	two.dialFrom(t, "127.0.0.3").hello()
	if rest := two.dialFrom(t, "127.0.0.4").rest(); !strings.HasPrefix(rest, "421 4.7.0 gw.example.com too many connections of this client") {
		t.Errorf("the third of one client was greeted with %q", rest)
	}
	for range 5 {
		one.dialFrom(t, "127.0.0.10").hello()
	}
	first.do("QUIT", "221 ")
	one.until(t, "its place is free", func() bool { return one.count() == 5 })
	two.dialFrom(t, "127.0.0.4").hello()

	a, b := logins.dial(t), logins.dial(t)
	a.hello()
	b.hello()
	a.do("AUTH PLAIN "+b64(right), "235 ")
	b.do("AUTH PLAIN "+b64(right), "421 4.7.0 too many connections of this client")
	if rest := b.rest(); rest != "" {
		t.Errorf("then came %q", rest)
	}
	a.Close()
	logins.gone(t)
	logins.dial(t).hello()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.open["kratos"] != 0 || len(shared.open) != 2 {
		t.Errorf("counted are %v, want the two clients that are connected", shared.open)
	}
}

func TestSizesAreThoseOfTheClientAndThenOfTheStream(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.limit = func(client string, header []byte) int64 {
			switch {
			case header == nil:
				return 10_000
			case strings.Contains(string(header), "Subject: small"):
				return 100
			case strings.Contains(string(header), "Subject: huge"):
				return 1 << 40
			}
			return 0
		}
	})
	c := d.dial(t)
	c.want("220 ")
	if offer := c.do("EHLO x", "250-"); !strings.HasSuffix(offer, "250 SIZE 10000\r\n") {
		t.Errorf("offered %q", offer)
	}
	c.do("MAIL FROM:<> SIZE=10001", "552 5.3.4 ")
	c.do("MAIL FROM:<> SIZE=10000", "250 ")
	c.do("RSET", "250 ")
	for _, tt := range []struct {
		header string
		size   int
		want   string
	}{
		{"Subject: other\r\n\r\n", 10_000, "250 "},
		{"Subject: other\r\n\r\n", 10_001, "552 5.3.4 "},
		{"Subject: huge\r\n\r\n", 10_001, "552 5.3.4 "},
		{"Subject: small\r\n\r\n", 100, "250 "},
		{"Subject: small\r\n\r\n", 101, "552 5.3.4 "},
		{"Subject: small\r\n\r\n", 9_000, "552 5.3.4 "},
		{"Subject: small\r\nX: ", 101, "552 5.3.4 "}, // a header that ends with the message
	} {
		c.toData()
		c.do(tt.header+strings.Repeat("x", tt.size-len(tt.header)-2)+"\r\n.", tt.want)
	}
	if n := len(d.relay.submissions()); n != 2 {
		t.Errorf("%d messages were accepted, want 2", n)
	}
}

func TestTheHeaderIsShownOnceAndWhole(t *testing.T) {
	var seen []string
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.limit = func(_ string, header []byte) int64 {
			if header != nil {
				seen = append(seen, string(header))
			}
			return 0
		}
	})
	c := d.dial(t)
	c.hello()
	for _, length := range []int{10, chunkSize - 4, chunkSize - 3, chunkSize - 2, chunkSize - 1, chunkSize, 3 * chunkSize, maxHeader} {
		header := "X: " + strings.Repeat("x", length-5) + "\r\n"
		c.toData()
		c.do(header+"\r\n"+strings.Repeat("body\r\n\r\n", 10_000)+".", "250 ")
		if len(seen) != 1 || seen[0] != header {
			t.Errorf("a header of %d octets was shown %d times, as one of %d octets", length, len(seen), len(fmt.Sprint(seen)))
		}
		seen = nil
	}
}

func TestAnEndlessHeaderIsGivenUpEarly(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.toData()
	c.send(strings.Repeat("X: y\r\n", (maxHeader+chunkSize)/6))
	d.until(t, "it is no longer kept", func() bool { return d.Budget.InUse() == 0 })
	c.do("\r\n.", "552 5.3.4 The header")
}

func TestReconfigureIsForConnectionsToCome(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, nil)
	before := d.dial(t)
	before.hello()

	next := listen()
	next.MaxSize, next.MaxRecipients, next.MaxConnections = 5000, 1, 2
	next.TLS = "starttls"
	next.TLSCertFile, next.TLSKeyFile = a.issue(t, t.TempDir(), "gw.example.com")
	apply, err := d.Reconfigure(next, "new.example.com")
	if err != nil {
		t.Fatal(err)
	}
	middle := d.dial(t)
	middle.hello()
	middle.do("QUIT", "221 ")
	d.until(t, "one connection is left", func() bool { return d.count() == 1 })
	apply()

	after := d.dial(t)
	after.want("220 new.example.com ")
	if offer := after.do("EHLO x", "250-new.example.com\r\n"); !strings.Contains(offer, "STARTTLS") || !strings.HasSuffix(offer, "250 SIZE 5000\r\n") {
		t.Errorf("offered %q", offer)
	}
	after.startTLS(a.trust(t))
	if rest := d.dial(t).rest(); !strings.HasPrefix(rest, "421 4.7.0 new.example.com ") {
		t.Errorf("the third was greeted with %q", rest)
	}
	if offer := before.do("EHLO x", "250-gw.example.com\r\n"); strings.Contains(offer, "STARTTLS") {
		t.Errorf("a session under way is offered %q", offer)
	}
	before.do("MAIL FROM:<> SIZE=6000", "250 ")
	before.do("RCPT TO:<b@example.net>", "250 ")
	before.do("RCPT TO:<c@example.net>", "250 ")
	before.do("DATA", "354 ")
	before.do(mail+".", "250 ")

	broken := listen()
	broken.TLS, broken.TLSCertFile = "implicit", "/nonexistent"
	if apply, err := d.Reconfigure(broken, "x"); err == nil || apply != nil || !strings.HasPrefix(err.Error(), "listen smtp: ") {
		t.Errorf("Reconfigure with a broken certificate: %v", err)
	}
}

func TestAClientThatIsNobodyAfterAllCannotSend(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.identify = func(string, message.Peer) (string, error) { return "", nil }
		f.login = func(message.Peer, string, string) (string, error) { return "", reply.New(535, "5.7.8", "no") }
	})
	c := d.dial(t)
	c.hello()
	c.send("MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n")
	for _, want := range []string{"530 5.7.0 ", "503 5.5.1 ", "503 5.5.1 "} {
		c.want(want)
	}
	c.do("NOOP", "250 ")
}

func TestAPanicBetweenCommandsEndsOnlyItsSession(t *testing.T) {
	broken := true
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		byPassword(o, f)
		login := f.login
		f.login = func(p message.Peer, user, password string) (string, error) {
			broken = true
			return login(p, user, password)
		}
		o.Reserve = func(client string) bool {
			if broken {
				broken = false
				panic("at the count")
			}
			return false
		}
	})
	if rest := d.dial(t).rest(); !strings.HasPrefix(rest, "421 4.3.0 gw.example.com ") {
		t.Errorf("greeted with %q", rest)
	}
	c := d.dial(t)
	c.hello()
	c.do("AUTH PLAIN "+b64(right), "421 4.3.0 ")
	if rest := c.rest(); rest != "" {
		t.Errorf("then came %q", rest)
	}
	d.gone(t)
	d.dial(t).hello()
}

func TestLargeBulkMailIsTakenAtItsPaceAndSmallAndAuthMailAtOnce(t *testing.T) {
	const mail = "From: a@news.example.com\r\n\r\n"
	large := mail + strings.Repeat(strings.Repeat("x", 62)+"\r\n", (9<<20)/64) + ".\r\n"
	atPace := time.Duration(float64(8<<20) / largePace * float64(time.Second)) // but for the first megabyte
	for name, tt := range map[string]struct {
		data    string
		reserve bool
		slow    bool
	}{
		"large bulk mail":              {large, false, true},
		"large mail of an auth client": {large, true, false},
		"small bulk mail":              {mail + "hello\r\n.\r\n", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(o *SMTPOptions, _ *fakeRelay) {
				o.Listen.MaxSize = 16 << 20
				o.Budget = NewBudget(64 << 20)
				o.Reserve = func(string) bool { return tt.reserve }
			}, func(t *testing.T, _ *door, l *connListener) {
				c := l.pipe(t)
				c.hello()
				start := time.Now()
				for range 3 { // the burst is used up by the first
					c.toData()
					c.send(tt.data)
					c.want("250 ")
				}
				switch took := time.Since(start); {
				case tt.slow && (took < 2*atPace || took > 4*atPace):
					t.Errorf("three took %v, want about three times %v", took, atPace)
				case !tt.slow && took != 0:
					t.Errorf("took %v", took)
				}
			})
		})
	}
}
