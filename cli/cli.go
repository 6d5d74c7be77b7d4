// Package cli holds gatepost's commands and all its wiring, done by hand. Every error says what is wrong and, on a
// line of its own, what to do; what it exits with is listed in docs/cli.md.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/config"
)

// What gatepost exits with.
const (
	exitOK          = 0
	exitFailed      = 1 // what was asked for did not work, or check found something that must be mended
	exitUsage       = 2 // the command line is wrong
	exitConfig      = 3 // the config has problems; all of them were printed
	exitUnreachable = 4 // no daemon answers on the socket
	exitNotFound    = 5 // the message, address or file asked about is not known
)

const (
	localConfig  = "gatepost.toml"
	systemConfig = "/etc/gatepost/gatepost.toml"
)

// failure is an error that knows its exit code and what to do about it.
type failure struct {
	code int
	err  error
	hint string
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usage(format string, a ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, a...), ""}
}

func notFound(hint, format string, a ...any) error {
	return &failure{exitNotFound, fmt.Errorf(format, a...), hint}
}

// app is what every command shares.
type app struct {
	out, err   io.Writer
	configFile string // -c; "" for the default
	json       bool   // --json
}

// Main runs the command that args name and returns what the process should exit with.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	a := &app{out: stdout, err: stderr}
	root := a.root()
	root.SetArgs(args[1:])
	root.SetOut(stdout)
	root.SetErr(stderr)
	if c, err := root.ExecuteContextC(ctx); err != nil {
		return a.explain(c, err)
	}
	return exitOK
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "gatepost",
		Short:         "A sign-in mail gateway: signed, kept apart, from the right address, never lost",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVarP(&a.configFile, "config", "c", "", "`file` (./gatepost.toml, else "+systemConfig+")")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	root.AddCommand(a.serveCmd(), a.checkCmd(), a.sendCmd(), a.traceCmd(), a.queueCmd(), a.statusCmd(), a.statsCmd(), a.dkimCmd(),
		a.configCmd(), a.templateCmd(), a.reloadCmd(), a.hashPasswordCmd(), a.demoCmd(), a.versionCmd(), a.manCmd())
	return root
}

// group makes a command that only holds others. Cobra would answer a misspelt one with help and success.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return usage("%s needs to know what to do", c.CommandPath())
	}}
	c.AddCommand(subs...)
	return c
}

// takes makes a command insist on one argument; what is its name on the usage line.
func takes(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usage("%s takes one %s, not %d", c.CommandPath(), what, len(args))
		}
		return nil
	}
}

// takesNothing is for commands without arguments. Cobra's own NoArgs would call the argument an unknown command.
func takesNothing(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usage("%s takes no arguments: what is %q?", c.CommandPath(), args[0])
	}
	return nil
}

// run marks the errors of a command as its own, so that what is left are errors in the command line.
func run(do func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		err := do(c.Context(), args)
		if _, ok := errors.AsType[*failure](err); ok || err == nil {
			return err
		}
		return &failure{code: exitFailed, err: err}
	}
}

// explain prints err, which command c ended with, for a person and returns the exit code.
func (a *app) explain(c *cobra.Command, err error) int {
	if problems := config.Problems(err); len(problems) > 0 {
		a.printProblems(problems)
		return exitConfig
	}
	code, hint := exitUsage, ""
	if f, ok := errors.AsType[*failure](err); ok {
		code, hint = f.code, f.hint
	}
	if u, ok := errors.AsType[*admin.Unreachable](err); ok {
		code, hint = exitUnreachable, u.Hint()
	}
	if p, ok := errors.AsType[*admin.Problem](err); ok {
		hint = p.Hint
		if p.Code == 404 {
			code = exitNotFound
		}
	}
	if code == exitUsage && hint == "" {
		hint = "see `" + c.CommandPath() + " --help`"
	}
	fmt.Fprintf(a.err, "gatepost: %s\n", strings.TrimSpace(err.Error()))
	if hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", hint)
	}
	return code
}

func (a *app) printProblems(problems []*config.Problem) {
	for _, p := range problems {
		fmt.Fprintln(a.err, p)
		if p.Hint != "" {
			fmt.Fprintf(a.err, "  hint: %s\n", p.Hint)
		}
	}
}

// file returns the config file to use.
func (a *app) file() string {
	if a.configFile != "" {
		return a.configFile
	}
	if _, err := os.Stat(localConfig); err == nil {
		return localConfig
	}
	return systemConfig
}

// load reads the config and prints its warnings.
func (a *app) load() (*config.Config, error) {
	cfg, err := config.Load(a.file())
	if err != nil {
		return nil, err
	}
	a.printProblems(cfg.Warnings)
	return cfg, nil
}

// client returns a client of the daemon that runs with the config.
func (a *app) client() (*admin.Client, error) {
	dir, err := stateDir(a.file())
	if err != nil {
		return nil, err
	}
	return admin.NewClient(filepath.Join(dir, admin.SocketName)), nil
}

// printJSON prints v for programs.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
