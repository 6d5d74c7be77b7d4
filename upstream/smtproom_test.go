package upstream_test

import (
	"context"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

func TestConnectionsThatAreReplacedAtOnceAreNeverTooManyForTheHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 8
		h, u := warmBubble(t, limit, upstreamtest.HostOptions{}, authLane, bulkLane)
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "QUIT" {
				return upstreamtest.Action{Delay: 40 * time.Millisecond} // its round trip
			}
			return upstreamtest.Action{}
		})
		var lanes sync.WaitGroup
		for range limit {
			lanes.Go(func() {
				for range 3 * upstream.MaxMails { // all of them come to their end together
					wantClasses(t, send(t, u, envelope()), message.Accepted)
				}
			})
		}
		lanes.Wait()
		if n := h.Most(); n > limit {
			t.Errorf("%d connections at once, want at most %d", n, limit)
		}
		if n := h.Accepted(); n < 3*limit {
			t.Errorf("%d connections in all, want each to be replaced", n)
		}
	})
}

// endTogether uses limit connections of u, which all come to their end at once: they are told QUIT.
func endTogether(t *testing.T, u upstream.Upstream, limit int) {
	t.Helper()
	slots := make([]upstream.Slot, limit)
	for i := range slots {
		slots[i] = reserve(t, u)
		wantClasses(t, slots[i].Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
	}
	for _, s := range slots {
		s.Release()
	}
}

// slowToLeave makes h answer QUIT only after d, but for the connections that prompt names.
func slowToLeave(h *upstreamtest.Host, d time.Duration, prompt func(conn int) bool) {
	h.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == "QUIT" && !prompt(s.Conn) {
			return upstreamtest.Action{Delay: d}
		}
		return upstreamtest.Action{}
	})
}

var oneMail = upstreamtest.HostOptions{Extensions: []string{"LIMITS MAILMAX=1"}}

func TestOneConnectionThatIsSlowToLeaveHoldsUpNoMailThatHasRoomBesideIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 8
		h, u := warmBubble(t, limit, oneMail, bulkLane)
		slowToLeave(h, 900*time.Millisecond, func(conn int) bool { return conn != 1 })
		endTogether(t, u, limit)
		began := time.Now()
		var mu sync.Mutex
		var took []time.Duration
		var mails sync.WaitGroup
		for range limit {
			mails.Go(func() {
				s, err := u.Reserve(t.Context(), "marketing")
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				took = append(took, time.Since(began))
				mu.Unlock()
				time.Sleep(time.Second)
				s.Release()
			})
		}
		mails.Wait()
		slices.Sort(took)
		if took[limit-2] > 10*time.Millisecond || took[limit-1] > 260*time.Millisecond {
			t.Errorf("connections after %v, want all but one at once and that after 250 ms", took)
		}
	})
}

func TestSignInMailDoesNotWaitLongForAHostThatIsSlowToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 1, oneMail, authLane)
		slowToLeave(h, 900*time.Millisecond, func(int) bool { return false })
		for range 5 {
			began := time.Now()
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if took := time.Since(began); took > 60*time.Millisecond {
				t.Errorf("a code took %v, want no more than the 50 ms that a host has for QUIT", took)
			}
		}
	})
}

func TestACodeWaitsNoLongerForRoomBecauseNewslettersTakeWhatComesFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 8
		h, u := warmBubble(t, limit, oneMail, authLane, bulkLane)
		slowToLeave(h, 45*time.Millisecond, func(int) bool { return false })
		over := make(chan struct{})
		var senders sync.WaitGroup
		for range 12 {
			senders.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					s, err := u.Reserve(t.Context(), "marketing")
					if err != nil {
						t.Error(err)
						return
					}
					wantClasses(t, s.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
					s.Release()
				}
			})
		}
		for range 50 {
			time.Sleep(61 * time.Millisecond)
			began := time.Now()
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if took := time.Since(began); took > 60*time.Millisecond {
				t.Errorf("a code took %v beside newsletters, want no more than the 50 ms that a host has for QUIT", took)
			}
		}
		close(over)
		senders.Wait()
	})
}

func TestAHostThatCountsWhatWasToldQUITDoesNotStopCodes(t *testing.T) {
	for _, limit := range []int{1, 8} {
		synctest.Test(t, func(t *testing.T) {
			o := oneMail
			o.MaxConnections = limit
			h, u := warmBubble(t, limit, o, authLane)
			slowToLeave(h, 150*time.Millisecond, func(int) bool { return false })
			for range 4 {
				began := time.Now()
				var codes sync.WaitGroup
				for range limit {
					codes.Go(func() {
						s, err := u.Reserve(t.Context(), "auth")
						if err != nil {
							t.Errorf("limit %d: a code cannot go: %v", limit, err)
							return
						}
						defer s.Release()
						wantClasses(t, s.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
					})
				}
				codes.Wait()
				if took := time.Since(began); took > 260*time.Millisecond {
					t.Errorf("limit %d: codes took %v, want no more than the 250 ms that a host has in all", limit, took)
				}
			}
		})
	}
}

func TestAMailThatGivesUpCutsNoConnectionThatIsLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 2
		h, u := warmBubble(t, limit, oneMail, bulkLane)
		slowToLeave(h, 200*time.Millisecond, func(int) bool { return false })
		endTogether(t, u, limit)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if _, err := u.Reserve(ctx, "marketing"); err == nil {
			t.Fatal("a connection was made beside those that the host still counts")
		}
		began := time.Now()
		s, err := u.Reserve(t.Context(), "marketing")
		if err != nil {
			t.Fatal(err)
		}
		s.Release()
		if took := time.Since(began); took < 190*time.Millisecond {
			t.Errorf("the next mail got a connection after %v, while the host counted %d", took, limit)
		}
		if n := h.Most(); n > limit {
			t.Errorf("%d connections at once, want at most %d", n, limit)
		}
	})
}

func TestCloseWaitsForNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 1, oneMail, bulkLane)
		slowToLeave(h, 20*time.Second, func(int) bool { return false })
		endTogether(t, u, 1)
		failed := make(chan error, 1)
		go func() {
			_, err := u.Reserve(t.Context(), "marketing")
			failed <- err
		}()
		synctest.Wait()
		closing := make(chan struct{})
		began := time.Now()
		go func() { defer close(closing); closeNow(t, u) }()
		if err := <-failed; err == nil || time.Since(began) > time.Millisecond {
			t.Errorf("a mail that waited for room got %v after %v, want an error at once", err, time.Since(began))
		}
		<-closing
	})
}
