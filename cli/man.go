package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// manCmd is for those who make packages: `make man`.
func (a *app) manCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the man pages of all commands into a directory",
		Args:   takes("directory"),
		Hidden: true,
	}
	cmd.RunE = run(func(_ context.Context, args []string) error {
		if err := os.MkdirAll(args[0], 0o755); err != nil {
			return fmt.Errorf("make the directory: %w", err)
		}
		root := cmd.Root()
		root.DisableAutoGenTag = true // no day of making: with SOURCE_DATE_EPOCH the same source makes the same pages
		header := &doc.GenManHeader{Title: "GATEPOST", Section: "1", Source: "gatepost", Manual: "gatepost"}
		if err := doc.GenManTree(root, header, args[0]); err != nil {
			return fmt.Errorf("write man pages: %w", err)
		}
		return nil
	})
	return cmd
}
