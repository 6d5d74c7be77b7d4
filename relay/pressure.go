package relay

import (
	"context"
	"log/slog"
	"runtime/metrics"
	"sync/atomic"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

// pressureEvery is how often memory and queue age are looked at.
const pressureEvery = 500 * time.Millisecond

// pressure knows how full gatepost is, so that mail is refused while refusing is still cheap: marketing first, auth
// last.
type pressure struct {
	memory  atomic.Int64 // octets of heap that were in use at the last collection
	limit   atomic.Int64 // limits.memory; 0 for none
	refused atomic.Bool  // somebody was, since it was last logged
}

// watch looks every pressureEvery until ctx ends.
func (p *pressure) watch(ctx context.Context, r *Relay) {
	t := time.NewTicker(pressureEvery)
	defer t.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}} // what waits to be collected is no reason to refuse mail
	for {
		g := r.generation.Load()
		if p.limit.Store(g.config.Limits.Memory); g.config.Limits.Memory > 0 {
			metrics.Read(sample)
			p.memory.Store(int64(sample[0].Value.Uint64()))
		}
		for _, plan := range g.plans {
			plan.lane.measureAge(ctx, r, g)
		}
		if p.refused.Swap(false) {
			r.log.LogAttrs(ctx, slog.LevelWarn, "mail is refused: memory or the age of the queue is past its limit",
				slog.Int64("heap_bytes", p.memory.Load()))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// refuses returns the 4xx for mail of l while there is too much already, or nil.
func (p *pressure) refuses(l *lane) error {
	limit := p.limit.Load()
	if l.kind != message.Auth {
		limit -= limit / 4
	}
	switch {
	case limit > 0 && p.memory.Load() > limit:
		p.refused.Store(true)
		return reply.New(452, "4.3.1", "too much mail is in memory, please try again later")
	case l.stale.Load():
		p.refused.Store(true)
		return reply.New(451, "4.4.5", "too much mail is waiting already, please try again later")
	}
	return nil
}

// measureAge notes whether mail of the lane has been due for longer than limits.queue_age (auth: twice it).
func (l *lane) measureAge(ctx context.Context, r *Relay, g *Generation) {
	limit := g.config.Limits.QueueAge
	if l.kind == message.Auth {
		limit *= 2
	}
	if limit == 0 {
		l.stale.Store(false)
		return
	}
	needs, err := r.spool.Needs(ctx, l.name)
	if err != nil {
		return // the lane's own loop logs it
	}
	if due, ok, err := r.spool.NextDue(ctx, l.name, g.can(needs)); err == nil {
		l.stale.Store(ok && time.Since(due) > limit)
	}
}
