package store_test

import (
	"path/filepath"
	"sync"
	"testing"

	"gatepost/event"
	"gatepost/message"
	"gatepost/relay"
	"gatepost/store"
	"gatepost/store/storetest"
	"gatepost/store/storetest/pgtest"
)

var _ relay.Spool = (*store.Store)(nil)

func history(t *testing.T, s storetest.Store, id message.ID) []event.Event {
	es, err := s.(*store.Store).Events(t.Context(), store.EventQuery{Message: id})
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Engine{
		Open: func(t *testing.T, dir string, sink event.Sink) storetest.Store {
			s, err := store.Open(t.Context(), store.Options{Dir: dir, Sink: sink})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		History: history,
	})
}

// TestContractOnPostgreSQL runs the contract with a database for each test, which it finds by the test's directory.
func TestContractOnPostgreSQL(t *testing.T) {
	server := pgtest.Shared(t)
	var databases sync.Map
	storetest.Run(t, storetest.Engine{
		Open: func(t *testing.T, dir string, sink event.Sink) storetest.Store {
			keys := filepath.Join(dir, "store.key")
			dsn, ok := databases.Load(dir)
			if !ok {
				if err := store.NewKeyFile(keys); err != nil {
					t.Fatal(err)
				}
				dsn = server.Database(t)
				databases.Store(dir, dsn)
			}
			s, err := store.OpenPostgres(t.Context(), store.PostgresOptions{
				Options: store.Options{Dir: dir, Sink: sink}, DSN: dsn.(string), KeyFile: keys, Node: "a"})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		History: history,
	})
}
