package store

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

func TestHistoryKeepsAddressesAsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	auth, news := newMessage(s, message.Auth, 0), newMessage(s, message.Marketing, 0)
	mustPut(t, s, false, auth, news)
	es, err := s.Events(t.Context(), EventQuery{Address: "anna@EXAMPLE.net"})
	if err != nil || len(es) != 2 {
		t.Fatalf("found by address: %+v, err %v, want 2", es, err)
	}
	if es[0].Address != "" || es[1].Address != "Anna@example.net" {
		t.Errorf("addresses %q and %q, want auth's kept as HMAC only", es[0].Address, es[1].Address)
	}
	if es, err := s.Events(t.Context(), EventQuery{Address: "other@example.net"}); len(es) != 0 || err != nil {
		t.Errorf("found %d for another address, err %v", len(es), err)
	}
	if es := must(s.Events(t.Context(), EventQuery{Newest: true, Limit: 1})); len(es) != 1 || es[0].Message != news.ID {
		t.Errorf("the newest is %+v", es)
	}
	if es := must(s.Events(t.Context(), EventQuery{After: 1})); len(es) != 1 || es[0].Seq != 2 {
		t.Errorf("after 1 comes %+v", es)
	}
	closeTest(t, s)

	s = openTest(t, Options{Dir: dir, Addresses: func(stream string, _ message.Kind) string {
		return map[string]string{"auth": "clear", "news": "hmac"}[stream]
	}}, nil)
	if _, _, err := s.Drop(t.Context(), message.QueueFilter{}); err != nil {
		t.Fatal(err)
	}
	es = must(s.Events(t.Context(), EventQuery{Address: "anna@example.net", After: 2}))
	if len(es) != 2 || es[0].Address != "Anna@example.net" || es[1].Address != "" {
		t.Errorf("under the other setting: %+v", es)
	}
}

func TestAnAddressIsFoundInAllOfALongHistory(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Dir: t.TempDir()}, nil)
	if es := must(s.Events(t.Context(), EventQuery{Address: "kim@example.net"})); len(es) != 0 {
		t.Errorf("found %+v in an empty history", es)
	}
	const all, every = 5000, 499 // some chunks of a thousand
	var want []int64
	for seq := int64(1); seq <= all; seq++ {
		address := "others@example.net"
		if seq%every == 0 {
			address, want = "Kim@example.net", append(want, seq)
		}
		s.Record(event.Event{Kind: event.Alarm, Stream: "auth", Address: address})
	}
	eventually(t, "all are recorded", func() bool { return len(must(s.Events(t.Context(), EventQuery{After: all - 1}))) == 1 })
	found := func(q EventQuery) (seqs []int64) {
		q.Address = "kim@example.net"
		for _, e := range must(s.Events(t.Context(), q)) {
			seqs = append(seqs, e.Seq)
		}
		return seqs
	}
	newest := slices.Clone(want)
	slices.Reverse(newest)
	for name, tt := range map[string]struct {
		q    EventQuery
		want []int64
	}{
		"all":             {EventQuery{}, want},
		"the newest":      {EventQuery{Newest: true}, newest},
		"the newest two":  {EventQuery{Newest: true, Limit: 2}, newest[:2]},
		"the oldest two":  {EventQuery{Limit: 2}, want[:2]},
		"after the third": {EventQuery{After: want[2]}, want[3:]},
		"after the last":  {EventQuery{After: all}, nil},
		"of one message":  {EventQuery{Message: 7}, nil},
	} {
		if got := found(tt.q); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

func TestOldHistoryIsDeletedButTheCountGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir, Keep: time.Hour}, nil)
	old, now := time.Now().Add(-2*time.Hour), time.Now()
	for range historyPage + 10 {
		s.Record(event.Event{Kind: event.Alarm, At: old})
	}
	s.Record(event.Event{Kind: event.Alarm, At: now})
	eventually(t, "the old ones are gone", func() bool { return len(must(s.Events(t.Context(), EventQuery{Limit: 1000}))) == 1 })
	closeTest(t, s)
	s = openTest(t, Options{Dir: dir, Keep: time.Nanosecond}, nil)
	s.Record(event.Event{Kind: event.Alarm})
	last := int64(historyPage + 12)
	eventually(t, "only the last one stays", func() bool {
		es := must(s.Events(t.Context(), EventQuery{Limit: 1000}))
		return len(es) == 1 && es[0].Seq == last
	})
}

func TestASlowSinkHoldsUpNothing(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	var got atomic.Int64
	sink := sinkFunc(func(es []event.Event) { <-stuck; got.Add(int64(len(es))) })
	s := openTest(t, Options{Dir: t.TempDir(), Sink: sink}, nil)
	for range 20 {
		m := newMessage(s, message.Auth, 0)
		mustPut(t, s, false, m)
	}
	s.sink.add(make([]event.Event, emitMax+5))
	if s.sink.mu.Lock(); s.sink.missed < 5 || len(s.sink.waiting) > emitMax {
		t.Errorf("%d missed, %d waiting, want a bound of %d", s.sink.missed, len(s.sink.waiting), emitMax)
	}
	s.sink.mu.Unlock()
	close(stuck)
	closeTest(t, s)
	if got.Load() < emitMax {
		t.Errorf("%d handed on, want all that waited", got.Load())
	}
}

type sinkFunc func([]event.Event)

func (f sinkFunc) Emit(es []event.Event) { f(es) }
