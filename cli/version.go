package cli

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"

	"gatepost/dkim"
)

// build is what the Go linker noted about this binary.
type build struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	OpenSSL  string `json:"openssl,omitempty"` // that RSA signatures are made with; none in the usual build
}

func buildInfo() build {
	b := build{Version: "unknown", OpenSSL: dkim.OpenSSL()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	b.Go = info.GoVersion
	if v := info.Main.Version; v != "" {
		b.Version = v
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Revision = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (b build) String() string {
	s := fmt.Sprintf("gatepost %s, %s", b.Version, b.Go)
	if b.Revision != "" {
		s += ", revision " + b.Revision[:min(12, len(b.Revision))]
	}
	if b.Modified {
		s += " with local changes"
	}
	if b.OpenSSL != "" {
		s += ", signs with OpenSSL " + b.OpenSSL
	}
	return s
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: takesNothing, RunE: run(func(context.Context, []string) error {
		if a.json {
			return a.printJSON(buildInfo())
		}
		_, err := fmt.Fprintln(a.out, buildInfo())
		return err
	})}
}
