package store

import (
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

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
