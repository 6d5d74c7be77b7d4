package store

import (
	"slices"
	"sync"
	"testing"
	"time"

	"gatepost/message"
)

// BenchmarkPutSettle has 100 producers each store a sign-in code born owned and settle it. It tells messages a second
// and the 99th percentile of what one waits for its Put.
func BenchmarkPutSettle(b *testing.B) {
	const producers = 100
	s := openTest(b, Options{Dir: b.TempDir()}, nil)
	waits := make([][]time.Duration, producers)
	var wg sync.WaitGroup
	b.ResetTimer()
	for p := range producers {
		wg.Go(func() {
			for i := p; i < b.N; i += producers {
				m := newMessage(s, message.Auth, 4000)
				start := time.Now()
				if err := put(s, true, m); err != nil {
					b.Error(err)
					return
				}
				waits[p] = append(waits[p], time.Since(start))
				if lost, err := s.Settle(b.Context(), delivered(m, s.epoch)); err != nil || len(lost) > 0 {
					b.Errorf("lost %v, err %v", lost, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Sorted(func(yield func(time.Duration) bool) {
		for _, w := range waits {
			for _, d := range w {
				if !yield(d) {
					return
				}
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
}
