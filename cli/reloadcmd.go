package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"gatepost/admin"
)

func (a *app) reloadCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the daemon read its config anew; tell what changed",
		Long: `Make the running daemon read its config anew, as SIGHUP does, and tell what
changed. A config with problems changes nothing: they are printed, and the
one in force stays. No session is cut and no message is lost.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			done, err := client.Reload(ctx)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(done)
			}
			a.printProblems(done.Warnings)
			return a.printReloaded(done)
		}),
	}
}

func (a *app) printReloaded(r admin.Reloaded) error {
	var text strings.Builder
	for _, kind := range []struct {
		name string
		of   admin.Changes
	}{{"listeners", r.Listeners}, {"clients", r.Clients}, {"streams", r.Streams}, {"egresses", r.Egresses}, {"upstreams", r.Upstreams},
		{"hooks", r.Hooks}, {"templates", r.Templates}} {
		for _, change := range []struct {
			what  string
			names []string
		}{{"added", kind.of.Added}, {"removed", kind.of.Removed}, {"changed", kind.of.Changed}} {
			if len(change.names) > 0 {
				fmt.Fprintf(&text, "%s %s: %s\n", kind.name, change.what, strings.Join(change.names, ", "))
			}
		}
	}
	if text.Len() == 0 {
		text.WriteString("No section of the config has changed. Keys and certificates were read anew.\n")
	}
	if r.Held > 0 {
		fmt.Fprintf(&text, "%d recipients wait for streams that are not in the config: until they are again, or expire.\n", r.Held)
	}
	_, err := fmt.Fprint(a.out, text.String())
	return err
}
