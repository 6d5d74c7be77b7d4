package cli

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/message"
)

func (a *app) queueCmd() *cobra.Command {
	return group("queue", "Look at the queue and change it",
		a.queueListCmd(),
		a.queueShowCmd(),
		a.queueChangeCmd("retry", "Make mail due now", "Make mail due now. What is on hold stays there: see release.", "now due"),
		a.queueChangeCmd("drop", "End mail without sending it", `End mail without sending it; an event is recorded. Needs --yes unless
messages are named.`, "dropped"),
		a.queueChangeCmd("hold", "Keep mail, or a whole stream, from being sent", `Keep mail from being sent; it still expires. With --stream alone it stops the
whole stream, also mail yet to come.`, "held"),
		a.queueChangeCmd("release", "Let held mail, or a whole stream, go", `Let held mail go. Mail whose answer was lost (held-unconfirmed) may have
arrived: it is sent once more only if named by id or with --state
held-unconfirmed.`, "released"),
	)
}

// choice holds the flags that choose rows.
type choice struct {
	stream, address, state string
	all, yes               bool
}

func (c *choice) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.stream, "stream", "", "only mail of this `stream`")
	cmd.Flags().StringVar(&c.address, "address", "", "only mail to this `address`")
	cmd.Flags().StringVar(&c.state, "state", "", "only this `state`: queued, held or held-unconfirmed")
}

// filter makes a filter of the flags and ids.
func (c *choice) filter(ids []string) (f message.QueueFilter, err error) {
	f.Stream, f.Address = c.stream, c.address
	if c.state != "" {
		state, ok := admin.ParseState(c.state)
		if !ok {
			return f, usage("state %q is not known: use queued, held or held-unconfirmed", c.state)
		}
		f.State = &state
	}
	for _, s := range ids {
		id, err := message.ParseID(s)
		if err != nil {
			return f, usage("%w", err)
		}
		f.IDs = append(f.IDs, id)
	}
	return f, nil
}

func (a *app) queueListCmd() *cobra.Command {
	var c choice
	var limit int
	var after string
	cmd := &cobra.Command{Use: "list", Short: "List what waits, oldest first", Args: takesNothing}
	c.flags(cmd)
	cmd.Flags().IntVar(&limit, "limit", 100, "at most this many `rows`, to 1000")
	cmd.Flags().StringVar(&after, "after", "", "go on behind this message `id`")
	cmd.RunE = run(func(ctx context.Context, _ []string) error {
		f, err := c.filter(nil)
		if err != nil {
			return err
		}
		if limit < 1 || limit > 1000 {
			return usage("--limit is between 1 and 1000")
		}
		f.Limit = limit
		if after != "" {
			if f.After, err = message.ParseID(after); err != nil {
				return usage("--after: %w", err)
			}
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		rows, err := client.List(ctx, f)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(rows)
		}
		if err := a.printRows(rows); err != nil {
			return err
		}
		if len(rows) == limit {
			fmt.Fprintf(a.out, "There may be more: --after %s\n", rows[len(rows)-1].ID)
		}
		return printHindrances(ctx, a.out, client, rows)
	})
	return cmd
}

func (a *app) printRows(rows []message.QueueRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(a.out, "Nothing waits.")
		return err
	}
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "MESSAGE\tSTREAM\tTO\tSTATE\tDUE\tEXPIRES\tTRIES\tLAST REPLY")
	now := time.Now()
	for _, r := range rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", r.ID, r.Stream, r.Address, r.State,
			when(r.DueAt, now), when(r.ExpiresAt, now), r.Attempts, dash(r.LastReply))
	}
	return t.Flush()
}

// when tells a time as the distance from now.
func when(t, now time.Time) string {
	d := t.Sub(now).Round(time.Second)
	switch {
	case t.IsZero():
		return "-"
	case d > 0:
		return "in " + d.String()
	case d == 0:
		return "now"
	}
	return (-d).String() + " ago"
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) queueShowCmd() *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "Show one message of the queue", Args: takes("message id"), RunE: run(func(ctx context.Context, args []string) error {
		id, err := message.ParseID(args[0])
		if err != nil {
			return usage("%w", err)
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		rows, err := client.Show(ctx, id)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(rows)
		}
		if err := a.printMessage(rows); err != nil {
			return err
		}
		return printHindrances(ctx, a.out, client, rows)
	})}
}

// printMessage prints the rows of one message with everything that is known of them.
func (a *app) printMessage(rows []message.QueueRow) error {
	m, now := rows[0], time.Now()
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "message\t%s\nstream\t%s\nclient\t%s\nenvelope sender\t<%s>\nsize\t%d octets\naccepted\t%s (%s)\nexpires\t%s (%s)\n",
		m.ID, m.Stream, m.Client, m.MailFrom, m.Size,
		m.AcceptedAt.Format(time.RFC3339), when(m.AcceptedAt, now), m.ExpiresAt.Format(time.RFC3339), when(m.ExpiresAt, now))
	for _, r := range rows {
		fmt.Fprintf(t, "\nto\t%s\nstate\t%s\ndue\t%s (%s)\ntries\t%d\nlast upstream\t%s\nlast reply\t%s\n",
			r.Address, r.State, r.DueAt.Format(time.RFC3339), when(r.DueAt, now), r.Attempts, dash(r.LastUpstream), dash(r.LastReply))
		if r.MaybeSent {
			fmt.Fprintf(t, "maybe sent\tyes: gatepost died while handing it over\n")
		}
		if r.Copies > 0 {
			fmt.Fprintf(t, "copies that may have arrived\t%d\n", r.Copies)
		}
	}
	return t.Flush()
}

func (a *app) queueChangeCmd(action, short, long, done string) *cobra.Command {
	var c choice
	cmd := &cobra.Command{Use: action + " [ID…]", Short: short, Long: long}
	c.flags(cmd)
	cmd.Flags().BoolVar(&c.all, "all", false, "everything in the queue")
	if action == "drop" {
		cmd.Flags().BoolVar(&c.yes, "yes", false, "really drop more than named messages")
	}
	cmd.RunE = run(func(ctx context.Context, args []string) error {
		ch, err := c.change(action, args)
		if err != nil {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		res, err := client.Change(ctx, action, ch)
		if err != nil {
			return err
		}
		if a.json {
			return a.printJSON(res)
		}
		if err := a.printChanged(action, done, ch, res); err != nil || res.Changed == 0 || action != "retry" && action != "release" {
			return err
		}
		return printHindrancesOf(ctx, a.out, client, func(l admin.Lane) bool {
			return l.Queued > 0 && (ch.Filter.Stream == "" || ch.Filter.Stream == l.Lane)
		})
	})
	return cmd
}

// change makes the order that the flags and ids amount to.
func (c *choice) change(action string, ids []string) (admin.Change, error) {
	f, err := c.filter(ids)
	if err != nil {
		return admin.Change{}, err
	}
	narrowed := c.stream != "" || c.address != "" || c.state != ""
	switch {
	case len(ids) == 0 && !narrowed && !c.all:
		return admin.Change{}, usage("say which mail to %s: message ids, --stream, --address, --state or --all", action)
	case c.all && (len(ids) > 0 || narrowed):
		return admin.Change{}, usage("--all means everything: leave out what narrows it")
	case action == "drop" && len(ids) == 0 && !c.yes:
		return admin.Change{}, usage("this drops mail for good: add --yes if you mean it")
	}
	onlyStream := c.stream != "" && c.address == "" && c.state == "" && len(ids) == 0
	return admin.Change{Filter: f, All: c.all, Whole: onlyStream && (action == "hold" || action == "release")}, nil
}

func (a *app) printChanged(action, done string, ch admin.Change, res admin.Changed) error {
	if ch.Whole && action == "hold" {
		_, err := fmt.Fprintf(a.out, "Stream %s is on hold: its mail waits, and still expires.\nLet it go with: gatepost queue release --stream %[1]s\n", ch.Filter.Stream)
		return err
	}
	if ch.Whole {
		fmt.Fprintf(a.out, "Stream %s is not on hold any more.\n", ch.Filter.Stream)
		if res.Changed+res.InFlight == 0 {
			return nil // no row was held by itself
		}
	}
	fmt.Fprintf(a.out, "%s %s.\n", recipients(res.Changed), done)
	if res.InFlight > 0 {
		fmt.Fprintf(a.out, "%s being sent right now and left alone.\n", recipients(res.InFlight))
	}
	if res.Changed+res.InFlight == 0 && len(ch.Filter.IDs) > 0 {
		return notFound("gatepost trace ID tells where a message is", "none of these messages is in the queue in a state to %s", action)
	}
	return nil
}

func recipients(n int) string {
	if n == 1 {
		return "1 recipient"
	}
	return strconv.Itoa(n) + " recipients"
}
