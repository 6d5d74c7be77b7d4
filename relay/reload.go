package relay

import (
	"context"
	"errors"
	"time"

	"gatepost/config"
)

// retireTime is what hand-overs through an upstream that a reload took away get to end.
const retireTime = 3 * time.Minute

// Reload makes cfg what holds from now on. All that can fail is done first: after an error everything is as it was.
// Accepts and hand-overs under way end with what they began with. Upstreams that stay the same keep their connections,
// their pauses and their pace; keys are read anew.
func (r *Relay) Reload(cfg *config.Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running == nil {
		return errors.New("reload: gatepost is starting or stopping")
	}
	old := r.generation.Load()
	g, err := newGeneration(cfg, old, r.connect)
	if err != nil {
		return err
	}
	r.swap(g)
	r.background.Go(func() {
		ctx, cancel := context.WithTimeout(r.ctx, retireTime)
		defer cancel()
		_ = old.closeBut(ctx, g) // what was cut short is in its message's history
	})
	return nil
}

// swap makes g the generation and lets lanes follow. mu is held, or nobody else is there yet.
func (r *Relay) swap(g *Generation) {
	old := r.generation.Swap(g)
	for _, p := range g.plans {
		p.lane.use(p, g.config.Limits.BytesInFlight/int64(len(g.plans)))
		r.turn(p.lane)
	}
	if old == nil {
		return
	}
	for name, p := range old.plans {
		if now := g.plan(name); now == nil || now.lane != p.lane {
			p.lane.end()
		}
	}
}
