package relay

import (
	"context"
	"sync"
	"time"

	"gatepost/event"
)

// A wall clock that moves by more than jumpLimit against the monotonic one expires nothing for jumpGrace (engine.md
// rule 12): a wrong clock must not throw mail away, and NTP may be about to put it right.
const (
	jumpLimit = time.Minute
	jumpGrace = time.Minute
)

// clock watches the wall clock.
type clock struct {
	mu    sync.Mutex
	until time.Time // monotonic: grace after a jump
}

// jumped reports whether the wall clock jumped less than jumpGrace ago.
func (c *clock) jumped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.until)
}

// watch compares the clocks every second until ctx ends, and calls onJump with the distance when they part.
func (c *clock) watch(ctx context.Context, onJump func(time.Duration)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now := time.Now()
		// Round(0) drops the monotonic reading, so the first difference is the wall clock's.
		by := now.Round(0).Sub(last.Round(0)) - now.Sub(last)
		last = now
		if by.Abs() > jumpLimit {
			c.mu.Lock()
			c.until = now.Add(jumpGrace)
			c.mu.Unlock()
			onJump(by)
		}
	}
}

// clockJumped tells of the jump and makes everybody look at the time again.
func (r *Relay) clockJumped(by time.Duration) {
	r.spool.Record(event.Event{At: time.Now(), Kind: event.ClockJump,
		Data: event.Data{Alarm: true, Text: "the wall clock moved by " + by.Round(time.Second).String()}})
	for _, l := range r.lanes {
		l.poke()
	}
	r.expiry.poke()
}
