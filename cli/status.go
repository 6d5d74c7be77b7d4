package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/message"
)

func (a *app) statusCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the running daemon: listeners, lanes, paused upstreams",
		Long: `Show the running daemon: the nodes that share its queue, its listeners, what
waits in the lane of each stream, and which upstreams are paused and why. Exit
1 if the daemon does not do its work, 4 if there is none.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			s, err := client.Status(ctx)
			if err != nil {
				return err
			}
			if a.json {
				err = a.printJSON(s)
			} else {
				err = a.printStatus(s, time.Now())
			}
			if err == nil && !s.Alive {
				err = &failure{exitFailed, fmt.Errorf("gatepost runs but does not work: %s", s.Problem), hintFor(s.Store)}
			}
			return err
		}),
	}
}

func (a *app) printStatus(s admin.Status, now time.Time) error {
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "gatepost %s on %s, pid %d, up %s, state in %s\n", s.Version, s.Hostname, s.PID, now.Sub(s.StartedAt).Round(time.Second), s.StateDir)
	printStore(t, s.Store, now)
	for _, d := range s.Doors {
		fmt.Fprintf(t, "listener %s: %s on %s\n", d.Name, d.Protocol, d.Address)
	}
	fmt.Fprintln(t, "\nLANE\tQUEUED\tIN FLIGHT\tHELD\tOLDEST\tSTREAM")
	for _, l := range s.Lanes {
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\t%s\n", l.Lane, l.Queued, l.InFlight, l.Kept, when(l.Oldest, now), streamState(l.LaneStatus))
	}
	fmt.Fprintln(t, "\nLANE\tUPSTREAM\tEGRESS\tSHARE\tSTATE\tLAST REPLY")
	for _, l := range s.Lanes {
		for _, p := range l.Pairs {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d%%\t%s\t%s\n", l.Lane, p.Upstream, p.Egress, p.Share, stateOf(p, now), dash(p.Reply))
		}
	}
	return t.Flush()
}

// streamState tells what becomes of mail of a lane.
func streamState(l message.LaneStatus) string {
	state := "runs"
	if l.Held {
		state = "on hold"
	}
	if l.Refuses {
		state += ", refuses new mail"
	}
	return state
}

// stateOf tells how an upstream does for a lane.
func stateOf(p message.PairStatus, now time.Time) string {
	state := "works"
	if p.Paused {
		state = pausedFor(p, now)
	}
	if len(p.Barred) > 0 {
		state += fmt.Sprintf(", refuses mail from %s", strings.Join(p.Barred, " "))
	}
	if p.PassedBy > 0 {
		state += fmt.Sprintf(", others took %d", p.PassedBy)
	}
	return state
}

// hintFor says where to look for what keeps a daemon from its work.
func hintFor(s admin.Store) string {
	if s.Node != "" {
		return "gatepost check tells what is wrong with the database; see the log too"
	}
	return "see its log"
}

// printStore tells who shares the queue, where it is shared.
func printStore(w io.Writer, s admin.Store, now time.Time) {
	if s.Node == "" {
		return
	}
	fmt.Fprintf(w, "store: %s, %s, as node %s\n", s.Engine, s.Where, s.Node)
	for _, n := range s.Nodes {
		state := "alive, lease ends " + when(n.LeaseUntil, now)
		switch {
		case !n.Alive && n.LeaseUntil.IsZero():
			state = "stopped"
		case !n.Alive:
			state = "not alive since " + when(n.LeaseUntil, now)
		}
		fmt.Fprintf(w, "node %s: %s\n", n.Name, state)
	}
}
