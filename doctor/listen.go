package doctor

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"gatepost/config"
)

// unitDirs is where systemd looks for socket units, the most important first (systemd.unit(5)).
var unitDirs = []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// listeners checks that every listener can have its address, and what it shows to clients.
func listeners(cfg *config.Config, o Options) []Finding {
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Listen)) {
		l := cfg.Listen[name]
		f := Finding{Check: "listener", Subject: name}
		if o.Ours != nil && o.Ours(l) {
			f.Level, f.Text = OK, "gatepost listens on "+l.Address+" already"
		} else {
			f.Level, f.Text, f.Hint = address(l.Address)
		}
		found = append(found, f)
		if l.TLSCertFile != "" {
			found = append(found, certificate(l, cfg.Hostname))
		}
		if l.TLSClientCAFile != "" {
			found = append(found, clientCA(l))
		}
	}
	return found
}

// address tells whether a listener could have address now.
func address(a string) (level Level, text, hint string) {
	if path, ok := strings.CutPrefix(a, "unix:"); ok {
		return unixAddress(path)
	}
	if name, ok := strings.CutPrefix(a, "systemd:"); ok {
		return activation(name)
	}
	ln, err := net.Listen("tcp", a)
	switch {
	case err == nil:
		ln.Close()
		return OK, a + " is free", ""
	case errors.Is(err, syscall.EADDRINUSE):
		return Fail, a + " is in use by another program", "stop that program (ss -ltnp shows it), or change the address"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return Fail, a + " is not an address of this host", "ip addr lists those that are"
	case errors.Is(err, syscall.EACCES):
		return Warn, a + " may not be bound by the user who runs this check", "ports below 1024 need CAP_NET_BIND_SERVICE; run the check as the daemon's user or as root"
	}
	return Fail, "it cannot listen on " + a + ": " + err.Error(), ""
}

// unixAddress tells whether a socket could be made at path. It makes none.
func unixAddress(path string) (level Level, text, hint string) {
	if dir, err := os.Stat(filepath.Dir(path)); err != nil || !dir.IsDir() {
		return Fail, filepath.Dir(path) + " is not a directory", "make it, for the daemon's user to write into (systemd: RuntimeDirectory=)"
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return OK, path + " is free", ""
	case err != nil:
		return Fail, fmt.Sprintf("it cannot be looked at: %v", err), "run the check as the daemon's user or as root"
	case info.Mode().Type() != os.ModeSocket:
		return Fail, path + " is there already and is no socket", "move it away, or change the address"
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		return OK, path + " is left over from a program that is gone, and will be replaced", ""
	}
	c.Close()
	return Fail, path + " is in use by another program", "stop that program, or change the address"
}

// activation tells whether systemd would hand over a socket called name: to this process, or by a socket unit.
func activation(name string) (level Level, text, hint string) {
	if slices.Contains(strings.Split(os.Getenv("LISTEN_FDNAMES"), ":"), name) {
		return OK, "systemd hands over the socket " + name, ""
	}
	if unit := socketUnit(unitDirs, name); unit != "" {
		return OK, unit + " names the socket " + name, ""
	}
	return Warn, "no socket unit of this host names a socket " + name,
		"systemd/gatepost.socket is one: it needs FileDescriptorName=" + name + ", and to be enabled"
}

// socketUnit returns the socket unit in dirs that hands over a socket called name, or "".
func socketUnit(dirs []string, name string) string {
	named := regexp.MustCompile(`(?m)^\s*FileDescriptorName\s*=\s*` + regexp.QuoteMeta(name) + `\s*$`)
	for _, dir := range dirs {
		units, _ := filepath.Glob(filepath.Join(dir, "*.socket")) // the pattern is well formed
		for _, unit := range units {
			if text, err := os.ReadFile(unit); err == nil && named.Match(text) {
				return unit
			}
		}
	}
	return ""
}
