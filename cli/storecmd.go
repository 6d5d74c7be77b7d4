package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"gatepost/config"
	"gatepost/store"
)

// How a key_file is changed on a fleet. A key that one node seals with must be known to all.
const (
	keyDistribution = time.Hour      // what rotate-key leaves for bringing the file to all nodes, unless told otherwise
	longestWait     = 24 * time.Hour // for a new key: beyond it somebody has forgotten that it is to come
	keyGrace        = time.Hour      // how long a key must have been replaced before it is taken out
)

func (a *app) storeCmd() *cobra.Command {
	return group("store", "Keys that seal auth mail in a shared database", a.initKeyCmd(), a.rotateKeyCmd())
}

func (a *app) initKeyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "init-key FILE",
		Short: "Make the key_file of a fleet (mode 0600)",
		Long: `Make the file for key_file of [store] with engine = "postgres", with one key.
It is made once and copied to every node; a file that is there already is never
overwritten. Keep it out of backups of the database: whoever has both can read
the sign-in mail in them.`,
		Example: "  gatepost store init-key /etc/gatepost/store.key",
		Args:    takes("file"),
		RunE: run(func(_ context.Context, args []string) error {
			if err := store.NewKeyFile(args[0]); err != nil {
				return err
			}
			if a.json {
				return a.printKeyFile(keyFile{File: args[0]})
			}
			_, err := fmt.Fprintf(a.out, "Wrote %s. Copy it to every node, readable by the user that gatepost runs as\nalone, and name it in key_file of [store].\n", args[0])
			return err
		}),
	}
}

func (a *app) rotateKeyCmd() *cobra.Command {
	var after time.Duration
	var remove bool
	cmd := &cobra.Command{
		Use:   "rotate-key [FILE]",
		Short: "Add a key to the key_file, and take out what is spent",
		Long: `Add a key to the key_file of the config, or to FILE. It seals mail only after a
while (--after): copy the file to all nodes before, since a node without the
key that another has sealed with holds the mail. Nodes read a changed file by
themselves. With --remove, keys that were replaced more than an hour ago and
that no mail in the database needs are taken out: copies of such mail, as in
backups, can then never be read again.`,
		Example: "  gatepost store rotate-key --remove",
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usage("%s takes one file at most, not %d", c.CommandPath(), len(args))
			}
			return nil
		},
	}
	cmd.Flags().DurationVar(&after, "after", keyDistribution, "`time` from now until the key seals, to 24h")
	cmd.Flags().BoolVar(&remove, "remove", false, "take out keys that nothing needs any more")
	cmd.RunE = run(func(ctx context.Context, args []string) error {
		if after < 0 || after > longestWait {
			return usage("--after is between 0s and %v", longestWait)
		}
		if remove && len(args) > 0 {
			return usage("--remove looks into the database of the config, so it changes the key_file of the config: leave out %s", args[0])
		}
		return a.rotateKey(ctx, args, time.Now(), after, remove)
	})
	return cmd
}

// keyFile is a file of keys, for programs.
type keyFile struct {
	File    string      `json:"file"`
	Keys    []store.Key `json:"keys"`
	Removed []int64     `json:"removed,omitempty"`
}

// printKeyFile prints f for programs, with the keys that are in the file now.
func (a *app) printKeyFile(f keyFile) (err error) {
	if f.Keys, err = store.ReadKeys(f.File); err != nil {
		return err
	}
	return a.printJSON(f)
}

// rotateKey takes out spent keys first: where the database does not answer, nothing is changed.
func (a *app) rotateKey(ctx context.Context, args []string, now time.Time, after time.Duration, remove bool) error {
	var file string
	var removed []int64
	if len(args) > 0 {
		file = args[0]
	} else {
		cfg, err := a.loadFleet()
		if err != nil {
			return err
		}
		file = cfg.Store.KeyFile
		if remove {
			if removed, err = removeSpent(ctx, cfg, now); err != nil {
				return err
			}
		}
	}
	added, err := store.RotateKeyFile(file, now.Add(after))
	if err != nil {
		return err
	}
	if a.json {
		return a.printKeyFile(keyFile{File: file, Removed: removed})
	}
	fmt.Fprintf(a.out, "Added key %d to %s; %d removed.\n", added, file, len(removed))
	_, err = fmt.Fprintf(a.out, "It seals from %s on. Copy the file to every node before.\n", now.Add(after).Local().Format(time.DateTime))
	return err
}

// loadFleet loads a config with a key_file.
func (a *app) loadFleet() (*config.Config, error) {
	cfg, err := a.load()
	if err == nil && cfg.Store.Engine != "postgres" {
		err = &failure{exitFailed, errors.New(`the engine of this config is "` + cfg.Store.Engine + `", which changes its keys by itself`),
			"name the config of a fleet with -c, or the file itself"}
	}
	return cfg, err
}

// removeSpent takes the keys out of the file that nothing needs any more, and returns them.
func removeSpent(ctx context.Context, cfg *config.Config, now time.Time) ([]int64, error) {
	keys, err := store.ReadKeys(cfg.Store.KeyFile)
	if err != nil {
		return nil, err
	}
	dsn, err := cfg.Store.DSN.Read()
	if err != nil {
		return nil, err
	}
	needed, err := store.NeededKeys(ctx, dsn)
	if err != nil {
		err = fmt.Errorf("find out which keys of %s are needed: %w", filepath.Base(cfg.Store.KeyFile), err)
		return nil, &failure{exitFailed, err, store.Hint(err)}
	}
	for _, k := range keys {
		if !slices.Contains(store.Replaced(keys, now.Add(-keyGrace)), k) {
			needed[k.ID]++ // by a node that has not got a newer one yet
		}
	}
	return store.DropKeys(cfg.Store.KeyFile, needed)
}
