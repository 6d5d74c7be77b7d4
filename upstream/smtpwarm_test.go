package upstream_test

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// warmBubble is bubble for an upstream with these lanes.
func warmBubble(t *testing.T, connections int, o upstreamtest.HostOptions, lanes ...upstream.LaneKind) (*upstreamtest.Host, upstream.Upstream) {
	t.Helper()
	o.NoListen = true
	h := upstreamtest.NewHost(t, o)
	c := &config.Upstream{Name: "sink", Type: "smtp", Address: "pipe:25", TLS: "none", Connections: connections}
	u, err := upstream.NewSMTPOver(c, "gw.example.com", func(context.Context) (net.Conn, error) { return h.Pipe(), nil }, lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, u) })
	return h, u
}

var (
	authLane = upstream.LaneKind{Lane: "auth", Kind: message.Auth}
	bulkLane = upstream.LaneKind{Lane: "marketing", Kind: message.Marketing}
)

func count(h *upstreamtest.Host, verb string) (n int) {
	for _, v := range h.Verbs() {
		if v == verb {
			n++
		}
	}
	return n
}

func TestAfterADayOfSilenceAConnectionForSignInMailIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 4, upstreamtest.HostOptions{}, authLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		for range 24 * 60 {
			time.Sleep(time.Minute)
			synctest.Wait()
			if n := h.Connections(); n != 1 {
				t.Fatalf("%d connections are open, want 1", n)
			}
		}
		before := h.Accepted()
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		if h.Messages()[1].From == "" || count(h, "EHLO") > before+1 {
			t.Errorf("the mail had to wait for a connection")
		}
		perDay := int(24 * time.Hour / (upstream.MaxAge - 2*upstream.IdleTime))
		if before > perDay+2 || count(h, "NOOP") > int(24*time.Hour/upstream.IdleTime) {
			t.Errorf("%d connections and %d NOOP in a day of silence", before, count(h, "NOOP"))
		}
	})
}

func TestMarketingMailKeepsNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 4, upstreamtest.HostOptions{}, bulkLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		time.Sleep(upstream.IdleTime)
		synctest.Wait()
		if n := h.Connections(); n != 0 {
			t.Errorf("%d connections are open, want none", n)
		}
	})
}

func TestASpareIsReadyWhileOthersAreInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 3, upstreamtest.HostOptions{}, authLane)
		for n, want := range []int{2, 3, 3} { // in use and spare; never more than are configured
			defer reserve(t, u).Release()
			synctest.Wait()
			if got := h.Connections(); got != want {
				t.Errorf("with %d in use %d are open, want %d", n+1, got, want)
			}
		}
	})
}

func TestAKeptConnectionThatTheHostClosedIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 2, upstreamtest.HostOptions{}, authLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		h.Reply("NOOP", "421 4.4.2 go away")
		time.Sleep(upstream.IdleTime + upstream.NoopTime)
		synctest.Wait()
		if n := h.Connections(); n != 1 {
			t.Errorf("%d connections are open of %d, want a new one", n, h.Accepted())
		}
		wantClasses(t, send(t, u, envelope()), message.Accepted)
	})
}

func TestAHostThatIsGoneIsNotAskedForSparesAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 4, upstreamtest.HostOptions{}, authLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == upstreamtest.Greeting {
				return upstreamtest.Action{Reply: upstreamtest.Drop}
			}
			return upstreamtest.Action{}
		})
		h.DropConnections()
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := h.Accepted(); n > 12 {
			t.Errorf("%d connections in an hour, though nobody had mail", n)
		}
	})
}

func TestTheNumberOfConnectionsNeverExceedsWhatIsConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := upstreamtest.HostOptions{Chunking: true}
		h, u := warmBubble(t, 2, o, authLane, bulkLane)
		for i := range 400 {
			go func() {
				slot, err := u.Reserve(t.Context(), []string{"auth", "marketing"}[i%2])
				if err != nil {
					return
				}
				time.Sleep(time.Duration(i%7) * time.Second)
				slot.Send(t.Context(), envelope(), net.Buffers{text}, commit)
				slot.Release()
			}()
			time.Sleep(time.Duration(i%5) * upstream.IdleTime / 8)
		}
		time.Sleep(10 * time.Minute)
		if most := h.Most(); most > 2 {
			t.Errorf("%d connections at once, want at most 2", most)
		}
		if n := len(h.Messages()); n != 400 {
			t.Errorf("%d mails arrived, want 400", n)
		}
		if !slices.Contains(h.Verbs(), "BDAT") {
			t.Error("no mail went in one flight")
		}
	})
}

func TestATimerThatEndsAsAMailComesHarmsNobody(t *testing.T) {
	for _, lane := range []upstream.LaneKind{authLane, bulkLane} {
		for range 200 {
			synctest.Test(t, func(t *testing.T) {
				_, u := warmBubble(t, 1, upstreamtest.HostOptions{}, lane)
				wantClasses(t, send(t, u, envelope()), message.Accepted)
				time.Sleep(upstream.IdleTime) // the timer and this goroutine wake together
				wantClasses(t, send(t, u, envelope()), message.Accepted)
			})
		}
	}
}

func TestASpareThatCannotLogInLocksNoAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 4, upstreamtest.HostOptions{}, authLane)
		slot := reserve(t, u)
		synctest.Wait()
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "EHLO" {
				return upstreamtest.Action{Reply: "535 5.7.8 wrong password"}
			}
			return upstreamtest.Action{}
		})
		defer reserve(t, u).Release()
		for range upstream.MaxMails - 1 { // the connection that is logged in already goes on
			wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
			slot.Release()
			slot = reserve(t, u)
			if time.Sleep(100 * time.Millisecond); h.Accepted() > 3 {
				t.Fatalf("%d logins", h.Accepted())
			}
		}
		slot.Release()
	})
}

func TestAMailWaitsForNoSpareThatHangs(t *testing.T) {
	for _, verb := range []string{"NOOP", upstreamtest.Greeting} {
		synctest.Test(t, func(t *testing.T) {
			h, u := warmBubble(t, 1, upstreamtest.HostOptions{}, authLane)
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			h.Reply("NOOP", upstreamtest.Hang)
			if verb == upstreamtest.Greeting {
				h.DropConnections()
				h.Reply(upstreamtest.Greeting, upstreamtest.Hang)
			}
			time.Sleep(upstream.IdleTime + time.Millisecond)
			synctest.Wait()
			start := time.Now()
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if took := time.Since(start); took > time.Second {
				t.Errorf("%s: the mail waited for %v", verb, took)
			}
		})
	}
}

// counted counts itself as open from its making until it is closed on our side.
type counted struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func TestNeitherSparesNorReplacementsExceedTheConnections(t *testing.T) {
	second := upstream.LaneKind{Lane: "auth2", Kind: message.Auth}
	for most := 1; most <= 4; most++ {
		synctest.Test(t, func(t *testing.T) {
			h := upstreamtest.NewHost(t, upstreamtest.HostOptions{NoListen: true, Chunking: true})
			var now, peak atomic.Int32
			dial := func(context.Context) (net.Conn, error) {
				n := now.Add(1)
				for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
				}
				return &counted{Conn: h.Pipe(), open: &now}, nil
			}
			c := &config.Upstream{Name: "sink", Type: "smtp", Address: "pipe:25", TLS: "none", Connections: most}
			u, err := upstream.NewSMTPOver(c, "gw.example.com", dial, []upstream.LaneKind{authLane, second, bulkLane})
			if err != nil {
				t.Fatal(err)
			}
			h.Script(func(s upstreamtest.Step) upstreamtest.Action {
				switch s.Verb {
				case "QUIT", "EHLO", "NOOP", upstreamtest.Dot:
					return upstreamtest.Action{Delay: 50 * time.Millisecond}
				}
				return upstreamtest.Action{}
			})
			var mails sync.WaitGroup
			for i := range 1500 {
				mails.Go(func() {
					slot, err := u.Reserve(t.Context(), []string{"auth", "marketing", "auth2"}[i%3])
					if err != nil {
						t.Error(err)
						return
					}
					slot.Send(t.Context(), envelope(), net.Buffers{text}, commit)
					slot.Release()
				})
				time.Sleep(time.Duration(i*i%97) * time.Duration(1+i/300) * 4 * time.Millisecond)
			}
			mails.Wait()
			time.Sleep(20 * time.Minute)
			if n := int(peak.Load()); n > most {
				t.Errorf("%d connections at once, want at most %d", n, most)
			}
			if n := len(h.Messages()); n != 1500 {
				t.Errorf("%d mails arrived, want 1500", n)
			}
			closeNow(t, u)
			if n := now.Load(); n != 0 {
				t.Errorf("%d connections are left open", n)
			}
		})
	}
}

func TestMarketingThatWaitsEndsNoSpareOfSignInMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 8, upstreamtest.HostOptions{}, authLane, bulkLane)
		for range 6 { // all that are not kept for auth
			slot, err := u.Reserve(t.Context(), "marketing")
			if err != nil {
				t.Fatal(err)
			}
			defer slot.Release()
			synctest.Wait()
		}
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		go u.Reserve(ctx, "marketing") // in vain
		synctest.Wait()
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "EHLO" {
				return upstreamtest.Action{Delay: 2 * time.Second}
			}
			return upstreamtest.Action{}
		})
		defer reserve(t, u).Release() // takes the spare, so that another is made while marketing waits
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := h.Connections(); n != 8 {
			t.Errorf("%d connections are open, want 7 in use and a spare", n)
		}
	})
}
