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

// clock watches the wall clock. Whoever is about to act on the time asks it first, and it looks then: what is right
// once a second would be wrong for up to a second after a jump, long enough to expire a whole queue.
type clock struct {
	offset func() time.Duration // how far the wall clock has moved against the monotonic one

	mu    sync.Mutex
	last  time.Duration // offset at the last look
	by    time.Duration // jumps that nobody was told of yet
	until time.Time     // monotonic: grace after a jump
}

func newClock() *clock {
	start := time.Now()
	return &clock{offset: func() time.Duration {
		now := time.Now()
		// Round(0) drops the monotonic reading, so the first difference is the wall clock's.
		return now.Round(0).Sub(start.Round(0)) - now.Sub(start)
	}}
}

// jumped reports whether the wall clock jumped less than jumpGrace ago.
func (c *clock) jumped() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	return time.Now().Before(c.until)
}

// look notes a jump since the last look. mu is held.
func (c *clock) look() {
	offset := c.offset()
	by := offset - c.last
	c.last = offset
	if by.Abs() > jumpLimit {
		c.by += by
		c.until = time.Now().Add(jumpGrace)
	}
}

// untold returns by how much the clock has jumped since the last call, 0 for not at all.
func (c *clock) untold() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.look()
	by := c.by
	c.by = 0
	return by
}

// watch looks every second until ctx ends, and calls onJump with the distance when the clocks have parted.
func (c *clock) watch(ctx context.Context, onJump func(time.Duration)) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if by := c.untold(); by != 0 {
			onJump(by)
		}
	}
}

// clockJumped tells of the jump and makes everybody look at the time again.
func (r *Relay) clockJumped(by time.Duration) {
	r.spool.Record(event.Event{At: time.Now(), Kind: event.ClockJump,
		Data: event.Data{Alarm: true, Text: "the wall clock moved by " + by.Round(time.Second).String()}})
	for _, p := range r.generation.Load().plans {
		p.lane.poke()
	}
	r.expiry.poke()
}
