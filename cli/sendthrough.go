package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/event"
	"gatepost/ingress"
	"gatepost/message"
)

// sendThrough sends a test message by one upstream of a config that need not be in force: no daemon is asked, nothing of
// its queue is touched. It is a gatepost of its own that does so, in a temporary directory and without listeners, so
// that policy, rendering, signature and source address are those that the daemon would use. What is not sent within
// wait never is.
func (a *app) sendThrough(ctx context.Context, t admin.TestMail, name string, wait time.Duration) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	cfg, err := a.load()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "gatepost-send-")
	if err != nil {
		return fmt.Errorf("make a directory for the test message: %w", err)
	}
	defer os.RemoveAll(dir)
	stream, err := streamThrough(cfg, t, name)
	if err != nil {
		return err
	}
	t.Stream = stream.Name
	events := make(told, 100)
	d, err := open(ctx, throughOnly(cfg, stream, name, dir), options{newLog(a.err, config.Log{Level: "error"}), events, ingress.Listen})
	if err != nil {
		return err
	}
	ctx, done := context.WithCancel(ctx)
	defer done()
	return d.run(ctx, func() {}, func(ctx context.Context) error {
		defer done()
		id, err := (engine{d}).Submit(ctx, t)
		if p, ok := errors.AsType[*admin.Problem](err); ok {
			p.Hint = "" // it is about the daemon's history, which this is no part of
		}
		if err != nil {
			return err
		}
		return a.watch(ctx, id, events, name, wait)
	})
}

// throughOnly returns cfg with that upstream for the whole route of s, which neither refuses nor answers in anybody's
// name then, without listeners, and with its state in dir.
func throughOnly(cfg *config.Config, s *config.Stream, upstream, dir string) *config.Config {
	stream, only := *s, *cfg
	stream.Route, stream.DSNUpstream = []string{upstream}, ""
	stream.Weights, stream.HedgeAfter = nil, 0
	stream.Verdict, stream.WhenDown, stream.Match = "queued", "queue", nil
	only.StateDir, only.Listen = dir, nil
	only.Stream = maps.Clone(cfg.Stream)
	only.Stream[s.Name] = &stream
	return &only
}

// streamThrough returns the stream that a test message belongs to: as t says, else the one that uses the upstream.
func streamThrough(cfg *config.Config, t admin.TestMail, upstream string) (*config.Stream, error) {
	if cfg.Upstream[upstream] == nil {
		return nil, notFound("the upstreams are "+strings.Join(slices.Sorted(maps.Keys(cfg.Upstream)), ", "), "there is no upstream %q in %s", upstream, cfg.File)
	}
	if t.Stream == "" && t.From == "" {
		var uses []*config.Stream
		for _, s := range cfg.Stream {
			if slices.Contains(s.Route, upstream) {
				uses = append(uses, s)
			}
		}
		if len(uses) == 1 {
			return uses[0], nil
		}
	}
	return streamFor(cfg, t)
}

// told hands on events as they become durable. It implements event.Sink.
type told chan event.Event

// Emit implements event.Sink.
func (c told) Emit(events []event.Event) {
	for _, e := range events {
		select {
		case c <- e:
		default: // an upstream that goes on and off so fast has been told of
		}
	}
}

// watch prints what happens until the message has its outcome, or it is clear that it will have none.
func (a *app) watch(ctx context.Context, id message.ID, events told, name string, wait time.Duration) error {
	end := time.NewTimer(wait)
	defer end.Stop()
	var all []event.Event
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			return a.watched(all, fmt.Errorf("the test message was not sent within %v", wait))
		case e := <-events:
			all = append(all, e)
			if !a.json {
				a.printStep(e)
			}
			done := outcome([]event.Event{e})
			switch {
			case e.Message == id && (done == event.Delivered || done == event.Captured):
				return a.watched(all, nil)
			case e.Message == id && done != 0:
				return a.watched(all, fmt.Errorf("the test message was not delivered: %s", done))
			case e.Kind == event.Paused && e.Data.Class == message.Unauthorised:
				return a.watched(all, fmt.Errorf("upstream %s does not let us in", name))
			}
		}
	}
}

// watched ends a watch.
func (a *app) watched(all []event.Event, err error) error {
	if a.json {
		if err := a.printJSON(admin.Trace{Events: all, Queue: []message.QueueRow{}}); err != nil {
			return err
		}
	}
	if err != nil {
		return &failure{exitFailed, err, "gatepost check looks for the cause; nothing stays queued"}
	}
	return nil
}

func (a *app) printStep(e event.Event) {
	fmt.Fprintf(a.out, "%s  %s  %s  %s\n", e.At.Local().Format("15:04:05.000"), e.Kind, dash(e.Upstream), dash(e.Data.Reply))
}
