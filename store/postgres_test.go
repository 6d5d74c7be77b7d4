package store

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/event"
	"gatepost/message"
	"gatepost/store/storetest"
	"gatepost/store/storetest/pgtest"
)

const (
	testLease = 3 * time.Second
	testRenew = 300 * time.Millisecond
)

// testFleet is a database with the key file of its nodes.
type testFleet struct {
	dsn, keys string
}

func newTestFleet(t testing.TB, server *pgtest.Server) testFleet {
	t.Helper()
	f := testFleet{server.Database(t), filepath.Join(t.TempDir(), "store.key")}
	if err := NewKeyFile(f.keys); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f testFleet) options(t testing.TB, node string, sink event.Sink) PostgresOptions {
	return PostgresOptions{Options: Options{Dir: t.TempDir(), Sink: sink}, DSN: f.dsn, KeyFile: f.keys, Node: node}
}

// open opens a node with a short lease; prepare may change it before it starts.
func (f testFleet) open(t testing.TB, node string, sink event.Sink, prepare func(*Store)) (*Store, error) {
	t.Helper()
	o := f.options(t, node, sink)
	n, err := newFleet(o)
	if err != nil {
		return nil, err
	}
	n.lease.life, n.renewEvery = testLease, testRenew
	if err := n.open(o); err != nil {
		n.pool.Close()
		n.s.lock.Close()
		return nil, err
	}
	if prepare != nil {
		prepare(n.s)
	}
	n.start()
	t.Cleanup(func() { n.s.Close(context.Background()) })
	return n.s, nil
}

func (f testFleet) node(t testing.TB, name string) *Store {
	t.Helper()
	s, err := f.open(t, name, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// abandon ends what keeps a node's lease.
func abandon(s *Store) {
	s.fleet.cancel()
	s.fleet.active.Wait()
}

func TestFleet(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	var fleets sync.Map // by directory
	storetest.RunFleet(t, storetest.Fleet{
		Open: func(t *testing.T, dir, node string, sink event.Sink) (storetest.Store, error) {
			f, ok := fleets.Load(dir)
			if !ok {
				f = newTestFleet(t, server)
				fleets.Store(dir, f)
			}
			s, err := f.(testFleet).open(t, node, sink, nil)
			if err != nil {
				return nil, err // not a nil *Store in an interface
			}
			return s, nil
		},
		Abandon: func(s storetest.Store) { abandon(s.(*Store)) },
		Lease:   testLease,
		History: func(t *testing.T, s storetest.Store, id message.ID) []event.Event {
			return must(s.(*Store).Events(t.Context(), EventQuery{Message: id}))
		},
	})
}

// roundTrips counts the batches that a node sends, but for the short ones of upkeep.
type roundTrips struct{ n atomic.Int32 }

func (r *roundTrips) TraceBatchStart(ctx context.Context, _ *pgx.Conn, b pgx.TraceBatchStartData) context.Context {
	if b.Batch.Len() > 3 {
		r.n.Add(1)
	}
	return ctx
}
func (r *roundTrips) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}
func (r *roundTrips) TraceBatchEnd(context.Context, *pgx.Conn, pgx.TraceBatchEndData)     {}
func (r *roundTrips) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData)     {}
func (r *roundTrips) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func TestManyPutsAreOneRoundTripAndManySettlementsTwo(t *testing.T) {
	t.Parallel()
	o := newTestFleet(t, pgtest.Shared(t)).options(t, "a", nil)
	f := must(newFleet(o))
	trips := &roundTrips{}
	f.conns.Tracer = trips
	must(0, f.open(o))
	var gate sync.Mutex
	f.s.writer.commit = func(db database) error { gate.Lock(); defer gate.Unlock(); return commitTx(db) }
	f.start()
	t.Cleanup(func() { f.s.Close(context.Background()) })
	mustPut(t, f.s, true, newMessage(f.s, message.Auth, 100)) // statements are prepared now

	gate.Lock()
	first := f.s.Put([]*message.Message{newMessage(f.s, message.Auth, 100)}, true)
	eventually(t, "the first is being committed", func() bool { return f.s.writer.queue.isEmpty() })
	var writes []Write
	var ss []message.Settlement
	for i := range 50 {
		m := newMessage(f.s, message.Auth, 100)
		ss = append(ss, delivered(m, f.s.epoch.Load())...)
		writes = append(writes, f.s.Put([]*message.Message{m}, i%2 == 0))
	}
	before := trips.n.Load()
	gate.Unlock()
	<-first.Done()
	for _, w := range writes {
		<-w.Done()
		must(w.Result())
	}
	if n := trips.n.Load() - before; n != 2 {
		t.Errorf("%d round trips for a Put and 50 that came while it was committed, want 2", n)
	}
	before = trips.n.Load()
	must(f.s.Settle(t.Context(), ss))
	if n := trips.n.Load() - before; n != 2 {
		t.Errorf("%d round trips to settle 50, want 2", n)
	}
}
