package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) statsCmd() *cobra.Command {
	by := "hook,type"
	c := &cobra.Command{
		Use:   "stats",
		Short: "Count the mail that was ordered over HTTP",
		Long: `Count the mail that was ordered over HTTP since the daemon started: how much
was sent, how much came to nothing, and how often a limit was reached.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error { return a.orderStats(ctx, by, time.Now()) }),
	}
	c.Flags().StringVar(&by, "by", by, "count by `WORDS`: hook, type, or both")
	return c
}
