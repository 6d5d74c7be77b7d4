package cli

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/doctor"
)

func (a *app) checkCmd() *cobra.Command {
	var offline bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check config, listeners, keys, DNS, logins; sends nothing",
		Long: `Check the config; then, if it has no problems, listeners and certificates,
egress addresses, the database, DKIM keys and their DNS records, log in to
every upstream from its egress, and ask those that are to keep templates for
them. No mail is sent, and a daemon that runs is not disturbed. Exit 1 if a
line says FAIL, 3 if the config has problems.`,
		Args: takesNothing,
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "leave out the database, DNS and logins")
	cmd.RunE = run(func(ctx context.Context, _ []string) error {
		cfg, err := loadConfig(a.file())
		if err != nil {
			return a.checkFailed(err)
		}
		o := doctor.Options{Ours: a.listening(ctx)}
		if !offline {
			o.Resolver = net.DefaultResolver
		}
		return a.printFindings(cfg, doctor.Run(ctx, cfg, o))
	})
	return cmd
}

// listening returns what tells whether the running daemon has a listener's address already, or nil where none runs that
// lets us ask.
func (a *app) listening(ctx context.Context) func(*config.Listen) bool {
	client, err := a.client()
	if err != nil {
		return nil
	}
	s, err := client.Status(ctx)
	if err != nil {
		return nil
	}
	return func(l *config.Listen) bool {
		return slices.ContainsFunc(s.Doors, func(d admin.Door) bool { return d.As == l.Address })
	}
}

// checked is what check found, for programs.
type checked struct {
	Problems []*config.Problem `json:"problems"`
	Warnings []*config.Problem `json:"warnings"`
	Findings []doctor.Finding  `json:"findings"`
}

// checkFailed tells of a config with problems: nothing else can be checked then.
func (a *app) checkFailed(err error) error {
	if problems := config.Problems(err); a.json && len(problems) > 0 {
		if err := a.printJSON(checked{problems, []*config.Problem{}, []doctor.Finding{}}); err != nil {
			return err
		}
	}
	return err
}

func (a *app) printFindings(cfg *config.Config, found []doctor.Finding) error {
	level := map[doctor.Level]int{}
	for _, f := range found {
		level[f.Level]++
	}
	failed, doubts := level[doctor.Fail], ""
	if n := level[doctor.Warn]; n > 0 {
		doubts = fmt.Sprintf(", %d with a warning", n)
	}
	if a.json {
		if err := a.printJSON(checked{[]*config.Problem{}, append([]*config.Problem{}, cfg.Warnings...), found}); err != nil {
			return err
		}
	} else {
		a.printProblems(cfg.Warnings)
		for _, f := range found {
			fmt.Fprintf(a.out, "%-4s  %s %s: %s\n", f.Level, f.Check, f.Subject, f.Text)
			if f.Hint != "" {
				fmt.Fprintf(a.out, "      hint: %s\n", f.Hint)
			}
		}
		if err := a.printWays(found); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &failure{exitFailed, fmt.Errorf("%d of %d checks failed", failed, len(found)), ""}
	}
	if !a.json {
		fmt.Fprintf(a.out, "%s: no problems in the config, %d checks, none failed%s\n", cfg.File, len(found), doubts)
	}
	return nil
}

// printWays prints a table of the upstreams that were reached, or not, and of what their services have to know.
func (a *app) printWays(found []doctor.Finding) error {
	found = slices.DeleteFunc(slices.Clone(found), func(f doctor.Finding) bool { return f.Way == nil })
	if len(found) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nUPSTREAM\tTYPE\tEGRESS\tRESULT\tFOR THE ALLOW-LIST OF THE SERVICE")
	for _, f := range found {
		allow := f.Way.Allow
		if f.Way.Note != "" {
			allow = append(slices.Clone(allow), f.Way.Note)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", f.Subject, f.Way.Type, f.Way.Egress, f.Way.Result, dash(strings.Join(allow, ", ")))
	}
	fmt.Fprintln(t)
	return t.Flush()
}
