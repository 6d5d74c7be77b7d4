package doctor

import (
	"context"

	"gatepost/config"
	"gatepost/store"
)

// database looks whether this node can use the database that the fleet shares. It changes nothing in it.
func database(ctx context.Context, cfg *config.Config) []Finding {
	if cfg.Store.Engine != "postgres" {
		return nil
	}
	dsn, err := cfg.Store.DSN.Read()
	if err != nil {
		return []Finding{{Level: Fail, Check: "database", Subject: "store", Text: err.Error(), Hint: "the first line of the file is the DSN"}}
	}
	e := store.Examine(ctx, store.PostgresOptions{DSN: dsn, KeyFile: cfg.Store.KeyFile, Node: cfg.Store.Node})
	var found []Finding
	for _, fault := range e.Faults {
		f := Finding{Level: Fail, Check: "database", Subject: "store", Text: plain(fault.Text), Hint: fault.Hint}
		if fault.Bearable {
			f.Level = Warn
		}
		found = append(found, f)
	}
	if len(found) == 0 {
		found = append(found, Finding{Level: OK, Check: "database", Subject: "store", Text: plain(e.About)})
	}
	return found
}
