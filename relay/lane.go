package relay

import (
	"context"
	"log/slog"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

// claimBytes bounds the bodies that one claim brings into memory, in octets.
const claimBytes = 8 << 20

// ahead is how many messages for each hand-over may be outstanding: while one goes out another is being signed, and a third is
// ready whenever a place gets free.
const ahead = 3

// patience is how long new mail waits for room, or for the end of a small backlog, before it is put unowned. Upstreams that
// keep up with the senders make room sooner, and then a burst is no backlog, which costs more for each mail. Where mail goes
// out fast that cost is what slows it down: there it waits for longer, if all who wait will have had their turn by then.
// Sign-in mail does not.
const (
	patience     = 50 * time.Millisecond
	patienceLong = 3 * patience
	fast         = 400 // messages a second
)

// unknown is how many messages a backlog is taken to have that was there before.
const unknown = math.MaxInt32

// longestNap bounds every wait of a lane, as a safety net against a clock that moves.
const longestNap = time.Minute

// lane is one stream's way through the relay: it claims what is due, never more than fits its window, and starts the
// hand-overs. How many go through each upstream at once is its pair's to say. It outlives generations.
type lane struct {
	name  string
	kind  message.Kind
	route atomic.Pointer[[]*hop] // of the current generation
	stats *stats
	kick  chan struct{}
	ping  chan chan struct{}
	stop  context.CancelFunc // ends run; nil while it does not run
	line  *gate              // of new mail that waits for room; its head is let in
	freed chan struct{}      // holds a value when there may be room
	stale atomic.Bool        // mail has been due for too long (limits.queue_age)

	mu          sync.Mutex
	window      int64                            // octets of mail that may be outstanding; one message is always let in
	backlog     bool                             // unowned rows may be due: a new mail must not overtake them
	unclaimed   int                              // … about so many messages
	puts        int                              // unowned Puts so far
	cramped     bool                             // there was no room to claim anything
	outstanding int                              // claimed or born-owned messages not yet settled or put back
	octets      int64                            // of those
	pace        pace                             // at which those end
	waiting     map[message.ID]chan *reply.Error // clients that wait for the outcome of a first try
}

func newLane(name string, kind message.Kind) *lane {
	l := &lane{name: name, kind: kind, stats: newStats(), backlog: true, unclaimed: unknown,
		line: newGate(1), freed: make(chan struct{}, 1),
		kick: make(chan struct{}, 1), ping: make(chan chan struct{}), waiting: map[message.ID]chan *reply.Error{}}
	l.route.Store(new([]*hop))
	return l
}

// use makes p what the lane goes by from now on. Pairs that p does not have are retired.
func (l *lane) use(p *plan, window int64) {
	l.mu.Lock()
	l.window = window
	l.mu.Unlock()
	for _, old := range *l.route.Swap(&p.route) {
		if !slices.ContainsFunc(p.route, func(h *hop) bool { return h.pair == old.pair }) {
			old.pair.retire()
		}
	}
	l.adjust()
}

// end retires the lane: its stream is gone, or is of another kind now.
func (l *lane) end() {
	for _, h := range *l.route.Swap(new([]*hop)) {
		h.pair.retire()
	}
	if l.stop != nil {
		l.stop()
	}
	l.adjust()
}

// limit returns how many hand-overs at once there is a use for: as many as the upstreams allow that mail begins at, and
// where one of those is short of its connections, as many as the first of the others allows, which makes up for it.
func (l *lane) limit() int {
	n, short := 0, false
	for _, h := range *l.route.Load() {
		if h.share > 0 {
			allowed := h.pair.limit()
			n += allowed
			short = short || allowed < h.connections
		}
	}
	for _, h := range *l.route.Load() {
		if allowed := h.pair.limit(); short && h.share == 0 && allowed > 0 {
			return n + allowed
		}
	}
	return n
}

// adjust follows a change in a pair.
func (l *lane) adjust() {
	l.poke()
	if l.limit() > 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.waiting {
		l.tell(id, nil)
	}
}

// await returns where the outcome of id's first try will be told: nil, or why it was refused for good. With every
// upstream paused there is nothing to wait for.
func (l *lane) await(id message.ID) <-chan *reply.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := make(chan *reply.Error, 1)
	l.waiting[id] = ch
	if l.limit() == 0 {
		l.tell(id, nil)
	}
	return ch
}

// answer tells whoever waits for id.
func (l *lane) answer(id message.ID, refusal *reply.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(id, refusal)
}

// tell is answer with mu held.
func (l *lane) tell(id message.ID, refusal *reply.Error) {
	if ch, ok := l.waiting[id]; ok {
		ch <- refusal
		delete(l.waiting, id)
	}
}

// forget ends the waiting for id.
func (l *lane) forget(id message.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.waiting, id)
}

// poke makes the lane look again.
func (l *lane) poke() { signal(l.kick) }

// signal leaves a value in c, where there is none yet.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// down reports whether no upstream of the route can be counted on (when_down = "refuse") with mail of domain; "" asks
// for mail of any.
func (l *lane) down(domain string) bool {
	for _, h := range *l.route.Load() {
		if !h.pair.down(refuseAfter) && !h.pair.domains.has(domain) {
			return false
		}
	}
	return true
}

// take lets in t, whose mail was never queued, so that its row may be born owned. It fails when the lane has a backlog or
// no upstream that could take the mail. Where there is only no room it waits a moment, behind others that do.
func (l *lane) take(t *try) bool {
	if !l.line.full() {
		if ok, wait := l.tryTake(t); !wait {
			return ok
		}
	}
	ctx, cancel := l.patience()
	defer cancel()
	place, err := l.line.enter(ctx, false)
	if err != nil {
		return false
	}
	defer place.leave()
	for {
		ok, wait := l.tryTake(t)
		if !wait {
			return ok
		}
		select {
		case <-l.freed:
		case <-ctx.Done():
			return false
		}
	}
}

// patience ends when new mail has waited for room for long enough.
func (l *lane) patience() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), patienceLong)
	look := time.AfterFunc(patience, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if !l.soon(l.line.waiting(), patienceLong-patience) {
			cancel()
		}
	})
	return ctx, func() { look.Stop(); cancel() }
}

// soon reports whether n more messages, not of sign-in mail, will go out fast, and all within d. mu is held.
func (l *lane) soon(n int, d time.Duration) bool {
	return l.kind != message.Auth && l.pace.within(time.Second) >= fast && n <= l.pace.within(d)
}

// tryTake is take at this moment; wait says that in a moment it may succeed.
func (l *lane) tryTake(t *try) (ok, wait bool) {
	octets := int64(len(t.msg.Raw))
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.limit()
	if limit == 0 || l.backlog && l.unclaimed > ahead*limit && !l.soon(l.unclaimed, patienceLong) {
		return false, false
	}
	full := l.outstanding >= ahead*limit || l.outstanding > 0 && l.octets+octets > l.window
	if full || l.backlog {
		return false, true
	}
	if !t.takePlace() {
		return false, false
	}
	l.outstanding++
	l.octets += octets
	return true, false
}

// queued notes that rows of this lane are about to be put unowned.
func (l *lane) queued() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.puts++
	l.backlog, l.unclaimed = true, l.unclaimed+1
}

// done gives back what take, or a claim, counted. The lane looks again where it found no room, or has a backlog; and
// where left says that rows are queued again. Else there is nothing to claim, and to find that out for each mail costs
// more than it seems.
func (l *lane) done(octets int, left bool) {
	l.mu.Lock()
	l.outstanding--
	l.octets -= int64(octets)
	l.pace.count()
	look := left || l.backlog || l.cramped
	l.mu.Unlock()
	signal(l.freed)
	if look {
		l.poke()
	}
}

// room returns how many recipients, and octets of mail, may be claimed now, and only once a sixth of what may be outstanding
// is free, so that claims come in batches, and half of the window, since one message may be larger than what is left of it.
func (l *lane) room() (recipients int, octets int64) {
	limit := l.limit()
	l.mu.Lock()
	defer l.mu.Unlock()
	recipients, octets = ahead*limit-l.outstanding, min(l.window-l.octets, claimBytes)
	l.cramped = recipients < max(1, ahead*limit/6) || l.octets > l.window/2 && l.outstanding > 0
	if l.cramped {
		return 0, 0
	}
	return recipients, max(1, octets)
}

// run claims and starts hand-overs until ctx ends.
func (l *lane) run(ctx context.Context, r *Relay) {
	wake := r.spool.Wake(l.name)
	told := false // that mail cannot be claimed
	for ctx.Err() == nil {
		nap := longestNap
		if n, octets := l.room(); n > 0 && !r.spool.StreamHeld(l.name) {
			due, err := l.claim(ctx, r, n, octets)
			if err != nil && ctx.Err() == nil && !told {
				r.log.LogAttrs(ctx, slog.LevelError, "cannot claim mail, trying again", slog.String("stream", l.name), slog.Any("err", err))
			}
			nap, told = due, err != nil
		}
		l.wait(ctx, nap, wake)
	}
}

// claim takes up to n due recipients, starts a hand-over for each message among them, and returns when to look again.
func (l *lane) claim(ctx context.Context, r *Relay, n int, octets int64) (nap time.Duration, err error) {
	l.mu.Lock()
	puts := l.puts
	l.mu.Unlock()
	needs, err := r.spool.Needs(ctx, l.name)
	if err != nil {
		return time.Second, err
	}
	g := r.generation.Load()
	can := g.can(needs)
	if len(can) == 0 {
		l.claimed(nil, puts, true)
		return longestNap, nil
	}
	ds, err := r.spool.Claim(ctx, l.name, can, n, octets)
	if err != nil {
		return time.Second, err
	}
	l.claimed(ds, puts, isAll(ds, n, octets))
	for _, d := range ds {
		t := newTry(r, l, g, d)
		t.lineUp() // here, so that they go in order
		r.sends.Go(t.deliver)
	}
	if len(ds) > 0 {
		return 0, nil
	}
	return l.untilDue(ctx, r, can)
}

// isAll reports whether a claim of up to n recipients and so many octets brought all there was, and not all it was to.
func isAll(ds []*message.Delivery, n int, octets int64) bool {
	for _, d := range ds {
		n -= len(d.Message.Recipients)
		octets -= 2 * int64(len(d.Message.Raw)) // what was left out may have been large
	}
	return n > 0 && octets > 0
}

// claimed counts what a claim brought. One that brought nothing shows that no backlog stands, unless something was put
// since it began.
func (l *lane) claimed(ds []*message.Delivery, puts int, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, d := range ds {
		l.outstanding++
		l.octets += int64(len(d.Message.Raw))
	}
	if l.unclaimed = max(0, l.unclaimed-len(ds)); all {
		l.unclaimed = l.puts - puts
	}
	if len(ds) == 0 && puts == l.puts {
		l.backlog = false
		signal(l.freed)
	}
}

// untilDue returns how long nothing will be due. What is due already and yet was not claimed is waiting to expire.
func (l *lane) untilDue(ctx context.Context, r *Relay, can []string) (time.Duration, error) {
	due, ok, err := r.spool.NextDue(ctx, l.name, can)
	switch {
	case err != nil:
		return time.Second, err
	case !ok:
		return longestNap, nil
	}
	nap := time.Until(due)
	if nap <= 0 {
		nap = 250 * time.Millisecond
	}
	return min(nap, longestNap), nil
}

// wait sleeps until something may have changed. It answers the watchdog meanwhile.
func (l *lane) wait(ctx context.Context, nap time.Duration, wake <-chan struct{}) {
	if nap <= 0 {
		return
	}
	t := time.NewTimer(nap)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-wake:
	case <-l.kick:
	case pong := <-l.ping:
		close(pong)
	}
}

func (l *lane) status(held bool) message.LaneStatus {
	s := message.LaneStatus{Lane: l.name, Kind: l.kind, Limit: l.limit(), Held: held}
	for _, h := range *l.route.Load() {
		used, _ := h.pair.places.load()
		s.InFlight += used
		p := h.pair.status()
		p.Share = h.share
		s.Pairs = append(s.Pairs, p)
	}
	return s
}
