package cli

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"gatepost": func() { os.Exit(Main(context.Background(), os.Args, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error { // txtar knows no modes, and secrets must be private
			secrets, err := filepath.Glob(filepath.Join(e.WorkDir, "*.password"))
			for _, s := range secrets {
				err = os.Chmod(s, 0o600)
			}
			return err
		},
	})
}
