package policy

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"gatepost/message"
)

const (
	triesPerMinute = 20              // wrong logins of one source
	firstDelay     = time.Second / 4 // before the answer to the first wrong login of a source and user
	longestDelay   = 8 * time.Second // it doubles from one to the next, up to this
	forgetAfter    = 15 * time.Minute
	maxSources     = 10000 // that are remembered, and as many pairs of source and user
)

// tries remembers who guesses passwords. A source that has used up its tries of the last minute has to wait; one that
// goes on guessing for one user is answered ever more slowly. Nobody is locked out by what others do.
type tries struct {
	mu      sync.Mutex
	recent  *lru[string, []time.Time] // by source: when it tried, oldest first, at most triesPerMinute
	failing *lru[guess, failures]     // by source and user
}

// guess stands for a source and a user, of which a client can make up any number at any length.
type guess [sha256.Size]byte

func guessOf(source, user string) guess { return sha256.Sum256([]byte(source + "\x00" + user)) }

type failures struct {
	count int
	last  time.Time
}

func newTries() *tries {
	return &tries{recent: newLRU[string, []time.Time](maxSources), failing: newLRU[guess, failures](maxSources)}
}

// begin counts a try of source, or reports that it has none left for now.
func (t *tries) begin(source string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, _ := t.recent.get(source)
	seen = slices.DeleteFunc(seen, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	if len(seen) >= triesPerMinute {
		return false
	}
	t.recent.put(source, append(seen, now))
	return true
}

// giveBack takes the last try of source out of the count: it was no guess.
func (t *tries) giveBack(source string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if seen, _ := t.recent.get(source); len(seen) > 1 {
		t.recent.put(source, seen[:len(seen)-1])
	} else {
		t.recent.drop(source)
	}
}

// failed returns how long the answer to a wrong login is to take.
func (t *tries) failed(source, user string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := guessOf(source, user)
	f, _ := t.failing.get(key)
	if now.Sub(f.last) > forgetAfter {
		f.count = 0
	}
	delay := min(longestDelay, firstDelay<<min(f.count, 10))
	t.failing.put(key, failures{f.count + 1, now})
	return delay
}

// passed forgets the wrong logins of source for user.
func (t *tries) passed(source, user string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failing.drop(guessOf(source, user))
}

// sourceOf names who tries: an address, for IPv6 the /64 that one host commands; or the user behind a unix socket.
func sourceOf(p message.Peer) string {
	a := plain(p.Addr)
	switch {
	case !a.IsValid():
		return "uid " + strconv.Itoa(p.UID)
	case a.Is6():
		return netip.PrefixFrom(a, 64).Masked().String()
	}
	return a.String()
}
