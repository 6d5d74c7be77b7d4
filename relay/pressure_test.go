package relay

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestACodeIsSignedAheadOfTheNewslettersThatWaitForIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		signing := g.relay.processors.gate
		var places []*ticket
		for p := signing.tryEnter(); p != nil; p = signing.tryEnter() {
			places = append(places, p)
		}
		for i := range 20 {
			if _, err := g.submit("news", "", fmt.Sprintf("kim%d@example.net", i)); err != nil {
				t.Fatal(err)
			}
		}
		var answered sync.WaitGroup
		answered.Go(func() { g.code() })
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		signing.mu.Lock()
		codes, news := signing.first.Len(), signing.others.Len()
		signing.mu.Unlock()
		if codes != 1 || news == 0 {
			t.Errorf("%d codes and %d newsletters wait for their signature, want the one code in a line of its own", codes, news)
		}
		for _, p := range places {
			p.leave()
		}
		answered.Wait()
	})
}

func TestWhoGoesFirstPassesAllWhoWait(t *testing.T) {
	g := newGate(1)
	inside := g.tryEnter()
	var others []*ticket
	for range 3 {
		others = append(others, g.queue(false))
	}
	first := g.queue(true)
	inside.leave()
	if !first.isIn() || slices.ContainsFunc(others, (*ticket).isIn) {
		t.Error("who goes first had to wait for others")
	}
	first.leave()
	if !others[0].isIn() || others[1].isIn() {
		t.Error("the others do not go in the order of their arrival")
	}
}

func TestACodeDoesNotWaitForTheBacklogOfAnotherLane(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.marketing.set(func(s *service) { s.stall = true }) // takes all that it may, and answers nothing
		for i := range 500 {
			if _, err := g.submit("news", "", fmt.Sprintf("kim%d@example.net", i)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for range 20 {
			start := time.Now()
			g.code()
			if took := time.Since(start); took > 50*time.Millisecond {
				t.Errorf("a code was answered after %v", took)
			}
		}
	})
}
