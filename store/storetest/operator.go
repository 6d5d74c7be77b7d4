package storetest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// change applies an operator's change and checks what it counts.
func (r *rig) change(t *testing.T, do func(context.Context, message.QueueFilter) (int, int, error), f message.QueueFilter, changed, inFlight int) {
	t.Helper()
	c, i, err := do(t.Context(), f)
	if err != nil || c != changed || i != inFlight {
		t.Errorf("changed %d, in flight %d, err %v, want %d, %d", c, i, err, changed, inFlight)
	}
}

func testOperator(t *testing.T, r *rig) {
	m := r.message("a@example.net", "b@example.net")
	m.Recipients[0].DueAt = time.Now().Add(time.Hour)
	m.Recipients[1].DueAt = m.Recipients[0].DueAt
	r.put(t, false, m)
	all := message.QueueFilter{IDs: []message.ID{m.ID}}
	one := message.QueueFilter{IDs: []message.ID{m.ID}, Address: "b@example.net"}
	r.change(t, r.Hold, all, 2, 0)
	r.change(t, r.Hold, all, 0, 0)
	r.wantState(t, m.ID, "held", "held")
	r.change(t, r.Retry, all, 0, 0) // a held row is not for retry
	if ds := r.claim(t, "auth"); len(ds) != 0 {
		t.Error("a held row was claimed")
	}
	r.change(t, r.Unhold, one, 1, 0)
	r.wantState(t, m.ID, "held", "queued")
	if ds := r.claim(t, "auth"); len(ds) != 1 || len(ds[0].Message.Recipients) != 1 {
		t.Errorf("claimed %+v, want the released recipient", ds)
	}
	r.change(t, r.Drop, message.QueueFilter{Address: "a@example.net"}, 1, 0)
	r.wantState(t, m.ID, "in-flight")
	r.wantKinds(t, m.ID, event.Accepted, event.Accepted, event.Held, event.Held, event.Released, event.Dropped)

	late := r.message("c@example.net")
	late.Recipients[0].DueAt = time.Now().Add(time.Hour)
	r.put(t, false, late)
	r.change(t, r.Retry, message.QueueFilter{IDs: []message.ID{late.ID}}, 1, 0)
	if ds := r.claim(t, "auth"); len(ds) != 1 {
		t.Errorf("claimed %d after retry, want 1", len(ds))
	}

	unsure := r.marketing("d@example.net")
	unsure.Recipients[0].State = message.HeldUnconfirmed
	r.put(t, false, unsure)
	r.change(t, r.Unhold, message.QueueFilter{State: new(message.HeldUnconfirmed)}, 1, 0)
	r.wantState(t, unsure.ID, "queued")
	r.change(t, r.Drop, message.QueueFilter{Stream: "news"}, 1, 0)
	r.put(t, true, unsure) // message and body are gone
}

func testOperatorInFlight(t *testing.T, r *rig) {
	owned, waiting := r.message("a@example.net"), r.message("b@example.net")
	epoch := r.put(t, true, owned).Epoch
	r.put(t, false, waiting)
	all := message.QueueFilter{Stream: "auth"}
	r.change(t, r.Hold, all, 1, 1)
	r.change(t, r.Unhold, all, 1, 1)
	r.change(t, r.Retry, all, 1, 1)
	r.change(t, r.Drop, all, 1, 1)
	r.settle(t, outcome(owned, 0, epoch, message.Delivered))
}

func testOperatorMany(t *testing.T, r *rig) {
	for range 50 {
		var to []string
		for i := range 10 {
			to = append(to, fmt.Sprintf("a%d@example.net", i))
		}
		r.put(t, false, r.marketing(to...))
	}
	r.change(t, r.Hold, message.QueueFilter{Stream: "news", Limit: 3}, 3, 0)
	r.change(t, r.Hold, message.QueueFilter{Stream: "news"}, 497, 0)
	r.change(t, r.Drop, message.QueueFilter{State: new(message.Held)}, 500, 0)
	if rows, err := r.List(t.Context(), message.QueueFilter{}); len(rows) != 0 || err != nil {
		t.Errorf("%d rows are left, err %v", len(rows), err)
	}
}

func testFilters(t *testing.T, r *rig) {
	a, b, c := r.message("x@example.net", "y@example.net"), r.marketing("x@example.net"), r.message("z@example.net")
	b.Recipients[0].State = message.Held
	r.put(t, false, a, b)
	r.put(t, true, c)
	for name, tt := range map[string]struct {
		f    message.QueueFilter
		want []message.ID
	}{
		"all, in order":         {message.QueueFilter{}, []message.ID{a.ID, a.ID, b.ID, c.ID}},
		"ids":                   {message.QueueFilter{IDs: []message.ID{c.ID, a.ID}}, []message.ID{a.ID, a.ID, c.ID}},
		"stream":                {message.QueueFilter{Stream: "news"}, []message.ID{b.ID}},
		"address":               {message.QueueFilter{Address: "x@example.net"}, []message.ID{a.ID, b.ID}},
		"state":                 {message.QueueFilter{State: new(message.Held)}, []message.ID{b.ID}},
		"queued, not in flight": {message.QueueFilter{State: new(message.Queued)}, []message.ID{a.ID, a.ID}},
		"after":                 {message.QueueFilter{After: a.ID}, []message.ID{b.ID, c.ID}},
		"both":                  {message.QueueFilter{Stream: "auth", Address: "x@example.net"}, []message.ID{a.ID}},
		"none":                  {message.QueueFilter{Stream: "auth' OR 1=1 --"}, nil},
	} {
		rows, err := r.List(t.Context(), tt.f)
		var got []message.ID
		for _, row := range rows {
			got = append(got, row.ID)
		}
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, err %v, want %v", name, got, err, tt.want)
		}
	}
	if _, err := r.List(t.Context(), message.QueueFilter{IDs: make([]message.ID, 1001)}); err == nil {
		t.Error("a list of 1001 ids was taken")
	}
}

func testPaging(t *testing.T, r *rig) {
	for range 3 {
		r.put(t, false, r.marketing("a@example.net", "b@example.net", "c@example.net"))
	}
	var f message.QueueFilter
	for f.Limit = 2; ; {
		rows, err := r.List(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			break
		}
		if len(rows) != 3 || rows[0].ID != rows[2].ID {
			t.Errorf("a page of %d rows, want one whole message", len(rows))
		}
		f.After = rows[len(rows)-1].ID
	}
	if f.After == 0 {
		t.Error("nothing was listed")
	}
}

func testHoldStream(t *testing.T, r *rig) {
	if err := r.HoldStream(t.Context(), "news", true); err != nil {
		t.Fatal(err)
	}
	if !r.StreamHeld("news") || r.StreamHeld("auth") {
		t.Error("not news alone is held")
	}
	r.restart(t)
	if !r.StreamHeld("news") {
		t.Error("the hold was forgotten")
	}
	if err := r.HoldStream(t.Context(), "news", false); err != nil {
		t.Fatal(err)
	}
	if r.StreamHeld("news") {
		t.Error("news is still held")
	}
	r.restart(t)
	if r.StreamHeld("news") {
		t.Error("the release was forgotten")
	}
}

func testLanes(t *testing.T, r *rig) {
	first := r.message("a@example.net", "b@example.net")
	held := r.message("c@example.net")
	held.Recipients[0].State = message.Held
	r.put(t, false, first, held)
	r.put(t, true, r.message("d@example.net"), r.marketing("e@example.net"))
	lanes, err := r.Lanes(t.Context())
	if err != nil || len(lanes) != 2 {
		t.Fatalf("%+v, err %v", lanes, err)
	}
	if want := (message.LaneCount{Lane: "auth", Queued: 2, InFlight: 1, Held: 1, Oldest: first.AcceptedAt}); lanes[0] != want {
		t.Errorf("%+v, want %+v", lanes[0], want)
	}
	if lanes[1].Lane != "news" || lanes[1].InFlight != 1 || lanes[1].Queued != 0 {
		t.Errorf("%+v", lanes[1])
	}
}

func testEventOrder(t *testing.T, r *rig) {
	for range 10 {
		m := r.message("a@example.net")
		epoch := r.put(t, true, m).Epoch
		r.settle(t, outcome(m, 0, epoch, message.Delivered))
		bad := r.message("b@example.net")
		bad.ID = 0
		bad.Recipients = nil
		<-r.Put([]*message.Message{r.message("c@example.net"), bad}, false).Done() // draws numbers, then fails
	}
	r.restart(t)
	m := r.message("a@example.net")
	r.put(t, false, m)
	eventually(t, "the last event", func() bool {
		es := r.emitted()
		return len(es) > 0 && es[len(es)-1].Message == m.ID
	})
	for i, e := range r.emitted() {
		if e.Seq != int64(i+1) {
			t.Fatalf("event %d has number %d", i+1, e.Seq)
		}
		if e.Address != "a@example.net" || e.MailKind != message.Auth {
			t.Errorf("event %d was emitted with address %q, kind %q", e.Seq, e.Address, e.MailKind)
		}
	}
}

func testRecord(t *testing.T, r *rig) {
	id := r.NewID()
	r.Record(event.Event{Kind: event.Deferred, Message: id, Stream: "auth", Upstream: "one", Data: event.Data{Text: "first"}},
		event.Event{Kind: event.Alarm, Message: id, Data: event.Data{Alarm: true, Text: "second"}})
	eventually(t, "the events", func() bool { return len(r.emitted()) == 2 })
	es := r.history(t, id)
	if len(es) != 2 || es[0].Data.Text != "first" || es[1].Data.Text != "second" || es[0].At.IsZero() || es[0].Upstream != "one" {
		t.Errorf("history %+v", es)
	}
}
