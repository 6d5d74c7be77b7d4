package storetest

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// keyed makes a message with a supersede key.
func (r *rig) keyed(key string, to ...string) *message.Message {
	m := r.message(to...)
	m.Supersede = []byte(key)
	return m
}

func testSupersede(t *testing.T, r *rig) {
	for name, own := range map[string]bool{"waiting": false, "born ours": true} {
		key := "kim, code, " + name
		first, second := r.keyed(key, "kim@example.net"), r.keyed(key, "kim@example.net")
		if res := r.put(t, false, first); len(res.Superseded) != 0 {
			t.Errorf("%s: the first superseded %v", name, res.Superseded)
		}
		res := r.put(t, own, second)
		if !slices.Equal(res.Superseded, []message.ID{first.ID}) {
			t.Errorf("%s: superseded %v, want %v", name, res.Superseded, first.ID)
		}
		if epoch, _ := r.Lease(); own && res.Epoch != epoch {
			t.Errorf("%s: put under epoch %d, want %d", name, res.Epoch, epoch)
		}
		r.wantState(t, first.ID)
		r.wantKinds(t, first.ID, event.Accepted, event.Superseded)
		if e := r.history(t, first.ID)[1]; !strings.Contains(e.Data.Text, second.ID.String()) {
			t.Errorf("%s: the event says %q, want the newer id", name, e.Data.Text)
		}
		r.wantState(t, second.ID, map[bool]string{false: "queued", true: "in-flight"}[own])
		r.put(t, false, first) // message and body are gone
	}
}

func testSupersedeRestart(t *testing.T, r *rig) {
	first := r.keyed("k", "kim@example.net")
	r.put(t, false, first)
	r.restart(t)
	second := r.keyed("k", "kim@example.net")
	if res := r.put(t, false, second); !slices.Equal(res.Superseded, []message.ID{first.ID}) {
		t.Errorf("superseded %v, want %v", res.Superseded, first.ID)
	}
	r.restart(t)
	r.wantState(t, first.ID)
	r.wantState(t, second.ID, "queued")
}

func testSupersedeSpares(t *testing.T, r *rig) {
	flying, held, unsure := r.keyed("k", "a@example.net"), r.keyed("k", "b@example.net"), r.keyed("k", "c@example.net")
	held.Recipients[0].State = message.Held
	unsure.Recipients[0].State = message.HeldUnconfirmed
	other, keyless, prefix := r.keyed("other", "a@example.net"), r.message("a@example.net"), r.keyed("k2", "a@example.net")
	empty := r.keyed("", "a@example.net")
	r.put(t, true, flying)
	r.put(t, false, held, unsure, other, keyless, prefix, empty)
	newer := r.keyed("k", "a@example.net")
	late := r.keyed("k", "a@example.net")
	r.put(t, false, late)
	for _, m := range []*message.Message{newer, r.message("a@example.net"), r.keyed("", "a@example.net")} {
		if res := r.put(t, false, m); len(res.Superseded) != 0 {
			t.Errorf("key %q superseded %v", m.Supersede, res.Superseded)
		}
	}
	for _, m := range []*message.Message{other, keyless, prefix, empty, late} {
		r.wantState(t, m.ID, "queued")
	}
	r.wantState(t, flying.ID, "in-flight")
	r.wantState(t, held.ID, "held")
	r.wantState(t, unsure.ID, "held-unconfirmed")
}

func testSupersedePart(t *testing.T, r *rig) {
	first := r.keyed("k", "a@example.net", "b@example.net")
	epoch := r.put(t, true, first).Epoch
	if err := r.Release(t.Context(), []message.RecipientID{{Message: first.ID, N: 1}}); err != nil {
		t.Fatal(err)
	}
	if res := r.put(t, false, r.keyed("k", "a@example.net")); !slices.Equal(res.Superseded, []message.ID{first.ID}) {
		t.Errorf("superseded %v", res.Superseded)
	}
	r.wantState(t, first.ID, "in-flight")
	r.settle(t, outcome(first, 0, epoch, message.Delivered))
	r.wantKinds(t, first.ID, event.Superseded, event.Delivered)
}

func testSupersedeWithin(t *testing.T, r *rig) {
	first, second := r.keyed("k", "a@example.net", "b@example.net"), r.keyed("k", "a@example.net")
	if res := r.put(t, false, first, second); !slices.Equal(res.Superseded, []message.ID{first.ID}) {
		t.Errorf("superseded %v, want the first, once", res.Superseded)
	}
	r.wantState(t, first.ID)
	r.wantState(t, second.ID, "queued")
}

func testSupersedeAllOrNone(t *testing.T, r *rig) {
	first, there, twin := r.keyed("k", "a@example.net"), r.message("b@example.net"), r.message("c@example.net")
	r.put(t, false, first, there)
	twin.ID = there.ID
	w := r.Put([]*message.Message{r.keyed("k", "a@example.net"), twin}, false)
	<-w.Done()
	if res, err := w.Result(); err == nil || len(res.Superseded) != 0 {
		t.Errorf("a put that failed superseded %v, err %v", res.Superseded, err)
	}
	r.wantState(t, first.ID, "queued")
	r.wantKinds(t, first.ID, event.Accepted)
}

func testSupersedeConcurrency(t *testing.T, r *rig) {
	const producers, each = 6, 40
	var mu sync.Mutex
	want := map[message.ID]bool{}
	var putting, claiming sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		claiming.Go(func() {
			for done := false; !done; {
				select {
				case <-stop:
					done = true // after one last look
				default:
				}
				for _, d := range r.claim(t, "auth") {
					lost, err := r.Settle(t.Context(), []message.Settlement{outcome(d.Message, 0, d.Epoch, message.Delivered)})
					if len(lost) > 0 || err != nil {
						t.Errorf("what was in flight was lost: %v, err %v", lost, err)
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	for p := range producers {
		putting.Go(func() {
			for range each {
				m := r.keyed([]string{"x", "y"}[p%2], "kim@example.net")
				mu.Lock()
				want[m.ID] = true
				mu.Unlock()
				r.put(t, false, m)
			}
		})
	}
	putting.Wait()
	close(stop)
	claiming.Wait()
	for id := range want {
		var ends []event.Kind
		for _, e := range r.history(t, id) {
			if e.Kind == event.Delivered || e.Kind == event.Superseded {
				ends = append(ends, e.Kind)
			}
		}
		if len(ends) != 1 {
			t.Errorf("message %v ended %v, want once", id, ends)
		}
	}
}
