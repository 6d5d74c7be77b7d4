package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"gatepost/event"
)

const (
	leaseLife  = 15 * time.Second
	renewEvery = 3 * time.Second
	renewAgain = 500 * time.Millisecond // after a renewal that failed
	deadPage   = 200                    // rows freed in one transaction

	// serverNow is the database's clock.
	serverNow = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
)

// bootTime is a clock that nobody sets and that goes on while the host sleeps.
func bootTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

// lease is how long this node may hand over what it owns. It counts from when its renewal was sent: the database counts
// from later.
type lease struct {
	life time.Duration

	mu    sync.Mutex
	epoch int64 // 0 where there is none
	until time.Duration
}

// begin notes a new epoch, whose lease was asked for at a time.
func (l *lease) begin(epoch int64, sent time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch, l.until = epoch, sent+l.life
}

// extend notes that the lease of an epoch was renewed. If that epoch is over by now it changes nothing.
func (l *lease) extend(epoch int64, sent time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch == epoch {
		l.until = sent + l.life
	}
}

// lose ends the lease; the next transaction begins a new epoch.
func (l *lease) lose() { l.end() }

func (l *lease) end() (epoch int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch, l.epoch = l.epoch, 0
	return epoch
}

func (l *lease) lost() bool { return l.current() == 0 }

func (l *lease) current() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// now returns the epoch, and a function that says whether it has more than a margin left.
func (l *lease) now(closed *atomic.Bool) (epoch int64, valid func(margin time.Duration) bool) {
	epoch = l.current()
	return epoch, func(margin time.Duration) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return epoch != 0 && l.epoch == epoch && bootTime()+margin < l.until && !closed.Load()
	}
}

// fleetClock is the database's clock as this node knows it. It never goes back, unless the database's does, as it may
// when another server takes its place.
type fleetClock struct {
	wall func() time.Time // the host's; tests set it

	mu     sync.Mutex
	base   time.Time     // the database's time
	at     time.Duration // when it was asked for
	unsure time.Duration // how long the answer took
	last   time.Time
	jump   time.Duration // by which the database's clock has moved of late, the widest
	jumpAt time.Duration
}

// How far the database's clock may move against the host's boot clock before it counts as a jump: by less than a lease
// has left, and by as much as engine.md rule 12 speaks of.
const (
	leaseJump = 2 * time.Second
	greatJump = time.Minute
	jumpGrace = time.Minute // for which nothing expires after a great one
)

// read asks the database for its time.
func (c *fleetClock) read(ctx context.Context, conn *pgx.Conn) error {
	var now int64
	sent := bootTime()
	if err := conn.QueryRow(ctx, "SELECT "+serverNow).Scan(&now); err != nil {
		return fmt.Errorf("ask for its time: %w", err)
	}
	c.set(now, sent)
	return nil
}

// set notes what the database answered to a question, and returns by how much its clock has jumped since the last.
func (c *fleetClock) set(now int64, sent time.Duration) (jump time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := bootTime()
	if !c.base.IsZero() {
		jump = c.note(at(now).Sub(c.base.Add(sent-c.at)), heard, heard-sent)
	}
	if c.base, c.at, c.unsure = at(now), sent, heard-sent; c.last.Sub(c.base) > slightly {
		c.last = c.base
	}
	return jump
}

// note looks whether the database's clock is off from what it was taken to be by more than answers took. mu is held.
func (c *fleetClock) note(off, heard, took time.Duration) (jump time.Duration) {
	if off <= took+leaseJump && off >= -c.unsure-leaseJump {
		return 0
	}
	if heard-c.jumpAt > jumpGrace || off.Abs() > c.jump.Abs() {
		c.jump = off
	}
	c.jumpAt = heard
	return off
}

// jumped reports whether the database's clock moved by more than a limit less than a time ago, jumpGrace at most.
func (c *fleetClock) jumped(limit, ago time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.jump.Abs() > limit && bootTime()-c.jumpAt < ago
}

// now returns the database's time, ahead by at most the time that an answer took.
func (c *fleetClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.base.Add(bootTime() - c.at); now.After(c.last) {
		c.last = now
	}
	return c.last
}

// slightly is how far the host's clock may be off without being corrected for: a time then comes back as it was stored.
const slightly = 2 * time.Second

// skew returns how far the database's clock is ahead of the host's.
func (c *fleetClock) skew() time.Duration {
	if d := c.now().Sub(c.wall()); d.Abs() > slightly {
		return d
	}
	return 0
}

// stored returns a time by the host's clock as it is stored, by the database's.
func (c *fleetClock) stored(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return ms(t.Add(c.skew()))
}

// due returns when a row is due as it is stored. What is due already is so for every node at once: none takes the
// database's time to be earlier than it is.
func (c *fleetClock) due(t time.Time) int64 {
	stored := c.stored(t)
	if t.After(c.wall()) {
		return stored
	}
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	return min(stored, ms(now.Add(-c.unsure)))
}

// local is the inverse of stored.
func (c *fleetClock) local(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.Add(-c.skew())
}

// keepLease renews the lease, takes over from nodes that are gone, and looks at what a lost notification would have
// told.
func (f *fleet) keepLease() {
	var conn *pgx.Conn
	defer func() { closeConn(conn) }()
	told := false // that it cannot be renewed
	for wait := f.renewEvery; f.pause(wait); {
		err := f.turn(&conn)
		if wait = f.renewEvery; err == nil {
			told = false
			continue
		}
		closeConn(conn)
		conn, wait = nil, renewAgain
		if f.ending.Err() != nil {
			continue
		}
		f.nudge() // the writer finds out whether it is the database
		if !told {
			f.s.log.LogAttrs(f.ending, slog.LevelWarn, "the lease could not be renewed, trying on", slog.String("where", f.where()), slog.Any("err", err))
		}
		told = true
	}
}

func closeConn(conn *pgx.Conn) {
	if conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn.Close(ctx)
	}
}

// turn is one renewal with what belongs to it, on a connection that it makes if there is none.
func (f *fleet) turn(conn **pgx.Conn) (err error) {
	ctx, cancel := context.WithTimeout(f.ending, renewWithin)
	defer cancel()
	if *conn == nil {
		if *conn, err = pgx.ConnectConfig(ctx, f.conns.Copy()); err != nil {
			return err
		}
	}
	if err := f.renewLease(ctx, *conn); err != nil {
		return err
	}
	if err := f.takeNodes(ctx, *conn); err != nil {
		return err
	}
	return f.poll(ctx, *conn)
}

func (f *fleet) renewLease(ctx context.Context, conn *pgx.Conn) error {
	epoch := f.lease.current()
	if epoch == 0 {
		f.nudge()
		return nil
	}
	var now int64
	sent := bootTime()
	err := conn.QueryRow(ctx, "UPDATE node SET lease_until = "+serverNow+" + $3 WHERE id = $1 AND epoch = $2 RETURNING "+serverNow,
		f.s.node, epoch, f.lease.life.Milliseconds()).Scan(&now)
	if errors.Is(err, pgx.ErrNoRows) {
		f.s.log.LogAttrs(ctx, slog.LevelError, "another node has taken over from this one, whose lease had ended; going on under a new one", slog.String("node", f.name))
		f.lease.lose()
		f.nudge()
		return nil
	}
	if err != nil {
		return fmt.Errorf("renew the lease: %w", err)
	}
	f.lease.extend(epoch, sent)
	if jump := f.clock.set(now, sent); jump != 0 {
		f.jumped(ctx, jump)
	}
	return nil
}

// jumped tells of a jump of the database's clock, as when another server takes its place.
func (f *fleet) jumped(ctx context.Context, by time.Duration) {
	text := "the clock of the database moved by " + by.Round(time.Second).String()
	if by.Abs() > greatJump {
		f.s.Record(event.Event{Kind: event.ClockJump, Data: event.Data{Alarm: true, Text: text}})
	}
	f.s.log.LogAttrs(ctx, slog.LevelWarn, text+": see to the time service of its host", slog.String("where", f.where()))
}

// overLease finds the nodes whose lease is over. One that lasts for longer than any was given when the clock was ahead.
const overLease = "(n.lease_until < " + serverNow + " OR n.lease_until > " + serverNow + " + 60000)"

// takeNodes ends the epochs of nodes whose lease is over, and has freed what is theirs. After a jump of the clock the
// living have time to renew their leases before.
func (f *fleet) takeNodes(ctx context.Context, conn *pgx.Conn) error {
	if !f.clock.jumped(leaseJump, f.lease.life) {
		if err := f.endDead(ctx, conn); err != nil {
			return fmt.Errorf("take over from nodes whose lease is over: %w", err)
		}
	}
	var dead bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM node d WHERE (SELECT 1 FROM recipient r WHERE r.owner = d.id AND r.owner <> 0 AND r.epoch < d.epoch LIMIT 1) IS NOT NULL)").Scan(&dead); err != nil {
		return fmt.Errorf("look for what dead nodes own: %w", err)
	}
	if dead {
		f.freeAll()
	}
	return nil
}

// endDead ends the epochs of nodes that own something and whose lease is over. A node that is just committing is left for
// the next turn.
func (f *fleet) endDead(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `WITH dead AS MATERIALIZED (SELECT n.id FROM node n WHERE n.id <> $1 AND `+overLease+`
			AND (SELECT 1 FROM recipient r WHERE r.owner = n.id AND r.owner <> 0 AND r.epoch = n.epoch LIMIT 1) IS NOT NULL)
		UPDATE node n SET epoch = n.epoch + 1 FROM dead WHERE n.id = dead.id AND `+overLease+`
			AND pg_try_advisory_xact_lock(`+nodeLocks+`, dead.id) RETURNING n.name`, f.s.node)
	if err != nil {
		return err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, name := range names {
		f.s.log.LogAttrs(ctx, slog.LevelWarn, "taking over from a node whose lease is over", slog.String("from", name))
	}
	return err
}

// freeAll queues the freeing of what dead nodes own, page after page.
func (f *fleet) freeAll() {
	j := &freeJob{f: f}
	if err := f.s.writer.queue.add(settlement, j); err != nil {
		return // the next turn queues it again
	}
}

// freeJob frees a page.
type freeJob struct {
	f *fleet
	n int
}

func (j *freeJob) size() (messages, octets int) { return batchMessages / 8, 0 }

func (j *freeJob) apply(t *tx) (err error) {
	j.n, err = j.f.freeDead(t)
	return err
}

func (j *freeJob) finish(err error) {
	if err != nil {
		j.f.s.log.LogAttrs(context.Background(), slog.LevelWarn, "what a dead node owns could not be freed, it is tried again", slog.Any("err", err))
		return
	}
	if j.n > 0 {
		j.f.s.log.LogAttrs(context.Background(), slog.LevelWarn, "freed what a dead node was handing over", slog.Int("count", j.n))
	}
	if j.n == deadPage {
		j.f.freeAll()
	}
}

// nudge has the writer try its connection, so that it is well again before mail comes.
func (f *fleet) nudge() {
	f.s.writer.queue.add(rest, &task{1, func(*tx) error { return nil }, make(chan error, 1)}) // refused while it is at it anyway
}

// poll wakes the lanes in which something waits, and reads which streams are on hold.
func (f *fleet) poll(ctx context.Context, conn *pgx.Conn) error {
	lanes := f.s.lanes()
	rows, err := conn.Query(ctx, `SELECT l.lane FROM unnest($1::text[]) AS l(lane)
		WHERE (SELECT 1 FROM recipient r WHERE r.owner = 0 AND r.state = 0 AND r.lane = l.lane LIMIT 1) IS NOT NULL`, lanes)
	if err != nil {
		return err
	}
	waiting, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for mail that waits: %w", err)
	}
	for _, lane := range waiting {
		f.s.wakeLane(lane)
	}
	return f.readHolds(ctx)
}
