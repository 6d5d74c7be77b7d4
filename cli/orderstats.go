package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// orderStats prints how much mail was ordered over HTTP, by what the comma-joined words say.
func (a *app) orderStats(ctx context.Context, by string, now time.Time) error {
	var hook, kind bool
	for word := range strings.SplitSeq(by, ",") {
		switch word {
		case "hook":
			hook = true
		case "type":
			kind = true
		default:
			return usage("--by %q is not hook, type, or both", by)
		}
	}
	client, err := a.client()
	if err != nil {
		return err
	}
	all, err := client.Orders(ctx)
	if err != nil {
		return err
	}
	orders := all.By(hook, kind)
	if a.json {
		return a.printJSON(orders)
	}
	fmt.Fprintf(a.out, "since the start %s ago\n", now.Sub(orders.StartedAt).Round(time.Second))
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "HOOK\tTYPE\tSENT\tFAILED\tLIMITED")
	for _, c := range orders.Counts {
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\n", dash(c.Hook), dash(c.Type), c.Sent, c.Failed, c.Limited)
	}
	return t.Flush()
}
