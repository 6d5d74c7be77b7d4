package relay

import (
	"context"
	"testing"
)

func TestWhoIsFirstPassesThoseWhoWaitAtTheGate(t *testing.T) {
	g := newGate(1)
	inside := g.queue(false)
	early, late, code := g.queue(false), g.queue(false), g.queue(true)
	inside.leave()
	if !code.isIn() || early.isIn() || late.isIn() {
		t.Fatalf("let in: code %v, others %v and %v, want the code alone", code.isIn(), early.isIn(), late.isIn())
	}
	code.leave()
	if !early.isIn() || late.isIn() {
		t.Errorf("let in: others %v and %v, want who came first", early.isIn(), late.isIn())
	}
}

func BenchmarkGate(b *testing.B) {
	for name, limit := range map[string]int{"open": 1 << 20, "crowded": 2} {
		b.Run(name, func(b *testing.B) {
			g := newGate(limit)
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if place, err := g.enter(context.Background(), false); err == nil {
						place.leave()
					}
				}
			})
		})
	}
}
