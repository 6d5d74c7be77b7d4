package relay

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// signers has n mails of kind signed, each of which takes a millisecond, and returns how many were at it at once, at most.
func signers(t *testing.T, p *processors, kind message.Kind, n int) (most int) {
	var mu sync.Mutex
	var at int
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			err := p.sign(t.Context(), kind, func() {
				mu.Lock()
				at++
				most = max(most, at)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				at--
				mu.Unlock()
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return most
}

func TestNewslettersAreSignedOnAllProcessorsButWhileACodeIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessors()
		limit := p.gate.limit
		if n := signers(t, p, message.Marketing, 5*limit); n != limit {
			t.Errorf("%d newsletters were signed at once, want %d", n, limit)
		}
		beside := limit - p.gate.kept
		p.expect()
		if n := signers(t, p, message.Marketing, 3*beside); n != beside || beside < 1 || beside > limit-min(limit-1, keptFree) {
			t.Errorf("with a code on its way %d newsletters were signed at once of %d, with %d kept free", n, limit, p.gate.kept)
		}
		p.expect()
		if n := signers(t, p, message.Auth, 5*limit); n != limit {
			t.Errorf("%d codes were signed at once, want %d", n, limit)
		}
		time.Sleep(onTheWay + time.Nanosecond)
		if n := signers(t, p, message.Marketing, 5*limit); n != limit {
			t.Errorf("after the codes %d newsletters were signed at once, want %d", n, limit)
		}
	})
}

func TestNewslettersAreStillSignedWhileCodesAreSignedOneAfterAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &processors{gate: newGate(4)}
		p.gate.kept = 3
		began := time.Now()
		var codes sync.WaitGroup
		for range 2 { // one of them is always inside
			codes.Go(func() {
				for time.Since(began) < time.Second {
					if err := p.sign(t.Context(), message.Auth, func() { time.Sleep(time.Millisecond) }); err != nil {
						t.Error(err)
					}
				}
			})
			time.Sleep(time.Millisecond / 2)
		}
		signers(t, p, message.Marketing, 100)
		if took, most := time.Since(began), 110*time.Millisecond; took > most {
			t.Errorf("100 newsletters of a millisecond took %v beside codes, want %v at most", took, most)
		}
		codes.Wait()
	})
}

func TestMailThatIsAnnouncedAndDoesNotComeHoldsUpNewslettersNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessors()
		kept := 0
		for range 10000 {
			p.announce()
			time.Sleep(time.Millisecond)
			if p.gate.since() < 0 {
				kept++
			}
		}
		if kept > 10*2*announced {
			t.Errorf("%d of 10000 ms were kept for mail that never came", kept)
		}
		time.Sleep(time.Second)
		for range 10000 {
			p.announce()
			if p.gate.since() >= 0 {
				t.Fatal("mail that was announced, as all before that came, is not expected")
			}
			p.came()
			time.Sleep(2 * onTheWay)
		}
	})
}

func TestSignInMailIsExpectedFromMAILOnAndWhenItIsTaken(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		expected := func() bool { return g.relay.processors.gate.since() < 0 }
		for _, tt := range []struct {
			client, from string
			want         bool
		}{
			{"logto", "no-reply@auth.example.com", true},
			{"news", "letters@news.example.com", false},
			{"nobody", "no-reply@auth.example.com", false},
		} {
			time.Sleep(time.Second)
			g.relay.Ready(tt.client, tt.from)
			if expected() != tt.want {
				t.Errorf("after MAIL of %s from <%s> sign-in mail is expected: %v, want %v", tt.client, tt.from, expected(), tt.want)
			}
		}
		time.Sleep(time.Second)
		g.newsletter()
		if expected() {
			t.Error("a newsletter is taken for sign-in mail")
		}
		g.auth.set(func(s *service) { s.traits.DKIM = "none" })
		g.code()
		if !expected() {
			t.Error("the end of a code is no sign of it")
		}
	})
}

func TestNewslettersTakeABreathOnlyWhereCodesCameLately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProcessors()
		took := func(kind message.Kind) time.Duration {
			began := time.Now()
			if err := p.sign(t.Context(), kind, func() {}); err != nil {
				t.Error(err)
			}
			return time.Since(began)
		}
		if d := took(message.Marketing); d != 0 {
			t.Errorf("where no code ever came a newsletter waits %v", d)
		}
		if d := took(message.Auth); d != 0 {
			t.Errorf("a code waits %v", d)
		}
		if d := took(message.Marketing); d != 0 {
			t.Errorf("beside a code, with processors kept free, a newsletter waits %v", d)
		}
		time.Sleep(onTheWay)
		if d := took(message.Marketing); d != breath {
			t.Errorf("after a code a newsletter waits %v, want %v", d, breath)
		}
		time.Sleep(lately)
		if d := took(message.Marketing); d != 0 {
			t.Errorf("long after the code a newsletter waits %v", d)
		}
	})
}
