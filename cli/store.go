package cli

import (
	"cmp"
	"context"

	"gatepost/config"
	"gatepost/event"
	"gatepost/store"
)

// openStore opens the store that the config names.
func (d *daemon) openStore(ctx context.Context, cfg *config.Config) (*store.Store, error) {
	o := store.Options{Dir: cfg.StateDir, Sink: event.Fanout{d.sink, d.orders}, Log: d.log.Logger,
		Addresses: d.historyAddresses, Keep: cfg.History.Keep}
	if cfg.Store.Engine != "postgres" {
		return store.Open(ctx, o)
	}
	dsn, err := cfg.Store.DSN.Read()
	if err != nil {
		return nil, err
	}
	s, err := store.OpenPostgres(ctx, store.PostgresOptions{Options: o, DSN: dsn, KeyFile: cfg.Store.KeyFile, Node: cfg.Store.Node})
	if err != nil {
		return nil, &failure{exitFailed, err, cmp.Or(store.Hint(err), "gatepost check tells all that is wrong with the database")}
	}
	return s, nil
}
