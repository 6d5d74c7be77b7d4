package upstream_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
	"gatepost/upstream/upstreamtest"
)

func TestAMailTakesAConnectionThatComesBackBeforeItsOwnIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 8, upstreamtest.HostOptions{}, authLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		synctest.Wait()
		const login, answer = 120 * time.Millisecond, 80 * time.Millisecond
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			switch s.Verb {
			case "EHLO":
				return upstreamtest.Action{Delay: login}
			case upstreamtest.Dot:
				return upstreamtest.Action{Delay: answer}
			}
			return upstreamtest.Action{}
		})
		var mails sync.WaitGroup
		for range 3 { // two connections are ready
			start := time.Now()
			mails.Go(func() {
				wantClasses(t, send(t, u, envelope()), message.Accepted)
				if took := time.Since(start); took >= login+answer {
					t.Errorf("a mail took %v, as long as one with a login of its own", took)
				}
			})
			time.Sleep(20 * time.Millisecond)
		}
		mails.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := h.Connections(); n != 1 {
			t.Errorf("%d connections are kept, want 1", n)
		}
	})
}

func TestWhoGivesUpWaitingForAConnectionLeavesNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 2, upstreamtest.HostOptions{}, bulkLane)
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "EHLO" {
				return upstreamtest.Action{Delay: time.Second}
			}
			return upstreamtest.Action{}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := u.Reserve(ctx, "marketing"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Reserve says %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := h.Connections(); n != 0 {
			t.Errorf("%d connections are open", n)
		}
	})
}

func TestSignInMailIsFirstToTakeAConnectionThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 8, upstreamtest.HostOptions{}, authLane, bulkLane)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		synctest.Wait()
		h.Script(func(s upstreamtest.Step) upstreamtest.Action {
			if s.Verb == "EHLO" {
				return upstreamtest.Action{Delay: time.Minute}
			}
			return upstreamtest.Action{}
		})
		first, second := reserve(t, u), reserve(t, u) // all that are ready
		got := make(chan string, 2)
		for _, lane := range []string{"marketing", "auth"} {
			go func() {
				slot, err := u.Reserve(t.Context(), lane)
				if err != nil {
					t.Error(err)
					return
				}
				got <- lane
				slot.Release()
			}()
			synctest.Wait()
		}
		first.Release()
		if lane := <-got; lane != "auth" {
			t.Errorf("%s got the first connection that came back", lane)
		}
		second.Release()
		<-got
	})
}
