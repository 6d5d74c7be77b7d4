package store

import (
	"context"
	"database/sql"
	"log/slog"
	"time"
)

const (
	historyPage   = 500  // events deleted at once
	freePagesKept = 4096 // 16 MB of free pages stay in the file: giving back what is needed again is waste
)

// upkeep does a small turn of what is done when nothing waits, and returns how long until the next one.
func (w *writer) upkeep() time.Duration {
	if w.db == nil {
		return upkeepEvery
	}
	if w.s.space.full.Load() {
		w.probe()
		return probeEvery
	}
	w.retireKeys()
	w.s.removeParts()
	more := false
	w.turn("cut history", func(t *tx) (err error) {
		more, err = t.cutHistory()
		return err
	})
	w.turn("forget submissions", func(t *tx) error {
		keys, err := t.cutSubmissions()
		more = more || keys
		return err
	})
	w.turn("give back free pages", func(t *tx) error {
		free, err := t.vacuum()
		more = more || free
		return err
	})
	if more {
		return upkeepNext
	}
	return upkeepEvery
}

// turn runs fn as a batch of its own.
func (w *writer) turn(what string, fn func(*tx) error) (ok bool) {
	if w.db == nil {
		return false
	}
	j := &task{1, fn, make(chan error, 1)}
	w.write([]job{j})
	err := <-j.done
	if err != nil && !isFull(err) {
		w.s.log.LogAttrs(context.Background(), slog.LevelWarn, "upkeep failed, it is tried again later", slog.String("what", what), slog.Any("err", err))
	}
	return err == nil
}

// probe finds out whether a full disk takes writes again.
func (w *writer) probe() {
	if w.turn("probe the disk", func(t *tx) error {
		_, err := t.exec("INSERT INTO meta(key, value) VALUES('probe', ?1) ON CONFLICT(key) DO UPDATE SET value = ?1", t.now.Format(time.RFC3339Nano))
		return err
	}) {
		w.wellAgain()
	}
}

const keyUsed = "SELECT EXISTS (SELECT 1 FROM body WHERE key_id = ? AND key_id <> 0)"

// retireKeys destroys the keys that no queued body is sealed with any more.
func (w *writer) retireKeys() {
	n, err := w.s.keys.retire(w.s.now(), func(keyID int64) (used bool, err error) {
		err = w.db.query(func(r *sql.Rows) (bool, error) { return false, r.Scan(&used) }, keyUsed, keyID)
		return used, err
	})
	if err != nil && !isFull(err) {
		w.s.log.LogAttrs(context.Background(), slog.LevelWarn, "spool keys that are no longer needed could not be destroyed", slog.Any("err", err))
	}
	if n > 0 {
		w.s.log.LogAttrs(context.Background(), slog.LevelDebug, "spool keys destroyed", slog.Int("count", n))
	}
}

// cutHistory deletes a page of events that are older than they are kept. The last one always stays: it holds the count.
func (t *tx) cutHistory() (more bool, err error) {
	if t.s.keep <= 0 {
		return false, nil
	}
	n, err := t.exec(`DELETE FROM event WHERE node = 1 AND seq <= (
		SELECT max(seq) FROM (SELECT seq, at FROM event WHERE node = 1 ORDER BY seq LIMIT ?1) WHERE at < ?2)
		AND seq < (SELECT max(seq) FROM event WHERE node = 1)`, historyPage, ms(t.now.Add(-t.s.keep)))
	return n >= historyPage, err
}

// vacuum gives a few free pages back to the file system.
func (t *tx) vacuum() (more bool, err error) {
	var free int
	if err := t.one("PRAGMA freelist_count", &free); err != nil || free <= freePagesKept {
		return false, err
	}
	_, err = t.exec("PRAGMA incremental_vacuum(64)")
	return true, err
}
