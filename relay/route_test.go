package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

// newPairRig is a rig whose two streams have a second upstream each: "spare" behind "sink", "bulk2" behind "bulk".
func newPairRig(t *testing.T, change func(*config.Config)) (g *rig, spare *service) {
	t.Helper()
	g = newRig(t, func(c *config.Config) {
		c.Stream["auth"].Route = []string{"sink", "spare"}
		c.Stream["marketing"].Route = []string{"bulk", "bulk2"}
		if change != nil {
			change(c)
		}
	}, "spare", "bulk2")
	return g, g.others["spare"]
}

func verdictOf(class message.Class, scope message.Scope, code int) message.Verdict {
	return message.Verdict{Class: class, Scope: scope, Code: code, Text: "said the host"}
}

func paused(class message.Class, code int) *upstream.Paused {
	return &upstream.Paused{Verdict: verdictOf(class, message.ScopeUpstream, code)}
}

// says makes an upstream answer v to everything.
func says(v message.Verdict) func(*service) { return func(s *service) { s.verdict = always(v) } }

func TestACodeThatTheFirstUpstreamCannotTakeIsDeliveredByTheSecondOnce(t *testing.T) {
	soon := 10 * time.Millisecond
	for name, tt := range map[string]struct {
		fault  func(*service)
		within time.Duration
		alarm  bool // of a failover
	}{
		"it refuses connections":         {func(s *service) { s.down = down() }, soon, true},
		"it refuses the login":           {func(s *service) { s.down = paused(message.Unauthorised, 535) }, soon, true},
		"it throttles at the greeting":   {func(s *service) { s.down = paused(message.Throttled, 421) }, soon, true},
		"it drops SYN":                   {func(s *service) { s.hang = true }, 2 * time.Second, true},
		"it stalls before the commit":    {func(s *service) { s.stall = true }, 2 * time.Second, true},
		"it throttles the mail":          {says(verdictOf(message.Throttled, message.ScopeUpstream, 421)), soon, true},
		"its API has an error":           {says(verdictOf(message.Temporary, message.ScopeUpstream, 500)), soon, true},
		"it revoked the key":             {says(verdictOf(message.Unauthorised, message.ScopeUpstream, 401)), soon, true},
		"it puts the mail off":           {says(verdictOf(message.Temporary, message.ScopeMessage, 451)), soon, true},
		"it puts the recipient off":      {says(verdictOf(message.Temporary, message.ScopeRecipient, 450)), soon, true},
		"it has not verified the domain": {says(verdictOf(message.Permanent, message.ScopeDomain, 550)), soon, false}, // the domain's own event alarms
		"it does not like this mail":     {says(verdictOf(message.Permanent, message.ScopeMessage, 554)), soon, false},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g, spare := newPairRig(t, nil)
				g.auth.set(tt.fault)
				began := time.Now()
				g.code()
				if took := time.Since(began); took > tt.within {
					t.Errorf("the client was answered after %v", took)
				}
				time.Sleep(time.Minute)
				got := spare.got()
				if len(got) != 1 || got[0].at.Sub(began) > tt.within {
					t.Fatalf("the second upstream got %d copies, want one within %v", len(got), tt.within)
				}
				if rows := g.queue(); len(rows) != 0 {
					t.Errorf("left in the queue: %+v", rows)
				}
				if es := g.history.of(event.Delivered); len(es) != 1 || es[0].Upstream != "spare" {
					t.Errorf("delivered: %+v", es)
				}
				es := g.history.of(event.FailedOver)
				if tt.alarm && (len(es) != 1 || !es[0].Data.Alarm || es[0].Upstream != "sink" || es[0].Data.Reply == "") || !tt.alarm && len(es) != 0 {
					t.Errorf("failovers: %+v", es)
				}
				if s := g.relay.Stats()[0]; s.Upstream != "sink" || s.FailedOver != 1 || s.Began != 1 {
					t.Errorf("counted: %+v", s)
				}
			})
		})
	}
}

func TestAHandOverThatHangsAfterItsCommitIsRepeatedOnceByTheSecond(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 9 })
		began := time.Now()
		g.code()
		if took := time.Since(began); took != 4*time.Second {
			t.Errorf("the client was answered after %v, want 4s", took)
		}
		time.Sleep(time.Minute)
		first, second := g.auth.got(), spare.got()
		if len(first) != 1 || len(second) != 1 {
			t.Fatalf("%d copies went to the first and %d to the second, want one each", len(first), len(second))
		}
		if gap := second[0].at.Sub(began); gap < 10*time.Second || gap > 11*time.Second {
			t.Errorf("the second copy left after %v, want 10 to 11 s", gap)
		}
		if messageID(first[0].wire) != messageID(second[0].wire) {
			t.Error("the copies have different Message-IDs")
		}
		steps, ends := g.history.of(event.Deferred), g.history.of(event.Delivered)
		if len(steps) != 1 || steps[0].Upstream != "sink" || steps[0].Data.Class != message.Unknown || len(ends) != 1 || ends[0].Data.Copies != 1 {
			t.Errorf("the trace has %+v and %+v, want both attempts", steps, ends)
		}
	})
}

func messageID(wire string) string {
	_, rest, _ := strings.Cut(wire, "Message-ID: ")
	id, _, _ := strings.Cut(rest, "\r\n")
	return id
}

// slowLease is a spool that takes its time, once, to say whether its lease stands: the last question before a commit.
type slowLease struct {
	Spool
	once sync.Once
}

func (s *slowLease) Lease() (int64, func(time.Duration) bool) {
	epoch, valid := s.Spool.Lease()
	return epoch, func(margin time.Duration) bool {
		s.once.Do(func() { time.Sleep(2 * time.Second) })
		return valid(margin)
	}
}

func TestACommitThatIsOvertakenByItsTimeoutIsNotMade(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.stop()
		g.start(func(s Spool) Spool { return &slowLease{Spool: s} })
		g.auth.set(func(s *service) { s.wary = true })
		g.code()
		time.Sleep(20 * time.Second)
		if a, b := len(g.auth.got()), len(spare.got()); a != 0 || b != 1 {
			t.Errorf("%d copies through the first and %d through the second, want 0 and 1", a, b)
		}
	})
}

// laterLease is a spool that has lost its lease and got another, under which it owns nothing yet.
type laterLease struct{ Spool }

func (s laterLease) Lease() (int64, func(time.Duration) bool) {
	epoch, valid := s.Spool.Lease()
	return epoch + 1, valid
}

func TestRowsOfALeaseThatIsOverAreNotHandedOverUnderTheNext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.stop()
		g.start(func(s Spool) Spool { return laterLease{s} })
		g.code()
		time.Sleep(10 * time.Second)
		if a, b := len(g.auth.got()), len(spare.got()); a != 0 || b != 0 {
			t.Errorf("%d and %d copies, want none", a, b)
		}
	})
}

func TestTwoUpstreamsThatHangMeanTwoCopiesAndAnAlarm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 9 })
		spare.set(func(s *service) { s.lose = 9 })
		g.code()
		time.Sleep(2 * time.Minute)
		if a, b := len(g.auth.got()), len(spare.got()); a != 1 || b != 1 {
			t.Errorf("%d and %d copies, want one each", a, b)
		}
		if es := g.history.of(event.Unconfirmed); len(es) != 1 || !es[0].Data.Alarm {
			t.Errorf("unconfirmed: %+v, want one with an alarm", es)
		}
	})
}

func TestOnlyTheFirstCodesWaitForAnUpstreamThatHangs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.lose = math.MaxInt })
		spare.set(answersAfter(90*time.Millisecond, accepted)) // four connections just bear 40 codes a second
		var wg sync.WaitGroup
		var mu sync.Mutex
		slow := 0
		for range 600 {
			wg.Go(func() {
				began := time.Now()
				if _, err := g.submit("logto", ""); err != nil {
					t.Errorf("a code was refused: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				if time.Since(began) > 2*time.Second {
					slow++
				}
			})
			time.Sleep(25 * time.Millisecond)
		}
		wg.Wait()
		time.Sleep(time.Minute)
		if n := len(g.history.of(event.Delivered)); n != 600 {
			t.Errorf("%d of 600 codes were delivered", n)
		}
		if slow > 12 {
			t.Errorf("%d of 600 codes waited for the upstream that hangs, want its four connections' at first and one at a time after", slow)
		}
	})
}

func TestAnUpstreamThatLetsInAndNeverAnswersCountsAsDownAndRecoversByItself(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.lose = math.MaxInt })
		refused := 0
		for i := range 40 {
			_, err := g.submit("logto", "")
			if i < 5 && err != nil {
				t.Fatalf("refused at once: %v", err)
			}
			if err != nil {
				refused++
			}
			time.Sleep(2 * time.Second)
		}
		if refused < 15 {
			t.Errorf("%d of 40 codes were refused although nothing has arrived for a minute", refused)
		}
		g.auth.set(func(s *service) { s.lose = 0 })
		time.Sleep(15 * time.Second)
		g.code()
		time.Sleep(time.Minute)
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("%d are left in the queue", len(rows))
		}
	})
}

func TestTrafficReturnsByItselfWhenTheFirstUpstreamHeals(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		for range 20 {
			g.code()
			time.Sleep(time.Second)
		}
		if n := len(spare.got()); n != 20 {
			t.Fatalf("the second upstream got %d of 20 codes", n)
		}
		if n := g.auth.attempts(); n < 20 {
			t.Errorf("the first upstream was tried %d times in 20 s", n)
		}
		if p := g.relay.Status()[0].Pairs[0]; !p.Paused || p.PassedBy != 20 {
			t.Errorf("the status says %+v, want 20 mails that went elsewhere", p)
		}
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(time.Second)
		for range 20 {
			g.code()
		}
		if n := len(g.auth.got()); n != 20 {
			t.Errorf("after its return the first upstream got %d of 20 codes", n)
		}
		over, back := g.history.of(event.FailedOver), g.history.of(event.CameBack)
		if len(over) != 1 || !over[0].Data.Alarm || len(back) != 1 || !strings.Contains(back[0].Data.Text, "20 of its mails") {
			t.Errorf("want one alarm for 20 failovers and one return, got %+v and %+v", over, back)
		}
		if p := g.relay.Status()[0].Pairs[0]; p.Paused || p.PassedBy != 0 {
			t.Errorf("the status says %+v after the return", p)
		}
	})
}

func TestAnUpstreamThatReturnsGetsOneMailFirstAndTheOthersDoNotWaitForIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		g.code()
		g.auth.set(func(s *service) { s.down, s.stall = nil, true }) // it lets in again, and takes nothing
		time.Sleep(700 * time.Millisecond)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { g.code() })
		}
		time.Sleep(100 * time.Millisecond)
		if n := len(spare.got()); n != 1+9 {
			t.Errorf("the second upstream got %d of the 9 codes at once that need not try the first one", n-1)
		}
		wg.Wait()
		if n := len(spare.got()); n != 1+10 {
			t.Errorf("the second upstream got %d of 10 codes", n-1)
		}
	})
}

func TestAnUpstreamThatComesAndGoesAlarmsOnceAMinute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, _ := newPairRig(t, nil)
		for range 20 {
			g.auth.set(says(verdictOf(message.Temporary, message.ScopeMessage, 451)))
			g.code()
			g.auth.set(func(s *service) { s.verdict = nil })
			g.code()
			time.Sleep(time.Second)
		}
		alarms, all := 0, g.history.of(event.FailedOver)
		for _, e := range all {
			if e.Data.Alarm {
				alarms++
			}
		}
		if alarms != 1 || len(all) != 20 {
			t.Errorf("%d alarms in %d failovers, want 1 in 20", alarms, len(all))
		}
	})
}

func TestARecipientThatIsRefusedIsNotTriedElsewhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(says(refused))
		_, err := g.submit("logto", "")
		if err == nil || reply.Of(err).Code != 550 {
			t.Errorf("the client is told %v, want 550", err)
		}
		time.Sleep(time.Minute)
		if n := spare.attempts(); n != 0 {
			t.Errorf("the second upstream was asked %d times", n)
		}
	})
}

func TestAMessageIsRefusedForGoodOnlyByTheWholeRoute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(says(verdictOf(message.Permanent, message.ScopeMessage, 554)))
		spare.set(says(verdictOf(message.Permanent, message.ScopeMessage, 552)))
		_, err := g.submit("logto", "")
		if err == nil || reply.Of(err).Code != 552 {
			t.Errorf("the client is told %v, want the last refusal", err)
		}
		time.Sleep(time.Second)
		if a, b := len(g.auth.got()), len(spare.got()); a != 1 || b != 1 || len(g.queue()) != 0 {
			t.Errorf("%d and %d attempts, %d queued", a, b, len(g.queue()))
		}
		if len(g.history.of(event.FailedOver)) != 0 {
			t.Error("a mail that nobody likes counts as an outage")
		}
	})
}

func TestAMessageThatOneRefusesEndsWhenTheOtherIsTakenOutOfTheRoute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(says(verdictOf(message.Permanent, message.ScopeMessage, 554)))
		spare.set(func(s *service) { s.down = down() })
		id := g.code()
		time.Sleep(time.Second)
		if es := g.history.of(event.Bounced); len(es) != 0 {
			t.Fatalf("it bounced while one of the route had not refused it: %+v", es)
		}
		g.mustReload(nil) // the route has the first alone
		time.Sleep(time.Minute)
		es := g.history.of(event.Bounced)
		if len(es) != 1 || es[0].Message != id || len(g.queue()) != 0 {
			t.Errorf("%+v bounced, %+v is queued; want the message to end", es, g.queue())
		}
		if n := len(g.auth.got()); n != 1 {
			t.Errorf("the first upstream was asked %d times", n)
		}
	})
}

func TestAMessageThatOneRefusesWaitsForTheOtherWithoutHaste(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		spare.set(func(s *service) { s.down = down() })
		g.auth.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				if e.To[0] == "picky@example.net" {
					return verdictOf(message.Permanent, message.ScopeMessage, 554).Verdicts(1)
				}
				return verdictOf(message.Accepted, "", 250).Verdicts(1)
			}
		})
		if _, err := g.submit("logto", "", "picky@example.net"); err != nil {
			t.Fatalf("refused although one upstream has not been asked: %v", err)
		}
		for range 60 {
			g.code()
			time.Sleep(time.Second)
		}
		if n := len(g.auth.got()); n != 61 {
			t.Errorf("the first upstream got %d mails, want the picky one once and 60 others", n)
		}
		if n := len(g.history.of(event.Deferred)); n < 3 || n > 12 {
			t.Errorf("%d deferrals in a minute, want those of the ladder", n)
		}
		spare.set(func(s *service) { s.down = nil })
		time.Sleep(15 * time.Second)
		if n := len(spare.got()); n != 1 {
			t.Errorf("%d delivered once the other is back, want 1", n)
		}
	})
}

func TestMixedRecipientsGoOnEachByItsOwnVerdict(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		by := func(of map[string]message.Verdict) func(*service) {
			return func(s *service) {
				s.verdict = func(e message.Envelope) []message.Verdict {
					vs := verdictOf(message.Accepted, "", 250).Verdicts(len(e.To))
					for i, to := range e.To {
						if v, ok := of[to]; ok {
							vs[i] = v
						}
					}
					return vs
				}
			}
		}
		g.auth.set(by(map[string]message.Verdict{
			"gone@example.net":   refused,
			"policy@example.net": verdictOf(message.Permanent, message.ScopeMessage, 550),
			"full@example.net":   verdictOf(message.Temporary, message.ScopeRecipient, 452),
			"never@example.net":  verdictOf(message.Permanent, message.ScopeMessage, 550),
		}))
		spare.set(by(map[string]message.Verdict{"never@example.net": verdictOf(message.Permanent, message.ScopeMessage, 554)}))
		if _, err := g.submit("logto", "", "good@example.net", "gone@example.net", "policy@example.net", "full@example.net", "never@example.net"); err != nil {
			t.Fatalf("a mixture is refused: %v", err)
		}
		time.Sleep(time.Minute)
		got := spare.got()
		if len(got) != 1 || strings.Join(got[0].env.To, " ") != "policy@example.net full@example.net never@example.net" {
			t.Errorf("the second upstream got %+v", got)
		}
		ends := map[string]string{}
		for kind, word := range map[event.Kind]string{event.Delivered: "delivered", event.Bounced: "bounced"} {
			for _, e := range g.history.of(kind) {
				ends[e.Address] = word + " " + e.Upstream
			}
		}
		want := map[string]string{"good@example.net": "delivered sink", "gone@example.net": "bounced sink", "policy@example.net": "delivered spare",
			"full@example.net": "delivered spare", "never@example.net": "bounced spare"}
		if !maps.Equal(ends, want) || len(g.queue()) != 0 {
			t.Errorf("ends: %v, want %v; %d queued", ends, want, len(g.queue()))
		}
	})
}

func TestANewsletterThatIsPutOffGoesToTheSecondUpstreamWithTheNextTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, _ := newPairRig(t, nil)
		second := g.others["bulk2"]
		g.marketing.set(says(verdictOf(message.Temporary, message.ScopeMessage, 451)))
		second.set(says(verdictOf(message.Temporary, message.ScopeMessage, 452)))
		began := time.Now()
		if _, err := g.submit("news", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Minute)
		var tries []string
		for name, s := range map[string]*service{"bulk": g.marketing, "bulk2": second} {
			for _, m := range s.got()[:2] {
				tries = append(tries, fmt.Sprintf("%s %v", name, m.at.Sub(began).Round(time.Second)))
			}
		}
		want := map[string]bool{"bulk 0s": true, "bulk2 1m0s": true, "bulk 6m0s": true, "bulk2 11m0s": true}
		for _, try := range tries {
			if !want[try] {
				t.Errorf("tried %q, want them in turn by the ladder", tries)
				break
			}
		}
	})
}

func TestANewsletterGoesToTheSecondUpstreamAtOnceWhereTheFirstIsGone(t *testing.T) {
	for name, fault := range map[string]func(*service){
		"it refuses connections": func(s *service) { s.down = down() },
		"it refuses the domain":  says(verdictOf(message.Permanent, message.ScopeDomain, 550)),
		"it refuses the mail":    says(verdictOf(message.Permanent, message.ScopeMessage, 554)),
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g, _ := newPairRig(t, nil)
				g.marketing.set(fault)
				for range 50 {
					if _, err := g.submit("news", ""); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(5 * time.Second)
				if n := len(g.others["bulk2"].got()); n != 50 {
					t.Errorf("the second upstream got %d of 50", n)
				}
				if most := g.others["bulk2"].peak(); most > 4 {
					t.Errorf("%d hand-overs at once, want its 4 connections at most", most)
				}
			})
		})
	}
}

// peak returns how many slots were in use at once at most.
func (s *service) peak() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.most
}

func TestANewsletterWhoseAnswerWasLostIsNotSentBySecondUpstream(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, _ := newPairRig(t, nil)
		g.marketing.set(func(s *service) { s.lose = 1 })
		if _, err := g.submit("news", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if rows := g.queue(); len(rows) != 1 || rows[0].State != "held-unconfirmed" || len(g.others["bulk2"].got()) != 0 {
			t.Errorf("queue: %+v, %d copies through the second", rows, len(g.others["bulk2"].got()))
		}
	})
}

func TestStatusTellsHowLongAnUpstreamAskedToBeLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, _ := newPairRig(t, nil)
		long := verdictOf(message.Throttled, message.ScopeUpstream, 429)
		long.RetryAfter = 10 * time.Minute
		g.auth.set(func(s *service) { s.down = &upstream.Paused{Verdict: long} })
		g.code()
		if p := g.relay.Status()[0].Pairs[0]; !p.Paused || p.Asked != time.Now().Add(long.RetryAfter) {
			t.Errorf("%+v, want a pause until ten minutes from %v", p, time.Now())
		}
		g.auth.set(func(s *service) { s.down = nil })
		time.Sleep(time.Minute)
		if p := g.relay.Status()[0].Pairs[0]; p.Paused || !p.Asked.IsZero() {
			t.Errorf("%+v, want no pause", p)
		}
	})
}

func TestARouteOfWhichNobodyWorksKeepsItsMailAndDeliversItOnTheFirstReturn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		spare.set(func(s *service) { s.down = paused(message.Throttled, 421) })
		for range 5 {
			g.code()
		}
		time.Sleep(40 * time.Second)
		if _, err := g.submit("logto", ""); err == nil || reply.Of(err).Code != 451 {
			t.Errorf("with both down for 40 s the client is told %v, want 451", err)
		}
		for _, row := range g.queue() {
			if row.Attempts != 0 {
				t.Errorf("an outage counted as %d attempts", row.Attempts)
			}
		}
		spare.set(func(s *service) { s.down = nil })
		time.Sleep(1500 * time.Millisecond)
		if n := len(spare.got()); n != 5 {
			t.Errorf("%d of 5 delivered within 1.5 s of the second's return", n)
		}
		g.code()
	})
}

func TestHandOversStayWithinTheConnectionsOfTheUpstreamThatIsLeft(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, func(c *config.Config) { c.Upstream["spare"].Connections = 2 })
		g.auth.set(func(s *service) { s.down = down() })
		var wg sync.WaitGroup
		for range 60 {
			wg.Go(func() { g.code() })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		if n := len(spare.got()); n != 60 {
			t.Errorf("%d of 60 delivered", n)
		}
		if most := spare.peak(); most > 2 {
			t.Errorf("%d hand-overs at once, want 2 at most", most)
		}
		if s := g.relay.Status()[0]; s.Limit != 2 || s.InFlight != 0 {
			t.Errorf("the lane says %d of %d", s.InFlight, s.Limit)
		}
	})
}

func TestCodesOverflowToTheSecondUpstreamWhereTheFirstIsBusyForTooLong(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				time.Sleep(5 * time.Second)
				return verdictOf(message.Accepted, "", 250).Verdicts(len(e.To))
			}
		})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { g.code() })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		if a, b := len(g.auth.got()), len(spare.got()); a != 4 || b != 4 {
			t.Errorf("%d went through the first and %d through the second, want 4 and the 4 that found no place", a, b)
		}
		for _, s := range spare.got() {
			if waited := s.at.Sub(s.env.ID.Time()); waited > 2*time.Second {
				t.Errorf("one waited for %v", waited)
			}
		}
	})
}

func TestADomainThatAnUpstreamRefusesIsNotOfferedToItUntilOneMailHasShownOtherwise(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, func(c *config.Config) { c.Stream["auth"].Domains = []string{"auth.example.com", "two.example.com"} })
		g.auth.set(says(verdictOf(message.Permanent, message.ScopeDomain, 550)))
		for range 20 {
			g.code()
			time.Sleep(time.Second)
		}
		if a, b := len(g.auth.got()), len(spare.got()); a != 1 || b != 20 {
			t.Errorf("the first was asked %d times and the second got %d, want 1 and 20", a, b)
		}
		if p := g.relay.Status()[0].Pairs[0]; p.Paused || len(p.Barred) != 1 || p.Barred[0] != "auth.example.com" {
			t.Errorf("the status says %+v", p)
		}
		time.Sleep(15 * time.Second)
		for range 5 {
			g.code()
		}
		if a := len(g.auth.got()); a != 2 {
			t.Errorf("the first was asked %d times in half a minute, want one mail to see", a-1)
		}
		g.auth.set(func(s *service) { s.verdict = nil })
		time.Sleep(31 * time.Second)
		for range 5 {
			g.code()
		}
		if a, b := len(g.auth.got()), len(spare.got()); a != 2+5 || b != 25 {
			t.Errorf("after it was verified the first has got %d and the second %d, want 7 and 25", a, b)
		}
		es := g.history.of(event.Paused)
		if len(es) != 1 || !es[0].Data.Alarm || es[0].Data.Scope != message.ScopeDomain || len(g.history.of(event.Resumed)) != 1 {
			t.Errorf("want one alarm about the domain and one end of it: %+v", es)
		}
	})
}

func TestADomainThatNobodyTakesIsKeptAndNewCodesOfItAreRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(says(verdictOf(message.Unauthorised, message.ScopeDomain, 403)))
		g.code()
		if _, err := g.submit("logto", ""); err == nil || reply.Of(err).Code != 451 {
			t.Errorf("a code that cannot leave is answered %v, want 451", err)
		}
		if _, err := g.submit("news", ""); err != nil {
			t.Errorf("another stream suffers too: %v", err)
		}
		time.Sleep(5 * time.Minute)
		asked := len(g.auth.got())
		if asked < 5 || asked > 12 {
			t.Errorf("asked %d times in five minutes, want about twice a minute", asked)
		}
		g.auth.set(func(s *service) { s.verdict = nil })
		time.Sleep(time.Minute + time.Second)
		if n := len(g.history.of(event.Delivered)); n != 2 || len(g.queue()) != 0 {
			t.Errorf("%d delivered and %d queued a minute after it was verified", n, len(g.queue()))
		}
		g.code()
	})
}

// limited is an upstream that takes no attachments.
type limited struct{ *service }

func (l limited) Carries(m *message.Message) error {
	switch {
	case strings.Contains(string(m.Raw.Header()), "X-Odd:"):
		return errors.New("the parser failed")
	case strings.Contains(string(m.Raw.Header()), "X-Attached:"):
		return fmt.Errorf("limited: %w", reply.New(554, "5.6.1", "the service takes no attachments"))
	}
	return nil
}

func TestAMessageThatAnUpstreamCannotCarryTakesAnotherOrIsRefusedAtTheDoor(t *testing.T) {
	bubble(t, func(t *testing.T) {
		both := false
		g, spare := newPairRig(t, nil)
		g.stop()
		connect := func(c *config.Upstream) upstream.Upstream {
			switch {
			case c.Name == "sink":
				return limited{g.auth}
			case c.Name == "spare" && both:
				return limited{spare}
			case c.Name == "spare":
				return spare
			}
			return g.marketing
		}
		g.wrapped = connect
		g.start(nil)
		const attached = "X-Attached: yes\r\n"
		if _, err := g.submit("logto", attached); err != nil {
			t.Fatal(err)
		}
		if a, b := g.auth.attempts(), len(spare.got()); a != 0 || b != 1 {
			t.Errorf("the first was asked %d times, the second got %d; want 0 and 1", a, b)
		}
		if _, err := g.submit("logto", "X-Odd: yes\r\n"); err != nil || len(g.auth.got()) != 1 {
			t.Errorf("what is not proven is refused: %v", err)
		}
		if len(g.history.of(event.FailedOver)) != 0 {
			t.Error("a mail that does not fit counts as an outage")
		}
		g.stop()
		both = true
		g.start(nil)
		if _, err := g.submit("logto", attached); err == nil || reply.Of(err).Enhanced != "5.6.1" {
			t.Errorf("what nobody can carry is answered %v, want 554 5.6.1", err)
		}
		if len(g.queue()) != 0 {
			t.Error("it was queued all the same")
		}
		g.auth.set(func(s *service) { s.traits.MaxSize = 1000 })
		spare.set(func(s *service) { s.traits.MaxSize = 2000 })
		big := func(n int) string { return "X-Fill: " + strings.Repeat("x", n) + "\r\n" }
		if _, err := g.submit("logto", big(800)); err != nil || len(spare.got()) != 2 {
			t.Errorf("what the second can carry is answered %v", err)
		}
		if _, err := g.submit("logto", big(900)+big(900)); err == nil || reply.Of(err).Code != 552 || reply.Of(err).Enhanced != "5.3.4" {
			t.Errorf("what is too big for all is answered %v, want 552 5.3.4", err)
		}
	})
}

func TestWeightsShareTheMailWithinAPoint(t *testing.T) {
	a, b, c := &hop{share: 95}, &hop{share: 5}, &hop{}
	p := &plan{route: []*hop{a, c, b}}
	for name, next := range map[string]func(i int) message.ID{
		"a flood":            func(i int) message.ID { return message.ID(1<<50 + i) },
		"one every second":   func(i int) message.ID { return message.ID(1<<50 + i*1000<<22) },
		"one every so often": func(i int) message.ID { return message.ID(1<<50 + i*i*977<<22 + i%7<<12) },
	} {
		n := map[*hop]int{}
		for i := range 10000 {
			id := next(i)
			n[p.arm(id)]++
		}
		if n[b] < 400 || n[b] > 600 || n[c] != 0 {
			t.Errorf("%s: %d, %d and %d of 10,000, want 95, 0 and 5 of 100 within a point", name, n[a], n[c], n[b])
		}
	}
}

func TestAnArmThatDiesLosesNothingAndDelaysNothingByMoreThanTwoSeconds(t *testing.T) {
	for name, die := range map[string]func(*service){
		"it refuses connections": func(s *service) { s.down = down() },
		"it drops SYN":           func(s *service) { s.hang = true },
		"it stalls":              func(s *service) { s.stall = true },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g, spare := newPairRig(t, func(c *config.Config) { c.Stream["auth"].Weights = map[string]int{"sink": 80, "spare": 20} })
				worst := time.Duration(0)
				for i := range 400 {
					if i == 200 {
						spare.set(die)
					}
					began := time.Now()
					g.code()
					worst = max(worst, time.Since(began))
					time.Sleep(50 * time.Millisecond)
				}
				time.Sleep(time.Minute)
				a, b := len(g.auth.got()), len(spare.got())
				if a+b != 400 || b < 20 || b > 70 || len(g.queue()) != 0 {
					t.Errorf("%d through the one and %d through the other, %d queued", a, b, len(g.queue()))
				}
				if worst > 2*time.Second {
					t.Errorf("a code took %v", worst)
				}
			})
		})
	}
}

func TestAMessageBeginsAtItsUpstreamAlsoAfterARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		weigh := func(c *config.Config) { c.Stream["marketing"].Weights = map[string]int{"bulk": 50, "bulk2": 50} }
		g, _ := newPairRig(t, weigh)
		for _, s := range []*service{g.marketing, g.others["bulk2"]} {
			s.set(func(s *service) { s.down = down() })
		}
		want := map[message.ID]string{}
		for range 40 {
			id, err := g.submit("news", "")
			if err != nil {
				t.Fatal(err)
			}
			want[id] = g.relay.generation.Load().plans["marketing"].arm(id).config.Name
		}
		g.stop()
		for _, s := range []*service{g.marketing, g.others["bulk2"]} {
			s.set(func(s *service) { s.down = nil })
		}
		g.start(nil)
		time.Sleep(10 * time.Second)
		for name, s := range map[string]*service{"bulk": g.marketing, "bulk2": g.others["bulk2"]} {
			for _, m := range s.got() {
				if want[m.env.ID] != name {
					t.Errorf("%v went through %s, want %s", m.env.ID, name, want[m.env.ID])
				}
				delete(want, m.env.ID)
			}
		}
		if len(want) != 0 {
			t.Errorf("%d were not delivered", len(want))
		}
	})
}

func TestAReloadKeepsThePauseOfAnUpstreamThatGetsAnotherPlaceInTheRoute(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(func(s *service) { s.down = down() })
		g.code()
		next := *g.cfg
		next.Stream = maps.Clone(g.cfg.Stream)
		s := *g.cfg.Stream["auth"]
		s.Route, s.Weights = []string{"spare", "sink"}, map[string]int{"spare": 50, "sink": 50}
		next.Stream["auth"] = &s
		if err := g.relay.Reload(&next); err != nil {
			t.Fatal(err)
		}
		if p := g.relay.Status()[0].Pairs; p[0].Upstream != "spare" || p[0].Paused || !p[1].Paused || p[1].Share != 50 {
			t.Errorf("the status says %+v", p)
		}
		for range 10 {
			g.code()
		}
		if n := len(spare.got()); n != 11 {
			t.Errorf("the spare upstream got %d of 11", n)
		}
	})
}

func TestAReloadThatTakesAnUpstreamOutOfTheRouteLosesNothingThatWaitsForIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.set(answersAfter(1400*time.Millisecond, accepted))
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() { g.code() })
		}
		time.Sleep(time.Second)
		next := *g.cfg
		next.Stream = maps.Clone(g.cfg.Stream)
		s := *g.cfg.Stream["auth"]
		s.Route = []string{"spare"}
		next.Stream["auth"] = &s
		if err := g.relay.Reload(&next); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		time.Sleep(10 * time.Second)
		if a, b := len(g.auth.got()), len(spare.got()); a+b != 12 || a < 4 || len(g.queue()) != 0 {
			t.Errorf("%d through the one and %d through the other of 12, %d queued", a, b, len(g.queue()))
		}
		g.code()
		time.Sleep(100 * time.Millisecond)
		if s := g.relay.Status()[0]; len(s.Pairs) != 1 || s.Pairs[0].Upstream != "spare" || s.InFlight != 0 {
			t.Errorf("the status says %+v", s)
		}
	})
}

func TestStoppingWhileMailWaitsForAPlaceLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		for _, s := range []*service{g.auth, spare} {
			s.set(func(s *service) { s.stall = true })
		}
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() { g.code() })
		}
		time.Sleep(time.Second)
		g.stop()
		wg.Wait()
		for _, s := range []*service{g.auth, spare} {
			s.set(func(s *service) { s.stall = false })
		}
		g.start(nil)
		time.Sleep(5 * time.Second)
		if n := len(g.auth.got()) + len(spare.got()); n != 40 {
			t.Errorf("%d of 40 delivered after the restart", n)
		}
		if n := len(g.history.of(event.Recovered)); n != 0 {
			t.Errorf("%d rows were left owned by a clean stop", n)
		}
	})
}

func TestEachUpstreamsVerdictsAndTimesAreCounted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, func(c *config.Config) { c.Stream["auth"].Weights = map[string]int{"sink": 50, "spare": 50} })
		spare.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				time.Sleep(80 * time.Millisecond)
				return verdictOf(message.Temporary, message.ScopeRecipient, 450).Verdicts(len(e.To))
			}
		})
		for range 100 {
			g.code()
		}
		s := g.relay.Stats()
		sink, arm := s[0], s[1]
		if sink.Began+arm.Began != 100 || arm.Began < 30 || arm.FailedOver != arm.Began || sink.FailedOver != 0 {
			t.Errorf("began %d and %d, failed over %d and %d", sink.Began, arm.Began, sink.FailedOver, arm.FailedOver)
		}
		if sink.Attempts != 100 || sink.Verdicts[message.Accepted] != 100 || arm.Verdicts[message.Temporary] != arm.Began {
			t.Errorf("verdicts %v and %v", sink.Verdicts, arm.Verdicts)
		}
		if sink.P99 > 1 || arm.P50 < 80 || arm.P99 > 90 {
			t.Errorf("half of the one within %v ms, of the other %v ms and 99 of 100 %v ms; want 80 ms", sink.P50, arm.P50, arm.P99)
		}
	})
}

func TestQuantilesAreAtMostAnEighthTooLong(t *testing.T) {
	for _, want := range []time.Duration{0, time.Microsecond, 9 * time.Microsecond, 123 * time.Microsecond, 7 * time.Millisecond,
		1500 * time.Millisecond, 10 * time.Second, 47 * time.Minute} {
		var d durations
		for range 99 {
			d.add(want)
		}
		d.add(2 * time.Hour)
		for _, q := range []float64{0.5, 0.99} {
			if got := d.quantile(q); got < want || got > want+want/8 {
				t.Errorf("the quantile %v of %v is %v", q, want, got)
			}
		}
	}
	var none durations
	if got := none.quantile(0.5); got != 0 {
		t.Errorf("the quantile of nothing is %v", got)
	}
	none.add(1000 * time.Hour) // beyond the last class
	if got := none.quantile(0.99); got < time.Hour {
		t.Errorf("the quantile of a thousand hours is %v", got)
	}
}

func TestAPlaceInLineThatIsGivenUpGoesToTheNext(t *testing.T) {
	g := newGate(1)
	first, second, third := g.queue(false), g.queue(false), g.queue(false)
	second.drop()
	first.drop()
	if err := third.wait(context.Background()); err != nil {
		t.Error(err)
	}
	if g.tryEnter() != nil {
		t.Error("there are more places than one")
	}
	third.leave()
	if !g.full() == (g.tryEnter() == nil) {
		t.Error("the place is gone")
	}
}
