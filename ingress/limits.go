package ingress

import (
	"crypto/sha256"
	"sync"
	"time"

	"gatepost/config"
)

// maxBuckets bounds the buckets of one generation, of which two are kept: about 10 MB in all.
const maxBuckets = 50000

// Limits counts how much mail is ordered over HTTP, in token buckets: for each recipient, caller, network or person's
// address of a hook. What has not been used for longest is forgotten where they become too many. It is shared by all
// doors, and safe for concurrent use.
type Limits struct {
	mu            sync.Mutex
	recent, older map[bucketKey]*bucket
}

// bucketKey stands for what a bucket is for, at whatever length that is.
type bucketKey [sha256.Size]byte

type bucket struct {
	tokens float64
	at     time.Time // when tokens was right
	told   bool      // that it is empty: once until it has filled up again
}

// NewLimits returns limits of which nothing is used.
func NewLimits() *Limits {
	return &Limits{recent: map[bucketKey]*bucket{}, older: map[bucketKey]*bucket{}}
}

func keyOf(hook, what, who string) bucketKey {
	return sha256.Sum256([]byte(hook + "\x00" + what + "\x00" + who))
}

// take takes a token, or says how long there is none and whether that is new.
func (l *Limits) take(key bucketKey, r config.Rate, now time.Time) (wait time.Duration, first, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.find(key, r, now)
	gained := float64(now.Sub(b.at)) / float64(r.Per) * float64(r.Count)
	b.tokens, b.at = min(float64(r.Count), b.tokens+max(0, gained)), now
	if b.tokens >= 1 {
		b.tokens--
		b.told = false
		return 0, false, true
	}
	first, b.told = !b.told, true
	return time.Duration((1 - b.tokens) / float64(r.Count) * float64(r.Per)), first, false
}

// giveBack undoes a take: the mail was not sent after all.
func (l *Limits) giveBack(key bucketKey, r config.Rate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.recent[key]
	if b == nil {
		b = l.older[key]
	}
	if b != nil {
		b.tokens = min(float64(r.Count), b.tokens+1)
	}
}

// find returns the bucket of key, a full one where there is none.
func (l *Limits) find(key bucketKey, r config.Rate, now time.Time) *bucket {
	if b := l.recent[key]; b != nil {
		return b
	}
	b := l.older[key]
	if b == nil {
		b = &bucket{tokens: float64(r.Count), at: now}
	}
	if len(l.recent) >= maxBuckets {
		l.recent, l.older = map[bucketKey]*bucket{}, l.recent
	}
	l.recent[key] = b
	return b
}
