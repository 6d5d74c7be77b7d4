package store

import (
	"context"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pgDB is the writer's connection. Statements wait in a batch until the result of one is asked for, or until the commit,
// which goes along with them: a batch of Puts is one round trip. Rows to be written or removed wait with them, and are
// one statement for each table then.
type pgDB struct {
	f     *fleet
	conn  *pgx.Conn
	batch *pgx.Batch

	changes pgChanges
	asked   pgAsked
	sent    bool // the server has heard of this transaction
	warned  bool // by a notice, since the commit was sent
	broken  bool // of no more use
}

var (
	errEpoch      = errors.New("another node has taken over from this one")
	errInUse      = errors.New("another gatepost runs under this name")
	errRolledBack = errors.New("the transaction was rolled back")
	errUnsure     = errors.New("the server warned that the commit may not be durable")
)

// begin starts a transaction, which ends by itself where this node's epoch is over. If it is known to be over there is a
// new one first.
func (d *pgDB) begin(t *tx) error {
	d.batch, d.changes, d.asked, d.sent, d.warned = &pgx.Batch{}, pgChanges{}, pgAsked{}, false, false
	if d.f.lease.lost() {
		if err := d.renew(); err != nil {
			return err
		}
	}
	t.epoch = d.f.s.epoch.Load()
	d.batch.Queue("BEGIN")
	d.batch.Queue("SELECT hold_epoch($1, $2)", d.f.s.node, t.epoch)
	return nil
}

// renew begins a new epoch, with a lease.
func (d *pgDB) renew() error {
	ctx, cancel := context.WithTimeout(context.Background(), writeWithin)
	defer cancel()
	sent := bootTime()
	var epoch int64
	if err := d.conn.QueryRow(ctx, "UPDATE node SET epoch = greatest(epoch, $2) + 1, lease_until = "+serverNow+" + $3 WHERE id = $1 RETURNING epoch",
		d.f.s.node, d.f.s.epoch.Load(), d.f.lease.life.Milliseconds()).Scan(&epoch); err != nil {
		return err
	}
	d.f.s.epoch.Store(epoch)
	d.f.lease.begin(epoch, sent)
	return nil
}

// flush sends what waits and reads the answers.
func (d *pgDB) flush() error {
	d.collect()
	if d.batch.Len() == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeWithin)
	defer cancel()
	batch := d.batch
	d.batch, d.sent = &pgx.Batch{}, true
	err := d.conn.SendBatch(ctx, batch).Close()
	switch {
	case isCode(err, "GP001"):
		d.f.lease.lose()
		return errors.Join(errEpoch, err)
	case isCode(err, "25006"): // read_only_sql_transaction: it became a standby
		d.broken = true
	}
	return err
}

func (d *pgDB) commit() error {
	d.warned = false
	d.collect()
	d.batch.Queue("COMMIT").Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return errRolledBack
		}
		if d.warned { // it is here, but not on the standby that the operator wants it on
			return errUnsure
		}
		return nil
	})
	return d.flush()
}

// notice hears of what the server says beside its answers.
func (d *pgDB) notice(_ *pgconn.PgConn, n *pgconn.Notice) {
	if n.SeverityUnlocalized == "WARNING" || n.Severity == "WARNING" {
		d.warned = true
	}
}

func (d *pgDB) rollback() error {
	switch {
	case d.broken || d.conn.IsClosed():
		return errNotOpen
	case !d.sent:
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), writeWithin)
	defer cancel()
	_, err := d.conn.Exec(ctx, "ROLLBACK")
	return err
}

func (d *pgDB) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return d.conn.Close(ctx)
}

func (d *pgDB) exec(query string, args ...any) (n int64, err error) {
	d.collect()
	d.batch.Queue(d.f.text(query), cleanAll(args)...).Exec(func(tag pgconn.CommandTag) error {
		n = tag.RowsAffected()
		return nil
	})
	err = d.flush()
	return n, err
}

func (d *pgDB) change(query string, args ...any) error {
	d.batch.Queue(d.f.text(query), cleanAll(args)...)
	return nil
}

func (d *pgDB) query(scan func(scanner) (more bool, err error), query string, args ...any) error {
	d.ask(scan, query, args...)
	return d.flush()
}

// ask queues a query whose answer comes with the next flush.
func (d *pgDB) ask(scan func(scanner) (more bool, err error), query string, args ...any) {
	d.collect()
	d.batch.Queue(d.f.text(query), cleanAll(args)...).Query(func(rows pgx.Rows) error { return eachOf(rows, scan) })
}

func (d *pgDB) read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error {
	return d.f.read(ctx, scan, query, args...)
}

// locking leaves out what another transaction has locked: it is being claimed or ended there, and to wait for it could
// be to wait for each other.
func (d *pgDB) locking(query string) string { return query + " FOR UPDATE SKIP LOCKED" }

var (
	placeholder = regexp.MustCompile(`\?\d*`)
	indexHint   = regexp.MustCompile(` INDEXED BY \w+`)
	orderedJoin = regexp.MustCompile(` CROSS JOIN (\w+) (\w) ON \w\.(\w+) = (\w\.\w+)`)
)

// text returns SQL as PostgreSQL takes it: with its own placeholders, and with what it understands by what tells SQLite
// which way to walk. A CROSS JOIN finds the rows of its right side one by one.
func (f *fleet) text(query string) string {
	if text, ok := f.texts.Load(query); ok {
		return text.(string)
	}
	n := 0
	text := placeholder.ReplaceAllStringFunc(query, func(p string) string {
		if n++; len(p) > 1 {
			return "$" + p[1:]
		}
		return "$" + strconv.Itoa(n)
	})
	text = orderedJoin.ReplaceAllString(indexHint.ReplaceAllString(text, ""), " CROSS JOIN LATERAL (SELECT * FROM $1 WHERE $3 = $4 OFFSET 0) $2")
	f.texts.Store(query, text)
	return text
}

// clean makes text what a UTF-8 database takes: an upstream's reply may be anything.
func clean(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

func cleanAll(args []any) []any {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = clean(s)
		}
	}
	return args
}

// isUndone reports whether err is the server's word that nothing of a transaction happened.
func isUndone(err error) bool {
	if errors.Is(err, errRolledBack) {
		return true
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.SeverityUnlocalized == "ERROR" && e.Code != "25006"
}
