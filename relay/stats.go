package relay

import (
	"maps"
	"math"
	"math/bits"
	"sync"
	"time"

	"gatepost/message"
)

// stats counts how the upstreams of a lane do, since the process began, so that those that share a stream can be
// compared.
type stats struct {
	mu   sync.Mutex
	arms map[string]*armStats // by upstream
}

// armStats are the counts of one upstream.
type armStats struct {
	began, attempts, failedOver, hedged int64
	verdicts                            map[message.Class]int64
	took                                durations
}

func newStats() *stats { return &stats{arms: map[string]*armStats{}} }

// at returns the counts of h's upstream. mu is held.
func (s *stats) at(h *hop) *armStats {
	a := s.arms[h.config.Name]
	if a == nil {
		a = &armStats{verdicts: map[message.Class]int64{}}
		s.arms[h.config.Name] = a
	}
	return a
}

// began counts a message that begins at h.
func (s *stats) began(h *hop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at(h).began++
}

// ended counts a hand-over to h that took so long and brought vs.
func (s *stats) ended(h *hop, took time.Duration, vs ...message.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.at(h)
	a.took.add(took)
	for _, v := range vs {
		a.attempts++
		a.verdicts[v.Class]++
	}
}

// failedOver counts a recipient that began at h and was taken by another.
func (s *stats) failedOver(h *hop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at(h).failedOver++
}

// hedged counts a second copy that was sent elsewhere while h did not answer.
func (s *stats) hedged(h *hop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at(h).hedged++
}

// of returns the counts of h's upstream.
func (s *stats) of(h *hop) message.ArmStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.at(h)
	return message.ArmStats{Stream: h.pair.lane.name, Upstream: h.config.Name, Share: h.share, Began: a.began, Attempts: a.attempts,
		Verdicts: maps.Clone(a.verdicts), FailedOver: a.failedOver, Hedged: a.hedged, P50: millis(a.took.quantile(0.5)), P99: millis(a.took.quantile(0.99))}
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// durations counts durations in classes that grow by an eighth of their power of two, from a microsecond to over an hour:
// what is told is at most an eighth too long.
type durations struct {
	classes [256]int64
	n       int64
}

func (d *durations) add(t time.Duration) {
	d.classes[min(classOf(t), len(d.classes)-1)]++
	d.n++
}

// classOf returns the class of t: its power of two in microseconds, and which eighth of that.
func classOf(t time.Duration) int {
	us := uint64(max(t.Microseconds(), 0))
	if us < 8 {
		return int(us)
	}
	power := bits.Len64(us) - 1 // 3 and up
	return (power-2)*8 + int(us>>(power-3)&7)
}

// upTo returns the longest duration in a class.
func upTo(class int) time.Duration {
	if class < 8 {
		return time.Duration(class) * time.Microsecond
	}
	power := class/8 + 2
	return time.Duration((uint64(class%8)+9)<<(power-3)-1) * time.Microsecond
}

// quantile returns the duration that a share q of all is at or below; 0 where there is none.
func (d *durations) quantile(q float64) time.Duration {
	left := int64(math.Ceil(q * float64(d.n)))
	for class, n := range d.classes {
		if left -= n; n > 0 && left <= 0 {
			return upTo(class)
		}
	}
	return 0
}
