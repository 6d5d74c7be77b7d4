package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"gatepost/admin"
	"gatepost/message"
)

// printHindrances tells what keeps rows of the queue waiting that their own state does not show: a stream on hold, an
// upstream that is paused, a stream that is gone from the config.
func printHindrances(ctx context.Context, w io.Writer, client *admin.Client, rows []message.QueueRow) error {
	if len(rows) == 0 {
		return nil
	}
	return printHindrancesOf(ctx, w, client, func(l admin.Lane) bool {
		return slices.ContainsFunc(rows, func(r message.QueueRow) bool { return r.Stream == l.Lane })
	})
}

// printHindrancesOf tells what keeps the mail of those lanes waiting that concern the question.
func printHindrancesOf(ctx context.Context, w io.Writer, client *admin.Client, concerns func(admin.Lane) bool) error {
	s, err := client.Status(ctx)
	if err != nil {
		return err
	}
	for _, l := range s.Lanes {
		if !concerns(l) {
			continue
		}
		for _, text := range hindrances(l, time.Now()) {
			if _, err := fmt.Fprintln(w, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// hindrances returns a sentence for each thing that keeps the mail of a lane waiting.
func hindrances(l admin.Lane, now time.Time) (texts []string) {
	switch {
	case len(l.Pairs) == 0:
		return []string{fmt.Sprintf("Stream %s is not in the config: its mail waits until it is again, or expires.", l.Lane)}
	case l.Held:
		texts = append(texts, fmt.Sprintf("Stream %s is on hold: `gatepost queue release --stream %[1]s` lets its mail go.", l.Lane))
	}
	works := slices.ContainsFunc(l.Pairs, func(p message.PairStatus) bool { return !p.Paused })
	for _, p := range l.Pairs {
		switch {
		case p.Paused && works:
			texts = append(texts, fmt.Sprintf("Stream %s does without upstream %s, which is %s:\n  %s", l.Lane, p.Upstream, pausedFor(p, now), dash(p.Reply)))
		case p.Paused:
			texts = append(texts, fmt.Sprintf("Stream %s waits for upstream %s, which is %s:\n  %s", l.Lane, p.Upstream, pausedFor(p, now), dash(p.Reply)))
		}
	}
	return texts
}

// pausedFor tells for how long an upstream has been out of use, and how long it asked to be.
func pausedFor(p message.PairStatus, now time.Time) string {
	text := "paused for " + now.Sub(p.Since).Round(time.Second).String()
	if p.Asked.After(now.Add(time.Second)) { // sooner it is over before anybody has read it
		text += ", asked to wait until " + p.Asked.Local().Format("15:04:05")
	}
	return text
}
