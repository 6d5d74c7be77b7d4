package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/BurntSushi/toml"
)

// systemStateDir is where the unit file keeps the state of a config that does not say.
const systemStateDir = "/var/lib/gatepost"

// stateDir returns the state directory that the config names. It reads nothing else of the config: what the daemon
// gets as systemd credentials is not there for an operator's shell, and looking at the queue must not need it.
func stateDir(file string) (string, error) {
	var c struct {
		StateDir string `toml:"state_dir"`
	}
	if _, err := toml.DecodeFile(file, &c); err != nil {
		return "", &failure{exitConfig, fmt.Errorf("find the daemon's socket: read state_dir: %w", err),
			"name the config of the running daemon with -c"}
	}
	dir := os.ExpandEnv(c.StateDir)
	if dir == "" {
		return systemStateDir, nil
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(filepath.Dir(file), dir)
	}
	return filepath.Abs(dir)
}
