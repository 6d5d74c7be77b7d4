package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/event"
	"gatepost/message"
)

func (a *app) traceCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "trace ADDRESS|ID",
		Short: "Tell what became of a message, or of all mail to an address",
		Args:  cobra.ExactArgs(1),
		RunE: run(func(ctx context.Context, args []string) error {
			id, address, err := messageOrAddress(args[0])
			if err != nil {
				return err
			}
			client, err := a.client()
			if err != nil {
				return err
			}
			t, err := client.Trace(ctx, id, address)
			if err != nil {
				return err
			}
			if len(t.Events) == 0 && len(t.Queue) == 0 {
				return notFound("history keeps what [history] keep says; the client's log may have the id", "nothing is known of %s", args[0])
			}
			if a.json {
				return a.printJSON(t)
			}
			return printTrace(a.out, t, time.Now())
		}),
	}
}

func messageOrAddress(s string) (message.ID, string, error) {
	if strings.Contains(s, "@") {
		address, err := message.ParseAddress(s)
		if err != nil {
			return 0, "", usage("%q: %w", s, err)
		}
		return 0, address.String(), nil
	}
	id, err := message.ParseID(s)
	if err != nil {
		return 0, "", usage("%w", err)
	}
	return id, "", nil
}

// printTrace prints a timeline for each message, and what still waits of it.
func printTrace(w io.Writer, t admin.Trace, now time.Time) error {
	var ids []message.ID
	for _, e := range t.Events {
		ids = append(ids, e.Message)
	}
	for _, r := range t.Queue {
		ids = append(ids, r.ID)
	}
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if err := printTimeline(w, id, t, now); err != nil {
			return err
		}
	}
	return nil
}

func printTimeline(w io.Writer, id message.ID, t admin.Trace, now time.Time) error {
	fmt.Fprintf(w, "message %s, accepted %s\n", id, id.Time().Local().Format(time.DateTime))
	tab := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, e := range t.Events {
		if e.Message == id {
			fmt.Fprintf(tab, "  %s\n", timelineRow(e))
		}
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, r := range t.Queue {
		if r.ID == id {
			fmt.Fprintf(w, "  waits: %s, %s, due %s, expires %s, %d tries\n", r.Address, r.State, when(r.DueAt, now), when(r.ExpiresAt, now), r.Attempts)
		}
	}
	return nil
}

// timelineRow is one event as tab-separated cells: time, what, stream, upstream, verdict and reply, what else.
func timelineRow(e event.Event) string {
	d := e.Data
	verdict := strings.TrimSpace(string(d.Class) + " " + d.Reply)
	var rest []string
	add := func(format string, a ...any) { rest = append(rest, fmt.Sprintf(format, a...)) }
	if e.Address != "" {
		add("to %s", e.Address)
	} else {
		add("recipient %d", e.N+1)
	}
	if d.Local != "" {
		add("from %s", d.Local)
	}
	if d.Took > 0 {
		add("took %s", short(d.Took))
	}
	if d.Total > 0 {
		add("%s after accept", short(d.Total))
	}
	if !d.DueAt.IsZero() {
		add("due %s", d.DueAt.Local().Format(time.TimeOnly))
	}
	if d.MaybeSent {
		add("maybe sent before")
	}
	if d.Text != "" {
		add("%s", d.Text)
	}
	return strings.Join([]string{e.At.Local().Format("2006-01-02 15:04:05.000"), e.Kind.String(), e.Stream, dash(e.Upstream),
		dash(verdict), strings.Join(rest, ", ")}, "\t")
}

// short rounds a duration to what a person reads.
func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
