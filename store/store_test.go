package store_test

import (
	"testing"

	"gatepost/event"
	"gatepost/message"
	"gatepost/relay"
	"gatepost/store"
	"gatepost/store/storetest"
)

var _ relay.Spool = (*store.Store)(nil)

func TestContract(t *testing.T) {
	storetest.Run(t, storetest.Engine{
		Open: func(t *testing.T, dir string, sink event.Sink) storetest.Store {
			s, err := store.Open(t.Context(), store.Options{Dir: dir, Sink: sink})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		History: func(t *testing.T, s storetest.Store, id message.ID) []event.Event {
			es, err := s.(*store.Store).Events(t.Context(), store.EventQuery{Message: id})
			if err != nil {
				t.Fatal(err)
			}
			return es
		},
	})
}
