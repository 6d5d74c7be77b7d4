package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
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
		Long: `Tell what became of a message, or of all mail to an address: when it came in,
each attempt with the upstream's reply, the outcome, and what it still waits
for. The id is in the client's log: "250 2.0.0 queued as ID". Exit 5 if nothing
is known of it.`,
		Example: "  gatepost trace ann@example.org",
		Args:    takes("address or message id"),
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
			if err := printTrace(a.out, t, time.Now()); err != nil {
				return err
			}
			return printHindrances(ctx, a.out, client, t.Queue)
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
	begin := id.Time().Local()
	fmt.Fprintf(w, "message %s, stream %s, accepted %s\n", id, streamOf(id, t), begin.Format(time.DateTime))
	if i := slices.IndexFunc(t.Events, func(e event.Event) bool { return e.Message == id && e.Data.Hook != "" }); i >= 0 {
		fmt.Fprintf(w, "  ordered as %s through hook %s\n", t.Events[i].Data.Type, t.Events[i].Data.Hook)
	}
	for _, e := range t.Events {
		if e.Message != id {
			continue
		}
		if err := printEvent(w, e, begin); err != nil {
			return err
		}
	}
	for _, r := range t.Queue {
		if r.ID == id {
			fmt.Fprintf(w, "  waits: %s, %s, due %s, expires %s, %s\n", r.Address, r.State, when(r.DueAt, now), when(r.ExpiresAt, now), tries(r.Attempts))
		}
	}
	return nil
}

// streamOf returns the stream of a message that t tells of.
func streamOf(id message.ID, t admin.Trace) string {
	for _, e := range t.Events {
		if e.Message == id {
			return e.Stream
		}
	}
	for _, r := range t.Queue {
		if r.ID == id {
			return r.Stream
		}
	}
	return "-"
}

func tries(n int) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}

// printEvent prints when something happened and what, and below it the details, so that both fit a terminal. The day
// is only told where it is not the one on which the message was accepted.
func printEvent(w io.Writer, e event.Event, begin time.Time) error {
	at := e.At.Local()
	layout := "15:04:05.000"
	if at.Format(time.DateOnly) != begin.Format(time.DateOnly) {
		layout = "2006-01-02 15:04:05.000"
	}
	verdict := strings.TrimSpace(string(e.Data.Class) + " " + e.Data.Reply)
	what := []string{at.Format(layout), e.Kind.String(), e.Upstream, verdict}
	what = slices.DeleteFunc(what, func(s string) bool { return s == "" })
	_, err := fmt.Fprintf(w, "  %s\n    %s\n", strings.Join(what, "  "), strings.Join(details(e), ", "))
	return err
}

// details tells whom an event is about, and how it went.
func details(e event.Event) []string {
	d := e.Data
	var all []string
	add := func(format string, a ...any) { all = append(all, fmt.Sprintf(format, a...)) }
	if e.Address != "" {
		add("to %s", e.Address)
	} else {
		add("recipient %d", e.N+1)
	}
	if d.Local != "" {
		add("from %s", d.Local)
	}
	if d.ProviderID != "" {
		add("there known as %s", d.ProviderID)
	}
	if d.Took > 0 {
		add("took %s", short(time.Duration(d.Took)))
	}
	if d.Total > 0 {
		add("total %s", short(time.Duration(d.Total)))
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
	return all
}

// short rounds a duration to what a person reads.
func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
