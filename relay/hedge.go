package relay

import (
	"slices"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// mayHedge reports whether a second copy may go out beside o. The bytes of a message to several cannot be told apart by
// recipient once they are out, so only mail to one is sent twice.
func (t *try) mayHedge(o *handOver) bool {
	return o.hop.hedgeAfter > 0 && len(t.rows) == 1 && len(o.rows[0].way) > 0 && o.rows[0].Copies+1 < maxCopies
}

// hedge makes the attempt o and, where its answer does not come within hedge_after of its commit, another one beside it.
func (t *try) hedge(o *handOver) {
	o.committed = make(chan struct{})
	t.answers = make(chan *handOver, 1+len(o.rows[0].way))
	t.launch(o)
	var due <-chan time.Time
	for pending := o.committed; ; {
		select {
		case <-pending:
			timer := time.NewTimer(o.hop.hedgeAfter)
			defer timer.Stop()
			pending, due = nil, timer.C
		case <-due:
			t.race(o)
			return
		case <-t.answers:
			t.land(o)
			return
		}
	}
}

// launch makes the attempt o beside the caller, who takes it from answers when it has ended.
func (t *try) launch(o *handOver) {
	t.r.sends.Go(func() {
		o.send()
		t.answers <- o
	})
}

// race sends a second copy beside first, which has no answer yet; through the next upstream, or where that does not take
// it the one behind. The first acceptance ends the matter. A copy that is not out by then is withdrawn; the answer to one
// that is comes late.
func (t *try) race(first *handOver) {
	w := first.rows[0]
	running := []*handOver{first}
	for len(running) > 0 {
		if len(running) == 1 && running[0] == first && w.outcome == message.None && w.Copies == 0 {
			if o := t.second(w); o != nil {
				t.launchSecond(first, o)
				running = append(running, o)
			}
		}
		o := <-t.answers
		running = slices.DeleteFunc(running, func(r *handOver) bool { return r == o })
		w.hedged = slices.Contains(running, first)
		t.land(o)
		if w.outcome == message.Delivered || w.outcome == message.Captured {
			t.leaveBehind(running, w)
			return
		}
	}
}

// second takes the next hop of w that has a place for it, or returns nil.
func (t *try) second(w *row) *handOver {
	for i, h := range w.way {
		if !h.takes(t.msg.HeaderFrom) || h.carries(t.msg) != nil {
			continue
		}
		told, _, ok := h.pair.domains.ask(t.msg.HeaderFrom)
		if !ok {
			continue
		}
		place := h.pair.places.tryEnter()
		if place == nil {
			if told != nil {
				told(errDomainUntold)
			}
			continue
		}
		w.way = slices.Concat(w.way[:i], w.way[i+1:])
		return t.newHandOver(h, []*row{w}, place, told)
	}
	return nil
}

// launchSecond sends the second copy o while first does not answer, and says so.
func (t *try) launchSecond(first, o *handOver) {
	t.lane.stats.hedged(first.hop)
	w := first.rows[0]
	e := t.stepEvent(w, event.Hedged, &message.Attempt{Upstream: o.hop.config.Name, Egress: o.hop.egress})
	e.Data.Copies = w.Copies + 2
	e.Data.Text = "a second copy on purpose: upstream " + first.hop.config.Name + " has not answered for " + first.hop.hedgeAfter.String()
	t.r.spool.Record(e)
	t.launch(o)
}

// leaveBehind lets go of those that are running still, now that w has been accepted.
func (t *try) leaveBehind(running []*handOver, w *row) {
	for _, o := range running {
		if !o.withdraw() {
			w.Copies++
		}
	}
	t.late = running
}

// listen waits for what became of hand-overs that were left behind, and notes what was said.
func (t *try) listen() {
	for range t.late {
		o := <-t.answers
		t.judge(o)
		for i, v := range o.verdicts {
			e := t.stepEvent(o.rows[i], event.Answered, &message.Attempt{Upstream: o.hop.config.Name, Egress: o.hop.egress,
				Local: o.local, Verdict: v, Took: o.took})
			e.Data.Text = "another copy had been accepted before"
			t.r.spool.Record(e)
		}
	}
}

// commit notes that the bytes which cannot be taken back go now, unless o was withdrawn.
func (o *handOver) commit() error {
	switch {
	case o.stage.CompareAndSwap(uncommitted, committed):
		if o.committed != nil {
			close(o.committed)
		}
	case o.stage.Load() == withdrawn:
		return errWithdrawn
	}
	return nil
}

// withdraw ends o where it is not committed, and reports whether it could. Otherwise only its answer is still wanted: what
// turns out not to have been taken is not sent again, in other words or over another connection.
func (o *handOver) withdraw() bool {
	if o.stage.Swap(withdrawn) != uncommitted {
		return false
	}
	o.cancel(errWithdrawn)
	return true
}
