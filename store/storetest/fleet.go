package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// Fleet makes stores that several nodes share.
type Fleet struct {
	// Open opens the store that dir stands for, as a node.
	Open func(t *testing.T, dir, node string, sink event.Sink) (Store, error)
	// Abandon keeps a node from renewing its lease, as if its host hung. The store can still be called.
	Abandon func(s Store)
	Lease   time.Duration // how long a lease lasts
	History History
}

// RunFleet runs the tests of what nodes are to each other.
func RunFleet(t *testing.T, f Fleet) {
	for name, test := range map[string]func(*testing.T, *fleetRig){
		"nodes claim apart, and number their events without gaps":     testClaimApart,
		"whoever settles the last recipient takes the message along":  testLastOfMany,
		"a put wakes the lanes of other nodes":                        testWakeOthers,
		"an operator's retry and release wake other nodes":            testOperatorWakesOthers,
		"a stream's hold is everybody's":                              testHoldEverywhere,
		"changes leave alone what another node has in flight":         testOthersInFlight,
		"a newer message supersedes what waits from another node":     testSupersedeOthers,
		"a living node takes over what a dead one owned, marked":      testTakeOver,
		"a dead node's settlements are lost, its puts a new epoch's":  testStolenLease,
		"a node that stops leaves what it owned to others at once":    testStopped,
		"nodes that share messages never wait for each other":         testSharedMessages,
		"a name is one node's at a time":                              testOneName,
		"no id is two nodes', and a node keeps its number":            testNumbers,
		"what one node wrote another opens, large and sealed as well": testOthersBodies,
		"of nodes that put under one key at once one stores":          testKeyAtOnce,
		"a key is everybody's, and free again for all":                testKeyEverywhere,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := &fleetRig{Fleet: f, dir: t.TempDir()}
			r.a, r.b = r.node(t, "a"), r.node(t, "b")
			test(t, r)
		})
	}
}

// fleetRig is two nodes.
type fleetRig struct {
	Fleet
	dir  string
	a, b *rig
}

// node opens a node whose store can be used as that of one.
func (f *fleetRig) node(t *testing.T, name string) *rig {
	t.Helper()
	r := &rig{Engine: Engine{History: f.History}, dir: f.dir}
	s, err := f.Fleet.Open(t, f.dir, name, r)
	if err != nil {
		t.Fatal(err)
	}
	r.Store = s
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

func testClaimApart(t *testing.T, f *fleetRig) {
	const messages = 300
	var mu sync.Mutex
	ends := map[message.ID]int{}
	var wg sync.WaitGroup
	for _, r := range []*rig{f.a, f.b} {
		wg.Go(func() {
			for range messages / 2 {
				m := r.message("a@example.net")
				mu.Lock()
				ends[m.ID] = 0
				mu.Unlock()
				r.put(t, false, m)
			}
		})
		for range 2 {
			wg.Go(func() {
				for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
					ds, err := r.Claim(t.Context(), "auth", []string{"e1"}, 7, 1<<20)
					if err != nil {
						t.Errorf("claim: %v", err)
					}
					for _, d := range ds {
						r.settle(t, outcome(d.Message, 0, d.Epoch, message.Delivered))
						mu.Lock()
						ends[d.Message.ID]++
						mu.Unlock()
					}
					mu.Lock()
					done := len(ends) == messages
					for _, n := range ends {
						done = done && n > 0
					}
					mu.Unlock()
					if done {
						return
					}
				}
				t.Error("not everything was claimed within 20 s")
			})
		}
	}
	wg.Wait()
	for id, n := range ends {
		if n != 1 {
			t.Errorf("message %v was claimed %d times", id, n)
		}
	}
	eventually(t, "the events are handed on", func() bool { return len(f.a.emitted())+len(f.b.emitted()) == 2*messages })
	for _, r := range []*rig{f.a, f.b} {
		for i, e := range r.emitted() {
			if e.Seq != int64(i+1) || e.Node != r.emitted()[0].Node {
				t.Fatalf("event %d is (%d, %d)", i, e.Node, e.Seq)
			}
		}
	}
}

func testLastOfMany(t *testing.T, f *fleetRig) {
	for range 20 {
		m := f.a.message("a@example.net", "b@example.net")
		f.a.put(t, false, m)
		var wg sync.WaitGroup
		for _, r := range []*rig{f.a, f.b} {
			wg.Go(func() {
				ds, err := r.Claim(t.Context(), "auth", []string{"e1"}, 1, 1<<20)
				if err != nil || len(ds) != 1 {
					t.Errorf("claimed %d, %v, want a recipient each", len(ds), err)
					return
				}
				d := ds[0]
				r.settle(t, message.Settlement{Message: d.Message, Recipient: d.Message.Recipients[0], Epoch: d.Epoch, Outcome: message.Delivered})
			})
		}
		wg.Wait()
		f.b.wantState(t, m.ID)
		w := f.b.Put([]*message.Message{m}, true) // the id is free again only if message and body are gone
		<-w.Done()
		if _, err := w.Result(); err != nil {
			t.Fatalf("something is left of a message that has ended: %v", err)
		}
	}
}

// wakes waits until a lane of r is woken.
func (r *rig) wakes(t *testing.T, lane, why string) {
	t.Helper()
	select {
	case <-r.Wake(lane):
	case <-time.After(10 * time.Second):
		t.Errorf("%s did not wake another node", why)
	}
}

func testWakeOthers(t *testing.T, f *fleetRig) {
	f.b.Wake("auth")
	f.a.put(t, false, f.a.message("a@example.net"))
	f.b.wakes(t, "auth", "a put")
	if ds := f.b.claim(t, "auth"); len(ds) != 1 {
		t.Errorf("claimed %d", len(ds))
	}
}

func testOperatorWakesOthers(t *testing.T, f *fleetRig) {
	m := f.a.message("a@example.net")
	m.Recipients[0].State = message.Held
	f.a.put(t, false, m)
	f.b.Wake("auth")
	f.a.change(t, f.a.Unhold, message.QueueFilter{}, 1, 0)
	f.b.wakes(t, "auth", "a release")
}

func testHoldEverywhere(t *testing.T, f *fleetRig) {
	if err := f.a.HoldStream(t.Context(), "news", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other node holds the stream", func() bool { return f.b.StreamHeld("news") })
	f.b.Wake("news")
	if err := f.a.HoldStream(t.Context(), "news", false); err != nil {
		t.Fatal(err)
	}
	f.b.wakes(t, "news", "a stream's release")
	eventually(t, "the other node lets it go", func() bool { return !f.b.StreamHeld("news") })
	if f.a.StreamHeld("news") {
		t.Error("it is still held where it was released")
	}
}

func testOthersInFlight(t *testing.T, f *fleetRig) {
	owned, waiting := f.a.message("a@example.net"), f.a.message("b@example.net")
	epoch := f.a.put(t, true, owned).Epoch
	f.a.put(t, false, waiting)
	all := message.QueueFilter{Stream: "auth"}
	f.b.change(t, f.b.Hold, all, 1, 1)
	f.b.change(t, f.b.Retry, all, 0, 1)
	f.b.change(t, f.b.Drop, all, 1, 1)
	f.b.wantState(t, owned.ID, "in-flight")
	if err := f.b.Release(t.Context(), []message.RecipientID{{Message: owned.ID}}); err != nil {
		t.Fatal(err)
	}
	lost, err := f.b.Settle(t.Context(), []message.Settlement{outcome(owned, 0, epoch, message.Delivered)})
	if err != nil || len(lost) != 1 {
		t.Errorf("another node settled it: lost %v, %v", lost, err)
	}
	f.a.settle(t, outcome(owned, 0, epoch, message.Delivered))
}

func testSupersedeOthers(t *testing.T, f *fleetRig) {
	first := f.a.keyed("k", "kim@example.net")
	f.a.put(t, false, first)
	second := f.b.keyed("k", "kim@example.net")
	if res := f.b.put(t, true, second); !slices.Equal(res.Superseded, []message.ID{first.ID}) {
		t.Errorf("superseded %v, want %v", res.Superseded, first.ID)
	}
	f.a.wantState(t, first.ID)
	f.a.wantKinds(t, first.ID, event.Accepted, event.Superseded)
}

func testTakeOver(t *testing.T, f *fleetRig) {
	owned, waiting := f.a.message("a@example.net", "b@example.net"), f.a.marketing("c@example.net")
	f.a.put(t, true, owned)
	f.a.put(t, false, waiting)
	f.b.Wake("auth")
	_, valid := f.a.Lease()
	f.Abandon(f.a.Store)
	start := time.Now()
	f.b.wakes(t, "auth", "a takeover")
	if valid(0) {
		t.Error("it was taken over while its lease was valid by its own clock")
	}
	if took := time.Since(start); took > f.Lease*3/2+2*time.Second {
		t.Errorf("taken over after %v", took)
	}
	ds := f.b.claim(t, "auth")
	if len(ds) != 1 || len(ds[0].Message.Recipients) != 2 {
		t.Fatalf("claimed %+v", ds)
	}
	for _, r := range ds[0].Message.Recipients {
		if !r.MaybeSent || r.Copies != 1 {
			t.Errorf("%+v, want it marked", r)
		}
	}
	f.b.wantKinds(t, owned.ID, event.Recovered, event.Recovered)
	if ds := f.b.claim(t, "news"); len(ds) != 1 || ds[0].Message.Recipients[0].MaybeSent {
		t.Errorf("claimed %+v, want what only waited, not marked", ds)
	}
}

func testStolenLease(t *testing.T, f *fleetRig) {
	m := f.a.message("a@example.net")
	old := f.a.put(t, true, m).Epoch
	f.b.Wake("auth")
	f.Abandon(f.a.Store)
	f.b.wakes(t, "auth", "a takeover")
	ds := f.b.claim(t, "auth")
	if len(ds) != 1 {
		t.Fatalf("claimed %d", len(ds))
	}
	lost, err := f.a.Settle(t.Context(), []message.Settlement{outcome(m, 0, old, message.Delivered)})
	if err != nil || len(lost) != 1 {
		t.Errorf("a node without a lease settled: lost %v, %v", lost, err)
	}
	if err := f.a.Release(t.Context(), []message.RecipientID{{Message: m.ID}}); err != nil {
		t.Fatal(err)
	}
	f.b.wantState(t, m.ID, "in-flight")
	f.b.settle(t, outcome(m, 0, ds[0].Epoch, message.Delivered))

	again := f.a.message("b@example.net")
	res := f.a.put(t, true, again)
	if epoch, _ := f.a.Lease(); res.Epoch <= old || epoch != res.Epoch {
		t.Errorf("put under epoch %d, lease of %d, after %d", res.Epoch, epoch, old)
	}
	f.a.settle(t, outcome(again, 0, res.Epoch, message.Delivered))
	if ds := f.a.claim(t, "auth"); len(ds) != 0 {
		t.Errorf("claimed %+v", ds)
	}
}

func testStopped(t *testing.T, f *fleetRig) {
	f.a.put(t, true, f.a.message("a@example.net"))
	f.b.Wake("auth")
	start := time.Now()
	f.a.stop(t)
	f.b.wakes(t, "auth", "a node's end")
	if took := time.Since(start); took >= f.Lease {
		t.Errorf("it took %v, a lease lasts %v", took, f.Lease)
	}
	if ds := f.b.claim(t, "auth"); len(ds) != 1 || !ds[0].Message.Recipients[0].MaybeSent {
		t.Errorf("claimed %+v", ds)
	}
}

func testOneName(t *testing.T, f *fleetRig) {
	if s, err := f.Fleet.Open(t, f.dir, "a", nil); err == nil {
		s.Close(context.Background())
		t.Fatal("two nodes have one name")
	}
	f.a.put(t, false, f.a.message("a@example.net")) // which the attempt did not disturb
	old, _ := f.a.Lease()
	f.a.stop(t)
	f.a = f.node(t, "a")
	if epoch, valid := f.a.Lease(); epoch <= old || !valid(0) {
		t.Errorf("epoch %d after %d, valid %v", epoch, old, valid(0))
	}
}

func testNumbers(t *testing.T, f *fleetRig) {
	a, b := f.a.NewID().Node(), f.b.NewID().Node()
	if a == b || a == 0 || b == 0 {
		t.Errorf("numbers %d and %d", a, b)
	}
	f.b.stop(t)
	c := f.node(t, "c")
	f.b = f.node(t, "b")
	if n := f.b.NewID().Node(); n != b || c.NewID().Node() == n || c.NewID().Node() == a {
		t.Errorf("number %d after a restart, was %d; a new node has %d", n, b, c.NewID().Node())
	}
}

// testSharedMessages has each node deliver its part of one message and put off that of another, at once.
func testSharedMessages(t *testing.T, f *fleetRig) {
	kept := &message.Signature{Fields: []byte("DKIM-Signature: a=\r\n")}
	for range 50 {
		settle := map[*rig][]message.Settlement{}
		for _, order := range [][]*rig{{f.a, f.b}, {f.b, f.a}} {
			f.a.put(t, false, f.a.marketing("a@example.net", "b@example.net"))
			for i, node := range order {
				ds, err := node.Claim(t.Context(), "news", []string{"e1"}, 1, 1<<20)
				if err = errors.Join(err, errLen(len(ds), 1)); err != nil {
					t.Fatal(err)
				}
				s := outcome(ds[0].Message, 0, ds[0].Epoch, message.Delivered)
				if i > 0 {
					s.Outcome, s.Recipient.DueAt, s.Recipient.Attempts, s.Signature = message.None, time.Now().Add(time.Hour), 1, kept
				}
				settle[node] = append(settle[node], s)
			}
		}
		began := time.Now()
		var nodes sync.WaitGroup
		for node, list := range settle {
			nodes.Go(func() {
				if lost, err := node.Settle(t.Context(), list); len(lost) > 0 || err != nil {
					t.Errorf("lost %v, %v", lost, err)
				}
			})
		}
		nodes.Wait()
		if took := time.Since(began); took > 900*time.Millisecond { // deadlock_timeout is a second
			t.Fatalf("to settle took %v", took)
		}
	}
}

func testOthersBodies(t *testing.T, f *fleetRig) {
	var want []*message.Message
	for i, size := range []int{100, 3 << 20} {
		m := large(f.a.message(fmt.Sprint("a", i, "@example.net")), size)
		f.a.put(t, false, m)
		want = append(want, m)
	}
	ds, err := f.b.Claim(t.Context(), "auth", []string{"e1"}, 10, 1<<30)
	if err = errors.Join(err, errLen(len(ds), 2)); err != nil {
		t.Fatal(err)
	}
	for i, d := range ds {
		if d.Held != "" || !slices.Equal(d.Message.Raw, want[i].Raw) || !d.Message.ExpiresAt.Equal(want[i].ExpiresAt) {
			t.Errorf("message %d did not come back", i)
		}
		f.b.settle(t, outcome(d.Message, 0, d.Epoch, message.Delivered))
	}
}

func errLen(got, want int) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("%d, want %d", got, want)
}

// testKeyAtOnce has both nodes put under the same keys in opposite order, again and again.
func testKeyAtOnce(t *testing.T, f *fleetRig) {
	const rounds, names = 20, "abcd"
	for round := range rounds {
		var keys []string
		for _, name := range names {
			keys = append(keys, fmt.Sprint(string(name), round))
		}
		var mu sync.Mutex
		stored, told := map[string][]message.ID{}, map[string][]message.ID{}
		var puts sync.WaitGroup
		for n, r := range []*rig{f.a, f.b} {
			for _, key := range slices.Concat(keys, keys) {
				puts.Go(func() {
					m := r.ordered(key)
					w := r.Put([]*message.Message{m}, n == 0)
					<-w.Done()
					_, err := w.Result()
					mu.Lock()
					defer mu.Unlock()
					if dup, ok := errors.AsType[*message.Duplicate](err); ok {
						told[key] = append(told[key], dup.Of)
					} else if err == nil {
						stored[key] = append(stored[key], m.ID)
					} else {
						t.Errorf("a put failed: %v", err)
					}
				})
			}
			slices.Reverse(keys)
		}
		puts.Wait()
		for _, key := range keys {
			if len(stored[key]) != 1 || len(told[key]) != 3 || slices.ContainsFunc(told[key], func(id message.ID) bool { return id != stored[key][0] }) {
				t.Errorf("under key %s %v were stored, and the others told of %v", key, stored[key], told[key])
			}
		}
	}
	rows, err := f.a.List(t.Context(), message.QueueFilter{Stream: "auth"})
	if err = errors.Join(err, errLen(len(rows), rounds*len(names))); err != nil {
		t.Errorf("in the queue: %v", err)
	}
}

func testKeyEverywhere(t *testing.T, f *fleetRig) {
	first := f.a.ordered("k")
	epoch := f.a.put(t, true, first).Epoch
	f.b.duplicate(t, true, first.ID, f.b.ordered("k"))
	refused := outcome(first, 0, epoch, message.Bounced)
	refused.Forget = true
	if lost, err := f.b.Settle(t.Context(), []message.Settlement{refused}); len(lost) != 1 || err != nil {
		t.Fatalf("another node's settlement: lost %v, %v", lost, err)
	}
	f.b.duplicate(t, false, first.ID, f.b.ordered("k"))
	f.a.settle(t, refused)
	second := f.b.ordered("k")
	f.b.put(t, true, second)
	f.a.duplicate(t, true, second.ID, f.a.ordered("k"))
}
