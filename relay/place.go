package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"gatepost/message"
)

// foremost returns the hop that t's mail goes to first as things stand; nil where none can be used.
func (t *try) foremost() *hop {
	var busy *hop
	for _, h := range t.rows[0].way {
		switch {
		case !h.takes(t.msg.HeaderFrom):
		case !h.pair.trying() || !h.pair.places.full():
			return h
		case busy == nil:
			busy = h
		}
	}
	return busy
}

// takes reports whether h may be asked to take mail of domain.
func (h *hop) takes(domain string) bool { return h.pair.limit() > 0 && !h.pair.domains.has(domain) }

// takePlace takes a place at the foremost hop or gets in line there. Where that is still trying, a place must be free.
func (t *try) takePlace() bool {
	h := t.foremost()
	switch {
	case h == nil:
	case h.pair.trying():
		t.place, t.placeAt = h.pair.places.tryEnter(), h.pair
	default:
		t.place, t.placeAt = h.pair.places.queue(false), h.pair
	}
	return t.place != nil
}

// lineUp gets in line at the foremost hop, so that mail goes out in the order in which this is called.
func (t *try) lineUp() {
	if h := t.foremost(); h != nil {
		t.place, t.placeAt = h.pair.places.queue(false), h.pair
	}
}

// dropPlace gives back a place that was taken in advance and not used.
func (t *try) dropPlace() {
	if t.place != nil {
		t.place.drop()
		t.place = nil
	}
}

// enter waits for a place at h. It returns nil where rows had better go on to the next hop: h pauses, or is busy for longer
// than commit_timeout while others could take them, or works again but has not got all of its places back yet.
func (t *try) enter(h *hop, rows []*row) *ticket {
	place := t.place
	if place != nil && t.placeAt == h.pair {
		t.place = nil
	} else {
		place = h.pair.places.queue(false)
	}
	if !place.isIn() && !t.wait(place, h, rows) {
		return nil
	}
	t.dropPlace()
	return place
}

// wait waits in line at h, as long as enter says.
func (t *try) wait(place *ticket, h *hop, rows []*row) bool {
	elsewhere := slices.ContainsFunc(rows, func(w *row) bool {
		return slices.ContainsFunc(w.way, func(h *hop) bool { return h.takes(t.msg.HeaderFrom) })
	})
	if elsewhere && h.pair.trying() {
		place.drop()
		for _, w := range rows {
			w.crowded = true
		}
		return false
	}
	t.dropPlace()
	ctx, cancel := context.WithCancelCause(t.r.ctx)
	defer cancel(nil)
	defer context.AfterFunc(h.pair.opened(), func() { cancel(errPaused) })()
	if elsewhere {
		defer time.AfterFunc(h.commitTimeout, func() { cancel(errCommitTimeout) }).Stop()
	}
	began := time.Now()
	t.signAhead(ctx, h)
	err := place.wait(ctx)
	if errors.Is(err, errCommitTimeout) {
		t.noPlace(h, rows, began)
	}
	return err == nil
}

// noPlace notes that rows found no place at h since began. Where nobody else's mail got through meanwhile either, the
// upstream hangs, and so would all that comes.
func (t *try) noPlace(h *hop, rows []*row, began time.Time) {
	text := fmt.Sprintf("no connection came free for %v", h.commitTimeout)
	for _, w := range rows {
		w.trouble = text
	}
	if !h.pair.busy(began) {
		h.pair.pause(t.r, message.Verdict{Class: message.Temporary, Scope: message.ScopeUpstream, Text: text}, 0, began)
	}
}
