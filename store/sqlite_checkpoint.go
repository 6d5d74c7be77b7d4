package store

import (
	"context"
	"database/sql"
	"errors"
	"sync/atomic"
	"syscall"

	"modernc.org/sqlite"
)

const pageSize = 4096 // octets

// checkpointPages is how many pages the log has when copying begins. It must have room for twice that beside mail, in the
// log and where it is copied to, so on a small disk they are fewer.
const checkpointPages = 1000

// checkpointLate is how many times as many pages a commit copies whatever the copier does (wal_autocheckpoint).
const checkpointLate = 4

const checkpoint = "PRAGMA wal_checkpoint(PASSIVE)"

// copier copies the log (WAL) back into the database, on a connection of its own, while the writer goes on: a thousand
// pages and their sync take milliseconds. As commits go on it never comes to the log's end; so the writer copies what
// was added meanwhile, a few pages, and the log begins anew. What cannot be copied stays in the log, which loses nothing.
type copier struct {
	db      *sql.DB
	at      int // pages in the log when it is called
	pages   int // written to the log since the copier was called
	call    chan struct{}
	left    atomic.Bool // the writer is to copy what was added meanwhile
	stopped chan struct{}
}

// copyAt returns how many pages the log in dir has when copying begins: a quarter of the reserve of its disk at most.
func copyAt(dir string) int {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return checkpointPages
	}
	return int(min(checkpointPages, max(1, reserveOf(&fs)/4/pageSize)))
}

func openCopier(path string, at int) (*copier, error) {
	db, err := sql.Open("sqlite", dsn(path, "mode=rw&_dqs=0&_pragma=synchronous(FULL)&_pragma=mmap_size(0)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	c := &copier{db: db, at: at, call: make(chan struct{}, 1), stopped: make(chan struct{})}
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
	if c.pages < c.at {
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
