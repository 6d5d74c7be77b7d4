package relay

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
)

func TestARepetitionJoinsTheFirstAndGetsItsAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w orders
		no := errors.New("no")
		for _, end := range []error{nil, no} {
			calls := 0
			do := func() ([]message.Receipt, error) {
				calls++
				time.Sleep(time.Second)
				return []message.Receipt{{ID: 7}}, end
			}
			var wg sync.WaitGroup
			first := 0
			var mu sync.Mutex
			for range 10 {
				wg.Go(func() {
					rs, err := w.once(t.Context(), "k", 0, do)
					mu.Lock()
					defer mu.Unlock()
					if err != end || err == nil && rs[0].ID != 7 {
						t.Errorf("answered %+v, %v", rs, err)
					}
					if err == nil && !rs[0].Repeated {
						first++
					}
				})
			}
			wg.Wait()
			if calls != 1 || end == nil && first != 1 {
				t.Errorf("it was done %d times, and %d answers were not repetitions", calls, first)
			}
		}
		if len(w.waiting) != 0 {
			t.Errorf("%d orders are remembered", len(w.waiting))
		}
	})
}

func TestARepetitionThatDoesNotWaitLeavesTheFirstAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w orders
		done := make(chan error)
		go func() {
			_, err := w.once(t.Context(), "k", 0, func() ([]message.Receipt, error) { time.Sleep(time.Minute); return nil, nil })
			done <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.once(ctx, "k", 0, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it got %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("the first got %v", err)
		}
	})
}

func TestAKeyIsOfOneSubmissionAlone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.hang = true })
		put := func(print int32) ([]message.Receipt, error) {
			s := g.submissions("k", 3*time.Second, "kim@example.net")
			s[0].Order.Fingerprint = print
			return g.relay.Accept(t.Context(), s)
		}
		first := make(chan error)
		go func() { _, err := put(1<<30 | 1); first <- err }()
		time.Sleep(time.Second)
		if _, err := put(1<<30 | 2); !errors.Is(err, message.ErrReused) {
			t.Errorf("another one, while the first waits, got %v", err)
		}
		if err := <-first; err != nil {
			t.Fatal(err)
		}
		if _, err := put(1<<30 | 2); !errors.Is(err, message.ErrReused) {
			t.Errorf("another one got %v", err)
		}
		if again, err := put(1<<30 | 1); err != nil || !again[0].Repeated {
			t.Errorf("a repetition got %+v, %v", again, err)
		}
		time.Sleep(time.Minute)
	})
}

func TestAPanicLeavesNobodyWaiting(t *testing.T) {
	var w orders
	func() {
		defer func() { recover() }()
		w.once(t.Context(), "k", 0, func() ([]message.Receipt, error) { panic("x") })
	}()
	if _, err := w.once(t.Context(), "k", 0, func() ([]message.Receipt, error) { return nil, nil }); err != nil {
		t.Error(err)
	}
}

// ordered submits mail as the HTTP door does, one for each address.
func (g *rig) ordered(key string, wait time.Duration, to ...string) ([]message.Receipt, error) {
	g.t.Helper()
	return g.relay.Accept(context.Background(), g.submissions(key, wait, to...))
}

func (g *rig) submissions(key string, wait time.Duration, to ...string) (subs []*message.Submission) {
	g.t.Helper()
	for i, a := range to {
		addr, err := message.ParseAddress(a)
		if err != nil {
			g.t.Fatal(err)
		}
		o := &message.Order{Hook: "web", Type: "SignIn", Stream: "auth", Purpose: "code", TTL: 10 * time.Minute, Wait: wait}
		if i == 0 {
			o.Key = []byte(key)
		}
		subs = append(subs, &message.Submission{Client: "logto", Listener: "smtp", With: "HTTP", MailFrom: "no-reply@auth.example.com", StartedAt: time.Now(),
			To: []message.Address{addr}, Order: o, Raw: message.Raw("From: no-reply@auth.example.com\r\nSubject: x\r\n\r\n123456\r\n")})
	}
	return subs
}

func TestAnOrderWaitsAsLongAsItSays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.set(func(s *service) { s.lose = 1 })
		begun := time.Now()
		if _, err := g.ordered("", 3*time.Second, "kim@example.net"); err != nil || time.Since(begun) != 3*time.Second {
			t.Errorf("answered %v after %v, want nil after 3s", err, time.Since(begun))
		}
		time.Sleep(time.Minute)
	})
}

func TestARefusalThatIsToldFreesTheKeyAndOneThatComesLateDoesNot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		refused := always(message.Verdict{Class: message.Permanent, Scope: message.ScopeRecipient, Code: 550, Enhanced: "5.1.1"})
		g.auth.set(func(s *service) { s.verdict = refused })
		if _, err := g.ordered("told", 3*time.Second, "kim@example.net"); codeOf(err) != 550 {
			t.Fatalf("answered %v", err)
		}
		g.auth.set(func(s *service) { s.verdict = nil })
		first, err := g.ordered("told", 3*time.Second, "kim@example.net")
		if err != nil || first[0].Repeated {
			t.Fatalf("after the refusal it got %+v, %v", first, err)
		}
		if again, err := g.ordered("told", 3*time.Second, "kim@example.net"); err != nil || !again[0].Repeated || again[0].ID != first[0].ID {
			t.Errorf("a repetition got %+v, %v", again, err)
		}
		g.auth.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict { time.Sleep(5 * time.Second); return refused(e) }
		})
		late, err := g.ordered("late", 3*time.Second, "kim@example.net")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if again, err := g.ordered("late", 3*time.Second, "kim@example.net"); err != nil || !again[0].Repeated || again[0].ID != late[0].ID {
			t.Errorf("a repetition of what was answered 200 got %+v, %v", again, err)
		}
		if n := len(g.history.of(event.Bounced)); n != 2 {
			t.Errorf("%d bounced, want 2", n)
		}
	})
}

func TestAnOrderIsAnsweredInTimeWhateverIsWrongWithTheFirstUpstream(t *testing.T) {
	badMail := says(verdictOf(message.Permanent, message.ScopeMessage, 554))
	badAddress := says(verdictOf(message.Permanent, message.ScopeRecipient, 550))
	takes, hangs := func(*service) {}, func(s *service) { s.hang = true }
	for name, tt := range map[string]struct {
		first, second func(*service)
		hedge         time.Duration
		code          int
		after         time.Duration
		copies        int // that went out in all, or were refused
	}{
		"it hangs and the second takes the mail":  {hangs, takes, 0, 0, 1500 * time.Millisecond, 1},
		"it stalls and the second takes the mail": {func(s *service) { s.stall = true }, takes, 0, 0, 1500 * time.Millisecond, 1},
		"both hang":          {hangs, hangs, 0, 0, 3 * time.Second, 0},
		"its answer is lost": {loses, takes, 0, 0, 3 * time.Second, 2},
		"its answer is lost, and a second copy is taken": {loses, takes, 2 * time.Second, 0, 2 * time.Second, 2},
		"its answer is lost, and the second refuses":     {loses, badAddress, 2 * time.Second, 0, 3 * time.Second, 2},
		"it refuses the mail and the second takes it":    {badMail, takes, 0, 0, 0, 2},
		"it hangs and the second refuses the mail":       {hangs, badMail, 0, 0, 1500 * time.Millisecond, 1},
		"it hangs and the second refuses the recipient":  {hangs, badAddress, 0, 550, 1500 * time.Millisecond, 1},
		"both refuse the mail":                           {badMail, badMail, 0, 554, 0, 2},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g, spare := newPairRig(t, func(c *config.Config) { c.Stream["auth"].HedgeAfter = tt.hedge })
				g.auth.set(tt.first)
				spare.set(tt.second)
				began := time.Now()
				first, err := g.ordered("k", 3*time.Second, "kim@example.net")
				if took := time.Since(began); codeOf(err) != tt.code || took < tt.after || took > tt.after+100*time.Millisecond {
					t.Errorf("answered %v after %v, want %d after %v", err, took, tt.code, tt.after)
				}
				time.Sleep(15 * time.Second)
				copies := func() int { return len(g.auth.got()) + len(spare.got()) }
				if n := copies(); n != tt.copies {
					t.Errorf("%d copies, want %d", n, tt.copies)
				}
				again, err := g.ordered("k", 3*time.Second, "kim@example.net")
				switch {
				case tt.code != 0: // it was told, so that this is an order of its own
					if codeOf(err) != tt.code || copies() != 2*tt.copies {
						t.Errorf("ordered again after a refusal: %+v, %v, %d copies in all", again, err, copies())
					}
				case err != nil || !again[0].Repeated || again[0].ID != first[0].ID || copies() != tt.copies:
					t.Errorf("a repetition got %+v, %v, and %d copies in all", again, err, copies())
				}
			})
		})
	}
}

func TestARefusalThatCannotBeRecordedInTimeMeansLater(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.stop()
		g.start(func(s Spool) Spool { return &slowSettle{s, time.Minute} })
		g.auth.set(says(verdictOf(message.Permanent, message.ScopeRecipient, 550)))
		began := time.Now()
		if _, err := g.ordered("k", 3*time.Second, "kim@example.net"); codeOf(err) != 451 || time.Since(began) != 4*time.Second {
			t.Errorf("answered %v after %v, want 451 after 4s", err, time.Since(began))
		}
		time.Sleep(2 * time.Minute)
		g.auth.set(func(s *service) { s.verdict = nil })
		if again, err := g.ordered("k", 3*time.Second, "kim@example.net"); err != nil || again[0].Repeated {
			t.Errorf("once it was recorded: %+v, %v", again, err)
		}
		time.Sleep(2 * time.Minute)
	})
}

func TestTheMailsOfOneOrderAreTakenTogetherAndOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		first, err := g.ordered("k", 3*time.Second, "old@example.net", "new@example.net")
		if err != nil || len(first) != 2 {
			t.Fatalf("got %+v, %v", first, err)
		}
		again, err := g.ordered("k", 3*time.Second, "old@example.net", "new@example.net")
		if err != nil || len(again) != 2 || !again[0].Repeated {
			t.Errorf("a repetition got %+v, %v", again, err)
		}
		time.Sleep(time.Minute)
		if n := len(g.auth.got()); n != 2 {
			t.Errorf("%d mails were sent", n)
		}
	})
}

func TestAnOrderOfTwoMailsIsAnsweredByTheWorseOfTheirVerdicts(t *testing.T) {
	refuses := func(who string) func(*service) {
		return func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				if e.To[0] == who+"@example.net" {
					return []message.Verdict{verdictOf(message.Permanent, message.ScopeRecipient, 550)}
				}
				return []message.Verdict{{Class: message.Accepted, Code: 250}}
			}
		}
	}
	for name, tt := range map[string]struct {
		set  func(*service)
		code int
	}{
		"both are taken":       {refuses(""), 0},
		"the first is refused": {refuses("old"), 550},
		"the other is refused": {refuses("new"), 550},
		"they hang":            {func(s *service) { s.hang = true }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, nil)
				g.auth.set(tt.set)
				began := time.Now()
				if _, err := g.ordered("k", 3*time.Second, "old@example.net", "new@example.net"); codeOf(err) != tt.code || time.Since(began) > 3*time.Second {
					t.Errorf("answered %v after %v, want %d", err, time.Since(began), tt.code)
				}
				time.Sleep(time.Second)
				again, err := g.ordered("k", 3*time.Second, "old@example.net", "new@example.net")
				if codeOf(err) != tt.code || tt.code == 0 && !again[0].Repeated {
					t.Errorf("ordered again: %+v, %v", again, err)
				}
				time.Sleep(15 * time.Minute)
			})
		})
	}
}

func TestAnOrderThatPolicyRefusesIsInHistory(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) { c.Client["logto"].Streams = []string{"marketing"} })
		if _, err := g.ordered("k", 3*time.Second, "kim@example.net"); codeOf(err) != 550 {
			t.Fatalf("answered %v", err)
		}
		time.Sleep(time.Second)
		if es := g.history.of(event.Bounced); len(es) != 1 || es[0].Data.Hook != "web" || es[0].Address != "kim@example.net" || es[0].Message == 0 {
			t.Errorf("history has %+v", es)
		}
	})
}

func codeOf(err error) int {
	if err == nil {
		return 0
	}
	return reply.Of(err).Code
}
