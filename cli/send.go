package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/event"
	"gatepost/message"
)

func (a *app) sendCmd() *cobra.Command {
	var t admin.TestMail
	var wait time.Duration
	var through string
	cmd := &cobra.Command{
		Use:   "send --to ADDRESS",
		Short: "Send a test message and tell what becomes of it",
		Args:  takesNothing,
	}
	cmd.Flags().StringVar(&t.To, "to", "", "recipient `address`")
	cmd.Flags().StringVar(&t.From, "from", "", "header From `address` (no-reply@ its first domain)")
	cmd.Flags().StringVar(&t.Stream, "stream", "", "its `stream` (default that of --from, or the only one)")
	cmd.Flags().StringVar(&through, "upstream", "", "send it by upstream `name` alone, without the daemon")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to follow it")
	cmd.RunE = run(func(ctx context.Context, _ []string) error {
		if t.To == "" {
			return usage("--to is missing: the address that the test message goes to")
		}
		if _, err := message.ParseAddress(t.To); err != nil {
			return usage("--to: %w", err)
		}
		if through != "" {
			return a.sendThrough(ctx, t, through, wait)
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		id, err := client.Test(ctx, t)
		if err != nil {
			return err
		}
		if !a.json {
			fmt.Fprintf(a.out, "queued as %s\n", id)
		}
		return a.follow(ctx, client, id, wait)
	})
	return cmd
}

// follow prints the events of a message as they come, until its outcome.
func (a *app) follow(ctx context.Context, client *admin.Client, id message.ID, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for seen := 0; ; {
		t, err := client.Trace(ctx, id, "")
		if err != nil {
			return err
		}
		done := outcome(t.Events)
		if !a.json {
			for _, e := range t.Events[min(seen, len(t.Events)):] {
				a.printStep(e)
			}
		} else if done != 0 {
			if err := a.printJSON(t); err != nil {
				return err
			}
		}
		seen = len(t.Events)
		switch {
		case done == event.Delivered || done == event.Captured:
			return nil
		case done != 0:
			return &failure{exitFailed, fmt.Errorf("the test message was not delivered: %s", done), "gatepost check looks for the cause"}
		case time.Now().After(deadline):
			if err := printHindrances(ctx, a.err, client, t.Queue); err != nil {
				return err
			}
			return &failure{exitFailed, fmt.Errorf("message %s has no outcome after %s", id, wait),
				"it stays queued: gatepost trace " + id.String() + " tells more"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// outcome returns the event that ended the message, or 0.
func outcome(events []event.Event) event.Kind {
	for _, e := range events {
		switch e.Kind {
		case event.Delivered, event.Captured, event.Bounced, event.Unconfirmed, event.Expired, event.Superseded, event.Suppressed, event.Dropped:
			return e.Kind
		}
	}
	return 0
}
