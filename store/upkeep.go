package store

import (
	"context"
	"log/slog"
	"time"
)

const (
	historyPage = 500 // events deleted at once
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
	if w.s.fleet == nil { // else they are the operator's
		w.retireKeys()
	}
	w.s.removeParts()
	w.s.returnStrays()
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
		free, err := t.db.giveBack(t)
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
		err = w.db.query(func(r scanner) (bool, error) { return false, r.Scan(&used) }, keyUsed, keyID)
		return used, err
	})
	if err != nil && !isFull(err) {
		w.s.log.LogAttrs(context.Background(), slog.LevelWarn, "spool keys that are no longer needed could not be destroyed", slog.Any("err", err))
	}
	if n > 0 {
		w.s.log.LogAttrs(context.Background(), slog.LevelDebug, "spool keys destroyed", slog.Int("count", n))
	}
}

// cutHistory deletes a page of events that are older than they are kept: of this node, and of others that are gone. The
// last one of each always stays: it holds the count.
func (t *tx) cutHistory() (more bool, err error) {
	if t.s.keep <= 0 {
		return false, nil
	}
	var nodes []int
	if err := t.db.query(func(r scanner) (bool, error) {
		var node int
		err := r.Scan(&node)
		nodes = append(nodes, node)
		return err == nil, err
	}, "SELECT id FROM node WHERE id = ? OR lease_until < ? ORDER BY id", t.s.node, ms(t.now)); err != nil {
		return false, err
	}
	for _, node := range nodes {
		n, err := t.exec(`DELETE FROM event WHERE node = ?3 AND seq <= (
			SELECT max(seq) FROM (SELECT seq, at FROM event WHERE node = ?3 ORDER BY seq LIMIT ?1) AS page WHERE at < ?2)
			AND seq < (SELECT max(seq) FROM event WHERE node = ?3)`, historyPage, ms(t.now.Add(-t.s.keep)), node)
		if err != nil {
			return false, err
		}
		more = more || n >= historyPage
	}
	return more, nil
}
