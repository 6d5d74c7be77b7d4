package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/event"
	"gatepost/ingress"
	"gatepost/message"
	"gatepost/relay"
	"gatepost/store"
)

// How long stopping may take: sessions end first, then the relay (7 s), then the store. 10 s in all.
const (
	hurryAfter  = time.Second // clients that wait for the upstream's word are answered without it
	drainDoors  = 1500 * time.Millisecond
	drainAnswer = time.Second
	drainStore  = 2 * time.Second
)

// daemon is gatepost, wired.
type daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	started time.Time
	store   *store.Store
	relay   *relay.Relay
	doors   []door
	admin   net.Listener
	hurry   context.Context // ends when nobody should wait for an upstream any more
	hasten  context.CancelFunc
}

// door is a listener that is bound.
type door struct {
	name string
	ln   net.Listener
	smtp *ingress.SMTP
}

// binder binds the address of a listener; ingress.Listen, but in the demo.
type binder func(ctx context.Context, l *config.Listen) (net.Listener, error)

// open does all that can fail: it takes the state directory, makes the relay and binds every listener. Nothing is
// accepted yet. Events go to sink once they are durable.
func open(ctx context.Context, cfg *config.Config, log *slog.Logger, sink event.Sink, bind binder) (*daemon, error) {
	d := &daemon{cfg: cfg, log: log, started: time.Now()}
	d.hurry, d.hasten = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.open(ctx, sink, bind); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *daemon) open(ctx context.Context, sink event.Sink, bind binder) (err error) {
	d.store, err = store.Open(ctx, store.Options{Dir: d.cfg.StateDir, Sink: sink, Log: d.log,
		Addresses: historyAddresses(d.cfg), Keep: d.cfg.History.Keep})
	if err != nil {
		return err
	}
	if d.relay, err = relay.New(relay.Options{Config: d.cfg, Spool: d.store, Log: d.log}); err != nil {
		return err
	}
	budget := ingress.NewBudget(d.cfg.Limits.BytesInFlight)
	for _, name := range slices.Sorted(maps.Keys(d.cfg.Listen)) {
		l := d.cfg.Listen[name]
		ln, err := bind(ctx, l)
		if err != nil {
			return err
		}
		smtp := ingress.NewSMTP(ingress.SMTPOptions{Listen: l, Hostname: d.cfg.Hostname, Acceptor: acceptor{d.relay, d.hurry}, Budget: budget,
			Reserve: sendsAuth(d.cfg), Log: d.log, Timeouts: ingress.Timeouts{Drain: drainDoors, Answer: drainAnswer}})
		d.doors = append(d.doors, door{name, ln, smtp})
	}
	d.admin, err = admin.Listen(d.cfg.StateDir) // the store holds the directory's lock
	return err
}

// acceptor is the relay as doors see it. While gatepost stops, a client that waits to hear what the upstream says gets the
// 250 that its mail, being on disk, has earned already.
type acceptor struct {
	*relay.Relay
	hurry context.Context
}

// Accept implements ingress.Acceptor.
func (a acceptor) Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.hurry, cancel)()
	return a.Relay.Accept(ctx, s)
}

// historyAddresses says how history keeps the addresses of a stream, as [history] addresses has it; nil leaves it to
// the kind of mail.
func historyAddresses(cfg *config.Config) func(string, message.Kind) string {
	if cfg.History.Addresses == "" {
		return nil
	}
	return func(string, message.Kind) string { return cfg.History.Addresses }
}

// sendsAuth reports whether a client has a stream of auth mail.
func sendsAuth(cfg *config.Config) func(client string) bool {
	return func(client string) bool {
		c := cfg.Client[client]
		return c != nil && slices.ContainsFunc(c.Streams, func(s string) bool { return cfg.Stream[s].Kind == message.Auth })
	}
}

// close gives back what open took, for a daemon that never ran.
func (d *daemon) close() error {
	var errs []error
	for _, door := range d.doors {
		errs = append(errs, door.ln.Close())
	}
	if d.admin != nil {
		errs = append(errs, d.admin.Close())
	}
	return errors.Join(append(errs, d.closeStore())...)
}

func (d *daemon) closeStore() error {
	if d.store == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), drainStore)
	defer cancel()
	return d.store.Close(ctx)
}

// run serves until ctx ends or something fails, then stops in the order that leaves nobody without an answer: doors,
// relay, store. beside are run too, until ctx ends; started is called once everything is under way.
func (d *daemon) run(ctx context.Context, started func(), beside ...func(ctx context.Context) error) error {
	group, ctx := errgroup.WithContext(ctx) // one fails, all leave
	delivering, stopDelivering := context.WithCancel(context.WithoutCancel(ctx))
	defer stopDelivering()
	defer d.hasten()

	var doors sync.WaitGroup
	for _, door := range d.doors {
		doors.Add(1)
		group.Go(func() error {
			defer doors.Done()
			return d.serveDoor(ctx, door)
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		defer time.AfterFunc(hurryAfter, d.hasten).Stop()
		doors.Wait()
		stopDelivering()
		return nil
	})
	group.Go(func() error { return d.relay.Run(delivering) })
	group.Go(func() error { return admin.Serve(ctx, d.admin, admin.Handler(d.store, engine{d}, d.log), d.log) })
	for _, f := range beside {
		group.Go(func() error { return f(ctx) })
	}
	started()
	err := group.Wait()
	return errors.Join(err, d.closeStore())
}

// serveDoor serves until ctx ends. Sessions that had to be cut off then are told to the log: they were promised nothing.
func (d *daemon) serveDoor(ctx context.Context, door door) error {
	err := door.smtp.Serve(ctx, door.ln)
	if err != nil && ctx.Err() != nil {
		d.log.LogAttrs(ctx, slog.LevelWarn, "listener stopped", slog.String("listener", door.name), slog.Any("err", err))
		return nil
	}
	return err
}

// alive returns nil if lanes turn and the queue can be written.
func (d *daemon) alive(ctx context.Context) error {
	if err := d.relay.Alive(ctx); err != nil {
		return err
	}
	if _, valid := d.store.Lease(); !valid(0) {
		return fmt.Errorf("the queue in %s cannot be written", d.cfg.StateDir)
	}
	return nil
}
