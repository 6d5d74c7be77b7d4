package relay

import (
	"cmp"
	"slices"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

// maxCopies is how many hand-overs of an auth message may have reached somebody before gatepost stops: the first, and
// one more after an unknown verdict (promise 2).
const maxCopies = 2

// apply does to w what verdict v of hop h means (engine.md rules 4 and 6). Only recipient scope ends a recipient at
// once; message scope ends it when the whole route has refused; domain and upstream scope never do.
func (t *try) apply(w *row, h *hop, v message.Verdict) {
	w.alarm = cmp.Or(v.Alarm, w.alarm) // also where the next upstream takes it
	switch {
	case v.Class == message.Accepted:
		w.outcome = message.Delivered
		if h.upstream.Traits().Captures {
			w.outcome = message.Captured
		}
		t.credit(w, h)
	case v.Class == message.Unknown:
		t.unknown(w)
	case v.Scope == message.ScopeUpstream: // the pair is paused, and the row steps back
	case v.Class == message.Permanent && v.Scope == message.ScopeRecipient:
		w.outcome = message.Bounced
	case v.Class == message.Permanent && v.Scope == message.ScopeMessage:
		w.Refused = append(slices.Clone(w.Refused), h.config.Name)
		w.judged = true
		if t.plan.haveRefused(w) {
			w.outcome = message.Bounced
		}
	default:
		w.judged = true
		switch {
		case v.Scope == message.ScopeDomain && v.Code == 0: // no reply: the trouble is ours
			w.alarm = "mail from " + t.msg.HeaderFrom + " cannot be made ready: " + v.Text
		case v.Scope == message.ScopeDomain: // the domain's breaker tells
		case v.Class == message.Unauthorised:
			w.alarm = "upstream " + h.config.Name + " does not take mail from " + t.msg.HeaderFrom
		case t.lane.kind != message.Auth:
			w.way = nil // the next upstream has its turn with the next try
		}
	}
}

// haveRefused reports whether every upstream of the route has refused w.
func (p *plan) haveRefused(w *row) bool {
	return !slices.ContainsFunc(p.route, func(h *hop) bool { return !slices.Contains(w.Refused, h.config.Name) })
}

// dismiss ends those whom nobody is left to be asked for: who might have taken them is out of the route since.
func (t *try) dismiss() {
	for _, w := range t.rows {
		if w.State == message.Queued && t.plan.haveRefused(w) {
			w.outcome = message.Bounced
			w.attempt = &message.Attempt{Upstream: w.LastUpstream, At: time.Now(), Verdict: message.Verdict{Class: message.Permanent,
				Scope: message.ScopeMessage, Text: "all upstreams that are left in the route have refused the message"}}
		}
	}
}

// credit notes which upstream has taken w, where that is not the one it began at.
func (t *try) credit(w *row, h *hop) {
	arm := t.arm
	if h == arm {
		return
	}
	t.lane.stats.failedOver(arm)
	refused := slices.Contains(w.Refused, arm.config.Name) // this mail, which says nothing about others
	if refused || w.hedged || w.crowded || arm.pair.domains.has(t.msg.HeaderFrom) {
		return
	}
	arm.pair.passed(t.r, h, w.trouble)
}

// stepBack puts w, whose own hand-over had upstream-scope verdict v, behind the others. It may be what the upstream
// chokes on, and going first again after each resume it would keep everybody's mail from leaving until it expires.
// Where others have got through since the pair last resumed the suspicion grows, and so does the wait. Who is the first to
// learn that the credentials are refused is not kept back for as long as that lasts: they may be mended any moment.
func (t *try) stepBack(w *row, p *pair, v message.Verdict) {
	back := p.turn(v)
	if v.Class == message.Unauthorised && w.before != v.Reply() {
		back = p.shortly()
	}
	if p.works() {
		if w.Attempts > 0 {
			back = max(back*time.Duration(w.Attempts), wait(t.plan.stream.Retry, w.Attempts))
		}
		w.choked = true
	}
	w.setBack = max(w.setBack, back)
}

// unknown handles a lost answer. For auth one more copy is better than none; marketing waits for an operator.
func (t *try) unknown(w *row) {
	w.Copies++
	w.judged, w.lost = true, true
	if t.lane.kind != message.Auth {
		w.State = message.HeldUnconfirmed
		w.alarm = "the upstream's answer was lost; held until it is released or expires"
	}
}

// conclude ends those of rows whose copies are used up, now that no answer is to come any more.
func (t *try) conclude(rows []*row) {
	for _, w := range rows {
		if w.lost && w.outcome == message.None && t.lane.kind == message.Auth && w.Copies >= maxCopies {
			w.outcome = message.Unconfirmed
			w.alarm = "the upstream's answer was lost again; no further copy is sent"
		}
	}
}

// settlements turns what the rows have become into what the spool is to write. A row that nothing was said about goes
// back as it was.
func (t *try) settlements() []message.Settlement {
	ss := make([]message.Settlement, 0, len(t.rows))
	kept := t.keep()
	for _, w := range t.rows {
		s := message.Settlement{Message: t.msg, Epoch: t.epoch, Attempt: cmp.Or(w.attempt, w.barred), Outcome: w.outcome, Alarm: w.alarm}
		if w.setBack == 0 && len(w.Refused) > 0 && t.lane.limit() > 0 && t.r.ctx.Err() == nil {
			w.judged = true // whoever has not refused it cannot be used, and asking again at once would not help
		}
		if w.judged || w.choked || w.outcome != message.None {
			w.Attempts++
		}
		switch {
		case w.outcome != message.None:
		case w.judged:
			w.DueAt = time.Now().Add(wait(t.plan.stream.Retry, w.Attempts))
		case w.setBack > 0:
			w.DueAt = time.Now().Add(w.setBack)
		default:
			s.Paused = true
		}
		if w.outcome == message.None && !s.Paused {
			s.Signature, kept = kept, nil
		}
		s.Recipient = w.Recipient
		ss = append(ss, s)
	}
	return ss
}

// wait returns the step of the ladder that follows the attempt-th try; the last step repeats.
func wait(ladder []time.Duration, attempt int) time.Duration {
	return ladder[min(attempt, len(ladder))-1]
}

// refusal returns the 5xx that a waiting client may be told: every recipient refused for good, by recipient or message
// scope. The words are ours; the upstream's are in the log and in trace.
func (t *try) refusal() *reply.Error {
	for _, w := range t.rows {
		if w.outcome != message.Bounced || w.Copies > 0 { // one whose answer was lost may have arrived
			return nil
		}
	}
	v := t.rows[0].attempt.Verdict
	text := "the mail service refused the message"
	if v.Scope == message.ScopeRecipient {
		text = "the mail service refused the recipient address"
	}
	e := reply.New(550, "5.0.0", "%s (id %s)", text, t.msg.ID)
	if len(v.Enhanced) > 2 && v.Enhanced[:2] == "5." {
		e.Enhanced = v.Enhanced
	}
	if v.Code >= 550 && v.Code <= 554 {
		e.Code = v.Code
	}
	return e
}

// hold puts a message whose body cannot be opened out of the way of the others.
func (t *try) hold() {
	var ss []message.Settlement
	for _, w := range t.rows {
		w.State = message.Held
		ss = append(ss, message.Settlement{Message: t.msg, Epoch: t.epoch, Recipient: w.Recipient, Alarm: t.held})
	}
	t.r.settle(t.msg, ss)
}
