package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"gatepost/admin"
	"gatepost/compose"
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
	drainHTTP   = 500 * time.Millisecond // of these, for requests that are on their way
	drainStore  = 2 * time.Second
)

// daemon is gatepost, wired.
type daemon struct {
	options
	started     time.Time
	store       *store.Store
	relay       *relay.Relay
	budget      *ingress.Budget
	connections *ingress.Connections
	limits      *ingress.Limits
	orders      *admin.OrderCounter
	now         atomic.Pointer[setup]
	admin       net.Listener
	hurry       context.Context // ends when nobody should wait for an upstream any more
	hasten      context.CancelFunc

	reloading sync.Mutex
	serveNew  func(door) // while gatepost serves: begins to serve a door that a reload has made
}

// options is what a daemon is made with.
type options struct {
	log  *logging
	sink event.Sink // is told events once they are durable
	bind binder
}

// setup is what a reload replaces, never changed in place.
type setup struct {
	cfg       *config.Config
	doors     []door             // by name
	templates *compose.Templates // nil where nobody uses them
}

// binder binds the address of a listener; ingress.Listen, but in the demo.
type binder func(ctx context.Context, l *config.Listen) (net.Listener, error)

// cfg returns the config that holds now.
func (d *daemon) cfg() *config.Config { return d.now.Load().cfg }

// open does all that can fail: it takes the state directory, makes the relay and binds every listener. Nothing is
// accepted yet.
func open(ctx context.Context, cfg *config.Config, o options) (*daemon, error) {
	d := &daemon{options: o, started: time.Now()}
	d.now.Store(&setup{cfg: cfg})
	d.hurry, d.hasten = context.WithCancel(context.WithoutCancel(ctx))
	if err := d.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

func (d *daemon) open(ctx context.Context, cfg *config.Config) (err error) {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(cfg.Limits.Memory / 16 * 7) // big mails leave much to collect, and it should not pile up
	}
	d.orders = admin.NewOrderCounter()
	if d.store, err = d.openStore(ctx, cfg); err != nil {
		return err
	}
	if d.relay, err = relay.New(relay.Options{Config: cfg, Spool: d.store, Log: d.log.Logger}); err != nil {
		return err
	}
	d.budget, d.connections = ingress.NewBudget(cfg.Limits.BytesInFlight), ingress.NewConnections(d.maxConnections)
	d.limits = ingress.NewLimits()
	templates, err := loadTemplates(cfg)
	if err != nil {
		return err
	}
	doors, err := d.openDoors(ctx, cfg, templates, nil)
	if err != nil {
		return err
	}
	d.now.Store(&setup{cfg, doors, templates})
	d.admin, err = admin.Listen(cfg.StateDir) // the store holds the directory's lock
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

// historyAddresses says how history keeps the addresses of a kind of mail.
func (d *daemon) historyAddresses(_ string, kind message.Kind) string {
	switch set := d.cfg().History.Addresses; {
	case set != "":
		return set
	case kind == message.Marketing:
		return "clear"
	}
	return "hmac"
}

// sendsAuth reports whether client has a stream of auth mail.
func (d *daemon) sendsAuth(client string) bool {
	cfg := d.cfg()
	c := cfg.Client[client]
	return c != nil && slices.ContainsFunc(c.Streams, func(s string) bool { return cfg.Stream[s].Kind == message.Auth })
}

// maxConnections returns how many connections client may have at once; 0 for any number.
func (d *daemon) maxConnections(client string) int {
	if c := d.cfg().Client[client]; c != nil {
		return c.MaxConnections
	}
	return 0
}

// close gives back what open took, for a daemon that never ran.
func (d *daemon) close() error {
	errs := []error{closeDoors(d.now.Load().doors)}
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
	serve := func(door door) {
		serving := door.context(ctx)
		doors.Add(1)
		group.Go(func() error {
			defer doors.Done()
			return d.serveDoor(serving, door)
		})
	}
	for _, door := range d.now.Load().doors {
		serve(door)
	}
	d.allowReload(serve)
	group.Go(func() error {
		<-ctx.Done()
		defer time.AfterFunc(hurryAfter, d.hasten).Stop()
		d.allowReload(nil) // one that is under way comes to its end first
		doors.Wait()
		stopDelivering()
		return nil
	})
	group.Go(func() error { return d.relay.Run(delivering) })
	group.Go(func() error {
		return admin.Serve(ctx, d.admin, admin.Handler(d.store, engine{d}, d.log.Logger), d.log.Logger)
	})
	for _, f := range beside {
		group.Go(func() error { return f(ctx) })
	}
	started()
	err := group.Wait()
	return errors.Join(err, d.closeStore())
}

// alive returns nil if the queue can be written and lanes turn.
func (d *daemon) alive(ctx context.Context) error {
	if err := d.writable(); err != nil {
		return err // first, since lanes may wait for it
	}
	return d.relay.Alive(ctx)
}

// shares reports whether the queue is in a database that other nodes use too.
func (d *daemon) shares() bool { return d.cfg().Store.Engine == "postgres" }

func (d *daemon) writable() error {
	_, valid := d.store.Lease()
	switch {
	case d.shares() && d.store.Ready(message.Auth) != nil:
		return errors.New("the database is away or its disk is full: mail is refused for now")
	case valid(0):
		return nil
	case d.shares():
		return errors.New("this node has no lease from the database: nothing is sent until it has one again")
	}
	return fmt.Errorf("the queue in %s cannot be written", d.cfg().StateDir)
}

// wedged returns an error where starting anew may help. That cannot bring back a database that is away, and meanwhile nobody
// would tell clients to try again.
func (d *daemon) wedged(ctx context.Context) error {
	if d.shares() && d.writable() != nil {
		return nil
	}
	return d.alive(ctx)
}
