package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
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
)

// deliver carries one claimed message through its route once, as soon as it has its place in the lane, and settles what
// came of it.
func (r *Relay) deliver(l *lane, g *Generation, d *message.Delivery, place *ticket) {
	defer r.done(l, len(d.Message.Raw))
	t := newTry(r, l, g, d, nil)
	if err := place.wait(r.ctx); err != nil {
		t.putBack()
		l.answer(d.Message.ID, nil)
		return
	}
	defer l.slots.leave()
	t.run()
}

// deliverNew is deliver for a message whose Put is under way in w. Its place in the lane is taken already.
func (r *Relay) deliverNew(l *lane, g *Generation, m *message.Message, w Write) {
	defer r.done(l, len(m.Raw))
	defer l.slots.leave()
	newTry(r, l, g, &message.Delivery{Message: m}, w).run()
}

// done is lane.done. A stream that went and came back in the meantime has another lane, which must look at what was put
// back too.
func (r *Relay) done(l *lane, octets int) {
	l.done(octets)
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
	epoch int64 // under which the rows are ours; for a new message known with put's result
	held  bool
	put   Write // nil once the message is known to be durable
	rows  []*row

	unsettled []upstream.Slot // through which a copy may have gone
}

// row is one recipient during a try.
type row struct {
	message.Recipient
	attempt *message.Attempt // the last one of this try
	outcome message.Outcome
	alarm   string
	judged  bool          // something was said about the message or the recipient, so the ladder applies
	setBack time.Duration // its own hand-over made the upstream give up, so others have their turn first
}

func newTry(r *Relay, l *lane, g *Generation, d *message.Delivery, w Write) *try {
	t := &try{r: r, lane: l, plan: g.plans[l.name], msg: d.Message, epoch: d.Epoch, held: d.Held, put: w}
	for _, rec := range d.Message.Recipients {
		t.rows = append(t.rows, &row{Recipient: rec})
	}
	return t
}

// run walks the route until nobody is left to try for, settles, and tells a waiting client.
func (t *try) run() {
	defer t.release()
	if t.held {
		t.hold()
		return
	}
	for _, h := range t.plan.route {
		rows := t.pending(h)
		if len(rows) == 0 {
			continue
		}
		t.through(h.pair, h, rows)
		if t.expired() || t.r.ctx.Err() != nil {
			break
		}
	}
	if t.durable(context.Background()) != nil {
		return // nothing was sent and nothing was stored; Accept has told the client
	}
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

// release gives back the slots through which copies went that were not settled until now. A slot that could be used
// again before would let a crash make more duplicates than there are slots (engine.md rule 8).
func (t *try) release() {
	for _, slot := range t.unsettled {
		slot.Release()
	}
}

// pending returns the rows that h is to be asked for.
func (t *try) pending(h *hop) []*row {
	var rows []*row
	for _, w := range t.rows {
		if w.outcome == message.None && w.State == message.Queued && !slices.Contains(w.Refused, h.config.Name) {
			rows = append(rows, w)
		}
	}
	return rows
}

// through makes one attempt with h and applies its verdicts to rows.
func (t *try) through(p *pair, h *hop, rows []*row) {
	if p.limit() == 0 {
		return
	}
	at := time.Now()
	h2 := &handOver{t: t, hop: h}
	verdicts, err := h2.send(rows)
	if paused, ok := errors.AsType[*upstream.Paused](err); ok {
		p.pause(t.r, paused.Verdict, paused.RetryAfter, at)
		return
	}
	if err != nil {
		t.aborted(p, h2, rows, at, err)
		return
	}
	for i, v := range verdicts {
		w := rows[i]
		t.note(w, h2, v, at)
		t.apply(w, h, v)
		if v.Scope == message.ScopeUpstream && v.Class != message.Accepted && v.Class != message.Unknown {
			p.pause(t.r, v, v.RetryAfter, at)
			t.stepBack(w, p, v)
		} else if v.Class != message.Unknown {
			p.worked()
		}
	}
}

// note writes v down as the last attempt for w.
func (t *try) note(w *row, o *handOver, v message.Verdict, at time.Time) {
	if w.attempt != nil {
		t.r.spool.Record(t.stepEvent(w))
	}
	w.attempt = &message.Attempt{Upstream: o.hop.config.Name, Egress: o.hop.egress, Local: o.local, Verdict: v, At: at, Took: time.Since(at)}
	w.LastUpstream, w.LastReply = o.hop.config.Name, v.Reply()
}

// aborted notes a hand-over that ended before the commit for a reason that is not the upstream's word.
func (t *try) aborted(p *pair, o *handOver, rows []*row, at time.Time, err error) {
	h := o.hop
	if errors.Is(err, errCommitTimeout) {
		v := message.Verdict{Class: message.Temporary, Scope: message.ScopeUpstream,
			Text: fmt.Sprintf("%v (%v)", errCommitTimeout, h.commitTimeout)}
		if !p.busy(at) {
			p.pause(t.r, v, 0, at)
		}
		if o.reserved {
			for _, w := range rows {
				t.note(w, o, v, at)
				t.stepBack(w, p, v)
			}
		}
	}
	t.r.log.LogAttrs(t.r.ctx, slog.LevelDebug, "attempt put off", slog.String("msg_id", t.msg.ID.String()),
		slog.String("stream", t.lane.name), slog.String("upstream", h.config.Name), slog.Any("err", err))
}

// handOver is one attempt with one upstream.
type handOver struct {
	t        *try
	hop      *hop
	reserved bool // a slot was in hand
	local    string
}

// send reserves, renders, signs and sends. It returns one verdict per row, or the error that ended it before the commit:
// *upstream.Paused, or one of the reasons above.
func (o *handOver) send(rows []*row) ([]message.Verdict, error) {
	t := o.t
	ctx, cancel := context.WithCancelCause(t.r.ctx)
	defer cancel(nil)
	before := time.AfterFunc(min(o.hop.commitTimeout, t.left()), func() { cancel(t.timeout()) })
	defer before.Stop()
	slot, err := o.hop.upstream.Reserve(ctx, t.lane.name)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	o.reserved, o.local = true, slot.Local()
	verdicts, err := o.through(ctx, cancel, before, slot, rows)
	if err == nil && slices.ContainsFunc(verdicts, mayBeOut) {
		t.unsettled = append(t.unsettled, slot)
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
func (o *handOver) through(ctx context.Context, cancel context.CancelCauseFunc, before *time.Timer, slot upstream.Slot, rows []*row) ([]message.Verdict, error) {
	t := o.t
	wire, eightBit, err := o.render(ctx, slot.Caps())
	if err != nil {
		return o.unrendered(ctx, err, len(rows))
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
		vs, err := o.hand(ctx, cancel, before, slot, env, slices.Clone(wire))
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
func (o *handOver) hand(ctx context.Context, cancel context.CancelCauseFunc, before *time.Timer, slot upstream.Slot,
	env message.Envelope, wire net.Buffers) ([]message.Verdict, error) {
	t := o.t
	var gate error = errCommitTimeout
	var after *time.Timer
	commit := func() error {
		if gate = t.mayCommit(ctx); gate == nil {
			before.Stop()
			after = time.AfterFunc(o.hop.answerTimeout, func() { cancel(errAnswerTimeout) })
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
	switch _, valid := t.r.spool.Lease(); {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case t.expired():
		return errLifetime
	case !valid(leaseMargin):
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

// render makes the bytes for this slot: what the next hop needs, then the signature over exactly that.
func (o *handOver) render(ctx context.Context, caps upstream.Caps) (net.Buffers, bool, error) {
	t, traits := o.t, o.hop.upstream.Traits()
	caps.SMTPUTF8 = caps.SMTPUTF8 && t.msg.SMTPUTF8 // offered but not asked for is not there
	raw, eightBit, err := render(t.msg.Raw, caps, traits)
	if err != nil {
		return nil, false, err
	}
	if traits.DKIM != "sign" {
		return net.Buffers{raw}, eightBit, nil
	}
	if t.plan.signer == nil {
		return nil, false, fmt.Errorf("sign for %s: stream %s has no DKIM key", o.hop.config.Name, t.lane.name)
	}
	if err := t.r.signing.enter(ctx, t.lane.kind == message.Auth); err != nil {
		return nil, false, err
	}
	defer t.r.signing.leave()
	fields, err := t.plan.signer.Sign(raw, t.msg.HeaderFrom, traits.NeverSign, traits.OneSignature)
	if err != nil {
		return nil, false, fmt.Errorf("sign for %s: %w", o.hop.config.Name, err)
	}
	return net.Buffers{fields, raw}, eightBit, nil
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

// stepEvent tells of an attempt that was not the last of its try, so that trace shows each.
func (t *try) stepEvent(w *row) event.Event {
	a := w.attempt
	return event.Event{At: time.Now(), Kind: event.Deferred, Message: t.msg.ID, N: w.N, Stream: t.lane.name, MailKind: t.lane.kind,
		Upstream: a.Upstream, Address: w.Address, Data: event.Data{Client: t.msg.Client, HeaderFrom: t.msg.HeaderFrom, Egress: a.Egress,
			Local: a.Local, Class: a.Verdict.Class, Scope: a.Verdict.Scope, Code: a.Verdict.Code, Reply: a.Verdict.Reply(), Took: event.Millis(a.Took)}}
}
