package ingress

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Large bulk mail is taken at its own pace: processor and memory that it would keep busy are what a sign-in code has to
// wait for. It is still half a gigabit a second in all.
const (
	largeFrom = 1 << 20  // octets of a message from which on the pace holds
	largePace = 64 << 20 // octets a second, over all sessions
)

// Budget bounds the octets of mail that doors hold in memory at once, over all sessions and listeners that share it.
// A quarter is kept for those who may use the reserve, so that bulk mail cannot keep a sign-in code out. What is
// counted is what was received and not yet answered, and the copy made at the end of a message.
type Budget struct {
	mu   sync.Mutex
	max  int64
	used int64
	pace *rate.Limiter
}

// pause waits, if it must, after n octets of a large message that may not use the reserve.
func (b *Budget) pause(n int) { time.Sleep(b.pace.ReserveN(time.Now(), n).Delay()) }

// NewBudget returns a budget of max octets. A message that does not fit three quarters of it twice is never taken
// without the reserve.
func NewBudget(max int64) *Budget {
	return &Budget{max: max, pace: rate.NewLimiter(largePace, largeFrom)}
}

// Acquire takes n octets, or none and returns false where they are not there. With reserve it may use all of the
// budget, else three quarters of it.
func (b *Budget) Acquire(n int64, reserve bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	limit := b.max
	if !reserve {
		limit -= b.max / 4
	}
	if b.used+n > limit {
		return false
	}
	b.used += n
	return true
}

// Release gives n octets back.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// InUse returns how many octets are taken now.
func (b *Budget) InUse() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}
