package relay

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
)

// takes returns a verdict function that accepts after d.
func takes(d time.Duration) func(message.Envelope) []message.Verdict {
	return func(e message.Envelope) []message.Verdict {
		time.Sleep(d)
		return message.Verdict{Class: message.Accepted, Code: 250}.Verdicts(len(e.To))
	}
}

// newsletter hands in a marketing mail and fails the test unless it is accepted.
func (g *rig) newsletter() message.ID {
	g.t.Helper()
	id, err := g.submit("news", "")
	if err != nil {
		g.t.Errorf("the newsletter was not accepted: %v", err)
	}
	return id
}

func TestABurstThatTheUpstreamKeepsUpWithLeavesOneEventForEachMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.verdict = takes(5 * time.Millisecond) })
		var senders sync.WaitGroup
		for range 16 { // four for each connection
			senders.Go(func() {
				for range 10 {
					g.newsletter()
				}
			})
		}
		senders.Wait()
		time.Sleep(time.Second)
		if n := len(g.history.of(event.Delivered)); n != 160 || len(g.history.events) != n {
			t.Errorf("%d delivered with %d events in all, want 160 with one each", n, len(g.history.events))
		}
	})
}

func TestMailIsTakenAtOnceWhereTheUpstreamCannotKeepUpAndGoesOutInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.verdict = takes(10 * time.Second) })
		var ids []message.ID
		for range 40 {
			ids = append(ids, g.newsletter())
		}
		began := time.Now()
		ids = append(ids, g.newsletter())
		if took := time.Since(began); took > 0 {
			t.Errorf("beside a backlog a mail was taken after %v", took)
		}
		time.Sleep(3 * time.Minute)
		var got []message.ID
		for i, s := range g.marketing.got() {
			if got = append(got, s.env.ID); i%4 == 3 {
				slices.Sort(got[i-3:]) // four at once are in no order
			}
		}
		if !slices.Equal(got, ids) {
			t.Errorf("handed over in the order %v, want %v", got, ids)
		}
	})
}

func TestAClientWaitsNoLongerThanAMomentForRoomInALane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.verdict = takes(10 * time.Second) })
		var senders sync.WaitGroup
		for range 40 {
			senders.Go(func() {
				began := time.Now()
				g.newsletter()
				if took, commit := time.Since(began), 10*time.Millisecond; took > patience+commit {
					t.Errorf("a mail was taken after %v, want %v at most", took, patience+commit)
				}
			})
		}
		senders.Wait()
	})
}

func TestAClientWaitsLongerForRoomWhereItsTurnComesSoonButNotWithACode(t *testing.T) {
	for _, tt := range []struct {
		kind    message.Kind
		ends    int // in 40 ms
		waiting int
		want    time.Duration
	}{
		{message.Marketing, 40, 100, patienceLong},
		{message.Marketing, 40, 101, patience},
		{message.Marketing, 16, 40, patienceLong},
		{message.Marketing, 15, 1, patience},
		{message.Marketing, 0, 1, patience},
		{message.Auth, 40, 1, patience},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newLane("news", tt.kind)
			for range 1 + tt.waiting {
				l.line.queue(false)
			}
			began := time.Now()
			time.AfterFunc(10*time.Millisecond, func() {
				for range tt.ends {
					l.done(0, false)
				}
			})
			ctx, cancel := l.patience()
			defer cancel()
			<-ctx.Done()
			if took := time.Since(began); took != tt.want {
				t.Errorf("%v mail behind %d others, of which %d went in 40 ms, waits %v, want %v", tt.kind, tt.waiting, tt.ends, took, tt.want)
			}
		})
	}
}

func TestABurstThatTheUpstreamsKeepUpWithIsNoBacklog(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.verdict = takes(4 * time.Millisecond) })
		var senders sync.WaitGroup
		for range 30 {
			senders.Go(func() {
				for range 20 {
					g.newsletter()
				}
			})
		}
		senders.Wait()
		time.Sleep(time.Second)
		if n := len(g.history.of(event.Accepted)); n != 0 {
			t.Errorf("%d of 600 mails were queued, want none", n)
		}
		if n := len(g.history.of(event.Delivered)); n != 600 {
			t.Errorf("%d of 600 mails were delivered", n)
		}
	})
}

// askedSpool counts how often a lane asks it what there is to claim.
type askedSpool struct {
	Spool
	asked atomic.Int32
}

func (s *askedSpool) Needs(ctx context.Context, lane string) ([]string, error) {
	s.asked.Add(1)
	return s.Spool.Needs(ctx, lane)
}

func TestMailThatWasNeverQueuedIsNotLookedForInTheQueue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) { c.Stream["marketing"].Retry = []time.Duration{5 * time.Second} })
		g.stop()
		asked := &askedSpool{}
		g.start(func(s Spool) Spool { asked.Spool = s; return asked })
		before := asked.asked.Load()
		for range 20 {
			g.newsletter()
			time.Sleep(10 * time.Millisecond)
		}
		if n := asked.asked.Load() - before; n != 0 {
			t.Errorf("the lane asked %d times what there is to claim, and nothing was queued", n)
		}
		g.marketing.set(func(s *service) {
			s.verdict = always(message.Verdict{Class: message.Temporary, Scope: message.ScopeMessage, Code: 451})
		})
		g.newsletter()
		time.Sleep(10 * time.Millisecond)
		g.marketing.set(func(s *service) { s.verdict = nil })
		sent := len(g.marketing.got())
		time.Sleep(6 * time.Second)
		if n := len(g.marketing.got()) - sent; n != 1 {
			t.Errorf("%d mails were sent when the one that had been put off was due, want 1", n)
		}
	})
}

// lateSpool is a spool whose claims take 5 ms.
type lateSpool struct{ Spool }

func (s lateSpool) Claim(ctx context.Context, lane string, can []string, n int, octets int64) ([]*message.Delivery, error) {
	ds, err := s.Spool.Claim(ctx, lane, can, n, octets)
	time.Sleep(5 * time.Millisecond)
	return ds, err
}

func TestABacklogEndsThoughMailKeepsComing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.stop()
		g.start(func(s Spool) Spool { return lateSpool{s} })
		g.marketing.set(func(s *service) { s.verdict = takes(time.Second) })
		for range 20 {
			g.newsletter()
		}
		g.marketing.set(func(s *service) { s.verdict = takes(5 * time.Millisecond) })
		stop := time.Now().Add(2500 * time.Millisecond)
		var senders sync.WaitGroup
		for i := range 4 {
			senders.Go(func() { // one of them while every claim is under way
				time.Sleep(time.Duration(i) * 4 * time.Millisecond)
				for time.Now().Before(stop) {
					g.newsletter()
					time.Sleep(16 * time.Millisecond)
				}
			})
		}
		time.Sleep(2 * time.Second)
		queued := len(g.history.of(event.Accepted))
		senders.Wait()
		time.Sleep(time.Second)
		if n := len(g.history.of(event.Accepted)); n != queued {
			t.Errorf("%d mails were queued in the last half second, though the upstream keeps up with all that comes", n-queued)
		}
	})
}

func TestAPausedUpstreamIsTriedTwiceASecondForCodesAndOnceForOtherMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		for _, s := range []*service{g.auth, g.marketing} {
			s.set(func(s *service) { s.down = down() })
		}
		g.code()
		g.newsletter()
		time.Sleep(1010 * time.Millisecond)
		auth, marketing := g.auth.attempts(), g.marketing.attempts()
		time.Sleep(10 * time.Second)
		if n := g.auth.attempts() - auth; n != 20 {
			t.Errorf("%d logins for codes in 10 s, want 20", n)
		}
		if n := g.marketing.attempts() - marketing; n != 10 {
			t.Errorf("%d logins for other mail in 10 s, want 10", n)
		}
		g.marketing.set(func(s *service) { s.down = nil })
		time.Sleep(1010 * time.Millisecond)
		if n := len(g.marketing.got()); n != 1 {
			t.Errorf("%d mails left within a second of the host's return, want 1", n)
		}
	})
}
