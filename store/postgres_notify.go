package store

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	notifyWithin = 2 * time.Second
	listenPing   = 10 * time.Second // of silence after which the connection is tried
	listenAgain  = time.Second
)

// Notifications are hints: whatever is lost is found by the poll. Each is "<node> lane <lane>" or "<node> hold", and a
// node leaves out its own.

// tell has the other nodes notified of what t did. It is done beside the writer: PostgreSQL lets transactions that notify
// commit one at a time.
func (f *fleet) tell(t *tx) {
	if len(t.lanes) == 0 && !t.holds {
		return
	}
	f.notices.Lock()
	defer f.notices.Unlock()
	for lane := range t.lanes {
		f.news["lane "+lane] = true
	}
	if t.holds {
		f.news["hold"] = true
	}
	select {
	case f.more <- struct{}{}:
	default:
	}
}

// notify sends what tell has noted.
func (f *fleet) notify() {
	for {
		select {
		case <-f.more:
		case <-f.ending.Done():
			return
		}
		f.notices.Lock()
		list := make([]string, 0, len(f.news))
		for news := range f.news {
			list = append(list, strconv.Itoa(f.s.node)+" "+clean(news))
		}
		clear(f.news)
		f.notices.Unlock()
		ctx, cancel := context.WithTimeout(f.ending, notifyWithin)
		_, err := f.pool.Exec(ctx, "SELECT pg_notify($1, n) FROM unnest($2::text[]) AS n", f.channel, list)
		cancel()
		if err != nil && f.ending.Err() == nil {
			f.s.log.LogAttrs(f.ending, slog.LevelDebug, "other nodes could not be notified, they find out by themselves", slog.Any("err", err))
		}
	}
}

// listen wakes lanes when other nodes say so.
func (f *fleet) listen() {
	for first := true; ; first = false {
		err := f.hear(first)
		if f.ending.Err() != nil {
			return
		}
		f.s.log.LogAttrs(f.ending, slog.LevelDebug, "notifications are interrupted", slog.Any("err", err))
		f.nudge()
		if !f.pause(listenAgain) {
			return
		}
	}
}

// hear listens on a connection of its own until that fails.
func (f *fleet) hear(first bool) error {
	conn, err := pgx.ConnectConfig(f.ending, f.conns.Copy())
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if _, err := conn.Exec(f.ending, "LISTEN "+pgx.Identifier{f.channel}.Sanitize()); err != nil {
		return err
	}
	if !first {
		f.missed()
	}
	for {
		ctx, cancel := context.WithTimeout(f.ending, listenPing)
		n, err := conn.WaitForNotification(ctx)
		cancel()
		switch {
		case err == nil:
			f.heard(n.Payload)
		case conn.IsClosed() || f.ending.Err() != nil:
			return err
		default:
			if err := ping(f.ending, conn); err != nil {
				return err
			}
		}
	}
}

func ping(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, notifyWithin)
	defer cancel()
	return conn.Ping(ctx)
}

// missed makes up for what was told while nobody listened.
func (f *fleet) missed() {
	for _, lane := range f.s.lanes() {
		f.s.wakeLane(lane)
	}
	f.heard("0 hold")
}

// heard acts on a notification.
func (f *fleet) heard(payload string) {
	from, what, _ := strings.Cut(payload, " ")
	if from == strconv.Itoa(f.s.node) {
		return
	}
	if lane, ok := strings.CutPrefix(what, "lane "); ok {
		f.s.wakeLane(lane)
		return
	}
	if err := f.readHolds(f.ending); err != nil && f.ending.Err() == nil {
		f.s.log.LogAttrs(f.ending, slog.LevelDebug, "streams on hold could not be read, it is tried again", slog.Any("err", err))
	}
}

// readHolds reads which streams are on hold, unless this node changes that meanwhile. One that was released is woken.
func (f *fleet) readHolds(ctx context.Context) error {
	before := f.s.holdChanges()
	held := map[string]bool{}
	err := f.read(ctx, func(r scanner) (bool, error) {
		var key string
		err := r.Scan(&key)
		held[strings.TrimPrefix(key, holdKey)] = true
		return err == nil, err
	}, holdSelect)
	if err != nil {
		return fmt.Errorf("read which streams are on hold: %w", err)
	}
	for _, lane := range f.s.replaceHolds(held, before) {
		f.s.wakeLane(lane)
	}
	return nil
}

// lanes returns those that somebody waits for.
func (s *Store) lanes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.wakes))
}

func (s *Store) holdChanges() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heldChanges
}

// replaceHolds takes held for the streams on hold, unless this node has changed some since it had made a number of
// changes, and returns those that were released.
func (s *Store) replaceHolds(held map[string]bool, changes int) (released []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heldChanges != changes {
		return nil
	}
	for stream, was := range s.held {
		if was && !held[stream] {
			released = append(released, stream)
		}
	}
	s.held = held
	return released
}
