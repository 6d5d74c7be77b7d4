package store

import (
	"context"
	"log/slog"
	"sync"

	"gatepost/event"
)

const (
	emitAtOnce = 1000    // events in one call
	emitMax    = 100_000 // events that may wait for a slow sink
)

// emitter hands durable events on, in order, on a goroutine of its own: a slow sink holds up neither mail nor commits.
// One that falls far behind misses events, which are counted and logged; history has them.
type emitter struct {
	sink    event.Sink
	log     *slog.Logger
	stopped chan struct{}

	mu      sync.Mutex
	more    *sync.Cond
	waiting []event.Event
	missed  int
	closed  bool
}

func newEmitter(sink event.Sink, log *slog.Logger) *emitter {
	e := &emitter{sink: sink, log: log, stopped: make(chan struct{})}
	e.more = sync.NewCond(&e.mu)
	return e
}

func (e *emitter) add(events []event.Event) {
	if e.sink == nil || len(events) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if n := max(0, emitMax-len(e.waiting)); n < len(events) {
		e.missed += len(events) - n
		events = events[:n]
	}
	e.waiting = append(e.waiting, events...)
	e.more.Signal()
}

func (e *emitter) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.more.Signal()
}

// run hands events on until close has been called and nothing is left.
func (e *emitter) run() {
	defer close(e.stopped)
	for {
		events, missed := e.take()
		if len(events) == 0 {
			return
		}
		for len(events) > 0 {
			n := min(len(events), emitAtOnce)
			e.sink.Emit(events[:n:n])
			events = events[n:]
		}
		if missed > 0 {
			e.log.LogAttrs(context.Background(), slog.LevelWarn, "events were not handed on, their consumer is too slow", slog.Int("count", missed))
		}
	}
}

// take waits for events; none mean the end.
func (e *emitter) take() (events []event.Event, missed int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.waiting) == 0 && !e.closed {
		e.more.Wait()
	}
	events, missed = e.waiting, e.missed
	e.waiting, e.missed = nil, 0
	return events, missed
}
