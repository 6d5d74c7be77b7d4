package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"gatepost/message"
)

// PostgresOptions says where a shared store lives, which node of the fleet this is, and what it keeps.
type PostgresOptions struct {
	Options        // Dir is the node's own state_dir, which holds no mail
	DSN     string // how to connect: keyword=value pairs or a postgres:// URL; pool_max_conns is known too
	KeyFile string // the keys that bodies are sealed with, the same on all nodes; see NewKeyFile
	Node    string // this node's name, which no other node may have at the same time
}

// fleet is what a node has to do with the others that share its store.
//
// Four connections besides the pool: one writes, one keeps the lease, one listens, and each may fail without the others.
type fleet struct {
	s          *Store
	name       string
	conns      *pgx.ConnConfig // for connections of their own
	pool       *pgxpool.Pool   // for reading
	clock      fleetClock
	lease      lease
	renewEvery time.Duration
	texts      sync.Map // SQL as written for both engines → as PostgreSQL takes it

	database string // its id, the same as long as it is the same database
	channel  string // of notifications
	writer   backend

	notices sync.Mutex
	news    map[string]bool // notifications to be sent
	more    chan struct{}   // holds a value when there are some

	cancel context.CancelFunc
	ending context.Context
	active sync.WaitGroup
}

// Bounds of what PostgreSQL may take. A database that hangs is found in seconds: by then its clients have been told to
// try again, and a lease has time left.
const (
	connectWithin = 5 * time.Second
	openWithin    = 15 * time.Second // to connect and have everything checked
	writeWithin   = 5 * time.Second  // one round trip of the writer
	readWithin    = 10 * time.Second
	renewWithin   = 4 * time.Second
)

// OpenPostgres opens the store that the nodes of a fleet share, in the schema that the connection's search_path puts
// first, and makes its tables there if there are none. It promises what Open does. The differences:
//
//   - What a node owns is its own while its lease lasts, by the database's clock. A living node takes over what one owns
//     whose lease has ended; that one gets a new epoch as soon as it can and goes on.
//   - Times are the database's: a node whose clock is wrong neither expires nor holds up mail.
//   - Keys are read from o.KeyFile and never written.
//   - While the database is away, Put answers 451 at once. Everything resumes by itself.
//
// It refuses a server that is older than PostgreSQL 14, can't be written, does not sync its commits, or has a schema that
// is too new, and a node name that is in use. Its errors say what to do and hold no password.
func OpenPostgres(ctx context.Context, o PostgresOptions) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := newFleet(o)
	if err != nil {
		return nil, err
	}
	if err := f.open(o); err != nil {
		f.pool.Close()
		f.s.lock.Close() // nil is fine
		return nil, err
	}
	f.start()
	return f.s, nil
}

// open does what may fail.
func (f *fleet) open(o PostgresOptions) (err error) {
	s := f.s
	if err := makeDir(o.Dir, s.log); err != nil {
		return err
	}
	if s.lock, err = lockDir(o.Dir); err != nil {
		return err
	}
	if s.keys, s.history, err = openSharedKeys(o.KeyFile, f.clock.now); err != nil {
		return err
	}
	w := newWriter(s, f.where(), f.connect)
	s.writer = w
	if w.db, err = w.open(); err != nil {
		return err
	}
	if err := w.begin(f.takeOver); err != nil {
		w.db.close()
		return fmt.Errorf("take over the queue in %s: %w", f.where(), err)
	}
	return nil
}

// newFleet makes what o tells, without a connection yet.
func newFleet(o PostgresOptions) (*fleet, error) {
	if o.Node == "" {
		return nil, errors.New("open store: the node has no name")
	}
	cfg, err := parseDSN(o.DSN)
	if err != nil {
		return nil, fmt.Errorf("read the DSN of the store: %w", err)
	}
	configure(cfg, o.Node)
	f := &fleet{s: newStore(o.Options), name: o.Node, conns: cfg.ConnConfig, news: map[string]bool{}, more: make(chan struct{}, 1)}
	f.clock.wall, f.lease.life, f.renewEvery = time.Now, leaseLife, renewEvery
	f.s.fleet, f.s.now = f, f.clock.now
	f.s.space.dir = "" // the disk is the server's
	f.ending, f.cancel = context.WithCancel(context.Background())
	if f.pool, err = pgxpool.NewWithConfig(context.Background(), cfg); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	return f, nil
}

// where names the database in messages.
func (f *fleet) where() string {
	return fmt.Sprintf("database %s on %s:%d", f.conns.Database, f.conns.Host, f.conns.Port)
}

// takeOver reads what is kept in memory and frees what an earlier incarnation of this node owned.
func (f *fleet) takeOver(t *tx) error {
	if err := t.db.load(t); err != nil {
		return err
	}
	if err := f.s.loadHolds(t); err != nil {
		return err
	}
	for {
		if n, err := f.freeDead(t); n == 0 || err != nil {
			return err
		}
	}
}

// start lets the goroutines go that stop waits for.
func (f *fleet) start() {
	f.s.start()
	f.active.Go(f.keepLease)
	f.active.Go(f.listen)
	f.active.Go(f.notify)
}

// stop ends the lease, so that others need not wait for its end, and closes what is open.
func (f *fleet) stop() {
	f.cancel()
	f.active.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	epoch := f.lease.end()
	if _, err := f.pool.Exec(ctx, "UPDATE node SET lease_until = least(lease_until, "+serverNow+") WHERE id = $1 AND epoch = $2", f.s.node, epoch); err != nil {
		f.s.log.LogAttrs(ctx, slog.LevelWarn, "the lease could not be ended, other nodes wait until it is over", slog.Any("err", err))
	}
	f.pool.Close()
}

// pause waits for d and reports whether the store is still wanted.
func (f *fleet) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-f.ending.Done():
		return false
	}
}

// read runs a query on a connection of the pool.
func (f *fleet) read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, readWithin)
	defer cancel()
	rows, err := f.pool.Query(ctx, f.text(query), cleanAll(args)...)
	if err != nil {
		return err
	}
	return eachOf(rows, scan)
}

// eachOf walks over rows and closes them.
func eachOf(rows pgx.Rows, scan func(scanner) (more bool, err error)) error {
	defer rows.Close()
	for rows.Next() {
		if more, err := scan(rows); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}

// readBodies fills in what rowSelect leaves out, of all messages at once.
func (f *fleet) readBodies(ds []*message.Delivery) error {
	byID, ids := map[message.ID]*message.Delivery{}, make([]int64, len(ds))
	bodies := map[message.ID]storedBody{}
	for i, d := range ds {
		ids[i], byID[d.Message.ID] = int64(d.Message.ID), d
	}
	err := f.read(context.Background(), func(r scanner) (bool, error) {
		var id message.ID
		var hash []byte
		var b storedBody
		err := r.Scan((*int64)(&id), &hash, &b.format, &b.keyID, &b.octets, &b.data)
		if err == nil {
			byID[id].Message.BodyHash, bodies[id] = hash, b
		}
		return err == nil, err
	}, "SELECT m.id, m.body_hash, b.format, b.key_id, b.octets, b.data FROM message m CROSS JOIN body b ON b.id = m.id WHERE m.id = ANY($1)", ids)
	if err != nil {
		return err
	}
	for id, d := range byID {
		b, found := bodies[id]
		if err := f.s.openBody(d, b, found); err != nil {
			return fmt.Errorf("message %v: %w", id, err)
		}
	}
	return nil
}
