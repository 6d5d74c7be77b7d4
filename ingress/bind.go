package ingress

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"gatepost/config"
)

// Listen binds the address of l: host:port, "unix:/path", or "systemd:NAME" for a socket that systemd has bound. Its
// errors say what is in the way.
func Listen(ctx context.Context, l *config.Listen) (net.Listener, error) {
	ln, err := bind(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("listen %s: %w", l.Name, err)
	}
	return ln, nil
}

func bind(ctx context.Context, l *config.Listen) (net.Listener, error) {
	if path, ok := strings.CutPrefix(l.Address, "unix:"); ok {
		return bindUnix(ctx, path, fs.FileMode(l.SocketMode))
	}
	if name, ok := strings.CutPrefix(l.Address, "systemd:"); ok {
		return inherit(name, inherited())
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", l.Address)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%s is in use: stop the program that holds it, or change the address", l.Address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = fmt.Errorf("%s is not an address of this host", l.Address)
	case errors.Is(err, syscall.EACCES):
		err = fmt.Errorf("%s may not be bound by this user: ports below 1024 need CAP_NET_BIND_SERVICE, or a socket of systemd", l.Address)
	}
	return nil, err
}

// bindUnix binds a socket at path, in place of one that a dead process has left there.
func bindUnix(ctx context.Context, path string, mode fs.FileMode) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) {
		if err := removeStale(ctx, path); err != nil {
			return nil, err
		}
		ln, err = lc.Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, fmt.Errorf("bind the socket %s: %w", path, err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("set the mode of the socket: %w", err), ln.Close())
	}
	return ln, nil
}

// removeStale removes the socket at path if nobody listens on it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("look at what is in the socket's place: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and no socket: move it away, or change the address", path)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s is in use: stop the program that listens on it, or change the address", path)
	}
	return os.Remove(path)
}

// inherited are the sockets that systemd has handed to this process. They are looked up once, as they are the
// process's own: a file that nobody held would be closed by the garbage collector.
var inherited = sync.OnceValue(func() []*os.File { return activation.Files(true) })

// inherit returns the listener among files that a socket unit calls name.
func inherit(name string, files []*os.File) (net.Listener, error) {
	var found []*os.File
	var names []string
	for _, f := range files {
		if names = append(names, f.Name()); f.Name() == name {
			found = append(found, f)
		}
	}
	switch {
	case len(files) == 0:
		return nil, fmt.Errorf("systemd has handed over no sockets: start gatepost by a socket unit (systemctl enable --now gatepost.socket)")
	case len(found) == 0:
		slices.Sort(names)
		return nil, fmt.Errorf("systemd has handed over no socket %q, only %s: see FileDescriptorName= in the socket unit",
			name, strings.Join(slices.Compact(names), ", "))
	case len(found) > 1:
		return nil, fmt.Errorf("systemd has handed over %d sockets %q: give each address a socket unit with a FileDescriptorName= of its own", len(found), name)
	}
	ln, err := net.FileListener(found[0]) // a duplicate
	if err != nil {
		return nil, fmt.Errorf("use the socket %q of systemd: %w", name, err)
	}
	return ln, nil
}
