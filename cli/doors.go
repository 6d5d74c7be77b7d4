package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"

	"gatepost/compose"
	"gatepost/config"
	"gatepost/ingress"
)

// door is a listener that is bound, and how it is configured.
type door struct {
	listen *config.Listen
	*socket
}

// socket is what of a door stays the same over reloads.
type socket struct {
	ln       net.Listener
	protocol string
	served   interface {
		Serve(ctx context.Context, ln net.Listener) error
	}
	// reconfigure makes ready what a config changes about the listener: ingress has it.
	reconfigure func(cfg *config.Config, l *config.Listen, templates ingress.Templates) (apply func(), err error)
	stop        context.CancelFunc // ends its serving; nil until it serves
	unbind      func()             // after stop: returns when the address is free
}

// openDoors returns a door for every listener of cfg, by name: those of open that are at its address already, and for
// the others new ones. It changes nothing of those that are open, and on an error leaves nothing bound.
func (d *daemon) openDoors(ctx context.Context, cfg *config.Config, templates *compose.Templates, open []door) (doors []door, err error) {
	var made []door
	for _, name := range slices.Sorted(maps.Keys(cfg.Listen)) {
		l := cfg.Listen[name]
		if there := socketAt(open, l); there != nil {
			doors = append(doors, door{l, there})
			continue
		}
		s, err := d.newSocket(ctx, cfg, templates, l)
		if err != nil {
			return nil, errors.Join(err, closeDoors(made))
		}
		made, doors = append(made, door{l, s}), append(doors, door{l, s})
	}
	return doors, nil
}

// loadTemplates reads the templates that the HTTP door fills in; nil where nobody would use them. loadConfig has told
// what is wrong with them.
func loadTemplates(cfg *config.Config) (*compose.Templates, error) {
	if len(cfg.Hook) == 0 {
		return nil, nil
	}
	return compose.Load(cfg.Templates, cfg.Upstream)
}

// socketAt returns the one among open that l goes on with: of the same name, address and protocol. Nothing else about a
// listener is fixed.
func socketAt(open []door, l *config.Listen) *socket {
	i := slices.IndexFunc(open, func(o door) bool {
		return o.listen.Name == l.Name && o.listen.Address == l.Address && o.protocol == l.Protocol
	})
	if i < 0 {
		return nil
	}
	return open[i].socket
}

// takenPorts returns a Problem for each new listener of cfg that cannot be bound before one of open is closed.
func takenPorts(open []door, cfg *config.Config) error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(cfg.Listen)) {
		l := cfg.Listen[name]
		if socketAt(open, l) != nil {
			continue
		}
		for _, o := range open {
			if collide(o.listen.Address, l.Address) {
				problems = append(problems, &config.Problem{File: cfg.File, Key: "listen." + name + ".address",
					Text: fmt.Sprintf("it collides with %s, which listener %s has until it is closed", o.listen.Address, o.listen.Name),
					Hint: "restart gatepost; or reload without both, and then with the new one"})
			}
		}
	}
	return errors.Join(problems...)
}

// collide reports whether two addresses cannot be bound at once.
func collide(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil {
		return a == b // a unix socket, or one of systemd's
	}
	every := func(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
	return portA == portB && portA != "0" && (hostA == hostB || every(hostA) || every(hostB))
}

// newSocket binds the address of l.
func (d *daemon) newSocket(ctx context.Context, cfg *config.Config, templates *compose.Templates, l *config.Listen) (*socket, error) {
	s, err := d.newServer(cfg, templates, l)
	if err != nil {
		return nil, err
	}
	s.ln, err = d.bind(ctx, l)
	return s, err
}

// newServer makes what speaks the protocol of l. Nothing is bound yet.
func (d *daemon) newServer(cfg *config.Config, templates *compose.Templates, l *config.Listen) (*socket, error) {
	s := &socket{protocol: l.Protocol}
	if l.HTTP() {
		server, err := ingress.NewHTTP(ingress.HTTPOptions{Config: cfg, Listen: l.Name, Caller: acceptor{d.relay, d.hurry}, Templates: ingress.NewTemplates(templates),
			Budget: d.budget, Limits: d.limits, Connections: d.connections, Reserve: d.sendsAuth, Log: d.log.Logger,
			Timeouts: ingress.HTTPTimeouts{Linger: drainHTTP, Drain: drainDoors + drainAnswer - drainHTTP}})
		if err != nil {
			return nil, err
		}
		s.served, s.reconfigure = server, server.Reconfigure
		s.unbind = func() { <-server.Unbound() }
		return s, nil
	}
	server, err := ingress.NewSMTP(ingress.SMTPOptions{Listen: l, Hostname: cfg.Hostname, Acceptor: acceptor{d.relay, d.hurry},
		Budget: d.budget, Connections: d.connections, Reserve: d.sendsAuth, Log: d.log.Logger,
		Timeouts: ingress.Timeouts{Drain: drainDoors, Answer: drainAnswer}})
	if err != nil {
		return nil, err
	}
	s.served = server
	s.unbind = func() { _ = s.ln.Close() } // serving ends with it, too
	s.reconfigure = func(cfg *config.Config, l *config.Listen, _ ingress.Templates) (func(), error) {
		return server.Reconfigure(l, cfg.Hostname)
	}
	return s, nil
}

// reconfigure makes ready what cfg changes about doors, and returns what puts it in force.
func reconfigure(doors []door, cfg *config.Config, templates *compose.Templates) (apply func(), err error) {
	var steps []func()
	for _, o := range doors {
		step, err := o.reconfigure(cfg, o.listen, ingress.NewTemplates(templates))
		if err != nil {
			return nil, err
		}
		steps = append(steps, step)
	}
	return func() {
		for _, step := range steps {
			step()
		}
	}, nil
}

// closeDoors closes doors that nobody serves.
func closeDoors(doors []door) error {
	var errs []error
	for _, o := range doors {
		errs = append(errs, o.ln.Close())
	}
	return errors.Join(errs...)
}

// without returns those of doors whose socket none of others has.
func without(doors, others []door) []door {
	return slices.DeleteFunc(slices.Clone(doors), func(o door) bool {
		return slices.ContainsFunc(others, func(other door) bool { return other.socket == o.socket })
	})
}

// context returns one for serving s, which s.stop ends too.
func (s *socket) context(ctx context.Context) context.Context {
	ctx, s.stop = context.WithCancel(ctx)
	return ctx
}

// address returns where s really listens.
func (s *socket) address() string { return s.ln.Addr().String() }

// serveDoor serves until ctx ends. Sessions that had to be cut off then are told to the log: they were promised nothing.
func (d *daemon) serveDoor(ctx context.Context, o door) error {
	defer o.stop()
	err := o.served.Serve(ctx, o.ln)
	if err != nil && ctx.Err() != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "listener stopped", slog.String("listener", o.listen.Name), slog.Any("err", err))
		return nil
	}
	return err
}

func (d *daemon) logDoor(o door, message string) {
	d.log.LogAttrs(context.Background(), slog.LevelInfo, message, slog.String("listener", o.listen.Name), slog.String("address", o.address()))
}
