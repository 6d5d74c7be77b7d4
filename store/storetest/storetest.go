// Package storetest is the contract of a store, as tests. Every engine passes all of them.
package storetest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
)

// Store is what the relay and operators ask of a store.
type Store interface {
	Put(ms []*message.Message, own bool) interface {
		Done() <-chan struct{}
		Result() (message.PutResult, error)
	}
	Claim(ctx context.Context, lane string, can []string, max int, maxBytes int64) ([]*message.Delivery, error)
	Settle(ctx context.Context, s []message.Settlement) (lost []message.RecipientID, err error)
	Release(ctx context.Context, ids []message.RecipientID) error
	Needs(ctx context.Context, lane string) ([]string, error)
	NextDue(ctx context.Context, lane string, can []string) (time.Time, bool, error)
	NextExpiry(ctx context.Context) (time.Time, bool, error)
	Expire(ctx context.Context, max int, notify func(failed []message.Settlement) *message.Message) (n int, err error)
	NewID() message.ID
	Wake(lane string) <-chan struct{}
	Lease() (epoch int64, valid func(margin time.Duration) bool)
	Ready(kind message.Kind) error
	Record(events ...event.Event)
	StreamHeld(stream string) bool

	List(ctx context.Context, f message.QueueFilter) ([]message.QueueRow, error)
	Show(ctx context.Context, id message.ID) ([]message.QueueRow, error)
	Retry(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Hold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Unhold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Drop(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	HoldStream(ctx context.Context, stream string, hold bool) error
	Lanes(ctx context.Context) ([]message.LaneCount, error)
	Close(ctx context.Context) error
}

// History reads all events of a message, oldest first, as an engine keeps them.
type History func(t *testing.T, s Store, id message.ID) []event.Event

// Engine makes stores of one kind.
type Engine struct {
	// Open opens the store that lives in dir; events go to sink. Opening again after Close is a new incarnation.
	Open    func(t *testing.T, dir string, sink event.Sink) Store
	History History
}

// Run runs the contract's tests against an engine.
func Run(t *testing.T, e Engine) {
	for name, test := range map[string]func(*testing.T, *rig){
		"a message put is claimed with all that was put":         testRoundTrip,
		"a message with own is born ours and not claimed":        testBornOwned,
		"puts are all or none":                                   testAllOrNone,
		"a message without recipients is refused":                testNoRecipients,
		"settle touches only rows of its epoch":                  testStaleEpoch,
		"settling twice is lost the second time":                 testSettleTwice,
		"a settlement that defers leaves the row as it says":     testDefer,
		"deferred mail keeps its signature, sealed mail none":    testSignature,
		"a paused settlement changes nothing and has no event":   testPaused,
		"the last recipient takes the message along":             testLastRecipient,
		"every way to end has its event":                         testOutcomes,
		"an unknown verdict is held":                             testHeldUnconfirmed,
		"replies are masked in rows and events":                  testMasked,
		"release gives back unowned with the due time unchanged": testRelease,
		"a dead incarnation's rows come back as maybe sent":      testRecovery,
		"claims are in order of due time":                        testOrder,
		"claims are bounded in rows and octets":                  testClaimBounds,
		"claims look only at what this node can send":            testNeed,
		"claims leave what is not due or expired":                testNotDue,
		"a claim that nobody waits for goes back":                testAbandonedClaim,
		"a due time beyond any ladder is due now":                testClockBack,
		"expiry ends waiting and held rows, not those in flight": testExpire,
		"expiry says unconfirmed where a copy may be out":        testExpireUnconfirmed,
		"next expiry looks at unowned rows only":                 testNextExpiry,
		"hold, release, retry and drop":                          testOperator,
		"changes leave rows in flight alone and count them":      testOperatorInFlight,
		"changes go on over many pages, up to their limit":       testOperatorMany,
		"filters choose":                                               testFilters,
		"paging cuts no message in two":                                testPaging,
		"a stream's hold outlives a restart":                           testHoldStream,
		"a newer message supersedes what waits under its key":          testSupersede,
		"keys outlive a restart":                                       testSupersedeRestart,
		"supersede spares other keys, newer ones, held, in flight":     testSupersedeSpares,
		"of a message only the recipients that wait are superseded":    testSupersedePart,
		"messages of one put supersede each other":                     testSupersedeWithin,
		"a put that fails supersedes nothing":                          testSupersedeAllOrNone,
		"superseding and claiming at once, each ends once":             testSupersedeConcurrency,
		"a settlement queues its notification, shared or not, once":    testNotification,
		"a lost settlement queues no notification":                     testNotificationLost,
		"a settlement fails with its notification":                     testNotificationAllOrNone,
		"expiry queues a notification for each message that wants one": testExpireNotification,
		"templates kept at upstreams come back with their mail":        testProvided,
		"large messages expire in small turns":                         testExpireNotificationLarge,
		"a second message under a key is a duplicate of the first":     testKey,
		"a key lives as long as its message could":                     testKeyExpires,
		"a refusal that is told frees the key in its settlement":       testKeyForgotten,
		"a put that fails leaves no key":                               testKeyAllOrNone,
		"of many puts under one key at once one is stored":             testKeyConcurrency,
		"lanes are counted":                                            testLanes,
		"events have no gaps and are emitted in order":                 testEventOrder,
		"recorded events are kept":                                     testRecord,
		"ids only grow, over restarts and with the clock behind":       testIDs,
		"wakes are kept until somebody looks":                          testWake,
		"the lease ends with the store":                                testLease,
		"a large body comes back whole":                                testLarge,
		"a large message may be one of several, all or none":           testLargeAllOrNone,
		"notify sees the head of a large message":                      testLargeNotification,
		"large mail beside small, many at once":                        testLargeConcurrency,
		"many at once":                                                 testConcurrency,
		"what was queued is written at close":                          testCloseFlushes,
		"a closed store refuses":                                       testClosed,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newRig(t, e))
		})
	}
}

// rig is a store under test and what it emitted.
type rig struct {
	Engine
	Store
	dir string

	mu     sync.Mutex
	events []event.Event
}

func newRig(t *testing.T, e Engine) *rig {
	r := &rig{Engine: e, dir: t.TempDir()}
	r.Store = e.Open(t, r.dir, r)
	t.Cleanup(func() { r.Close(context.Background()) })
	return r
}

// Emit implements event.Sink.
func (r *rig) Emit(events []event.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, events...)
}

func (r *rig) emitted() []event.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// restart closes the store and opens it again: what is owned then looks as after a crash.
func (r *rig) restart(t *testing.T) {
	t.Helper()
	r.stop(t)
	r.Store = r.Open(t, r.dir, r)
}

func (r *rig) stop(t *testing.T) {
	t.Helper()
	if err := r.Close(t.Context()); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// Message makes a message of a stream for the given addresses, due now, to live for an hour.
func Message(s Store, stream string, kind message.Kind, to ...string) *message.Message {
	now := time.Now().Truncate(time.Millisecond).UTC()
	raw := message.Raw("From: a@example.com\r\nSubject: Sign in\r\n\r\nYour code is 735914.\r\n")
	m := &message.Message{
		ID: s.NewID(), Stream: stream, Kind: kind, Client: "logto", MailFrom: "bounce@example.com", HeaderFrom: "example.com",
		Size: len(raw), BodyHash: []byte{1, 2, 3}, AcceptedAt: now, ExpiresAt: now.Add(time.Hour),
		Attrs: map[string]string{"traceparent": "00-x"}, Raw: raw,
	}
	for i, a := range to {
		m.Recipients = append(m.Recipients, message.Recipient{N: i, Address: a, Lane: stream, Need: "e1", DueAt: now})
	}
	return m
}

func (r *rig) message(to ...string) *message.Message {
	return Message(r.Store, "auth", message.Auth, to...)
}

func (r *rig) marketing(to ...string) *message.Message {
	return Message(r.Store, "news", message.Marketing, to...)
}

// Put puts messages and waits until they are durable.
func Put(t *testing.T, s Store, own bool, ms ...*message.Message) message.PutResult {
	t.Helper()
	w := s.Put(ms, own)
	<-w.Done()
	res, err := w.Result()
	if err != nil {
		t.Fatalf("put: %v", err)
	}
	return res
}

func (r *rig) put(t *testing.T, own bool, ms ...*message.Message) message.PutResult {
	t.Helper()
	return Put(t, r.Store, own, ms...)
}

// claim claims everything that is due in a lane.
func (r *rig) claim(t *testing.T, lane string, needs ...string) []*message.Delivery {
	t.Helper()
	if len(needs) == 0 {
		needs = []string{"e1"}
	}
	ds, err := r.Claim(t.Context(), lane, needs, 100, 1<<20)
	if err != nil {
		t.Fatalf("claim: %v", err)
	}
	return ds
}

// settle settles and expects nothing to be lost.
func (r *rig) settle(t *testing.T, s ...message.Settlement) {
	t.Helper()
	lost, err := r.Settle(t.Context(), s)
	if err != nil || len(lost) > 0 {
		t.Fatalf("settle: lost %v, err %v", lost, err)
	}
}

// outcome makes the settlement that ends recipient n of m.
func outcome(m *message.Message, n int, epoch int64, o message.Outcome) message.Settlement {
	return message.Settlement{Message: m, Recipient: m.Recipients[n], Epoch: epoch, Outcome: o}
}

func (r *rig) history(t *testing.T, id message.ID) []event.Event {
	t.Helper()
	return r.History(t, r.Store, id)
}

// wantKinds checks the kinds of a message's events, in order.
func (r *rig) wantKinds(t *testing.T, id message.ID, want ...event.Kind) {
	t.Helper()
	var got []event.Kind
	for _, e := range r.history(t, id) {
		got = append(got, e.Kind)
	}
	if !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// rows returns the queue's rows of a message.
func (r *rig) rows(t *testing.T, id message.ID) []message.QueueRow {
	t.Helper()
	rows, err := r.Show(t.Context(), id)
	if err != nil {
		t.Fatalf("show: %v", err)
	}
	return rows
}

func (r *rig) wantState(t *testing.T, id message.ID, want ...string) {
	t.Helper()
	var got []string
	for _, row := range r.rows(t, id) {
		got = append(got, row.State)
	}
	if !slices.Equal(got, want) {
		t.Errorf("states %v, want %v", got, want)
	}
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// code returns the reply that an error stands for.
func code(err error) int {
	if e, ok := errors.AsType[*reply.Error](err); ok {
		return e.Code
	}
	return 0
}
