package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// expireBatch bounds the rows that one flush ends.
const expireBatch = 500

// expiry ends what outlives its lifetime while nobody is sending it: one timer for the earliest such message.
type expiry struct {
	kick chan struct{}

	mu   sync.Mutex
	next time.Time // when it will look next
}

func newExpiry() *expiry { return &expiry{kick: make(chan struct{}, 1)} }

// poke makes it look now.
func (e *expiry) poke() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// consider makes it look at t at the latest.
func (e *expiry) consider(t time.Time) {
	e.mu.Lock()
	earlier := t.Before(e.next)
	e.mu.Unlock()
	if earlier {
		e.poke()
	}
}

// run expires until ctx ends.
func (e *expiry) run(ctx context.Context, r *Relay) {
	for ctx.Err() == nil {
		e.planned(longestNap) // so that whatever is put while the turn looks makes it look again
		nap, err := e.turn(ctx, r)
		if err != nil && ctx.Err() == nil {
			r.log.LogAttrs(ctx, slog.LevelError, "cannot expire mail, trying again", slog.Any("err", err))
		}
		e.planned(nap)
		t := time.NewTimer(nap)
		select {
		case <-ctx.Done():
		case <-e.kick:
		case <-t.C:
		}
		t.Stop()
	}
}

// planned notes that the next look is after nap.
func (e *expiry) planned(nap time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next = time.Now().Add(nap)
}

// turn ends what is past its lifetime and returns when to look again. What is owned expires once it comes back, so a
// message that is past its time and yet not ended is looked at again soon.
func (e *expiry) turn(ctx context.Context, r *Relay) (time.Duration, error) {
	if r.clock.jumped() {
		return time.Second, nil
	}
	n, err := r.spool.Expire(ctx, expireBatch, r.notification)
	switch {
	case err != nil:
		return time.Second, err
	case n == expireBatch:
		return 0, nil
	}
	at, ok, err := r.spool.NextExpiry(ctx)
	switch {
	case err != nil:
		return time.Second, err
	case !ok:
		return longestNap, nil
	}
	return min(max(time.Until(at), 100*time.Millisecond), longestNap), nil
}
