package cli

import (
	"context"
	"fmt"
	"net"
	"slices"

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
		Args:  takesNothing,
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "leave out DNS and logins")
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
	failed := 0
	for _, f := range found {
		if f.Level == doctor.Fail {
			failed++
		}
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
	}
	if failed > 0 {
		return &failure{exitFailed, fmt.Errorf("%d of %d checks failed", failed, len(found)), ""}
	}
	if !a.json {
		fmt.Fprintf(a.out, "%s: no problems in the config, %d checks, none failed\n", cfg.File, len(found))
	}
	return nil
}
