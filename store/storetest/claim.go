package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

func testOrder(t *testing.T, r *rig) {
	now := time.Now()
	var want []message.ID
	for i, ago := range []time.Duration{3, 1, 2} {
		m := r.marketing("a@example.net")
		m.Recipients[0].DueAt = now.Add(-ago * time.Minute)
		m.Recipients[0].Need = []string{"e1", "e2", "e1"}[i]
		r.put(t, false, m)
		want = append(want, m.ID)
	}
	want[1], want[2] = want[2], want[1]
	var got []message.ID
	for _, d := range r.claim(t, "news", "e1", "e2") {
		got = append(got, d.Message.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("claimed %v, want %v", got, want)
	}
}

func testClaimBounds(t *testing.T, r *rig) {
	for range 3 {
		m := r.marketing("a@example.net", "b@example.net")
		m.Raw = bytes.Repeat([]byte("x"), 1000)
		m.Size = len(m.Raw)
		r.put(t, false, m)
	}
	for _, step := range []struct {
		max      int
		maxBytes int64
		want     string
	}{
		{0, 1 << 20, "[]"},
		{1, 1 << 20, "[1]"},   // a message may come in parts
		{100, 1, "[1]"},       // at least one message, the rest of the first
		{100, 1999, "[2]"},    // not two of 1000 octets
		{100, 1 << 20, "[2]"}, // what is left
		{100, 1 << 20, "[]"},  // nothing is left
		{100, 1 << 20, "[]"},  // and nothing changes
	} {
		ds, err := r.Claim(t.Context(), "news", []string{"e1"}, step.max, step.maxBytes)
		var got []int
		for _, d := range ds {
			got = append(got, len(d.Message.Recipients))
		}
		if fmt.Sprint(got) != step.want || err != nil {
			t.Errorf("claim of %d rows and %d octets: recipients %v, err %v, want %s", step.max, step.maxBytes, got, err, step.want)
		}
	}
}

func testNeed(t *testing.T, r *rig) {
	for _, need := range []string{"e2", "", "e1,e2", "e2"} {
		m := r.marketing("a@example.net")
		m.Recipients[0].Need = need
		r.put(t, false, m)
	}
	needs, err := r.Needs(t.Context(), "news")
	if want := []string{"", "e1,e2", "e2"}; err != nil || !slices.Equal(needs, want) {
		t.Errorf("needs %q, err %v, want %q", needs, err, want)
	}
	if ds := r.claim(t, "news", "e1"); len(ds) != 0 {
		t.Errorf("claimed %d for e1 alone, want none", len(ds))
	}
	if _, ok, err := r.NextDue(t.Context(), "news", []string{"e1"}); ok || err != nil {
		t.Errorf("something is due for e1 alone (%v)", err)
	}
	if ds := r.claim(t, "news", "", "e2"); len(ds) != 3 {
		t.Errorf("claimed %d for any and e2, want 3", len(ds))
	}
	if needs, err := r.Needs(t.Context(), "news"); err != nil || !slices.Equal(needs, []string{"e1,e2"}) {
		t.Errorf("needs %q, err %v afterwards", needs, err)
	}
}

func testNotDue(t *testing.T, r *rig) {
	now := time.Now()
	later, over := r.message("a@example.net"), r.message("b@example.net")
	later.Recipients[0].DueAt = now.Add(time.Minute)
	over.ExpiresAt = now.Add(-time.Second)
	r.put(t, false, later, over)
	if ds := r.claim(t, "auth"); len(ds) != 0 {
		t.Errorf("claimed %d, want none", len(ds))
	}
	if due, ok, err := r.NextDue(t.Context(), "other", []string{"e1"}); ok || err != nil {
		t.Errorf("an empty lane is due at %v (%v)", due, err)
	}
}

func testAbandonedClaim(t *testing.T, r *rig) {
	r.put(t, false, r.message("a@example.net"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if ds, err := r.Claim(ctx, "auth", []string{"e1"}, 10, 1<<20); err == nil && len(ds) == 1 {
		return // it was quicker than the caller's leaving
	} else if !errors.Is(err, context.Canceled) {
		t.Fatalf("claimed %d, err %v, want context canceled", len(ds), err)
	}
	eventually(t, "the row can be claimed", func() bool { return len(r.claim(t, "auth")) == 1 })
}

func testClockBack(t *testing.T, r *rig) {
	m := r.message("a@example.net")
	m.Recipients[0].DueAt = time.Now().Add(24 * time.Hour)
	m.ExpiresAt = time.Now().Add(48 * time.Hour)
	r.put(t, false, m)
	if due, ok, err := r.NextDue(t.Context(), "auth", []string{"e1"}); err != nil || !ok || time.Until(due) > time.Second {
		t.Errorf("next due %v, %v, %v, want now", due, ok, err)
	}
	if ds := r.claim(t, "auth"); len(ds) != 1 {
		t.Errorf("claimed %d, want 1", len(ds))
	}
}

func testExpire(t *testing.T, r *rig) {
	past := time.Now().Add(-time.Second)
	waiting, held, flying, living := r.message("a@example.net", "b@example.net"), r.message("c@example.net"), r.message("d@example.net"), r.message("e@example.net")
	for _, m := range []*message.Message{waiting, held, flying} {
		m.ExpiresAt = past
	}
	held.Recipients[0].State = message.Held
	r.put(t, false, waiting, held, living)
	r.put(t, true, flying)
	if n, err := r.Expire(t.Context(), 2, nil); n != 2 || err != nil {
		t.Errorf("expired %d, err %v, want 2 at most", n, err)
	}
	if n, err := r.Expire(t.Context(), 100, nil); n != 1 || err != nil {
		t.Errorf("expired %d, err %v, want the third", n, err)
	}
	r.wantState(t, waiting.ID)
	r.wantState(t, held.ID)
	r.wantState(t, flying.ID, "in-flight")
	r.wantState(t, living.ID, "queued")
	r.wantKinds(t, held.ID, event.Accepted, event.Expired)
	if e := r.history(t, held.ID)[1]; !e.Data.Alarm || e.Data.Text == "" {
		t.Errorf("expiry is no alarm: %+v", e.Data)
	}
}

func testExpireUnconfirmed(t *testing.T, r *rig) {
	for name, change := range map[string]func(*message.Recipient){
		"held unconfirmed": func(r *message.Recipient) { r.State = message.HeldUnconfirmed },
		"copies":           func(r *message.Recipient) { r.Copies = 1 },
		"maybe sent":       func(r *message.Recipient) { r.MaybeSent = true },
	} {
		m := r.marketing("a@example.net")
		m.ExpiresAt = time.Now().Add(-time.Second)
		change(&m.Recipients[0])
		r.put(t, false, m)
		if n, err := r.Expire(t.Context(), 10, nil); n != 1 || err != nil {
			t.Errorf("%s: expired %d, err %v", name, n, err)
		}
		r.wantKinds(t, m.ID, event.Accepted, event.Unconfirmed)
	}
}

func testNextExpiry(t *testing.T, r *rig) {
	if _, ok, err := r.NextExpiry(t.Context()); ok || err != nil {
		t.Errorf("an empty queue expires: %v, %v", ok, err)
	}
	first, second := r.message("a@example.net"), r.message("b@example.net")
	first.ExpiresAt = first.ExpiresAt.Add(-time.Minute)
	r.put(t, true, first)
	r.put(t, false, second)
	if at, ok, err := r.NextExpiry(t.Context()); err != nil || !ok || !at.Equal(second.ExpiresAt) {
		t.Errorf("next expiry %v, %v, %v, want %v", at, ok, err, second.ExpiresAt)
	}
}
