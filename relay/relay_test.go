package relay

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

func TestACodeIsHandedOverSignedBeforeItsClientIsAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		id := g.code()
		got := g.auth.got()
		if len(got) != 1 || got[0].env.ID != id {
			t.Fatalf("the upstream has %d messages at the time of the answer, want this one", len(got))
		}
		if !strings.HasPrefix(got[0].wire, "DKIM-Signature:") || !strings.Contains(got[0].wire, "d=auth.example.com") {
			t.Errorf("not signed for the From domain:\n%s", got[0].wire)
		}
		time.Sleep(time.Second)
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("still queued after delivery: %+v", rows)
		}
		if es := g.history.of(event.Delivered); len(es) != 1 || len(g.history.events) != 1 {
			t.Errorf("a clean first delivery is %d events, want one", len(g.history.events))
		}
	})
}

// slowSpool lets a test decide when, and how, a Put ends.
type slowSpool struct {
	Spool
	release chan error
}

type slowWrite struct {
	Write
	done chan struct{}
	err  error
}

func (s *slowSpool) Put(ms []*message.Message, own bool) Write {
	w := &slowWrite{done: make(chan struct{})}
	go func() {
		if w.err = <-s.release; w.err == nil {
			w.Write = s.Spool.Put(ms, own)
			<-w.Write.Done()
		}
		close(w.done)
	}()
	return w
}

func (w *slowWrite) Done() <-chan struct{} { return w.done }

func (w *slowWrite) Result() (message.PutResult, error) {
	if w.err != nil {
		return message.PutResult{}, w.err
	}
	return w.Write.Result()
}

func TestNothingIsHandedOverBeforeItIsDurable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.stop()
		slow := &slowSpool{release: make(chan error)}
		g.start(func(s Spool) Spool { slow.Spool = s; return slow })
		var wg sync.WaitGroup
		wg.Go(func() { g.code() })
		synctest.Wait()
		if g.auth.attempts() != 1 {
			t.Errorf("%d slots reserved while the write is under way, want 1: the two overlap", g.auth.attempts())
		}
		if n := len(g.auth.got()); n != 0 {
			t.Errorf("%d messages handed over before the write was durable", n)
		}
		slow.release <- nil
		wg.Wait()
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d messages handed over after it, want 1", n)
		}
	})
}

func TestAFailedWriteSendsNothingAndIsRefusedForNow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.stop()
		slow := &slowSpool{release: make(chan error, 1)}
		g.start(func(s Spool) Spool { slow.Spool = s; return slow })
		slow.release <- reply.New(452, "4.3.1", "no space")
		_, err := g.submit("logto", "")
		if err == nil || reply.Of(err).Code != 452 {
			t.Errorf("the client is told %v, want 452", err)
		}
		time.Sleep(time.Minute)
		if n := len(g.auth.got()); n != 0 {
			t.Errorf("%d messages handed over although the write failed", n)
		}
	})
}

func TestTheAnswerFollowsTheUpstreamsVerdict(t *testing.T) {
	for name, tt := range map[string]struct {
		verdict message.Verdict
		code    int           // 0: accepted
		within  time.Duration // of the answer
	}{
		"accepted":                          {message.Verdict{Class: message.Accepted}, 0, time.Second},
		"a recipient refused for good":      {message.Verdict{Class: message.Permanent, Scope: message.ScopeRecipient, Code: 550, Enhanced: "5.1.1"}, 550, time.Second},
		"a message refused by all":          {message.Verdict{Class: message.Permanent, Scope: message.ScopeMessage, Code: 554, Enhanced: "5.6.0"}, 554, time.Second},
		"a temporary refusal is ours":       {message.Verdict{Class: message.Temporary, Scope: message.ScopeRecipient, Code: 450}, 0, time.Second},
		"an unverified domain is never 5xx": {message.Verdict{Class: message.Permanent, Scope: message.ScopeDomain, Code: 550}, 0, time.Second},
		"a wrong password is never 5xx":     {message.Verdict{Class: message.Unauthorised, Scope: message.ScopeUpstream, Code: 535}, 0, time.Second},
		"throttling is ours":                {message.Verdict{Class: message.Throttled, Scope: message.ScopeUpstream, Code: 421}, 0, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, nil)
				g.auth.set(func(s *service) { s.verdict = always(tt.verdict) })
				began := time.Now()
				_, err := g.submit("logto", "")
				if took := time.Since(began); took > tt.within {
					t.Errorf("answered after %v", took)
				}
				code := 0
				if err != nil {
					code = reply.Of(err).Code
				}
				if code != tt.code {
					t.Errorf("answered %d (%v), want %d", code, err, tt.code)
				}
				time.Sleep(100 * time.Millisecond)
				queued, bounced := len(g.queue()), len(g.history.of(event.Bounced))
				accepted := tt.verdict.Class == message.Accepted
				if want := tt.code != 0; (bounced == 1) != want || (queued == 0) != (want || accepted) {
					t.Errorf("%d rows queued and %d bounced events after the answer", queued, bounced)
				}
			})
		})
	}
}

func TestAHangingUpstreamNeverHoldsTheAnswerBeyondVerdictTimeout(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 1 })
		began := time.Now()
		g.code()
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("answered after %v, want 4s", took)
		}
	})
}

func TestATemporaryRefusalIsTriedAgainByTheLadder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) {
			s.verdict = always(message.Verdict{Class: message.Temporary, Scope: message.ScopeMessage, Code: 451})
		})
		g.code()
		time.Sleep(40 * time.Second)
		g.auth.set(func(s *service) { s.verdict = nil })
		time.Sleep(15 * time.Second)
		var gaps []time.Duration
		got := g.auth.got()
		for i := 1; i < len(got); i++ {
			gaps = append(gaps, got[i].at.Sub(got[i-1].at).Round(100*time.Millisecond))
		}
		s := time.Second
		want := []time.Duration{s, 2 * s, 5 * s, 10 * s, 10 * s, 10 * s, 10 * s}
		if len(gaps) < 5 {
			t.Fatalf("%d tries in 55 s, want more", len(got))
		}
		for i, gap := range gaps {
			if gap != want[i] {
				t.Errorf("waits were %v, want %v", gaps, want[:len(gaps)])
				break
			}
		}
		if n := len(g.history.of(event.Delivered)); n != 1 {
			t.Errorf("%d delivered events, want 1", n)
		}
	})
}

func TestAKeyThatCannotSignDefersAndNothingLeavesUnsigned(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) { c.Stream["auth"].DKIM[0].Domain = "other.example" })
		g.code()
		time.Sleep(10 * time.Second)
		if n := len(g.auth.got()); n != 0 {
			t.Errorf("%d messages left although they could not be signed", n)
		}
		es := g.history.of(event.Deferred)
		if len(es) == 0 || !es[0].Data.Alarm || !strings.Contains(es[0].Data.Text, "cannot be made ready") {
			t.Errorf("want deferrals with an alarm about us, got %+v", es)
		}
	})
}

func down() *upstream.Paused {
	return &upstream.Paused{Verdict: message.Verdict{Class: message.Temporary, Scope: message.ScopeUpstream, Text: "connection refused"}}
}

func TestAnUpstreamOutagePausesThePairAndLeavesMessagesAsTheyAre(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		first := g.code()
		for range 4 {
			time.Sleep(4 * time.Second)
			g.code()
		}
		time.Sleep(4 * time.Second)
		rows := g.queue()
		if len(rows) != 5 {
			t.Fatalf("%d queued during the outage, want 5", len(rows))
		}
		for _, row := range rows {
			if row.Attempts != 0 {
				t.Errorf("an outage counted as %d attempts of %s", row.Attempts, row.ID)
			}
		}
		if n := g.auth.attempts(); n < 20 || n > 50 {
			t.Errorf("%d logins tried in 20 s, want about two a second", n)
		}
		g.auth.set(func(s *service) { s.down = nil })
		back := time.Now()
		time.Sleep(1500 * time.Millisecond)
		got := g.auth.got()
		if len(got) != 5 || got[0].env.ID != first {
			t.Fatalf("%d delivered within 1.5 s of the return, want all 5, the oldest first", len(got))
		}
		if took := got[0].at.Sub(back); took > 1100*time.Millisecond {
			t.Errorf("the first left %v after the return", took)
		}
		if len(g.history.of(event.Paused)) != 1 || len(g.history.of(event.Resumed)) != 1 {
			t.Errorf("want one paused and one resumed event")
		}
	})
}

func TestARouteThatIsDownRefusesNewCodesAtOnceAndRecoversByItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		held := g.code()
		time.Sleep(29 * time.Second)
		g.code()
		time.Sleep(2 * time.Second)
		_, err := g.submit("logto", "")
		if err == nil || reply.Of(err).Code != 451 {
			t.Fatalf("after 31 s of outage the client is told %v, want 451", err)
		}
		if err := g.relay.Ready("logto", "no-reply@auth.example.com"); err == nil {
			t.Error("MAIL is not refused early")
		}
		if g.relay.processors.gate.since() < 0 {
			t.Error("mail that is not taken holds up newsletters")
		}
		for _, s := range g.relay.Status() {
			if s.Refuses != (s.Lane == "auth") {
				t.Errorf("the status of %s says that it refuses: %v", s.Lane, s.Refuses)
			}
		}
		if _, err := g.submit("news", ""); err != nil {
			t.Errorf("another stream suffers too: %v", err)
		}
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(1500 * time.Millisecond)
		if got := g.auth.got(); len(got) != 2 || got[0].env.ID != held {
			t.Fatalf("%d held messages delivered after the return, want 2", len(got))
		}
		g.code()
	})
}

func TestAWrongPasswordStopsTheUpstreamAndANewOneStartsIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			c.Upstream["sink"].Password = config.Secret{File: c.Dir + "/password"}
			if err := os.WriteFile(c.Dir+"/password", []byte("old\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		g.auth.set(func(s *service) {
			s.down = &upstream.Paused{Verdict: message.Verdict{Class: message.Unauthorised, Scope: message.ScopeUpstream, Code: 535}}
		})
		g.code()
		if _, err := g.submit("logto", ""); err == nil || reply.Of(err).Code != 451 {
			t.Errorf("with a refused password the client is told %v, want 451 at once", err)
		}
		before := g.auth.attempts()
		time.Sleep(20 * time.Second)
		if n := g.auth.attempts() - before; n != 0 {
			t.Errorf("%d logins within 20 s of a refused password, want none: it locks accounts", n)
		}
		if es := g.history.of(event.Paused); len(es) != 1 || !es[0].Data.Alarm {
			t.Errorf("no alarm: %+v", es)
		}
		g.auth.set(func(s *service) { s.down = nil })
		if err := os.WriteFile(g.cfg.Dir+"/password", []byte("new\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond)
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d messages delivered after the new password, want 1", n)
		}
	})
}

func TestAMessageStalledBeforeItsCommitIsSentOnceLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.stall = true })
		began := time.Now()
		g.code()
		if took := time.Since(began); took > 1600*time.Millisecond {
			t.Errorf("answered after %v, want commit_timeout", took)
		}
		g.auth.set(func(s *service) { s.stall = false })
		time.Sleep(3 * time.Second)
		if got := g.auth.got(); len(got) != 1 {
			t.Errorf("%d copies, want 1", len(got))
		}
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("left in the queue: %+v", rows)
		}
	})
}

func TestAHangingConnectPausesThePair(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.hang = true })
		g.code()
		if s := g.relay.Status(); !s[0].Pairs[0].Paused {
			t.Errorf("not paused: %+v", s)
		}
		g.auth.set(func(s *service) { s.hang = false })
		time.Sleep(1500 * time.Millisecond)
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("%d delivered within 1.5 s of the return, want 1", n)
		}
	})
}

func TestALostAnswerMeansOneMoreCopyOfACodeAndNoThird(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 5 })
		g.code()
		time.Sleep(10 * time.Minute)
		got := g.auth.got()
		if len(got) != 2 {
			t.Fatalf("%d copies, want 2", len(got))
		}
		strip := func(s string) string { _, rest, _ := strings.Cut(s, "Message-ID:"); return rest[:40] }
		if strip(got[0].wire) != strip(got[1].wire) {
			t.Error("the second copy has another Message-ID")
		}
		if gap := got[1].at.Sub(got[0].at); gap < 10*time.Second || gap > 12*time.Second {
			t.Errorf("the second copy left %v after the first", gap)
		}
		if es := g.history.of(event.Unconfirmed); len(es) != 1 || !es[0].Data.Alarm {
			t.Errorf("want one unconfirmed outcome with an alarm, got %+v", es)
		}
	})
}

func TestALostAnswerHoldsMarketingUntilAnOperatorDecides(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.lose = 1 })
		id, err := g.submit("news", "")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Hour)
		if n := len(g.marketing.got()); n != 1 {
			t.Fatalf("%d copies, want 1", n)
		}
		if rows := g.queue(); len(rows) != 1 || rows[0].State != "held-unconfirmed" {
			t.Fatalf("queue: %+v", rows)
		}
		if _, _, err := g.store.Unhold(context.Background(), message.QueueFilter{IDs: []message.ID{id}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if n := len(g.marketing.got()); n != 2 {
			t.Errorf("%d copies after the release, want 2", n)
		}
	})
}

func TestACodeIsNeverHandedOverAfterItsLifetime(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		if _, err := g.submit("logto", "X-Gatepost-TTL: 20s\r\n"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*time.Second + 500*time.Millisecond)
		if n := len(g.history.of(event.Expired)); n != 1 {
			t.Errorf("%d expired events right after the lifetime, want 1", n)
		}
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(time.Minute)
		if n := len(g.auth.got()); n != 0 {
			t.Errorf("%d handed over after the lifetime", n)
		}
	})
}

func TestALifetimeThatEndsDuringAnAttemptStopsItsCommit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.stall = true })
		if _, err := g.submit("logto", "X-Gatepost-TTL: 1s\r\n"); err != nil {
			t.Fatal(err)
		}
		g.auth.set(func(s *service) { s.stall = false })
		time.Sleep(time.Minute)
		if n := len(g.auth.got()); n != 0 {
			t.Errorf("%d handed over after the lifetime", n)
		}
		if n := len(g.history.of(event.Expired)); n != 1 {
			t.Errorf("%d expired events, want 1", n)
		}
	})
}

func TestHandOversStayWithinTheLanesConnections(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		for range 50 {
			if _, err := g.submit("news", ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		if n := len(g.marketing.got()); n != 50 {
			t.Errorf("%d delivered, want 50", n)
		}
		var most int
		g.marketing.set(func(s *service) { most = s.most })
		if most > 4 {
			t.Errorf("%d hand-overs at once, want at most 4", most)
		}
	})
}

func TestRecipientsOfOneMessageEndEachByItsOwnVerdict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				vs := make([]message.Verdict, len(e.To))
				for i, to := range e.To {
					switch to {
					case "good@example.net":
						vs[i] = message.Verdict{Class: message.Accepted, Code: 250}
					case "gone@example.net":
						vs[i] = message.Verdict{Class: message.Permanent, Scope: message.ScopeRecipient, Code: 550}
					default:
						vs[i] = message.Verdict{Class: message.Temporary, Scope: message.ScopeRecipient, Code: 450}
					}
				}
				return vs
			}
		})
		if _, err := g.submit("logto", "", "good@example.net", "gone@example.net", "full@example.net"); err != nil {
			t.Fatalf("a mixture is refused: %v", err)
		}
		g.auth.set(func(s *service) { s.verdict = nil })
		time.Sleep(2 * time.Second)
		got := g.auth.got()
		if len(got) != 2 || len(got[1].env.To) != 1 || got[1].env.To[0] != "full@example.net" {
			t.Fatalf("the second try went to %+v, want the one put off", got)
		}
		if len(g.history.of(event.Delivered)) != 2 || len(g.history.of(event.Bounced)) != 1 {
			t.Errorf("outcomes: %+v", g.history.events)
		}
	})
}

func TestStoppingWaitsForHandOversAndLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.stall = true })
		for range 10 {
			if _, err := g.submit("news", ""); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		g.stop()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("stopping took %v", took)
		}
		g.marketing.set(func(s *service) { s.stall = false })
		g.start(nil)
		time.Sleep(time.Second)
		if n := len(g.marketing.got()); n != 10 {
			t.Errorf("%d delivered after the restart, want 10", n)
		}
		if n := len(g.history.of(event.Recovered)); n != 0 {
			t.Errorf("%d rows were left owned by a clean stop", n)
		}
	})
}

func TestALaneShowsThatItTurns(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.relay.Alive(ctx); err != nil {
			t.Error(err)
		}
		g.stop()
		ctx2, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.relay.Alive(ctx2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a stopped relay is alive: %v", err)
		}
	})
}

func TestAMessageThatMakesTheUpstreamHangUpDoesNotHoldUpTheOthers(t *testing.T) {
	for name, v := range map[string]message.Verdict{
		"the host says 421":         {Class: message.Throttled, Scope: message.ScopeUpstream, Code: 421},
		"the connection is lost":    {Class: message.Temporary, Scope: message.ScopeUpstream},
		"the sender must authorise": {Class: message.Unauthorised, Scope: message.ScopeUpstream, Code: 530},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, func(c *config.Config) { c.Stream["auth"].WhenDown = "queue" })
				choke := func(e message.Envelope) []message.Verdict {
					if e.To[0] == "poison@example.net" {
						return v.Verdicts(len(e.To))
					}
					return message.Verdict{Class: message.Accepted, Code: 250}.Verdicts(len(e.To))
				}
				g.auth.set(func(s *service) { s.verdict = choke })
				if _, err := g.submit("logto", "", "poison@example.net"); err != nil {
					t.Fatal(err)
				}
				for range 100 {
					g.code()
					time.Sleep(3 * time.Second)
				}
				time.Sleep(35 * time.Second)
				tries := 0
				for _, s := range g.auth.got() {
					if s.env.To[0] == "poison@example.net" {
						tries++
					}
				}
				if n := len(g.auth.got()) - tries; n != 100 {
					t.Errorf("%d of 100 others left", n)
				}
				if tries < 3 || tries > 100 {
					t.Errorf("tried %d times in five minutes, want some, further and further apart", tries)
				}
				if rows := g.queue(); len(rows) != 1 || rows[0].LastReply == "" && v.Code != 0 {
					t.Errorf("queued: %+v, want the one with what the host said of it", rows)
				}
			})
		})
	}
}

func TestAMessageTooBigForItsCommitTimeoutDoesNotHoldUpTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.stallFor = "big@example.net" })
		if _, err := g.submit("logto", "", "big@example.net"); err != nil {
			t.Fatal(err)
		}
		var worst time.Duration
		for range 60 {
			began, before := time.Now(), len(g.auth.got())
			g.code()
			for len(g.auth.got()) == before {
				time.Sleep(10 * time.Millisecond)
			}
			worst = max(worst, time.Since(began))
			time.Sleep(3 * time.Second)
		}
		if worst > 4*time.Second {
			t.Errorf("a code waited for %v behind a message that is not its own", worst)
		}
	})
}
