package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"gatepost/message"
)

const (
	checkEvery   = 5 * time.Second // between looks at the account of a service that was not well, at least
	firstPause   = time.Second
	longestPause = 10 * time.Minute
	longestWait  = 30 * time.Second // that a service in trouble may ask for: a check call tells sooner when it is over
)

// health is what the last verdicts say of an account. While they are bad, a slot is given only once a check call says
// that the account works; where its credentials may not read, a mail has to try.
type health struct {
	mu       sync.Mutex
	verdict  message.Verdict // of scope upstream; of no class while well
	until    time.Time       // nothing is sent before, for the service asked for a pause
	next     time.Time       // no check call before
	checking bool
	pauses   int // that a service made us make in a row without saying how long
}

// well notes a verdict that shows that the account works.
func (h *health) well() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.verdict, h.pauses = message.Verdict{}, 0
}

// ill notes a verdict about the account. Answers that come while a pause lasts are about what was under way before it.
func (h *health) ill(v message.Verdict) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.until) && v.Class == message.Throttled && v.RetryAfter == 0 {
		return
	}
	h.take(v)
}

// take is ill with mu held. A service that throttles without saying for how long is left alone for a second, then two,
// and so on up to ten minutes. One that refuses the credentials says nothing of when they are mended.
func (h *health) take(v message.Verdict) {
	switch {
	case v.Class == message.Unauthorised:
		v.RetryAfter = 0
	case v.Class != message.Throttled:
		v.RetryAfter = min(v.RetryAfter, longestWait)
	case v.RetryAfter == 0:
		v.RetryAfter = min(firstPause<<min(h.pauses, 20), longestPause)
		v.RetryAfter += rand.N(v.RetryAfter / 10)
		h.pauses++
	}
	h.verdict, h.until = v, time.Now().Add(v.RetryAfter)
}

// prove returns nil where mail may be tried: the account is well, or check finds that it is again, or cannot tell. Its
// error is *Paused or ctx's own.
func (h *health) prove(ctx context.Context, check func(ctx context.Context) error) error {
	h.mu.Lock()
	v, now := h.verdict, time.Now()
	switch {
	case v.Class == "":
		h.mu.Unlock()
		return nil
	case now.Before(h.until):
		v.RetryAfter = h.until.Sub(now)
		h.mu.Unlock()
		return &Paused{Verdict: v, RetryAfter: v.RetryAfter}
	case v.Class == message.Throttled: // which no check call can tell the end of
		h.verdict = message.Verdict{}
		h.mu.Unlock()
		return nil
	case h.checking, v.Class != message.Unauthorised && now.Before(h.next): // new credentials are looked at at once
		h.mu.Unlock()
		return &Paused{Verdict: v}
	}
	h.checking, h.next = true, now.Add(checkEvery)
	h.mu.Unlock()
	err := check(ctx)

	h.mu.Lock()
	defer h.mu.Unlock()
	h.checking = false
	if p, ok := errors.AsType[*Paused](err); ok {
		h.take(p.Verdict)
		return err
	}
	if err != nil && !errors.Is(err, ErrUnproven) {
		return err
	}
	h.verdict = message.Verdict{}
	return nil
}
