package upstream_test

import (
	"bytes"
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

func TestAMailThatComesWhileTheHostIsAskedNeedsNoNewConnection(t *testing.T) {
	const delay = 200 * time.Millisecond // of the answer to NOOP
	for name, chunking := range map[string]bool{"in two flights": false, "in one flight": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, u := warmBubble(t, 2, upstreamtest.HostOptions{Chunking: chunking}, authLane)
				for range 3 { // the second is after the probe of how the host takes chunks
					wantClasses(t, send(t, u, envelope()), message.Accepted)
					synctest.Wait()
				}
				before := h.Accepted()
				h.Script(func(s upstreamtest.Step) upstreamtest.Action {
					if s.Verb == "NOOP" {
						return upstreamtest.Action{Delay: delay}
					}
					return upstreamtest.Action{}
				})
				for n := 0; count(h, "NOOP") == 0; n++ {
					if time.Sleep(time.Second); n > 60 {
						t.Fatal("the host was never asked")
					}
					synctest.Wait()
				}
				start := time.Now()
				slot := reserve(t, u)
				wantClasses(t, slot.Send(t.Context(), envelope(), [][]byte{text}, commit), message.Accepted)
				steps := h.Steps()
				if n := steps[len(steps)-1].Conn; n > before || time.Since(start) > delay {
					t.Errorf("the mail went by connection %d of %d after %v", n, before, time.Since(start))
				}
				slot.Release()
				if verbs := h.Verbs(); chunking != (verbs[len(verbs)-2] == "BDAT") {
					t.Errorf("the host heard %v", verbs)
				}
			})
		})
	}
}

func TestAMailThatComesWhileTheHostIsAskedIsSentOnceWhateverItAnswers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer  string
		after   time.Duration // of NOOP comes the mail
		flights message.Class // of a mail in one flight; in two it is taken
	}{
		"421":           {"421 4.4.2 idle for too long", 0, message.Accepted},
		"500":           {"500 5.5.1 what?", 0, message.Accepted},
		"gone":          {upstreamtest.Drop, 0, message.Accepted},
		"nonsense":      {"nonsense", 0, message.Unknown},
		"no answer":     {upstreamtest.Hang, 600 * time.Millisecond, message.Accepted},
		"a late answer": {"250 ok", 30 * time.Millisecond, message.Accepted},
	} {
		for _, chunking := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					h, u := warmBubble(t, 2, upstreamtest.HostOptions{Chunking: chunking}, authLane)
					for range 3 {
						wantClasses(t, send(t, u, envelope()), message.Accepted)
						synctest.Wait()
					}
					h.Script(func(s upstreamtest.Step) upstreamtest.Action {
						if s.Verb == "NOOP" {
							return upstreamtest.Action{Delay: 20 * time.Millisecond, Reply: tt.answer}
						}
						return upstreamtest.Action{}
					})
					for count(h, "NOOP") == 0 {
						time.Sleep(time.Second)
						synctest.Wait()
					}
					time.Sleep(tt.after)
					want := message.Accepted
					if chunking {
						want = tt.flights
					}
					wantClasses(t, send(t, u, envelope()), want)
					if n := len(h.Messages()); n > 4 || want == message.Accepted && n < 4 {
						t.Errorf("chunking %v: %d mails, want 4", chunking, n)
					}
				})
			})
		}
	}
}

// strictConn is a connection to a host that must not be sent anything before it has answered the command before.
type strictConn struct {
	net.Conn
	t      *testing.T
	unread atomic.Bool
}

func (c *strictConn) Write(p []byte) (int, error) {
	if c.unread.Swap(bytes.Equal(p, []byte("NOOP\r\n"))) {
		c.t.Errorf("%q was sent before NOOP was answered", p)
	}
	return c.Conn.Write(p)
}

func (c *strictConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.unread.Store(false)
	return n, err
}

func TestAHostWithoutPipeliningIsSentNothingWhileItIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := upstreamtest.NewHost(t, upstreamtest.HostOptions{NoListen: true, Without: []string{"PIPELINING"}})
		c := &config.Upstream{Name: "sink", Type: "smtp", Address: "pipe:25", TLS: "none", Connections: 1}
		u, err := upstream.NewSMTPOver(c, "gw.example.com", func(context.Context) (net.Conn, error) { return &strictConn{Conn: h.Pipe(), t: t}, nil },
			[]upstream.LaneKind{authLane})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeNow(t, u) })
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "NOOP" {
				return upstreamtest.Action{Delay: 20 * time.Millisecond}
			}
			return upstreamtest.Action{}
		})
		for count(h, "NOOP") == 0 {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		if n := h.Accepted(); n != 1 {
			t.Errorf("the mails took %d connections, want 1", n)
		}
	})
}

func TestAKeptConnectionThatTheHostClosesIsReplacedBeforeAMailNeedsIt(t *testing.T) {
	o := upstreamtest.HostOptions{TLS: "starttls"}
	h := upstreamtest.NewHost(t, o)
	u := open(t, configFor(t, h, o), authLane)
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	waitFor(t, "a spare", func() bool { return upstream.Waiting(u) == 2 })
	before := h.Accepted()
	h.DropConnections()
	waitFor(t, "another", func() bool { return h.Accepted() > before && upstream.Waiting(u) == 1 })
	before = h.Accepted()
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	for _, s := range h.Steps() {
		if s.Verb == upstreamtest.Dot && s.Conn > before {
			t.Errorf("the mail had to wait for connection %d", s.Conn)
		}
	}
}

func TestAHostIsAskedWithinTheTimeThatItLetsConnectionsRest(t *testing.T) {
	h, u := newRestPair(t)
	const limit = 10 * time.Second
	closeAfter(t, h, u, limit)
	if rest, life := upstream.Bounds(u); rest >= limit || rest < limit/2 || life != upstream.MaxAge {
		t.Fatalf("connections may rest for %v and last for %v, want clearly less than %v, and %v", rest, life, limit, upstream.MaxAge)
	}
	upstream.LookAfter(u, limit*9/10)
	waitFor(t, "NOOP", func() bool { return count(h, "NOOP") == 1 })
	if n := h.Connections(); n != 1 {
		t.Errorf("%d connections are open", n)
	}
}

func TestAConnectionIsReplacedBeforeTheHostEndsItForItsAge(t *testing.T) {
	h, u := newRestPair(t)
	upstream.LookAfter(u, upstream.IdleTime)
	waitFor(t, "the answer to NOOP", func() bool { upstream.LookAfter(u, 0); return upstream.Answered(u) })
	closeAfter(t, h, u, 15*time.Second)
	rest, life := upstream.Bounds(u)
	if ended := upstream.IdleTime + 15*time.Second; rest != upstream.IdleTime || life >= ended || life < ended/2 {
		t.Errorf("connections may rest for %v and last for %v, want %v and clearly less than the %v after which the host ended one", rest, life, upstream.IdleTime, ended)
	}
}

func TestAHostThatClosesAConnectionAtOnceTeachesNothing(t *testing.T) {
	h, u := newRestPair(t)
	closeAfter(t, h, u, 0)
	if rest, life := upstream.Bounds(u); rest != upstream.IdleTime || life != upstream.MaxAge {
		t.Errorf("connections may rest for %v and last for %v", rest, life)
	}
}

func TestAHostThatClosesAConnectionWhenItIsAskedIsAskedSooner(t *testing.T) {
	h, u := newRestPair(t)
	h.Reply("NOOP", upstreamtest.Drop)
	upstream.LookAfter(u, upstream.IdleTime)
	waitFor(t, "another connection", func() bool { upstream.LookAfter(u, 0); return h.Accepted() == 2 })
	if rest, life := upstream.Bounds(u); rest >= upstream.IdleTime || life != upstream.MaxAge {
		t.Errorf("connections may rest for %v and last for %v, want less than %v, and %v", rest, life, upstream.IdleTime, upstream.MaxAge)
	}
}

// newRestPair makes a host and an upstream that keeps a connection to it, which rests.
func newRestPair(t *testing.T) (*upstreamtest.Host, upstream.Upstream) {
	t.Helper()
	o := upstreamtest.HostOptions{}
	h := upstreamtest.NewHost(t, o)
	c := configFor(t, h, o)
	c.Connections = 1
	u := open(t, c, authLane)
	slot, err := u.Reserve(t.Context(), authLane.Lane)
	if err != nil {
		t.Fatal(err)
	}
	slot.Release()
	return h, u
}

// closeAfter has h close its connections when they have rested for that long, and waits for another.
func closeAfter(t *testing.T, h *upstreamtest.Host, u upstream.Upstream, rest time.Duration) {
	t.Helper()
	h.DropConnections()
	waitFor(t, "the end of the connection", func() bool { return h.Connections() == 0 })
	before := h.Accepted()
	upstream.LookAfter(u, rest)
	waitFor(t, "another", func() bool { return h.Accepted() > before })
}

func TestWhatAHostShowedOnceIsForgottenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 2, upstreamtest.HostOptions{}, authLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		h.Reply("NOOP", upstreamtest.Drop)
		time.Sleep(upstream.IdleTime + upstream.NoopTime)
		synctest.Wait()
		if rest, _ := upstream.Bounds(u); rest >= upstream.IdleTime {
			t.Errorf("connections may rest for %v, though the host closed one", rest)
		}
		time.Sleep(upstream.LearnedFor + time.Second)
		if rest, _ := upstream.Bounds(u); rest != upstream.IdleTime {
			t.Errorf("connections may rest for %v, want %v again", rest, upstream.IdleTime)
		}
	})
}
