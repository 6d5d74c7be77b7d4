package relay

import (
	"sync/atomic"
	"testing"
	"time"

	"gatepost/event"
)

func TestAWallClockJumpExpiresNothingFromTheFirstMomentOn(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var offset atomic.Int64
		c := newClock()
		c.offset = func() time.Duration { return time.Duration(offset.Load()) }
		if c.jumped() {
			t.Fatal("a jump at the start")
		}
		for range 100 { // slewing is no jump
			offset.Add(int64(time.Second))
			if c.jumped() {
				t.Fatal("a second at a time counts as a jump")
			}
		}
		for _, by := range []time.Duration{48 * time.Hour, -48 * time.Hour, 2 * time.Minute} {
			offset.Add(int64(by))
			if !c.jumped() {
				t.Errorf("right after a jump of %v it is not noticed", by)
			}
			if got := c.untold(); got != by {
				t.Errorf("a jump of %v is told as %v", by, got)
			}
			time.Sleep(59 * time.Second)
			if !c.jumped() {
				t.Errorf("59 s after a jump of %v the grace is over", by)
			}
			time.Sleep(2 * time.Second)
			if c.jumped() || c.untold() != 0 {
				t.Errorf("61 s after a jump of %v there is still grace", by)
			}
		}
	})
}

func TestAWallClockJumpIsAnAlarm(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.relay.clock.mu.Lock()
		g.relay.clock.offset = func() time.Duration { return time.Hour }
		g.relay.clock.mu.Unlock()
		time.Sleep(1100 * time.Millisecond)
		g.stop()
		if es := g.history.of(event.ClockJump); len(es) != 1 || !es[0].Data.Alarm {
			t.Errorf("events: %+v, want one alarm", es)
		}
	})
}
