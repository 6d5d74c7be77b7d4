package store

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"

	"modernc.org/sqlite"
)

const (
	checkpointPages = 1000 // in the log when copying begins
	checkpointLate  = 4000 // … when a commit copies them whatever the copier does (wal_autocheckpoint)
)

const checkpoint = "PRAGMA wal_checkpoint(PASSIVE)"

// copier copies the log (WAL) back into the database, on a connection of its own, while the writer goes on: a thousand
// pages and their sync take milliseconds. As commits go on it never comes to the log's end; so the writer copies what
// was added meanwhile, a few pages, and the log begins anew. What cannot be copied stays in the log, which loses nothing.
type copier struct {
	db      *sql.DB
	pages   int // written to the log since the copier was called
	call    chan struct{}
	left    atomic.Bool // the writer is to copy what was added meanwhile
	stopped chan struct{}
}

func openCopier(path string) (*copier, error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw&_dqs=0&_pragma=synchronous(FULL)&_pragma=mmap_size(0)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	c := &copier{db: db, call: make(chan struct{}, 1), stopped: make(chan struct{})}
	if err := db.Ping(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go c.run()
	return c, nil
}

func (c *copier) run() {
	defer close(c.stopped)
	for range c.call {
		if _, err := c.db.Exec(checkpoint); err == nil {
			c.left.Store(true)
		}
	}
}

// committed counts the pages that the writer's connection has added to the log, and calls the copier when they are many.
func (c *copier) committed(conn *sql.Conn) {
	conn.Raw(func(conn any) error {
		n, _, err := conn.(sqlite.DBStatus).Status(sqlite.DBStatusCacheWrite, true)
		c.pages += n
		return err // of a counter that SQLite does not know; then commits copy late
	})
	if c.pages < checkpointPages {
		return
	}
	select {
	case c.call <- struct{}{}:
		c.pages = 0
	default: // it is still at it
	}
}

// finishCopy has the writer, between two transactions, copy what the copier left.
func (d *liteDB) finishCopy() {
	if d.copier.left.Swap(false) {
		d.conn.ExecContext(context.Background(), checkpoint)
	}
}

func (c *copier) close() error {
	close(c.call)
	<-c.stopped
	return c.db.Close()
}
