package admin

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"gatepost/event"
)

// Orders counts the mail that was ordered over HTTP since the daemon started.
type Orders struct {
	StartedAt time.Time    `json:"started_at"`
	Counts    []OrderCount `json:"orders"` // by hook, then type
}

// OrderCount is what became of the mail of one type that came through one hook. Either is "" where orders are summed up
// over it.
type OrderCount struct {
	Hook    string `json:"hook,omitempty"`
	Type    string `json:"type,omitempty"`
	Sent    int64  `json:"sent"`    // delivered to an upstream, captured, or unconfirmed
	Failed  int64  `json:"failed"`  // bounced, expired, suppressed, superseded or dropped
	Limited int64  `json:"limited"` // times that a limit was reached
}

// By sums orders up: by hook, by type, or by both.
func (o Orders) By(hook, kind bool) Orders {
	sums := map[ordered]*OrderCount{}
	for _, c := range o.Counts {
		var key ordered
		if hook {
			key.hook = c.Hook
		}
		if kind {
			key.kind = c.Type
		}
		s := sums[key]
		if s == nil {
			s = &OrderCount{Hook: key.hook, Type: key.kind}
			sums[key] = s
		}
		s.Sent, s.Failed, s.Limited = s.Sent+c.Sent, s.Failed+c.Failed, s.Limited+c.Limited
	}
	return Orders{o.StartedAt, sorted(sums)}
}

// ordered is what orders are counted by.
type ordered struct{ hook, kind string }

func sorted(counts map[ordered]*OrderCount) []OrderCount {
	all := make([]OrderCount, 0, len(counts))
	for _, c := range slices.SortedFunc(maps.Values(counts), func(a, b *OrderCount) int {
		return cmp.Or(cmp.Compare(a.Hook, b.Hook), cmp.Compare(a.Type, b.Type))
	}) {
		all = append(all, *c)
	}
	return all
}

// maxOrdered bounds the pairs of hook and type that are counted. Types beyond it are counted as one.
const maxOrdered = 1000

// OrderCounter counts orders by the events that tell what became of them. It implements event.Sink.
type OrderCounter struct {
	started time.Time
	mu      sync.Mutex
	counts  map[ordered]*OrderCount
}

// NewOrderCounter returns a counter that has counted nothing.
func NewOrderCounter() *OrderCounter {
	return &OrderCounter{started: time.Now(), counts: map[ordered]*OrderCount{}}
}

// Emit implements event.Sink.
func (o *OrderCounter) Emit(events []event.Event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range events {
		if e := &events[i]; e.Data.Hook != "" {
			o.count(e)
		}
	}
}

func (o *OrderCounter) count(e *event.Event) {
	switch e.Kind {
	case event.Delivered, event.Captured, event.Unconfirmed:
		o.of(e).Sent++
	case event.Bounced, event.Expired, event.Suppressed, event.Superseded, event.Dropped:
		o.of(e).Failed++
	case event.Limited:
		o.of(e).Limited++
	}
}

func (o *OrderCounter) of(e *event.Event) *OrderCount {
	key := ordered{e.Data.Hook, e.Data.Type}
	if o.counts[key] == nil && len(o.counts) >= maxOrdered {
		key = ordered{"", "other"}
	}
	if o.counts[key] == nil {
		o.counts[key] = &OrderCount{Hook: key.hook, Type: key.kind}
	}
	return o.counts[key]
}

// Orders returns what was counted.
func (o *OrderCounter) Orders() Orders {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Orders{o.started, sorted(o.counts)}
}
