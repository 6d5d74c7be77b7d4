package upstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

var mixed = []LaneKind{{"auth", message.Auth}, {"news", message.Marketing}}

// free returns how many slots lane gets without waiting, and keeps them.
func free(t *testing.T, s *slots, lane string) int {
	t.Helper()
	for n := 0; ; n++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		err := s.take(ctx, lane)
		cancel()
		if err != nil {
			return n
		}
	}
}

func TestAReserveOfSlotsIsKeptForAuth(t *testing.T) {
	auth := func(name string) LaneKind { return LaneKind{name, message.Auth} }
	news := LaneKind{"news", message.Marketing}
	for name, tt := range map[string]struct {
		most              int
		lanes             []LaneKind
		forNews, thenAuth int
	}{
		"a quarter, at most 4":                 {20, mixed, 16, 4},
		"a quarter of few":                     {8, mixed, 6, 2},
		"nothing of less than 4":               {3, mixed, 3, 0},
		"for each auth lane":                   {20, []LaneKind{auth("auth"), auth("b"), news}, 12, 4},
		"never so much that news has no slot":  {8, []LaneKind{auth("auth"), auth("b"), auth("c"), auth("d"), news}, 4, 1},
		"nothing where auth is alone":          {8, []LaneKind{auth("auth"), auth("b")}, 8, 0},
		"nothing where there is no auth":       {8, []LaneKind{news}, 8, 0},
		"nothing where nobody said who shares": {8, nil, 8, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSlots(tt.most, 0, tt.lanes)
				gotNews := free(t, s, "news")
				gotAuth := free(t, s, "auth")
				if gotNews != tt.forNews || gotAuth != tt.thenAuth {
					t.Errorf("news gets %d and auth %d more, want %d and %d", gotNews, gotAuth, tt.forNews, tt.thenAuth)
				}
			})
		})
	}
}

func TestAuthWaitsAheadOfTheRestAndEachInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, 0, mixed)
		if err := s.take(t.Context(), "news"); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		for _, who := range []string{"news 1", "auth 1", "news 2", "auth 2"} {
			go func() {
				lane := who[:4]
				if s.take(t.Context(), lane) == nil {
					mu.Lock()
					order = append(order, who)
					mu.Unlock()
					s.give(lane)
				}
			}()
			synctest.Wait()
		}
		s.give("news")
		synctest.Wait()
		if want := []string{"auth 1", "auth 2", "news 1", "news 2"}; !slices.Equal(order, want) {
			t.Errorf("served %v, want %v", order, want)
		}
	})
}

func TestWhoLeavesTheQueueLosesNoSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, 0, nil)
		if err := s.take(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() { left <- s.take(ctx, "a") }()
		synctest.Wait()
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want context.Canceled", err)
		}
		s.give("a")
		if got := free(t, s, "a"); got != 1 {
			t.Errorf("%d slots are free, want 1", got)
		}
	})
}

func TestALoweredLimitGrowsBackByOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4, 0, nil)
		for range 4 {
			if err := s.take(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if !s.lower(2) { // three others are in use
			t.Fatal("lower said that there is nothing to wait for")
		}
		s.give("a")
		if got := free(t, s, "a"); got != 0 {
			t.Errorf("%d slots are free right after, want 0", got)
		}
		time.Sleep(recoverEvery)
		if got := free(t, s, "a"); got != 1 {
			t.Errorf("%d slots are free after %v, want 1", got, recoverEvery)
		}
		time.Sleep(10 * recoverEvery)
		if got := free(t, s, "a"); got != 0 {
			t.Errorf("%d slots more than configured", got)
		}
	})
}

func TestALimitIsNotLoweredToNothing(t *testing.T) {
	s := newSlots(4, 0, nil)
	if err := s.take(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if s.lower(0) || s.limit != 4 {
		t.Errorf("the limit became %d though nothing else is open", s.limit)
	}
}

func TestCloseTurnsAwayWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(1, 0, nil)
		if err := s.take(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error)
		go func() { waited <- s.take(t.Context(), "a") }()
		synctest.Wait()
		s.close()
		if err := <-waited; !errors.Is(err, errClosed) {
			t.Errorf("who waited got %v, want errClosed", err)
		}
		if err := s.take(t.Context(), "a"); !errors.Is(err, errClosed) {
			t.Errorf("who came later got %v, want errClosed", err)
		}
		time.AfterFunc(time.Second, func() { s.give("a") })
		start := time.Now()
		if err := s.drain(t.Context()); err != nil || time.Since(start) != time.Second {
			t.Errorf("drain returned %v after %v, want nil after 1s", err, time.Since(start))
		}
	})
}

func TestTheRateIsKeptAndAuthGoesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(20, 10, mixed)
		start := time.Now()
		var mu sync.Mutex
		var order []string
		var tasks sync.WaitGroup
		for _, lane := range []string{"news", "news", "news", "auth"} {
			tasks.Go(func() {
				if s.take(t.Context(), lane) == nil {
					mu.Lock()
					defer mu.Unlock()
					order = append(order, lane+" "+time.Since(start).Round(time.Millisecond).String())
				}
			})
			synctest.Wait()
		}
		tasks.Wait()
		if want := []string{"news 0s", "auth 100ms", "news 200ms", "news 300ms"}; !slices.Equal(order, want) {
			t.Errorf("served %v, want %v", order, want)
		}
		s.close()
	})
}

func TestAThrottledAccountIsUsedHalfAsMuchAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(20, 64, nil)
		s.throttled()
		s.throttled() // at the same time: it was under way
		if s.limit != 10 || s.pace.Limit() != 32 {
			t.Errorf("%d slots and %v a second after one throttling, want 10 and 32", s.limit, s.pace.Limit())
		}
		for range 20 {
			time.Sleep(2 * throttlePause)
			s.throttled()
		}
		if s.limit != 1 || s.pace.Limit() != 1 {
			t.Errorf("%d slots and %v a second after many, want 1 and 1", s.limit, s.pace.Limit())
		}
		time.Sleep(recoverEvery)
		s.mu.Lock()
		s.regain()
		s.mu.Unlock()
		if s.limit != 2 || s.pace.Limit() < 7 || s.pace.Limit() > 8 {
			t.Errorf("%d slots and %v a second after %v, want one and a tenth more", s.limit, s.pace.Limit(), recoverEvery)
		}
		time.Sleep(30 * recoverEvery)
		s.mu.Lock()
		s.regain()
		s.mu.Unlock()
		if s.limit != 20 || s.pace.Limit() != 64 {
			t.Errorf("%d slots and %v a second in the end, want all", s.limit, s.pace.Limit())
		}
	})
}

func TestClosingEndsTheWaitForTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSlots(4, 1, nil)
		if err := s.take(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error)
		go func() { waited <- s.take(t.Context(), "a") }()
		synctest.Wait()
		s.close()
		if err := <-waited; !errors.Is(err, errClosed) {
			t.Errorf("who waited got %v, want errClosed", err)
		}
	})
}
