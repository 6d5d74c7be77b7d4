package cli

import (
	"context"
	"errors"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/event"
	"gatepost/relay"
	"gatepost/store"
)

// spool is the store as the daemon uses it, on either engine.
type spool interface {
	relay.Spool
	admin.Queue
	Events(ctx context.Context, q store.EventQuery) ([]event.Event, error)
	Close(ctx context.Context) error
}

// openSpool opens the store that the config names.
func (d *daemon) openSpool(ctx context.Context, cfg *config.Config) (spool, error) {
	o := store.Options{Dir: cfg.StateDir, Sink: d.sink, Log: d.log.Logger, Addresses: d.historyAddresses, Keep: cfg.History.Keep}
	if cfg.Store.Engine == "postgres" {
		return nil, errors.New("not yet")
	}
	s, err := store.Open(ctx, o)
	if err != nil {
		return nil, err // not s: a spool that holds a nil pointer is not nil
	}
	return s, nil
}
