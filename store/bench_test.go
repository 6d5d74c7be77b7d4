package store

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// BenchmarkPutSettle has 100 producers each store a sign-in code born owned and settle it. It tells messages a second
// and the 99th percentile of what one waits for its Put.
func BenchmarkPutSettle(b *testing.B) {
	b.Run("SQLite", func(b *testing.B) { benchmarkPutSettle(b, openTest(b, Options{Dir: b.TempDir()}, nil)) })
	b.Run("PostgreSQL", func(b *testing.B) { benchmarkPutSettle(b, newTestFleet(b, pgtest.Shared(b)).node(b, "a")) })
}

func benchmarkPutSettle(b *testing.B, s *Store) {
	const producers = 100
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
				if lost, err := s.Settle(b.Context(), delivered(m, s.epoch.Load())); err != nil || len(lost) > 0 {
					b.Errorf("lost %v, err %v", lost, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msgs/s")
	reportWaits(b, waits)
}

// reportWaits tells the 99th percentile and the longest of what producers waited.
func reportWaits(b *testing.B, waits [][]time.Duration) {
	all := slices.Sorted(slices.Values(slices.Concat(waits...)))
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "max-ms")
	}
}

// BenchmarkPutBesideBigMail has four producers store and settle sign-in codes, with a pause between two, while marketing
// mail of 40 MB is stored, claimed and settled without one. It tells what a code waits for its Put.
func BenchmarkPutBesideBigMail(b *testing.B) {
	const producers = 4
	s := openTest(b, Options{Dir: b.TempDir()}, nil)
	ctx, cancel := context.WithCancel(b.Context())
	var beside, wg sync.WaitGroup
	big, raw := 0, make(message.Raw, 40<<20)
	beside.Go(func() {
		for ; ctx.Err() == nil; big++ {
			m := newMessage(s, message.Marketing, 0)
			m.Raw, m.Size = raw, len(raw)
			if err := storeAndSend(s, m); err != nil {
				b.Error(err)
				return
			}
		}
	})
	waits := make([][]time.Duration, producers)
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
				if _, err := s.Settle(b.Context(), delivered(m, s.epoch.Load())); err != nil {
					b.Error(err)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cancel()
	beside.Wait()
	b.ReportMetric(float64(big)/b.Elapsed().Seconds(), "big/s")
	reportWaits(b, waits)
}

// storeAndSend takes a message through the store as the relay does.
func storeAndSend(s *Store, m *message.Message) error {
	if err := put(s, false, m); err != nil {
		return err
	}
	ds, err := s.Claim(context.Background(), "news", []string{""}, 1, 1)
	if err != nil || len(ds) != 1 || len(ds[0].Message.Raw) != len(m.Raw) {
		return fmt.Errorf("claimed %d, err %v", len(ds), err)
	}
	_, err = s.Settle(context.Background(), delivered(m, ds[0].Epoch))
	return err
}

// BenchmarkBatch has mails stored born owned and then settled, so many in each commit. It tells what a mail costs in
// time and in octets written to the disk.
func BenchmarkBatch(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			s := openTest(b, Options{Dir: b.TempDir()}, nil)
			before, done := written(b), 0
			for b.Loop() {
				sendThrough(b, s, n)
				done += n
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(done), "µs/msg")
			b.ReportMetric(float64(written(b)-before)/float64(done), "written-B/msg")
		})
	}
}

// written returns the octets that this process has caused to be written to disks.
func written(b *testing.B) (octets int64) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		b.Skip(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "write_bytes: "); ok {
			octets, err = strconv.ParseInt(n, 10, 64)
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	return octets
}
