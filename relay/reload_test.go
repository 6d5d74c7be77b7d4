package relay

import (
	"sync"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/upstream"
)

// reload gives the rig a copy of its config with a change.
func (g *rig) reload(change func(*config.Config)) error {
	g.t.Helper()
	next := testConfig(g.cfg.Dir, g.key)
	if change != nil {
		change(next)
	}
	return g.relay.Reload(next)
}

func (g *rig) mustReload(change func(*config.Config)) {
	g.t.Helper()
	if err := g.reload(change); err != nil {
		g.t.Fatal(err)
	}
}

func TestAReloadThatChangesNothingKeepsUpstreamsAndTheirPauses(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		g.code()
		g.mustReload(nil)
		if len(g.connects) != 2 || g.auth.closed != 0 {
			t.Errorf("upstreams were made anew: %v, closed %d", g.connects, g.auth.closed)
		}
		if s := g.relay.Status(); !s[0].Pairs[0].Paused {
			t.Error("the pause was forgotten")
		}
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(2 * time.Second)
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d delivered after the upstream's return, want 1", n)
		}
	})
}

func TestAChangedUpstreamIsMadeAnewAndTheOldOneEndsWhatItBegan(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 1 }) // hangs for answer_timeout
		g.code()
		next := &service{traits: upstream.Traits{DKIM: "sign"}}
		g.instead = func(*config.Upstream) *service { return next }
		g.mustReload(func(c *config.Config) { c.Upstream["sink"].Connections = 2 })
		g.code()
		if n := len(next.got()); n != 1 {
			t.Errorf("%d new mails went through the new upstream, want 1", n)
		}
		time.Sleep(15 * time.Second)
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d mails went through the old upstream, want the one under way", n)
		}
		if n := len(next.got()); n != 2 {
			t.Errorf("%d mails in all through the new one, want the second copy too", n)
		}
		if g.auth.closed != 1 || g.marketing.closed != 0 {
			t.Errorf("closed %d times, the unchanged one %d times", g.auth.closed, g.marketing.closed)
		}
	})
}

func TestMailOfARemovedStreamWaitsUntilItIsBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.down = down() })
		if _, err := g.submit("news", ""); err != nil {
			t.Fatal(err)
		}
		without := func(c *config.Config) {
			delete(c.Stream, "marketing")
			delete(c.Client, "news")
			c.Listen["smtp"].Clients = []string{"logto"}
		}
		g.mustReload(without)
		g.marketing.set(func(s *service) { s.down = nil })
		logins := g.marketing.attempts()
		time.Sleep(time.Minute)
		if n := len(g.marketing.got()); n != 0 || len(g.queue()) != 1 {
			t.Errorf("%d delivered, %d queued without the stream", n, len(g.queue()))
		}
		if n := g.marketing.attempts() - logins; n > 1 {
			t.Errorf("an upstream that nobody uses is still probed: %d times", n)
		}
		g.mustReload(nil)
		time.Sleep(time.Second)
		if n := len(g.marketing.got()); n != 1 {
			t.Errorf("%d delivered with the stream back, want 1", n)
		}
	})
}

func TestABrokenReloadChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.instead = func(*config.Upstream) *service { return &service{} }
		if err := g.reload(func(c *config.Config) {
			c.Stream["auth"].DKIM[0].KeyFile = "/nowhere"
			c.Upstream["sink"].Connections = 9
		}); err == nil {
			t.Fatal("a config with a missing key was taken")
		}
		g.code()
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d delivered as before, want 1", n)
		}
		if g.auth.closed != 0 || g.marketing.closed != 0 {
			t.Error("upstreams in use were closed")
		}
	})
}

func TestReloadsUnderLoadLoseAndDoubleNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		var clients sync.WaitGroup
		for range 5 {
			clients.Go(func() {
				for range 100 {
					g.code()
					if _, err := g.submit("news", ""); err != nil {
						t.Error(err)
					}
					time.Sleep(9 * time.Millisecond)
				}
			})
		}
		for i := range 50 {
			g.mustReload(func(c *config.Config) {
				c.Upstream["bulk"].Connections = 2 + i%3
				c.Stream["auth"].TTL += time.Duration(i) * time.Minute
			})
			time.Sleep(20 * time.Millisecond)
		}
		clients.Wait()
		time.Sleep(time.Minute)
		if a, m := len(g.auth.got()), len(g.marketing.got()); a != 500 || m != 500 {
			t.Errorf("%d codes and %d others delivered, want 500 each", a, m)
		}
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("%d left in the queue", len(rows))
		}
	})
}

func TestAMatchRuleDecidesWhenTheClientIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		p := g.relay.generation.Load().plans["auth"]
		if v := p.verdict(&message.Message{Verdict: "queued"}); v != "queued" {
			t.Errorf("a rule's verdict is overruled by %q", v)
		}
		if v := p.verdict(&message.Message{}); v != "upstream" {
			t.Errorf("without a rule the verdict is %q", v)
		}
	})
}

func TestMailIsRefusedWhileTooMuchWaits(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			c.Limits.QueueAge = time.Minute
			c.Stream["auth"].WhenDown = "queue"
		})
		g.auth.set(func(s *service) { s.down = down() })
		g.marketing.set(func(s *service) { s.down = down() })
		g.code()
		if _, err := g.submit("news", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(70 * time.Second)
		if _, err := g.submit("news", ""); err == nil {
			t.Error("marketing is taken although the queue is older than queue_age")
		}
		g.code()
		time.Sleep(time.Minute)
		if _, err := g.submit("logto", ""); err == nil {
			t.Error("auth mail is taken although the queue is older than twice queue_age")
		}
		g.marketing.set(func(s *service) { s.down = nil })
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(5 * time.Second)
		g.code()
		if _, err := g.submit("news", ""); err != nil {
			t.Errorf("refused although the queue is empty: %v", err)
		}
	})
}

func TestNoReloadBeginsOnceTheRelayStops(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.stop()
		if err := g.reload(nil); err == nil {
			t.Error("a stopped relay was reloaded")
		}
		if n := len(g.history.of(event.Delivered)); n != 0 {
			t.Errorf("%d delivered", n)
		}
	})
}
