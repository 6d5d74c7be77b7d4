package storetest

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// ordered makes a message that came under a key.
func (r *rig) ordered(key string) *message.Message {
	m := r.message("kim@example.net")
	m.Key = []byte(key)
	m.SetOrdered("logto", "SignIn")
	return m
}

// duplicate puts messages and expects nothing to be stored: one of them is a duplicate of the message with id of.
func (r *rig) duplicate(t *testing.T, own bool, of message.ID, ms ...*message.Message) {
	t.Helper()
	w := r.Put(ms, own)
	<-w.Done()
	_, err := w.Result()
	if dup, ok := errors.AsType[*message.Duplicate](err); !ok || dup.Of != of || dup.Fingerprint != 0 {
		t.Errorf("a second message under the key gave %v, want a duplicate of %v", err, of)
	}
	for _, m := range ms {
		r.wantState(t, m.ID)
		r.wantKinds(t, m.ID)
	}
}

func testKey(t *testing.T, r *rig) {
	for name, own := range map[string]bool{"waiting": false, "born ours": true} {
		first, other := r.ordered(name), r.ordered(name+"2")
		r.put(t, own, first)
		r.put(t, own, other)
		r.duplicate(t, own, first.ID, r.ordered(name))
		r.duplicate(t, own, first.ID, r.message("a@example.net"), r.ordered(name))
	}
	marked := r.ordered("marked")
	marked.Print = 1<<30 | 12345
	r.put(t, false, marked)
	again := r.ordered("marked")
	again.Print = 1<<30 | 54321
	w := r.Put([]*message.Message{again}, false)
	<-w.Done()
	_, err := w.Result()
	if dup, ok := errors.AsType[*message.Duplicate](err); !ok || dup.Fingerprint != marked.Print {
		t.Errorf("the duplicate is %+v, want the fingerprint %d of the first", dup, marked.Print)
	}
	first := r.ordered("k")
	epoch := r.put(t, true, first).Epoch
	r.settle(t, outcome(first, 0, epoch, message.Delivered))
	r.duplicate(t, true, first.ID, r.ordered("k"))
	if d := r.history(t, first.ID)[0].Data; d.Hook != "logto" || d.Type != "SignIn" {
		t.Errorf("the event says hook %q and type %q", d.Hook, d.Type)
	}
	r.restart(t)
	r.duplicate(t, false, first.ID, r.ordered("k"))
	for range 2 { // none is the key of nobody
		r.put(t, false, r.ordered(""))
	}
}

func testKeyExpires(t *testing.T, r *rig) {
	first := r.ordered("k")
	first.ExpiresAt = time.Now().Add(50 * time.Millisecond)
	r.put(t, true, first)
	time.Sleep(60 * time.Millisecond)
	second := r.ordered("k")
	r.put(t, true, second)
	r.duplicate(t, true, second.ID, r.ordered("k"))
}

func testKeyForgotten(t *testing.T, r *rig) {
	first := r.ordered("k")
	epoch := r.put(t, true, first).Epoch
	refused := outcome(first, 0, epoch, message.Bounced)
	refused.Forget = true
	stale := refused
	stale.Epoch = epoch + 1
	if lost, err := r.Settle(t.Context(), []message.Settlement{stale}); len(lost) != 1 || err != nil {
		t.Fatalf("a settlement of another epoch: lost %v, %v", lost, err)
	}
	r.duplicate(t, true, first.ID, r.ordered("k"))
	r.settle(t, refused)
	r.wantKinds(t, first.ID, event.Bounced)
	second := r.ordered("k")
	r.put(t, false, second)
	d := r.claim(t, "auth")[0]
	told := outcome(d.Message, 0, d.Epoch, message.Bounced) // as claimed: what was read back need not know the key
	told.Recipient, told.Forget = d.Message.Recipients[0], true
	r.settle(t, told)
	r.put(t, true, r.ordered("k"))
}

func testKeyAllOrNone(t *testing.T, r *rig) {
	there, twin := r.message("a@example.net"), r.message("b@example.net")
	r.put(t, false, there)
	twin.ID = there.ID
	w := r.Put([]*message.Message{r.ordered("k"), twin}, false)
	<-w.Done()
	if _, err := w.Result(); err == nil {
		t.Error("two messages with one id were stored")
	}
	r.put(t, false, r.ordered("k"))
}

func testKeyConcurrency(t *testing.T, r *rig) {
	var stored atomic.Int32
	var puts sync.WaitGroup
	for n := range 16 {
		puts.Go(func() {
			w := r.Put([]*message.Message{r.ordered("k")}, n%2 == 0)
			<-w.Done()
			if _, err := w.Result(); err == nil {
				stored.Add(1)
			} else if _, ok := errors.AsType[*message.Duplicate](err); !ok {
				t.Errorf("a put failed: %v", err)
			}
		})
	}
	puts.Wait()
	if n := stored.Load(); n != 1 {
		t.Errorf("%d messages were stored under one key", n)
	}
}
