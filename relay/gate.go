package relay

import (
	"container/list"
	"context"
	"sync"
	"time"
)

// gate lets a bounded number of goroutines through, those who are first before the others and each kind in order of
// arrival. Its limit may change at any time.
type gate struct {
	mu     sync.Mutex
	limit  int
	kept   int       // of limit, not for the others while one who is first is on the way
	keep   time.Time // until when that is so
	used   int
	rest   int       // of used, by others
	first  list.List // of *ticket
	others list.List
}

func newGate(limit int) *gate { return &gate{limit: limit} }

// ticket is a place in the line before a gate, and then inside.
type ticket struct {
	gate  *gate
	first bool
	in    chan struct{} // closed when let in
	at    *list.Element // in line; nil for who was let in at once
}

// queue gets in line, and inside at once where there is room. Whoever has a ticket must wait on it.
func (g *gate) queue(first bool) *ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &ticket{gate: g, first: first, in: make(chan struct{})}
	if g.free(first) {
		g.letIn(t)
		return t
	}
	t.at = g.line(first).PushBack(t)
	return t
}

// wait waits to be let in. When ctx ends first the place in line is given up.
func (t *ticket) wait(ctx context.Context) error {
	select {
	case <-t.in:
		return nil
	default:
	}
	select {
	case <-t.in:
		return nil
	case <-ctx.Done():
	}
	t.gate.mu.Lock()
	defer t.gate.mu.Unlock()
	select {
	case <-t.in: // at the same moment
		t.gate.letOut(t)
	default:
		t.gate.line(t.first).Remove(t.at)
	}
	return context.Cause(ctx)
}

// isIn reports whether t has been let in.
func (t *ticket) isIn() bool {
	select {
	case <-t.in:
		return true
	default:
		return false
	}
}

// leave gives back the place that t got.
func (t *ticket) leave() {
	t.gate.mu.Lock()
	defer t.gate.mu.Unlock()
	t.gate.letOut(t)
}

// drop gives up t: the place in line, or inside where it was let in already.
func (t *ticket) drop() {
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if t.wait(gone) == nil {
		t.leave()
	}
}

// enter waits until there is room, or for ctx.
func (g *gate) enter(ctx context.Context, first bool) (*ticket, error) {
	t := g.queue(first)
	if err := t.wait(ctx); err != nil {
		return nil, err
	}
	return t, nil
}

// tryEnter takes a place if one is free and nobody waits for it; else it returns nil.
func (g *gate) tryEnter() *ticket {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.free(false) {
		return nil
	}
	t := &ticket{gate: g, in: make(chan struct{})}
	g.letIn(t)
	return t
}

// full reports that whoever comes now has to wait.
func (g *gate) full() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.free(false)
}

// waiting returns how many wait of those who are not first.
func (g *gate) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.others.Len()
}

// line returns where those wait who are first, or the others. mu is held.
func (g *gate) line(first bool) *list.List {
	if first {
		return &g.first
	}
	return &g.others
}

// free reports room that nobody waits for. mu is held.
func (g *gate) free(first bool) bool {
	return g.first.Len() == 0 && (first || g.others.Len() == 0) && g.takes(first)
}

// takes reports whether one more may be in. mu is held.
func (g *gate) takes(first bool) bool {
	return g.used < g.limit && (first || g.kept == 0 || g.rest < g.limit-g.kept || time.Now().After(g.keep))
}

// letIn and letOut count t, with mu held.
func (g *gate) letIn(t *ticket) {
	g.used++
	if !t.first {
		g.rest++
	}
	close(t.in)
}

func (g *gate) letOut(t *ticket) {
	g.used--
	if !t.first {
		g.rest--
	}
	g.admit()
}

// expect keeps what is kept for one who is first and will come before until.
func (g *gate) expect(until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keep = until
}

// since returns how long ago the last of those who are first was expected.
func (g *gate) since() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.keep)
}

// setLimit changes how many may be in at once. Those inside stay.
func (g *gate) setLimit(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
	g.admit()
}

// load returns how many are in and how many may be.
func (g *gate) load() (used, limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.used, g.limit
}

// admit lets in as many as there is room for. mu is held.
func (g *gate) admit() {
	for {
		first := g.first.Len() > 0
		line := g.line(first)
		if line.Len() == 0 || !g.takes(first) {
			return
		}
		g.letIn(line.Remove(line.Front()).(*ticket))
	}
}
