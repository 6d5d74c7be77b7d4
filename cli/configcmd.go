package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) configCmd() *cobra.Command {
	return group("config", "Begin a config, look at it", a.configInitCmd(), &cobra.Command{
		Use:   "show",
		Short: "Print the config with all its defaults; secrets stay file names",
		Args:  takesNothing,
		RunE: run(func(context.Context, []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(cfg)
			}
			_, err = fmt.Fprint(a.out, cfg.Effective())
			return err
		}),
	})
}
