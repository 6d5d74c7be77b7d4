package storetest

import (
	"bytes"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// large gives m a body of some size that an engine may choose to cut up.
func large(m *message.Message, size int) *message.Message {
	m.Raw = make(message.Raw, size)
	rand.Read(m.Raw)
	m.Size = size
	return m
}

func testLarge(t *testing.T, r *rig) {
	for _, size := range []int{512 << 10, 512<<10 + 1, 1 << 20, 5<<20 + 17} {
		for lane, m := range map[string]*message.Message{"auth": r.message("a@example.net", "b@example.net"), "news": r.marketing("a@example.net", "b@example.net")} {
			large(m, size)
			r.put(t, false, m)
			r.restart(t)
			ds := r.claim(t, lane)
			if len(ds) != 1 || ds[0].Held != "" || !bytes.Equal(ds[0].Message.Raw, m.Raw) || len(ds[0].Message.Recipients) != 2 {
				t.Fatalf("%s: %d octets did not come back", lane, size)
			}
			r.settle(t, outcome(m, 0, ds[0].Epoch, message.Delivered))
			if err := r.Release(t.Context(), []message.RecipientID{{Message: m.ID, N: 1}}); err != nil {
				t.Fatal(err)
			}
			ds = r.claim(t, lane)
			if len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
				t.Fatalf("%s: %d octets did not come back for the second recipient", lane, size)
			}
			r.settle(t, outcome(m, 1, ds[0].Epoch, message.Delivered))
			r.wantState(t, m.ID)
			r.wantKinds(t, m.ID, event.Accepted, event.Accepted, event.Delivered, event.Delivered)
		}
	}
}

func testLargeAllOrNone(t *testing.T, r *rig) {
	a, b, small := large(r.marketing("a@example.net"), 1<<20), large(r.marketing("b@example.net"), 1<<20), r.marketing("c@example.net")
	r.put(t, false, a, small, b)
	fresh, twin := large(r.marketing("d@example.net"), 1<<20), large(r.marketing("e@example.net"), 2<<20)
	smallTwin := large(r.marketing("f@example.net"), 1<<20)
	twin.ID, smallTwin.ID = a.ID, small.ID
	for _, bad := range []*message.Message{twin, smallTwin, large(r.marketing(), 1<<20)} {
		w := r.Put([]*message.Message{fresh, bad}, false)
		<-w.Done()
		if _, err := w.Result(); code(err) != 451 {
			t.Errorf("put with one that cannot be stored: %v, want 451", err)
		}
		r.wantState(t, fresh.ID)
		r.wantKinds(t, fresh.ID)
		fresh.ID = r.NewID()
	}
	r.restart(t)
	time.Sleep(1500 * time.Millisecond) // what failed has been cleared away by then
	ds, err := r.Claim(t.Context(), "news", []string{"e1"}, 100, 1<<30)
	if err != nil || len(ds) != 3 {
		t.Fatalf("claimed %d, err %v, want 3", len(ds), err)
	}
	for i, m := range []*message.Message{a, b, small} { // they were made in this order
		if !bytes.Equal(ds[i].Message.Raw, m.Raw) {
			t.Errorf("message %d is not as it was", i)
		}
	}
}

func testLargeNotification(t *testing.T, r *rig) {
	m := large(r.marketing("a@example.net"), 1<<20)
	m.ExpiresAt = time.Now().Add(-time.Second)
	m.SetNotifyTo("news@example.com")
	r.put(t, false, m)
	asked := 0
	if n, err := r.Expire(t.Context(), 10, func(failed []message.Settlement) *message.Message {
		asked++
		if !bytes.Equal(failed[0].Message.Raw, m.Raw[:64<<10]) {
			t.Errorf("it is shown %d octets", len(failed[0].Message.Raw))
		}
		return nil
	}); n != 1 || err != nil || asked != 1 {
		t.Errorf("expired %d, err %v, asked %d times", n, err, asked)
	}
}

func testLargeConcurrency(t *testing.T, r *rig) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 6 {
				m := r.message("a@example.net")
				if i%2 == 0 {
					large(m, 700_000)
				}
				w := r.Put([]*message.Message{m}, true)
				<-w.Done()
				res, err := w.Result()
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if err := r.Release(t.Context(), []message.RecipientID{{Message: m.ID}}); err != nil {
					t.Errorf("release: %v", err)
				}
				ds, err := r.Claim(t.Context(), "auth", []string{"e1"}, 10, 1<<30)
				if err != nil {
					t.Errorf("claim: %v", err)
				}
				for _, d := range ds {
					if d.Held != "" || len(d.Message.Raw) != d.Message.Size {
						t.Errorf("message %v came back with %d octets of %d", d.Message.ID, len(d.Message.Raw), d.Message.Size)
					}
					if lost, err := r.Settle(t.Context(), []message.Settlement{outcome(d.Message, 0, res.Epoch, message.Delivered)}); len(lost) > 0 || err != nil {
						t.Errorf("settle: lost %v, err %v", lost, err)
					}
				}
			}
		})
	}
	wg.Wait()
}
