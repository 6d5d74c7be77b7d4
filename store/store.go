// Package store remembers across restarts: the spool of mail that is still to be sent, and the history of what became
// of the rest. Open keeps them in one SQLite database inside state_dir; OpenPostgres in a PostgreSQL database that the
// nodes of a fleet share.
//
// What it promises: a Put or Settle that returned without an error survives SIGKILL and power cut; all of it is there
// or none; a row is changed only by the incarnation that owns it; every change has its event, in the same transaction;
// bodies of auth mail are never on disk unsealed. What it refuses: to run twice on one directory, to open a database
// that is damaged, foreign or newer, to commit with less than a synced log, and to guess whether a failed commit
// happened: it closes the database and takes back what may have become durable.
//
// One goroutine writes. What arrives while it commits is the next batch, so the cost of a sync is shared by as many
// as wait for it. What an engine does differently is behind the interface database; what a store promises, and its
// contract in storetest, is the same.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// onlyNode is the number in ids, rows and events where the store is a file's, which has one node.
const onlyNode = 1

// longestStep is longer than any wait of a retry ladder. A row due further off than that is due now: the clock went
// back.
const longestStep = 5 * time.Hour

// Options says where a store lives and what it keeps.
type Options struct {
	Dir  string       // state_dir; made with mode 0700 if it is not there
	Sink event.Sink   // gets every event once it is durable, in order; may be nil
	Log  *slog.Logger // may be nil
	// Addresses says how history keeps recipient addresses of a stream: "clear" or "hmac". nil means hmac for auth and
	// clear for everything else.
	Addresses func(stream string, kind message.Kind) string
	Keep      time.Duration // events older than this are deleted; 0 keeps them
}

// Store is an open store. Its methods may be called from any goroutine.
type Store struct {
	log       *slog.Logger
	addresses func(stream string, kind message.Kind) string
	keep      time.Duration
	now       func() time.Time // the wall clock; tests turn it back

	lock    *os.File
	history addressKey
	keys    *keyring
	space   space
	parts   parts
	ids     idSource
	sink    *emitter
	writer  *writer
	fleet   *fleet // nil where the store is a file's
	epoch   atomic.Int64
	node    int // this node's number in ids, rows and events

	failing atomic.Bool // between a failed commit and the database's recovery
	closed  atomic.Bool

	mu          sync.Mutex
	wakes       map[string]chan struct{}
	held        map[string]bool       // streams on hold
	strays      []message.RecipientID // claimed, and to be given back
	heldChanges int                   // by this node
}

// Open opens the store in o.Dir, or makes one. Its errors say what to do. What an earlier incarnation owned when it
// died is freed: due at once, marked maybe_sent, each row with a recovered event.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := newStore(o)
	if err := s.open(o.Dir); err != nil {
		s.lock.Close() // nil is fine
		return nil, err
	}
	s.start()
	return s, nil
}

func newStore(o Options) *Store {
	s := &Store{node: onlyNode, log: o.Log, addresses: o.Addresses, keep: o.Keep, now: time.Now, wakes: map[string]chan struct{}{}, held: map[string]bool{}}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.addresses == nil {
		s.addresses = keepByKind
	}
	s.space.dir = o.Dir
	s.sink = newEmitter(o.Sink, s.log)
	return s
}

// start lets the two goroutines go that Close waits for.
func (s *Store) start() {
	go s.sink.run()
	go s.writer.run()
}

func keepByKind(_ string, kind message.Kind) string {
	if kind == message.Auth {
		return "hmac"
	}
	return "clear"
}

// open takes the directory and reads what has to be known before the first write. It counts and scans nothing: a
// start takes the same time whatever is queued.
func (s *Store) open(dir string) (err error) {
	if err := makeDir(dir, s.log); err != nil {
		return err
	}
	if s.lock, err = lockDir(dir); err != nil {
		return err
	}
	if s.history, err = readOrMakeKey(filepath.Join(dir, "history.key")); err != nil {
		return err
	}
	if s.keys, err = openKeyring(filepath.Join(dir, "spool.key"), s.now()); err != nil {
		return err
	}
	w := newWriter(s, dir, func() (database, error) { return openDatabase(dir) })
	if w.db, err = w.open(); err != nil {
		return err
	}
	if err := w.begin(s.takeOver); err != nil {
		w.db.close()
		if isBusy(err) {
			err = fmt.Errorf("%w: close whatever else has %s open, such as an sqlite3 shell", err, databaseFile)
		}
		return fmt.Errorf("take over the queue in %s: %w", dir, err)
	}
	s.writer = w
	return nil
}

// Close writes what is queued and closes the store. It returns early, leaving the store to the process's end, when ctx
// ends first. Rows that are still owned are freed, as maybe sent, by the next Open.
func (s *Store) Close(ctx context.Context) error {
	s.closed.Store(true)
	s.writer.queue.close()
	if s.fleet != nil && s.failing.Load() {
		s.fleet.cancel() // what it waits for would come too late
	}
	select {
	case <-s.writer.stopped:
	case <-ctx.Done():
		return fmt.Errorf("close store: writing what is queued: %w", context.Cause(ctx))
	}
	s.sink.close()
	select {
	case <-s.sink.stopped:
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("close store: handing on events: %w", context.Cause(ctx)), s.shut())
	}
	return s.shut()
}

// shut closes the files.
func (s *Store) shut() error {
	if s.fleet != nil {
		s.fleet.stop()
	}
	err := s.writer.close()
	unlock := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN) // a child that is just being started may have the file too
	return errors.Join(err, unlock, s.lock.Close())
}

// Lease returns the epoch under which rows are ours, and a function that says whether they stay so: they do while the
// database is open and well; no clock is involved, since the state directory is locked. In a fleet they do while the
// node's lease has more than margin left, by a clock that nobody sets and that counts suspend.
func (s *Store) Lease() (epoch int64, valid func(margin time.Duration) bool) {
	if s.fleet != nil {
		return s.fleet.lease.now(&s.closed)
	}
	return s.epoch.Load(), func(time.Duration) bool { return !s.failing.Load() && !s.closed.Load() }
}

// read runs a query beside the writer and calls scan for each row until it returns false.
func (s *Store) read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error {
	if s.fleet != nil {
		return s.fleet.read(ctx, scan, query, args...)
	}
	return s.writer.read(ctx, scan, query, args...)
}

// Wake returns the channel that gets a value when something of lane may have become due.
func (s *Store) Wake(lane string) <-chan struct{} { return s.wake(lane) }

func (s *Store) wake(lane string) chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.wakes[lane]
	if !ok {
		c = make(chan struct{}, 1)
		s.wakes[lane] = c
	}
	return c
}

func (s *Store) wakeLane(lane string) {
	select {
	case s.wake(lane) <- struct{}{}:
	default:
	}
}

// NewID returns an id above every id in message and event.
func (s *Store) NewID() message.ID { return s.ids.next(s.now(), s.node) }

// idSource makes ids that only grow, also while the clock stands or goes back.
type idSource struct {
	mu   sync.Mutex
	last message.ID
}

// idCounter masks the part of an id that counts within a millisecond.
const idCounter = 1<<12 - 1

func (i *idSource) raise(id message.ID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last = max(i.last, id)
}

func (i *idSource) next(now time.Time, node int) message.ID {
	i.mu.Lock()
	defer i.mu.Unlock()
	id := message.NewID(now, node, 0)
	if id <= i.last {
		last := i.last.Time()
		if n := int(i.last & idCounter); n < idCounter && i.last.Node() == node {
			id = message.NewID(last, node, n+1)
		} else {
			id = message.NewID(last.Add(time.Millisecond), node, 0)
		}
	}
	i.last = id
	return id
}

// ms is how times are stored.
func ms(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// at is the inverse of ms.
func at(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
