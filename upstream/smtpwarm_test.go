package upstream_test

import (
	"context"
	"net"
	"slices"
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
		time.Sleep(upstream.IdleTime)
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
		most := 0
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
			synctest.Wait()
			most = max(most, h.Connections())
		}
		time.Sleep(10 * time.Minute)
		if most > 2 {
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
