package cli

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/message"
)

func (a *app) statsCmd() *cobra.Command {
	var by string
	c := &cobra.Command{
		Use:   "stats",
		Short: "Compare the upstreams, or count the orders over HTTP",
		Long: `Compare the upstreams of each stream since the daemon started: how many
messages began there, what the upstream said of them, how long it took (half
and 99 of 100 took no longer), how many went elsewhere because it could not
take them, and of how many a second copy was sent because it was slow.

With --by, count the mail that was ordered over HTTP instead: how much was sent,
how much came to nothing, and how often a limit was reached.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error {
			if by != "" {
				return a.orderStats(ctx, by, time.Now())
			}
			return a.upstreamStats(ctx)
		}),
	}
	c.Flags().StringVar(&by, "by", "", "count orders by `WORDS`: hook, type, or hook,type")
	return c
}

func (a *app) upstreamStats(ctx context.Context) error {
	client, err := a.client()
	if err != nil {
		return err
	}
	s, err := client.Stats(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(s)
	}
	return a.printStats(s, time.Now())
}

func (a *app) printStats(s admin.Stats, now time.Time) error {
	fmt.Fprintf(a.out, "since the start %s ago\n", now.Sub(s.StartedAt).Round(time.Second))
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "STREAM\tUPSTREAM\tSHARE\tBEGAN\tTRIES\tACCEPTED\tTEMPORARY\tPERMANENT\tTHROTTLED\tUNAUTHORISED\tUNKNOWN\tELSEWHERE\tHEDGED\tP50\tP99")
	for _, u := range s.Arms {
		v := u.Verdicts
		fmt.Fprintf(t, "%s\t%s\t%d%%\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%s\n", u.Stream, u.Upstream, u.Share, u.Began, u.Attempts,
			v[message.Accepted], v[message.Temporary], v[message.Permanent], v[message.Throttled], v[message.Unauthorised], v[message.Unknown],
			u.FailedOver, u.Hedged, millis(u.P50, u.Attempts), millis(u.P99, u.Attempts))
	}
	return t.Flush()
}

// millis writes milliseconds as people read times; nothing was measured where there were no attempts.
func millis(ms float64, attempts int64) string {
	if attempts == 0 {
		return "-"
	}
	return short(time.Duration(ms * float64(time.Millisecond)))
}
