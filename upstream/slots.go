package upstream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"gatepost/message"
)

const (
	maxAuthReserve = 4                      // slots kept for each auth lane, at most
	recoverEvery   = 10 * time.Second       // a lowered limit grows by one after so long
	throttlePause  = time.Second            // verdicts of "too fast" this close to each other count as one
	maxSlowdown    = 64                     // a throttled pace is this part of the configured one, at least
	patience       = 500 * time.Millisecond // what work beside gets to end once somebody waits for its slot
)

var errClosed = errors.New("the upstream is closed")

// slots counts who uses an account, and how often. Where lanes of both kinds share it, a few slots are kept for each auth
// lane. Who has to wait is served auth first, in the order they came.
type slots struct {
	mu          sync.Mutex
	most        int // as configured
	limit       int // now: the host may have said that most are too many
	changedAt   time.Time
	throttledAt time.Time
	auth        []string // auth lanes
	mixed       bool     // lanes of both kinds are here
	used        map[string]int
	inUse       int
	first       []*waiter // of auth lanes
	rest        []*waiter
	pace        *rate.Limiter // nil for no limit
	rate        rate.Limit    // as configured
	next        *time.Timer   // when pace lets the next one in; nil where nobody waits for that
	guests      map[*guest]bool
	closed      bool
	empty       chan struct{} // closed once closed and nothing is in use
}

// guest is work that holds a slot but hands over no mail.
type guest struct {
	cancel context.CancelFunc
	leave  *time.Timer // runs once somebody waits
}

type waiter struct {
	lane    string
	granted bool
	ready   chan struct{}
}

// newSlots makes most slots, of which perSecond are given in a second; 0 for any number.
func newSlots(most, perSecond int, lanes []LaneKind) *slots {
	most = max(most, 1)
	s := &slots{most: most, limit: most, used: map[string]int{}, guests: map[*guest]bool{}, empty: make(chan struct{})}
	if perSecond > 0 {
		s.rate = rate.Limit(perSecond)
		s.pace = rate.NewLimiter(s.rate, 1)
	}
	for _, l := range lanes {
		if l.Kind == message.Auth && !slices.Contains(s.auth, l.Lane) {
			s.auth = append(s.auth, l.Lane)
		}
		s.mixed = s.mixed || l.Kind != message.Auth
	}
	s.mixed = s.mixed && len(s.auth) > 0
	return s
}

// take waits for a slot for lane. Its error is ctx's, or errClosed.
func (s *slots) take(ctx context.Context, lane string) error {
	w := &waiter{lane: lane, ready: make(chan struct{})}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errClosed
	}
	queue := s.queue(lane)
	*queue = append(*queue, w)
	s.grant()
	s.hurry()
	s.mu.Unlock()
	select {
	case <-w.ready:
	case <-ctx.Done():
		s.leave(w)
		return ctx.Err()
	}
	if !w.granted {
		return errClosed
	}
	return nil
}

// try is take for who would rather go without than wait.
func (s *slots) try(lane string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.regain(); s.closed || s.limit-s.inUse <= s.kept(lane) {
		return false
	}
	s.inUse++
	s.used[lane]++
	return true
}

// visit is for who holds a slot without a mail for it: it returns a context that ends soon after somebody waits for a
// slot, and what to call in place of give.
func (s *slots) visit(ctx context.Context, lane string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	g := &guest{cancel: cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.guests[g] = true
	s.hurry()
	return ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.guests, g)
		if g.leave != nil {
			g.leave.Stop()
		}
		cancel()
		s.put(lane)
	}
}

// hurry sends the guests away where somebody waits for what they hold: not for the pace, nor marketing for what is kept
// for auth.
func (s *slots) hurry() {
	if s.inUse < s.limit || len(s.first) == 0 && (s.mixed || len(s.rest) == 0) {
		return
	}
	for g := range s.guests {
		if g.leave == nil {
			g.leave = time.AfterFunc(patience, g.cancel)
		}
	}
}

// room returns how many connections there may be now, and whether anybody waits for one.
func (s *slots) room() (limit int, waiting bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.regain()
	return s.limit, len(s.first)+len(s.rest) > 0
}

// leave takes back what w asked for, and what it was given meanwhile.
func (s *slots) leave(w *waiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	queue := s.queue(w.lane)
	*queue = slices.DeleteFunc(*queue, func(o *waiter) bool { return o == w })
	if w.granted {
		s.put(w.lane)
	}
}

// give returns a slot that take gave.
func (s *slots) give(lane string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(lane)
}

func (s *slots) put(lane string) {
	s.inUse--
	if s.used[lane]--; s.used[lane] == 0 {
		delete(s.used, lane)
	}
	if s.closed && s.inUse == 0 {
		close(s.empty)
	}
	s.grant()
}

func (s *slots) queue(lane string) *[]*waiter {
	if slices.Contains(s.auth, lane) {
		return &s.first
	}
	return &s.rest
}

// grant serves as many waiters as there is room for.
func (s *slots) grant() {
	s.regain()
	for _, queue := range []*[]*waiter{&s.first, &s.rest} {
		*queue = slices.DeleteFunc(*queue, func(w *waiter) bool {
			if s.limit-s.inUse <= s.kept(w.lane) || !s.inTime() {
				return false
			}
			s.inUse++
			s.used[w.lane]++
			w.granted = true
			close(w.ready)
			return true
		})
	}
}

// inTime reports whether the pace lets one more in now. Where it does not, the waiting are looked at again when it will.
func (s *slots) inTime() bool {
	if s.pace == nil || s.pace.Allow() {
		return true
	}
	if s.next == nil {
		r := s.pace.Reserve()
		wait := r.Delay()
		r.Cancel()
		s.next = time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.next = nil
			s.grant()
		})
	}
	return false
}

// kept returns how many free slots lane must leave for the auth lanes beside it.
func (s *slots) kept(lane string) int {
	if !s.mixed {
		return 0
	}
	// The rest always has a slot, however many auth lanes there are.
	each := min(maxAuthReserve, s.limit/4, (s.limit-1)/len(s.auth))
	n := 0
	for _, a := range s.auth {
		if a != lane {
			n += max(0, each-s.used[a])
		}
	}
	return n
}

// lower is called by the holder of a slot whom the host told that there are too many connections. It makes what there
// is without that one the limit: the other slots in use, or the connections open, whichever is more. It reports false
// where there is nothing, so that waiting for it would be in vain.
func (s *slots) lower(open int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := max(open, s.inUse-1)
	if n == 0 {
		return false
	}
	s.limit = min(s.limit, n)
	s.changedAt = time.Now()
	return true
}

// throttled is called when the service says that mail comes too fast: half the slots, and half the pace, must do. Answers to
// hand-overs that were under way at the time say nothing new.
func (s *slots) throttled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.throttledAt) < throttlePause {
		return
	}
	s.limit = max(1, s.limit/2)
	if s.pace != nil {
		s.pace.SetLimit(max(s.pace.Limit()/2, s.rate/maxSlowdown))
	}
	s.throttledAt = time.Now()
	s.changedAt = s.throttledAt
}

// regain raises a lowered limit by what time has earned, and a lowered pace by a tenth of the configured one.
func (s *slots) regain() {
	for (s.limit < s.most || s.slowed()) && time.Since(s.changedAt) >= recoverEvery {
		s.limit = min(s.limit+1, s.most)
		if s.slowed() {
			s.pace.SetLimit(min(s.pace.Limit()+s.rate/10, s.rate))
		}
		s.changedAt = s.changedAt.Add(recoverEvery)
	}
}

func (s *slots) slowed() bool { return s.pace != nil && s.pace.Limit() < s.rate }

// close refuses all who wait and all who come.
func (s *slots) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.next != nil {
		s.next.Stop()
	}
	for _, w := range slices.Concat(s.first, s.rest) {
		close(w.ready)
	}
	s.first, s.rest = nil, nil
	if s.inUse == 0 {
		close(s.empty)
	}
}

// drain waits until nothing is in use, after close.
func (s *slots) drain(ctx context.Context) error {
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
