package relay

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// signers has n mails of kind signed, each of which takes a millisecond, and returns how many were at it at once, at most.
func signers(t *testing.T, p processors, kind message.Kind, n int) (most int) {
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
		p.expect()
		if n := signers(t, p, message.Marketing, 3); n != 1 {
			t.Errorf("beside a code %d newsletters were signed at once, want 1", n)
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
		if d := took(message.Marketing); d != breath {
			t.Errorf("after a code a newsletter waits %v, want %v", d, breath)
		}
		time.Sleep(onTheWay + lately)
		if d := took(message.Marketing); d != 0 {
			t.Errorf("long after the code a newsletter waits %v", d)
		}
	})
}
