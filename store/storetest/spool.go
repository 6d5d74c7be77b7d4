package storetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

func testRoundTrip(t *testing.T, r *rig) {
	m := r.message("a@example.net", "b@example.net")
	m.SMTPUTF8 = true
	m.Recipients[1].Refused = []string{"one", "two"}
	want := *m
	r.put(t, false, m)
	ds := r.claim(t, "auth")
	if len(ds) != 1 {
		t.Fatalf("%d deliveries, want 1", len(ds))
	}
	d := ds[0]
	if epoch, _ := r.Lease(); d.Epoch != epoch || d.Held != "" {
		t.Errorf("epoch %d, held %q, want %d, \"\"", d.Epoch, d.Held, epoch)
	}
	if !reflect.DeepEqual(*d.Message, want) {
		t.Errorf("claimed\n%+v, want\n%+v", *d.Message, want)
	}
	r.wantState(t, m.ID, "in-flight", "in-flight")
	if again := r.claim(t, "auth"); len(again) != 0 {
		t.Errorf("claimed %d again", len(again))
	}
	r.settle(t, outcome(m, 0, d.Epoch, message.Delivered), outcome(m, 1, d.Epoch, message.Delivered))
	r.wantState(t, m.ID)
	r.wantKinds(t, m.ID, event.Accepted, event.Accepted, event.Delivered, event.Delivered)
}

func testBornOwned(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	res := r.put(t, true, m)
	epoch, _ := r.Lease()
	if res.Epoch != epoch || epoch == 0 {
		t.Errorf("put under epoch %d, lease is %d", res.Epoch, epoch)
	}
	if ds := r.claim(t, "auth"); len(ds) != 0 {
		t.Error("a born-owned message was claimed")
	}
	r.wantKinds(t, m.ID)
	r.settle(t, outcome(m, 0, res.Epoch, message.Delivered))
	r.wantKinds(t, m.ID, event.Delivered)
	unowned := r.message("a@example.net")
	if res := r.put(t, false, unowned); res.Epoch != 0 {
		t.Errorf("an unowned put tells epoch %d", res.Epoch)
	}
}

func testAllOrNone(t *testing.T, r *rig) {
	there, fresh := r.message("a@example.net"), r.message("b@example.net")
	r.put(t, false, there)
	twin := r.message("c@example.net")
	twin.ID = there.ID
	w := r.Put([]*message.Message{fresh, twin}, false)
	<-w.Done()
	if _, err := w.Result(); code(err) != 451 {
		t.Errorf("put of an id that is there: %v, want 451", err)
	}
	r.wantState(t, fresh.ID)
	r.wantState(t, there.ID, "queued")
	r.wantKinds(t, fresh.ID)
}

func testNoRecipients(t *testing.T, r *rig) {
	m := r.message()
	w := r.Put([]*message.Message{m}, false)
	<-w.Done()
	if _, err := w.Result(); code(err) != 451 {
		t.Errorf("put without recipients: %v, want 451", err)
	}
}

func testStaleEpoch(t *testing.T, r *rig) {
	m := r.message("a@example.net", "b@example.net")
	epoch := r.put(t, true, m).Epoch
	lost, err := r.Settle(t.Context(), []message.Settlement{
		outcome(m, 0, epoch-1, message.Delivered), outcome(m, 1, epoch, message.Delivered)})
	if err != nil || !slices.Equal(lost, []message.RecipientID{{Message: m.ID, N: 0}}) {
		t.Errorf("lost %v, err %v, want the first recipient", lost, err)
	}
	r.wantState(t, m.ID, "in-flight")
	r.wantKinds(t, m.ID, event.Delivered)
}

func testSettleTwice(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	epoch := r.put(t, true, m).Epoch
	r.settle(t, outcome(m, 0, epoch, message.Delivered))
	lost, err := r.Settle(t.Context(), []message.Settlement{outcome(m, 0, epoch, message.Delivered)})
	if err != nil || len(lost) != 1 {
		t.Errorf("lost %v, err %v, want one lost", lost, err)
	}
	r.wantKinds(t, m.ID, event.Delivered)
}

func testDefer(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	epoch := r.put(t, true, m).Epoch
	s := outcome(m, 0, epoch, message.None)
	s.Recipient.DueAt = m.AcceptedAt.Add(time.Minute)
	s.Recipient.Attempts, s.Recipient.Copies, s.Recipient.Refused = 3, 1, []string{"one"}
	s.Recipient.LastUpstream, s.Recipient.LastReply = "one", "450 4.2.1 busy"
	s.Attempt = &message.Attempt{Upstream: "one", Egress: "e1", Local: "127.0.0.2", Took: time.Second,
		Verdict: message.Verdict{Class: message.Temporary, Scope: message.ScopeRecipient, Code: 450, Enhanced: "4.2.1", Text: "busy"}}
	s.Alarm = "look"
	r.settle(t, s)
	row := r.rows(t, m.ID)[0]
	if row.State != "queued" || row.Attempts != 3 || row.Copies != 1 || row.LastReply != "450 4.2.1 busy" || !row.DueAt.Equal(s.Recipient.DueAt) {
		t.Errorf("row %+v", row)
	}
	if due, ok, err := r.NextDue(t.Context(), "auth", []string{"e1"}); err != nil || !ok || !due.Equal(s.Recipient.DueAt) {
		t.Errorf("next due %v, %v, %v, want %v", due, ok, err, s.Recipient.DueAt)
	}
	e := r.history(t, m.ID)[0]
	want := event.Data{Client: "logto", HeaderFrom: "example.com", Size: m.Size, AcceptedAt: m.AcceptedAt, ExpiresAt: m.ExpiresAt,
		DueAt: s.Recipient.DueAt, Attempt: 3, Egress: "e1", Local: "127.0.0.2", Class: message.Temporary, Scope: message.ScopeRecipient,
		Code: 450, Reply: "450 4.2.1 busy", Took: event.Millis(time.Second), Total: e.Data.Total, Copies: 1, Alarm: true, Text: "look"}
	if e.Kind != event.Deferred || e.Upstream != "one" || e.Stream != "auth" || !reflect.DeepEqual(e.Data, want) {
		t.Errorf("event %v\n%+v, want\n%+v", e.Kind, e.Data, want)
	}
	if e.Data.Total < 0 || e.Data.Total > event.Millis(time.Minute) {
		t.Errorf("total %v", e.Data.Total)
	}
}

func testPaused(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	epoch := r.put(t, true, m).Epoch
	s := outcome(m, 0, epoch, message.None)
	s.Paused, s.Recipient.Attempts = true, 7
	r.settle(t, s)
	if row := r.rows(t, m.ID)[0]; row.State != "queued" || row.Attempts != 0 || !row.DueAt.Equal(m.Recipients[0].DueAt) {
		t.Errorf("row %+v, want it as it was", row)
	}
	r.wantKinds(t, m.ID)
}

func testLastRecipient(t *testing.T, r *rig) {
	m := r.message("a@example.net", "b@example.net")
	epoch := r.put(t, true, m).Epoch
	r.settle(t, outcome(m, 0, epoch, message.Delivered))
	s := outcome(m, 1, epoch, message.None)
	r.settle(t, s)
	if ds := r.claim(t, "auth"); len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) || len(ds[0].Message.Recipients) != 1 {
		t.Fatalf("the second recipient did not come back whole: %+v", ds)
	}
	r.settle(t, outcome(m, 1, epoch, message.Bounced))
	if _, ok, err := r.NextExpiry(t.Context()); ok || err != nil {
		t.Errorf("something is left: %v, %v", ok, err)
	}
	r.put(t, true, m) // the id is free again only if message and body are gone
}

func testOutcomes(t *testing.T, r *rig) {
	for o, want := range map[message.Outcome]event.Kind{
		message.Delivered: event.Delivered, message.Captured: event.Captured, message.Bounced: event.Bounced,
		message.Unconfirmed: event.Unconfirmed, message.Expired: event.Expired, message.Superseded: event.Superseded,
		message.Suppressed: event.Suppressed, message.Dropped: event.Dropped,
	} {
		m := r.message("a@example.net")
		epoch := r.put(t, true, m).Epoch
		r.settle(t, outcome(m, 0, epoch, o))
		r.wantKinds(t, m.ID, want)
	}
}

func testHeldUnconfirmed(t *testing.T, r *rig) {
	m := r.marketing("a@example.net")
	epoch := r.put(t, true, m).Epoch
	s := outcome(m, 0, epoch, message.None)
	s.Recipient.State, s.Recipient.Copies = message.HeldUnconfirmed, 1
	r.settle(t, s)
	r.wantState(t, m.ID, "held-unconfirmed")
	r.wantKinds(t, m.ID, event.Held)
	if e := r.history(t, m.ID)[0]; e.Data.Class != message.Unknown {
		t.Errorf("verdict %q, want unknown", e.Data.Class)
	}
	if ds := r.claim(t, "news"); len(ds) != 0 {
		t.Error("a held row was claimed")
	}
}

func testMasked(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	epoch := r.put(t, true, m).Epoch
	s := outcome(m, 0, epoch, message.None)
	s.Recipient.LastReply = "your code 735914 at https://x.example/y"
	s.Attempt = &message.Attempt{Upstream: "one", Verdict: message.Verdict{Class: message.Temporary, Code: 450,
		Text: "code 735914", ProviderID: "id\r\nx\x00" + strings.Repeat("é", 300)}}
	r.settle(t, s)
	if row := r.rows(t, m.ID)[0]; row.LastReply != "your code … at …" {
		t.Errorf("stored reply %q", row.LastReply)
	}
	e := r.history(t, m.ID)[0]
	if e.Data.Reply != "450 code …" || !strings.HasPrefix(e.Data.ProviderID, "idxé") || len(e.Data.ProviderID) > 256 {
		t.Errorf("event's reply %q, provider id %q", e.Data.Reply, e.Data.ProviderID)
	}
}

func testRelease(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	r.put(t, true, m)
	if err := r.Release(t.Context(), []message.RecipientID{{Message: m.ID}}); err != nil {
		t.Fatal(err)
	}
	if row := r.rows(t, m.ID)[0]; row.State != "queued" || row.MaybeSent || !row.DueAt.Equal(m.Recipients[0].DueAt) {
		t.Errorf("row %+v", row)
	}
	if ds := r.claim(t, "auth"); len(ds) != 1 {
		t.Errorf("claimed %d, want 1", len(ds))
	}
}

func testRecovery(t *testing.T, r *rig) {
	owned, waiting := r.message("a@example.net"), r.marketing("b@example.net")
	owned.Recipients[0].DueAt = time.Now().Add(time.Hour)
	old := r.put(t, true, owned).Epoch
	r.put(t, false, waiting)
	r.restart(t)
	epoch, _ := r.Lease()
	if epoch <= old {
		t.Errorf("epoch %d after %d", epoch, old)
	}
	ds := r.claim(t, "auth")
	if len(ds) != 1 || !ds[0].Message.Recipients[0].MaybeSent || ds[0].Message.Recipients[0].Copies != 1 {
		t.Fatalf("claimed %+v, want the owned row, marked", ds)
	}
	if ds[0].Message.Recipients[0].DueAt.After(time.Now()) {
		t.Error("it is not due at once")
	}
	r.wantKinds(t, owned.ID, event.Recovered)
	if e := r.history(t, owned.ID)[0]; !e.Data.MaybeSent || e.Data.Copies != 1 {
		t.Errorf("event's data %+v", e.Data)
	}
	if ds := r.claim(t, "news"); len(ds) != 1 || ds[0].Message.Recipients[0].MaybeSent {
		t.Errorf("claimed %+v, want the waiting row, not marked", ds)
	}
	lost, err := r.Settle(t.Context(), []message.Settlement{outcome(owned, 0, old, message.Delivered)})
	if err != nil || len(lost) != 1 {
		t.Errorf("the dead incarnation settled: lost %v, err %v", lost, err)
	}
}

func testIDs(t *testing.T, r *rig) {
	last := r.NewID()
	for range 10000 { // more than a millisecond's counter holds
		id := r.NewID()
		if id <= last {
			t.Fatalf("id %v after %v", id, last)
		}
		last = id
	}
	ahead := r.message("a@example.net")
	ahead.ID = message.NewID(time.Now().Add(time.Hour), 1, 4095)
	r.put(t, false, ahead)
	r.restart(t)
	if id := r.NewID(); id <= ahead.ID {
		t.Errorf("id %v after %v in the queue", id, ahead.ID)
	}
	if _, _, err := r.Drop(t.Context(), message.QueueFilter{}); err != nil {
		t.Fatal(err)
	}
	r.restart(t)
	if id := r.NewID(); id <= ahead.ID {
		t.Errorf("id %v after %v in history", id, ahead.ID)
	}
}

func testWake(t *testing.T, r *rig) {
	c := r.Wake("auth")
	if c != r.Wake("auth") {
		t.Error("another channel at the second call")
	}
	want := func(what string) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(2 * time.Second):
			t.Errorf("%s did not wake the lane", what)
		}
		select {
		case <-c:
			t.Errorf("%s woke the lane twice", what)
		default:
		}
	}
	m := r.message("a@example.net", "b@example.net")
	r.put(t, true, r.message("c@example.net"))
	select {
	case <-c:
		t.Error("a born-owned put woke the lane")
	default:
	}
	r.put(t, false, m)
	want("a put")
	f := message.QueueFilter{IDs: []message.ID{m.ID}}
	for _, step := range []struct {
		name string
		do   func(context.Context, message.QueueFilter) (int, int, error)
	}{{"a retry", r.Retry}, {"a release after a hold", r.Unhold}} {
		if step.name != "a retry" {
			if _, _, err := r.Hold(t.Context(), f); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := step.do(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		want(step.name)
	}
	if err := r.HoldStream(t.Context(), "auth", false); err != nil {
		t.Fatal(err)
	}
	want("a stream's release")
}

func testLease(t *testing.T, r *rig) {
	epoch, valid := r.Lease()
	if epoch <= 0 || !valid(5*time.Second) {
		t.Errorf("epoch %d, valid %v", epoch, valid(5*time.Second))
	}
	r.stop(t)
	if valid(0) {
		t.Error("the lease outlives the store")
	}
	r.Store = r.Open(t, r.dir, r)
}

func testConcurrency(t *testing.T, r *rig) {
	const producers, each = 8, 25
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			for i := range each {
				m := r.message(fmt.Sprintf("a%d.%d@example.net", p, i), "b@example.net")
				w := r.Put([]*message.Message{m}, i%2 == 0)
				<-w.Done()
				res, err := w.Result()
				if err != nil {
					t.Error(err)
				} else if i%2 == 0 {
					r.Settle(t.Context(), []message.Settlement{outcome(m, 0, res.Epoch, message.Delivered), outcome(m, 1, res.Epoch, message.None)})
				}
			}
		})
	}
	delivered := make(chan int, 1)
	go func() {
		n := 0
		for end := time.Now().Add(20 * time.Second); n < producers*(each/2*2+each/2+1) && time.Now().Before(end); {
			ds, err := r.Claim(t.Context(), "auth", []string{"e1"}, 50, 1<<20)
			if err != nil {
				break
			}
			for _, d := range ds {
				var s []message.Settlement
				for i := range d.Message.Recipients {
					s = append(s, outcome(d.Message, i, d.Epoch, message.Delivered))
				}
				lost, err := r.Settle(t.Context(), s)
				if err != nil || len(lost) > 0 {
					t.Errorf("lost %v, err %v", lost, err)
				}
				n += len(s)
			}
			r.NextDue(t.Context(), "auth", []string{"e1"})
			r.Lanes(t.Context())
		}
		delivered <- n
	}()
	wg.Wait()
	if n, want := <-delivered, producers*(each/2*2+each/2+1); n != want {
		t.Errorf("%d delivered from the queue, want %d", n, want)
	}
	rows, err := r.List(t.Context(), message.QueueFilter{})
	if err != nil || len(rows) != 0 {
		t.Errorf("%d rows are left, err %v", len(rows), err)
	}
	ends := map[message.RecipientID]int{}
	for _, e := range r.emitted() {
		if e.Kind == event.Delivered {
			ends[message.RecipientID{Message: e.Message, N: e.N}]++
		}
	}
	eventually(t, "every recipient has its event", func() bool {
		clear(ends)
		for _, e := range r.emitted() {
			if e.Kind == event.Delivered {
				ends[message.RecipientID{Message: e.Message, N: e.N}]++
			}
		}
		return len(ends) == producers*each*2
	})
	if most := slices.Max(slices.Collect(maps.Values(ends))); most != 1 {
		t.Errorf("a recipient ended %d times", most)
	}
}

func testCloseFlushes(t *testing.T, r *rig) {
	var writes []interface {
		Done() <-chan struct{}
		Result() (message.PutResult, error)
	}
	for range 20 {
		writes = append(writes, r.Put([]*message.Message{r.message("a@example.net")}, false))
	}
	r.stop(t)
	for _, w := range writes {
		<-w.Done()
		if _, err := w.Result(); err != nil {
			t.Errorf("a put before close: %v", err)
		}
	}
	if n := len(r.emitted()); n != 20 {
		t.Errorf("%d events were handed on before close returned, want 20", n)
	}
	r.Store = r.Open(t, r.dir, r)
	if rows, err := r.List(t.Context(), message.QueueFilter{}); len(rows) != 20 || err != nil {
		t.Errorf("%d rows, err %v, want 20", len(rows), err)
	}
}

func testClosed(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	r.stop(t)
	w := r.Put([]*message.Message{m}, false)
	<-w.Done()
	if _, err := w.Result(); code(err) != 451 {
		t.Errorf("put: %v, want 451", err)
	}
	if _, err := r.Claim(t.Context(), "auth", []string{"e1"}, 1, 1); err == nil {
		t.Error("claim succeeded")
	}
	if _, err := r.List(t.Context(), message.QueueFilter{}); err == nil {
		t.Error("list succeeded")
	}
	if err := r.Ready(message.Auth); code(err) != 451 {
		t.Errorf("ready: %v, want 451", err)
	}
	r.Store = r.Open(t, r.dir, r)
}
