package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// dialFrom connects from one of the loopback addresses.
func (d *door) dialFrom(t testing.TB, source string) *client {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := dialer.DialContext(t.Context(), "tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func TestStrangersAreRefusedInTheGreeting(t *testing.T) {
	for name, tt := range map[string]struct {
		identify func(listener string, p message.Peer) (string, error)
		want     string
	}{
		"a stranger": {
			func(string, message.Peer) (string, error) { return "", errStranger },
			"554 5.7.1 gw.example.com listener \"smtp\": your address is in no client's networks, so mail from it is not accepted\r\n",
		},
		"nobody knows": {
			func(string, message.Peer) (string, error) { return "", errors.New("a secret cause") },
			"421 4.3.0 gw.example.com Temporary failure, please try again later\r\n",
		},
		"asking panics": {
			func(string, message.Peer) (string, error) { panic("a secret cause") },
			"421 4.3.0 gw.example.com Temporary failure, please try again later\r\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) { f.identify = tt.identify })
			c := d.dial(t)
			if got := c.rest(); got != tt.want {
				t.Errorf("greeted with %q, want %q", got, tt.want)
			}
			if d.count() != 0 {
				t.Error("a stranger takes a place")
			}
		})
	}
}

func TestTheAcceptorIsAskedAboutTheClientsAddress(t *testing.T) {
	asked := make(chan string, 1)
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.identify = func(listener string, p message.Peer) (string, error) {
			asked <- fmt.Sprintf("%s %v %d %v", listener, p.Addr, p.UID, p.Names)
			return "logto", nil
		}
	})
	d.dialFrom(t, "127.0.0.9").hello()
	if got := <-asked; got != "smtp 127.0.0.9 -1 []" {
		t.Errorf("asked about %q", got)
	}
	mapped := &net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1"), Port: 25, Zone: "eth0"}
	if got := addrPort(mapped); got != netip.MustParseAddrPort("192.0.2.1:25") {
		t.Errorf("a mapped address became %v", got)
	}
}

func TestConnectionsAreLimitedInAllAndPerSource(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, _ *fakeRelay) { o.Listen.MaxConnections, o.Listen.MaxPerSource = 5, 3 })
	var first []*client
	for range 3 {
		c := d.dialFrom(t, "127.0.0.2")
		c.hello()
		first = append(first, c)
	}
	if got := d.dialFrom(t, "127.0.0.2").rest(); !strings.HasPrefix(got, "421 4.7.0 gw.example.com too many connections from your address") {
		t.Errorf("the fourth of one source was greeted with %q", got)
	}
	d.dialFrom(t, "127.0.0.3").hello()
	d.dialFrom(t, "127.0.0.4").hello()
	if got := d.dialFrom(t, "127.0.0.5").rest(); !strings.HasPrefix(got, "421 4.7.0 gw.example.com too many connections,") {
		t.Errorf("the sixth was greeted with %q", got)
	}
	first[0].do("QUIT", "221 ")
	first[1].Close()
	d.until(t, "two places are free", func() bool { return d.count() == 3 })
	d.dialFrom(t, "127.0.0.2").hello()
	d.dialFrom(t, "127.0.0.5").hello()
}

func TestAFloodIsTurnedAwayAndClientsAreServedAfterIt(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, _ *fakeRelay) { o.Listen.MaxPerSource = 20 })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				conn, err := net.Dial("tcp", d.addr())
				if err != nil {
					t.Error(err)
					return
				}
				io.CopyN(io.Discard, conn, 4)
				conn.Close()
			}
		})
	}
	other := d.dialFrom(t, "127.0.0.7")
	other.hello()
	other.toData()
	other.do(mail+".", "250 ")
	wg.Wait()
	start := time.Now()
	d.dialFrom(t, "127.0.0.8").hello()
	if took := time.Since(start); took > time.Second {
		t.Errorf("served %v after the flood", took)
	}
	if n := strings.Count(d.log.String(), "level=WARN"); n > 3 {
		t.Errorf("the flood made %d warnings", n)
	}
	d.until(t, "two connections are left", func() bool { return d.count() == 2 })
}

func TestManySessionsAtOnceDoNotMixTheirMails(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.accept = func(_ context.Context, s *message.Submission) error {
			if want := "body of " + s.To[0].Local + "\r\n"; string(s.Raw.Body()) != want {
				return reply.New(554, "5.0.0", "got the mail of somebody else")
			}
			return nil
		}
	})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for j := range 5 { // a connection a mail, and no QUIT
				conn, err := net.Dial("tcp", d.addr())
				if err != nil {
					t.Error(err)
					return
				}
				fmt.Fprintf(conn, "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<u%d-%d@example.net>\r\nDATA\r\nSubject: x\r\n\r\nbody of u%d-%d\r\n.\r\n", i, j, i, j)
				conn.(*net.TCPConn).CloseWrite()
				if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "queued as") {
					t.Errorf("answered %q, %v", b, err)
				}
				conn.Close()
			}
		})
	}
	wg.Wait()
	if n := len(d.relay.submissions()); n != 200 {
		t.Errorf("%d messages were accepted, want 200", n)
	}
}

func TestIdleClientsCostLittle(t *testing.T) {
	const n = 500
	d := openTCP(t, nil)
	before := inUse()
	for range n {
		d.dial(t).hello()
	}
	each := (inUse() - before) / n
	t.Logf("%d octets for both ends of an idle connection", each)
	if each > 32<<10 { // the client's buffer here is 4 KiB of it
		t.Errorf("an idle connection costs %d octets", each)
	}
}

func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func TestBindingErrorsSayWhatIsInTheWay(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for address, want := range map[string]string{
		taken:              "listen smtp: " + taken + " is in use: stop the program that holds it, or change the address",
		"192.0.2.1:0":      "listen smtp: 192.0.2.1:0 is not an address of this host",
		"127.0.0.1:x-none": "listen smtp: ",
	} {
		if l, err := Listen(t.Context(), &config.Listen{Name: "smtp", Address: address}); err == nil {
			l.Close()
			t.Errorf("%s was bound", address)
		} else if !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", address, err, want)
		}
	}
	l, err := Listen(t.Context(), &config.Listen{Name: "smtp", Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// brokenListener fails, as one whose socket is gone.
type brokenListener struct{ *connListener }

func (brokenListener) Accept() (net.Conn, error) { return nil, errors.New("no socket") }

func TestServeTellsOfAListenerThatFails(t *testing.T) {
	d := open(t, brokenListener{newConnListener()}, nil)
	if err := d.wait(t); err == nil || err.Error() != "listen smtp: accept connections: no socket" {
		t.Errorf("Serve: %v", err)
	}
}
