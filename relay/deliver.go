package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

// Why a hand-over ended without a word from the upstream.
var (
	errCommitTimeout = errors.New("not handed over within commit_timeout")
	errAnswerTimeout = errors.New("no answer within answer_timeout")
	errLifetime      = errors.New("the message's lifetime ended before it could be handed over")
	errLease         = errors.New("the spool's lease ended before the message could be handed over")
	errStopping      = errors.New("gatepost is stopping")
	errWithdrawn     = errors.New("another copy was accepted before this one was handed over")
	errPaused        = errors.New("the upstream is paused")
)

// done is lane.done. A stream that went and came back in the meantime has another lane, which must look at what was put
// back too.
func (r *Relay) done(l *lane, octets int, left bool) {
	l.done(octets, left)
	if p := r.generation.Load().plan(l.name); p != nil && p.lane != l {
		p.lane.poke()
	}
}

// try is one walk of one message along its route.
type try struct {
	r     *Relay
	lane  *lane
	plan  *plan
	msg   *message.Message
	epoch int64  // under which the rows are ours; for a new message known with put's result
	held  string // why the message is to be held; "" for no reason
	put   Write  // nil once the message is known to be durable
	arm   *hop   // that the message begins at
	rows  []*row

	signature atomic.Pointer[message.Signature] // of the message as it is stored; nil until there is one
	kept      *message.Signature                // what the spool has of it

	place     *ticket     // that was taken, or lined up for, before the walk began; nil once it is used
	placeAt   *pair       // whose place it is
	unsettled []*handOver // through which a copy may have gone
	late      []*handOver // that have no answer yet, after another has ended the matter
	answers   chan *handOver
}

// row is one recipient during a try.
type row struct {
	message.Recipient
	way     []*hop           // still to be asked
	attempt *message.Attempt // the last one of this try
	barred  *message.Attempt // that would have been made, had not the upstream refused the sending domain before
	outcome message.Outcome
	alarm   string
	before  string        // what was last said against it, by the try before
	trouble string        // the same, by this try or the one before
	judged  bool          // something was said about the message or the recipient, so the ladder applies
	choked  bool          // its own hand-over made a working upstream give up
	lost    bool          // an answer was lost in this try
	hedged  bool          // a second copy is out, or was, while the first had no answer
	crowded bool          // the upstream it begins at works again, but does not get all mail yet
	setBack time.Duration // its own hand-over made the upstream give up, so others have their turn first
}

func newTry(r *Relay, l *lane, g *Generation, d *message.Delivery) *try {
	t := &try{r: r, lane: l, plan: g.plans[l.name], msg: d.Message, epoch: d.Epoch, held: d.Held, kept: d.Signature}
	t.signature.Store(d.Signature)
	t.arm = t.plan.arm(d.Message.ID)
	for _, rec := range d.Message.Recipients {
		t.rows = append(t.rows, &row{Recipient: rec, way: t.plan.way(t.arm, &rec), before: rec.LastReply, trouble: rec.LastReply})
	}
	return t
}

// deliver walks the route once and settles what came of it.
func (t *try) deliver() {
	defer func() { t.r.done(t.lane, len(t.msg.Raw), t.open()) }()
	defer t.dropPlace()
	defer t.release()
	if t.held != "" {
		t.hold()
		return
	}
	t.walk()
	if t.durable(context.Background()) != nil {
		return // nothing was sent and nothing was stored; Accept has told the client
	}
	t.settle()
	t.release()
	t.listen()
}

// open reports whether a row has not come to its end.
func (t *try) open() bool {
	return slices.ContainsFunc(t.rows, func(w *row) bool { return w.outcome == message.None })
}

// walk goes along the route until nobody is left to try for.
func (t *try) walk() {
	t.dismiss()
	for t.r.ctx.Err() == nil && !t.expired() {
		h, rows := t.next()
		if h == nil {
			return
		}
		t.through(h, rows)
	}
}

// next takes the hop that is next for the first open row, and all rows for which it is.
func (t *try) next() (h *hop, rows []*row) {
	for _, w := range t.rows {
		if w.outcome != message.None || w.State != message.Queued || len(w.way) == 0 {
			continue
		}
		if h == nil {
			h = w.way[0]
		}
		if w.way[0] == h {
			w.way = w.way[1:]
			rows = append(rows, w)
		}
	}
	return h, rows
}

// settle writes what came of the walk, and tells a waiting client.
func (t *try) settle() {
	settlements := t.settlements()
	refusal := t.refusal()
	if refusal == nil {
		t.lane.answer(t.msg.ID, nil) // 250 stands on the Put; nothing to wait for
	}
	client := t.notify(settlements, refusal)
	if refusal != nil {
		client = t.forgetKey(settlements, client)
	}
	settled := t.r.settle(t.msg, settlements)
	if refusal == nil {
		return
	}
	if !settled {
		refusal = nil // the row is still there: a 5xx would be a lie
	}
	if client != nil {
		client <- refusal
		return
	}
	t.lane.answer(t.msg.ID, refusal)
}

// release gives back the slots and places through which copies went that were not settled until now. A slot that could
// be used again before would let a crash make more duplicates than there are slots (engine.md rule 8).
func (t *try) release() {
	for _, o := range t.unsettled {
		o.slot.Release()
		o.place.leave()
	}
	t.unsettled = nil
}

// through makes one attempt with h and applies its verdicts to rows.
func (t *try) through(h *hop, rows []*row) {
	if h.pair.limit() == 0 {
		return
	}
	if why := h.carries(t.msg); why != nil {
		t.skip(h, rows, cannotCarry(why))
		return
	}
	told, refusal, ok := h.pair.domains.ask(t.msg.HeaderFrom)
	if !ok {
		t.bar(h, rows, refusal)
		return
	}
	place := t.enter(h, rows)
	if place == nil {
		if told != nil {
			told(errDomainUntold)
		}
		return
	}
	o := t.newHandOver(h, rows, place, told)
	if t.mayHedge(o) {
		t.hedge(o)
	} else {
		o.send()
		t.land(o)
	}
	t.conclude(rows)
}

// skip applies v, with which h need not be asked, to rows.
func (t *try) skip(h *hop, rows []*row, v message.Verdict) {
	o := &handOver{hop: h, at: time.Now()}
	for _, w := range rows {
		t.note(w, o, v)
		t.apply(w, h, v)
	}
}

// bar notes that h is not asked, because it refused the sending domain with v before.
func (t *try) bar(h *hop, rows []*row, v message.Verdict) {
	for _, w := range rows {
		w.judged, w.trouble = true, v.Reply()
		w.barred = &message.Attempt{Upstream: h.config.Name, Egress: h.egress, Verdict: v, At: time.Now()}
	}
}

// land takes in what came of o.
func (t *try) land(o *handOver) {
	t.judge(o)
	if o.err != nil {
		t.aborted(o)
		return
	}
	for i, v := range o.verdicts {
		w := o.rows[i]
		t.note(w, o, v)
		t.apply(w, o.hop, v)
		if givesUp(v) {
			t.stepBack(w, o.hop.pair, v)
		}
	}
}

// givesUp reports whether v says that the upstream cannot be used.
func givesUp(v message.Verdict) bool {
	return v.Scope == message.ScopeUpstream && v.Class != message.Accepted && v.Class != message.Unknown
}

// judge draws from o what it tells of the upstream. An answer that was lost while nobody else's came makes it doubtful:
// a login is tried before it gets more mail than one at a time.
func (t *try) judge(o *handOver) {
	if o.slot != nil {
		t.unsettled = append(t.unsettled, o)
	} else {
		defer o.place.leave() // after a pause, so that nobody slips through in between
	}
	p := o.hop.pair
	p.learnDomain(t.r, t.msg.HeaderFrom, o.verdicts, o.told)
	if v, ok := o.failure(); ok {
		t.lane.stats.ended(o.hop, o.took, v)
		if !errors.Is(o.err, errCommitTimeout) || !p.busy(o.at) {
			p.pause(t.r, v, v.RetryAfter, o.at)
		}
	}
	for _, v := range o.verdicts {
		switch {
		case v.Class == message.Unknown:
			if t.r.ctx.Err() == nil && !p.busy(o.at) {
				p.pause(t.r, v, 0, o.at)
			}
		case givesUp(v):
			p.pause(t.r, v, v.RetryAfter, o.at)
		default:
			p.worked()
			if v.Class == message.Accepted {
				p.tookOwn(t.r)
			}
		}
	}
	if len(o.verdicts) > 0 {
		t.lane.stats.ended(o.hop, o.took, o.verdicts...)
	}
}

// note writes v down as the last attempt for w. Where another attempt has ended w already, that stays the last.
func (t *try) note(w *row, o *handOver, v message.Verdict) {
	a := &message.Attempt{Upstream: o.hop.config.Name, Egress: o.hop.egress, Local: o.local, Verdict: v, At: o.at, Took: o.took}
	if v.Class != message.Accepted {
		w.trouble = v.Reply()
		if w.outcome != message.None {
			t.r.spool.Record(t.stepEvent(w, event.Deferred, a))
			return
		}
	}
	if w.attempt != nil {
		t.r.spool.Record(t.stepEvent(w, event.Deferred, w.attempt))
	}
	w.attempt = a
	w.LastUpstream, w.LastReply = a.Upstream, v.Reply()
}

// aborted notes a hand-over that ended before the commit for a reason that is not the upstream's word about the mail.
func (t *try) aborted(o *handOver) {
	if v, ok := o.failure(); ok && o.reserved {
		for _, w := range o.rows {
			t.note(w, o, v)
			t.stepBack(w, o.hop.pair, v)
		}
	}
	if errors.Is(o.err, errLease) { // rows that are still ours are not claimed again at once, under a lease that may be gone
		for _, w := range o.rows {
			w.setBack = max(w.setBack, time.Second)
		}
	}
	t.r.log.LogAttrs(t.r.ctx, slog.LevelDebug, "attempt put off", slog.String("msg_id", t.msg.ID.String()),
		slog.String("stream", t.lane.name), slog.String("upstream", o.hop.config.Name), slog.Any("err", o.err))
}

// What a hand-over has come to, as far as a second thought about it matters.
const (
	uncommitted int32 = iota
	committed
	withdrawn
)

// handOver is one attempt with one upstream.
type handOver struct {
	t         *try
	hop       *hop
	rows      []*row
	place     *ticket
	told      func(error) // tells the breaker of the sending domain; nil where there is none
	ctx       context.Context
	cancel    context.CancelCauseFunc
	stage     atomic.Int32
	committed chan struct{} // closed at the first commit; nil where nobody waits for it

	at       time.Time // check-out
	took     time.Duration
	reserved bool // a slot was in hand
	local    string
	verdicts []message.Verdict // one for each row
	err      error             // or why it ended before the commit: *upstream.Paused, or one of the reasons above
	slot     upstream.Slot     // where a copy may be out; nil where it was given back
}

func (t *try) newHandOver(h *hop, rows []*row, place *ticket, told func(error)) *handOver {
	o := &handOver{t: t, hop: h, rows: rows, place: place, told: told, at: time.Now()}
	o.ctx, o.cancel = context.WithCancelCause(t.r.ctx)
	return o
}

// send makes the attempt.
func (o *handOver) send() {
	defer o.cancel(nil)
	o.verdicts, o.err = o.reserveAndSend()
	o.took = time.Since(o.at)
}

// failure returns the verdict on the upstream where o ended before the commit because of it.
func (o *handOver) failure() (message.Verdict, bool) {
	if p, ok := errors.AsType[*upstream.Paused](o.err); ok {
		v := p.Verdict
		v.RetryAfter = max(v.RetryAfter, p.RetryAfter)
		return v, true
	}
	if !errors.Is(o.err, errCommitTimeout) {
		return message.Verdict{}, false
	}
	return message.Verdict{Class: message.Temporary, Scope: message.ScopeUpstream,
		Text: fmt.Sprintf("%v (%v)", errCommitTimeout, o.hop.commitTimeout)}, true
}

// reserveAndSend reserves, renders, signs and sends.
func (o *handOver) reserveAndSend() ([]message.Verdict, error) {
	t := o.t
	before := time.AfterFunc(min(o.hop.commitTimeout, t.left()), func() { o.cancel(t.timeout()) })
	defer before.Stop()
	slot, err := o.hop.upstream.Reserve(o.ctx, t.lane.name)
	if err != nil {
		if o.ctx.Err() != nil {
			return nil, context.Cause(o.ctx)
		}
		return nil, err
	}
	o.reserved, o.local = true, slot.Local()
	o.hop.pair.learnCaps(slot.Caps())
	verdicts, err := o.through(before, slot)
	if err == nil && slices.ContainsFunc(verdicts, mayBeOut) {
		o.slot = slot
	} else {
		slot.Release()
	}
	return verdicts, err
}

// mayBeOut reports whether v leaves a copy with the upstream, perhaps.
func mayBeOut(v message.Verdict) bool {
	return v.Class == message.Accepted || v.Class == message.Unknown
}

// through makes what slot can take of the message, and hands it over in as many parts as its limit of recipients wants.
func (o *handOver) through(before *time.Timer, slot upstream.Slot) ([]message.Verdict, error) {
	t, rows := o.t, o.rows
	wire, eightBit, err := t.render(o.ctx, o.hop, slot.Caps())
	if err != nil {
		return o.unrendered(o.ctx, err, len(rows))
	}
	if most := o.hop.upstream.Traits().MaxSize; most > 0 && int64(size(wire)) > most {
		return cannotCarry(tooBig(size(wire), most)).Verdicts(len(rows)), nil
	}
	var verdicts []message.Verdict
	for batch := range slices.Chunk(rows, o.batch(slot.Caps(), len(rows))) {
		if len(verdicts) > 0 {
			before.Reset(min(o.hop.commitTimeout, t.left()))
		}
		env := message.Envelope{ID: t.msg.ID, Stream: t.lane.name, Kind: t.lane.kind, From: t.msg.MailFrom,
			SMTPUTF8: t.msg.SMTPUTF8, EightBit: eightBit, Size: size(wire)}
		for _, w := range batch {
			env.To = append(env.To, w.Address)
		}
		if len(env.To) == 1 {
			env.Provided = o.hop.provided(t.msg)
		}
		vs, err := o.hand(before, slot, env, slices.Clone(wire))
		if err != nil {
			if len(verdicts) == 0 {
				return nil, err
			}
			vs = message.Verdict{Class: message.Temporary, Scope: message.ScopeMessage, Text: err.Error()}.Verdicts(len(batch))
		}
		verdicts = append(verdicts, vs...)
	}
	return verdicts, nil
}

// hand makes one Send with the commit gate: the last byte goes only once the message is durable, our lease stands and
// its lifetime has not ended. The commit turns the first timer into the second.
func (o *handOver) hand(before *time.Timer, slot upstream.Slot, env message.Envelope, wire net.Buffers) ([]message.Verdict, error) {
	t, ctx := o.t, o.ctx
	var gate error = errCommitTimeout
	var after *time.Timer
	commit := func() error {
		gate = t.mayCommit(ctx)
		if gate == nil && after == nil && !before.Stop() {
			gate = t.timeout() // at this moment
		}
		if gate == nil {
			gate = o.commit()
		}
		switch {
		case gate != nil:
		case after != nil:
			after.Reset(o.hop.answerTimeout)
		default:
			after = time.AfterFunc(o.hop.answerTimeout, func() { o.cancel(errAnswerTimeout) })
		}
		return gate
	}
	vs := slot.Send(ctx, env, wire, commit)
	if after != nil {
		after.Stop()
	}
	switch {
	case len(vs) == len(env.To):
		if ctx.Err() != nil && after == nil {
			return nil, context.Cause(ctx) // cut short by us before the commit: says nothing about the upstream
		}
		return vs, nil
	case gate != nil:
		return nil, gate
	}
	return message.Verdict{Class: message.Unknown, Scope: message.ScopeUpstream, Text: "the upstream client gave no verdict"}.Verdicts(len(env.To)), nil
}

// mayCommit says whether the bytes that cannot be taken back may go.
func (t *try) mayCommit(ctx context.Context) error {
	if err := t.durable(ctx); err != nil {
		return err
	}
	switch epoch, valid := t.r.spool.Lease(); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case t.expired():
		return errLifetime
	case epoch != t.epoch || !valid(leaseMargin): // who slept through a lease has another by now, without these rows
		return errLease
	}
	return nil
}

// durable waits until the message is known to be stored, and returns why it is not.
func (t *try) durable(ctx context.Context) error {
	if t.put == nil {
		return nil
	}
	select {
	case <-t.put.Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	res, err := t.put.Result()
	if err == nil {
		t.put, t.epoch = nil, res.Epoch
	}
	return err
}

// unrendered turns a failure to render into verdicts: what cannot be expressed for this upstream is its refusal, and
// whatever else went wrong (a key) must defer, since unsigned mail never leaves where signing is set.
func (o *handOver) unrendered(ctx context.Context, err error, n int) ([]message.Verdict, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	v := message.Verdict{Class: message.Temporary, Scope: message.ScopeDomain, Text: err.Error()}
	if e, ok := errors.AsType[*reply.Error](err); ok && !e.Temporary() {
		v = message.Verdict{Class: message.Permanent, Scope: message.ScopeMessage, Code: e.Code, Enhanced: e.Enhanced, Text: e.Text}
	}
	return v.Verdicts(n), nil
}

// batch returns how many recipients one Send may name.
func (o *handOver) batch(caps upstream.Caps, n int) int {
	for _, limit := range []int{o.hop.upstream.Traits().MaxRecipients, caps.MaxRecipients} {
		if limit > 0 {
			n = min(n, limit)
		}
	}
	return n
}

func size(wire net.Buffers) int {
	n := 0
	for _, b := range wire {
		n += len(b)
	}
	return n
}

// left returns what remains of the message's lifetime; just after the wall clock jumped, as much as anybody needs.
func (t *try) left() time.Duration {
	if t.r.clock.jumped() {
		return time.Hour
	}
	return time.Until(t.msg.ExpiresAt)
}

func (t *try) expired() bool { return t.left() <= 0 }

// timeout says which of the two ends came first.
func (t *try) timeout() error {
	if t.expired() {
		return errLifetime
	}
	return errCommitTimeout
}

// stepEvent tells of an attempt that did not decide what became of w, so that trace shows each.
func (t *try) stepEvent(w *row, kind event.Kind, a *message.Attempt) event.Event {
	at := a.At.Add(a.Took)
	if a.At.IsZero() {
		at = time.Now()
	}
	hook, ordered := t.msg.Ordered()
	return event.Event{At: at, Kind: kind, Message: t.msg.ID, N: w.N, Stream: t.lane.name, MailKind: t.lane.kind,
		Upstream: a.Upstream, Address: w.Address, Data: event.Data{Client: t.msg.Client, Hook: hook, Type: ordered, HeaderFrom: t.msg.HeaderFrom, Egress: a.Egress,
			Local: a.Local, Class: a.Verdict.Class, Scope: a.Verdict.Scope, Code: a.Verdict.Code, Reply: a.Verdict.Reply(),
			ProviderID: a.Verdict.ProviderID, Took: event.Millis(a.Took)}}
}
