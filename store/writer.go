package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"gatepost/event"
)

const (
	idleAfter   = time.Second      // without work, upkeep has its turn
	upkeepEvery = 15 * time.Second // while there is nothing to keep up
	upkeepNext  = 20 * time.Millisecond
	upkeepLate  = 30 * time.Second // under steady work it has its turn anyway
	probeEvery  = time.Second      // while the disk is full or failing
)

// writer is the one goroutine that changes the database.
type writer struct {
	s       *Store
	dir     string
	open    func() (database, error)
	queue   *queue
	stopped chan struct{}
	seq     int64 // of the last durable event
	doubt   []undoer
	failed  time.Time // last

	mu sync.RWMutex // held to swap db; its read side by readers while they use it
	db database     // nil while the database is failing

	commit func(database) error // commitTx; tests make it fail
}

// tx is a transaction under way. Statements of all its jobs share it.
type tx struct {
	s      *Store
	db     database
	now    time.Time // one instant for all of it
	seq    int64
	epoch  int64 // under which it stamps rows
	events []event.Event
	lanes  map[string]bool // to wake once it is durable
	after  []func()        // to be called then, before
	holds  bool            // streams on hold were changed
}

// commitError is a COMMIT that failed: whether it happened is not known.
type commitError struct{ err error }

func (e *commitError) Error() string { return "commit: " + e.err.Error() }
func (e *commitError) Unwrap() error { return e.err }

func newWriter(s *Store, where string, open func() (database, error)) *writer {
	return &writer{s: s, dir: where, open: open, queue: newQueue(), stopped: make(chan struct{}), commit: commitTx}
}

// run commits batches until the queue is closed and empty. Upkeep has its turn after a second without work, or half a
// minute late where there is never such a second.
func (w *writer) run() {
	defer close(w.stopped)
	planned := time.Now().Add(idleAfter)
	due := planned
	var next time.Time // batch begins, but in a hurry
	for {
		w.queue.gather(next)
		batch := w.queue.take()
		if next = (time.Time{}); len(batch) >= crowd {
			next = time.Now().Add(moment)
		}
		if len(batch) > 0 {
			w.write(batch)
			due = w.upkeepDue(planned)
		} else if w.queue.isOver() {
			return
		}
		if !time.Now().Before(due) {
			planned = time.Now().Add(w.upkeep())
			due = planned
		}
		if len(batch) == 0 {
			w.sleep(time.Until(due))
		}
	}
}

// upkeepDue returns when upkeep has its turn after a batch, if it was planned for a time. A full disk is probed on time.
func (w *writer) upkeepDue(planned time.Time) time.Time {
	if w.s.space.full.Load() {
		return earlier(planned, time.Now().Add(probeEvery))
	}
	idle := time.Now().Add(idleAfter)
	if idle.Before(planned) {
		return planned
	}
	return earlier(idle, planned.Add(upkeepLate))
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// sleep waits until something is queued, for d at most.
func (w *writer) sleep(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-w.queue.ready:
	case <-t.C:
	}
}

// write does a batch in one transaction. Where that fails and is undone, each job has another try of its own, so that
// one that cannot be done takes nobody along.
func (w *writer) write(jobs []job) {
	err := w.apply(jobs)
	if errors.Is(err, errEpoch) || errors.Is(err, errFreed) {
		err = w.apply(jobs) // under a new one, or with the key
	}
	w.note(jobs, err)
	if _, failed := errors.AsType[*commitError](err); failed {
		w.fail(jobs, err)
		return
	}
	if err == nil || len(jobs) == 1 || isBusy(err) {
		finish(jobs, err)
		return
	}
	for i, j := range jobs {
		if w.db == nil {
			finish(jobs[i:], err)
			return
		}
		w.write([]job{j})
	}
}

func (w *writer) apply(jobs []job) error {
	return w.begin(func(t *tx) error {
		if err := t.db.prepare(t, jobs); err != nil {
			return err
		}
		for _, j := range jobs {
			if err := j.apply(t); err != nil {
				return err
			}
		}
		return nil
	})
}

func finish(jobs []job, err error) {
	for _, j := range jobs {
		j.finish(err)
	}
}

// note keeps track of whether the disk takes mail.
func (w *writer) note(jobs []job, err error) {
	if isFull(err) {
		if !w.s.space.full.Swap(true) {
			w.s.log.LogAttrs(context.Background(), slog.LevelError, "disk full, mail is refused until there is space", slog.String("dir", w.dir), slog.Any("err", err))
		}
		return
	}
	if err != nil || !w.s.space.full.Load() {
		return
	}
	for _, j := range jobs {
		switch j.(type) {
		case *putJob, *partJob:
			w.wellAgain()
			return
		}
	}
}

func (w *writer) wellAgain() {
	w.s.space.full.Store(false)
	w.s.log.LogAttrs(context.Background(), slog.LevelWarn, "the disk takes mail again", slog.String("dir", w.dir))
}

// begin runs do in a transaction and commits it. After an error nothing of it is durable, unless the error is a
// *commitError: then it may be, and the database must be closed.
func (w *writer) begin(do func(*tx) error) error {
	t := &tx{s: w.s, db: w.db, now: at(ms(w.s.now())), seq: w.seq, epoch: w.s.epoch.Load(), lanes: map[string]bool{}}
	if err := w.db.begin(t); err != nil {
		if isBusy(err) || isFull(err) {
			return err
		}
		return &commitError{err} // nothing was written, but this connection is of no more use
	}
	err := do(t)
	if err == nil {
		if err = w.commit(w.db); err == nil {
			w.durable(t)
			return nil
		}
		if !isFull(err) && !isBusy(err) && !isUndone(err) {
			return &commitError{err}
		}
	}
	if failed := w.db.rollback(); failed != nil {
		return &commitError{errors.Join(err, failed)}
	}
	return err
}

func commitTx(db database) error { return db.commit() }

// durable makes the effects of t visible.
func (w *writer) durable(t *tx) {
	w.seq = t.seq
	w.s.sink.add(t.events)
	for _, do := range t.after {
		do()
	}
	for lane := range t.lanes {
		w.s.wakeLane(lane)
	}
	if w.s.fleet != nil {
		w.s.fleet.tell(t)
	}
}

// fail answers everybody, closes the database and opens it again. A failed sync is never tried again: the kernel may
// have dropped the pages and would report success. What may be durable of jobs is taken back before anything else.
func (w *writer) fail(jobs []job, cause error) {
	w.s.failing.Store(true)
	w.s.log.LogAttrs(context.Background(), slog.LevelError, "a commit failed, the database is closed and opened again", slog.String("dir", w.dir), slog.Any("err", cause))
	for _, j := range jobs {
		if u, ok := j.(undoer); ok {
			w.doubt = append(w.doubt, u)
		}
	}
	finish(jobs, cause)
	finish(w.queue.stop(fmt.Errorf("the database is being reopened after: %w", cause)), cause)
	w.swap(nil)
	if time.Since(w.failed) < probeEvery && !w.pause(probeEvery) {
		return
	}
	w.failed = time.Now()
	for err := w.reopen(); err != nil; err = w.reopen() {
		w.s.log.LogAttrs(context.Background(), slog.LevelError, "cannot open the database again, trying on", slog.String("dir", w.dir), slog.Any("err", err))
		w.swap(nil)
		if !w.pause(probeEvery) {
			return
		}
	}
	w.s.failing.Store(false)
	w.queue.stop(nil)
	w.s.parts.search() // what failed may have ended a large message after all
	w.s.removeParts()
	w.s.returnStrays()
	w.s.log.LogAttrs(context.Background(), slog.LevelWarn, "the database is open again", slog.String("dir", w.dir))
}

// pause waits for d and reports whether the store is still wanted.
func (w *writer) pause(d time.Duration) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if w.queue.isClosed() {
			return false
		}
	}
	return true
}

// reopen opens the database after a failure and takes back what is in doubt. Events that did become durable go to the
// sink now.
func (w *writer) reopen() error {
	db, err := w.open()
	if err != nil {
		return err
	}
	w.swap(db)
	err = w.begin(func(t *tx) error {
		late, err := t.eventsAfter(w.seq)
		if err != nil {
			return err
		}
		t.events = late
		if err := t.db.load(t); err != nil {
			return err
		}
		if err := w.s.loadHolds(t); err != nil {
			return err
		}
		for _, u := range w.doubt {
			if err := u.undo(t); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		w.doubt = nil
	}
	return err
}

// swap puts db in the place of the current database, which is closed.
func (w *writer) swap(db database) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.db != nil {
		w.db.close() // it failed already; what matters is read back after opening
	}
	w.db = db
}

func (w *writer) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.db == nil {
		return nil
	}
	err := w.db.close()
	w.db = nil
	return err
}

// read runs a query on a reading connection and calls scan for each row until it returns false.
func (w *writer) read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.db == nil {
		return errNotOpen
	}
	return w.db.read(ctx, scan, query, args...)
}

func (t *tx) exec(query string, args ...any) (int64, error) { return t.db.exec(query, args...) }

// one scans a query's only row, one column each.
func (t *tx) one(query string, to ...any) error {
	return t.db.query(func(r scanner) (bool, error) { return false, r.Scan(to...) }, query)
}

// task is a job made of a function that somebody waits for.
type task struct {
	messages int
	do       func(*tx) error
	done     chan error
}

// size is never more than what a batch keeps for each class, so that a task of any size has its turn.
func (j *task) size() (messages, octets int) { return min(j.messages, batchMessages/8), 0 }

func (j *task) apply(t *tx) error { return j.do(t) }
func (j *task) finish(err error)  { j.done <- err }

// do runs fn in the next transaction and waits until that is durable. When ctx ends first, fn may still be run: what it
// has written must not be used then.
func (w *writer) do(ctx context.Context, c class, messages int, fn func(*tx) error) error {
	j := &task{messages, fn, make(chan error, 1)}
	return w.wait(ctx, c, j, j.done)
}

// wait queues j and waits for its end.
func (w *writer) wait(ctx context.Context, c class, j job, done chan error) error {
	if err := w.queue.add(c, j); err != nil {
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
