package store

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gatepost/event"
	"gatepost/message"
)

const (
	defaultRows = 100
	maxIDs      = 1000 // in one filter
	noLimit     = 1 << 40
	changePage  = 200 // rows changed at once; between two pages other mail is committed
)

// List returns the rows that f chooses, in order of id. A message is never cut in two, so that paging by id misses
// nothing: the answer may exceed f.Limit by the rest of the last one.
func (s *Store) List(ctx context.Context, f message.QueueFilter) ([]message.QueueRow, error) {
	limit := f.Limit
	if limit <= 0 {
		limit = defaultRows
	}
	found, err := s.find(ctx, f, message.RecipientID{}, limit)
	if err == nil && len(found) == limit {
		last := found[limit-1].id()
		f.IDs = []message.ID{last.Message}
		var tail []row
		tail, err = s.find(ctx, f, last, noLimit)
		found = append(found, tail...)
	}
	if err != nil {
		return nil, fmt.Errorf("list the queue: %w", err)
	}
	return queueRows(found), nil
}

// Show returns all queued recipients of a message.
func (s *Store) Show(ctx context.Context, id message.ID) ([]message.QueueRow, error) {
	found, err := s.find(ctx, message.QueueFilter{IDs: []message.ID{id}}, message.RecipientID{}, noLimit)
	if err != nil {
		return nil, fmt.Errorf("show message %v: %w", id, err)
	}
	return queueRows(found), nil
}

func queueRows(found []row) []message.QueueRow {
	list := make([]message.QueueRow, 0, len(found))
	for _, r := range found {
		m := r.message
		q := message.QueueRow{ID: m.ID, N: r.N, Stream: m.Stream, Client: m.Client, MailFrom: m.MailFrom, Address: r.Address,
			Size: m.Size, State: r.State.String(), AcceptedAt: m.AcceptedAt, DueAt: r.DueAt, ExpiresAt: m.ExpiresAt,
			Attempts: r.Attempts, MaybeSent: r.MaybeSent, Copies: r.Copies, LastUpstream: r.LastUpstream, LastReply: r.LastReply}
		if r.owner != 0 {
			q.State = "in-flight"
		}
		list = append(list, q)
	}
	return list
}

// find reads up to limit rows that f chooses behind after.
func (s *Store) find(ctx context.Context, f message.QueueFilter, after message.RecipientID, limit int) (found []row, err error) {
	where, args, err := condition(f)
	if err != nil {
		return nil, err
	}
	if after.Message != 0 {
		where, args = append(where, "(r.message, r.n) > (?, ?)"), append(args, int64(after.Message), after.N)
	}
	query := rowSelect
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	err = s.read(ctx, func(rows scanner) (bool, error) {
		r, err := scanRow(rows)
		found = append(found, r)
		return err == nil, err
	}, query+" ORDER BY r.message, r.n LIMIT ?", append(args, limit)...)
	return found, err
}

// condition says f in SQL. A state means rows that wait in it: what is in flight has none.
func condition(f message.QueueFilter) (where []string, args []any, err error) {
	if len(f.IDs) > maxIDs {
		return nil, nil, fmt.Errorf("%d messages are named, %d may be at once", len(f.IDs), maxIDs)
	}
	add := func(sql string, values ...any) { where, args = append(where, sql), append(args, values...) }
	if len(f.IDs) > 0 {
		ids := make([]any, len(f.IDs))
		for i, id := range f.IDs {
			ids[i] = int64(id)
		}
		add("r.message IN (?"+strings.Repeat(", ?", len(ids)-1)+")", ids...)
	}
	if f.Stream != "" {
		add("m.stream = ?", f.Stream)
	}
	if f.Address != "" {
		add("r.address = ?", f.Address)
	}
	if f.State != nil {
		add("r.owner = 0 AND r.state = ?", int(*f.State))
	}
	if f.After != 0 {
		add("r.message > ?", int64(f.After))
	}
	return where, args, nil
}

// Retry makes queued rows due now. Like the other changes it leaves rows alone that are in flight, and counts them.
func (s *Store) Retry(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error) {
	return s.change(ctx, "retry", f, func(t *tx, r *row) (bool, error) {
		if r.State != message.Queued {
			return false, nil
		}
		return true, t.setState(r, message.Queued)
	})
}

// Hold keeps queued rows from being sent until they are released or expire.
func (s *Store) Hold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error) {
	return s.change(ctx, "hold", f, func(t *tx, r *row) (bool, error) {
		if r.State != message.Queued {
			return false, nil
		}
		return true, t.byOperator(r, event.Held, t.setState(r, message.Held))
	})
}

// Unhold lets held rows go, due now, also those held because a copy may have been sent.
func (s *Store) Unhold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error) {
	return s.change(ctx, "release", f, func(t *tx, r *row) (bool, error) {
		if r.State == message.Queued {
			return false, nil
		}
		return true, t.byOperator(r, event.Released, t.setState(r, message.Queued))
	})
}

// Drop ends rows with outcome dropped.
func (s *Store) Drop(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error) {
	return s.change(ctx, "drop", f, func(t *tx, r *row) (bool, error) {
		return true, t.byOperator(r, event.Dropped, t.end(r.id()))
	})
}

// setState moves an unowned row to a state; queued ones are due now.
func (t *tx) setState(r *row, state message.State) error {
	r.State = state
	if state == message.Queued {
		r.DueAt = t.now
		t.lanes[r.Lane] = true
	}
	return t.db.change("UPDATE recipient SET state = ?, due_at = ? WHERE message = ? AND n = ?", int(state), ms(r.DueAt), int64(r.message.ID), r.N)
}

// byOperator records what an operator did to r, if it was done.
func (t *tx) byOperator(r *row, kind event.Kind, err error) error {
	if err != nil {
		return err
	}
	e := r.event(kind, t.now)
	e.Data.Text = "by an operator"
	return t.append(e)
}

// change applies do to the rows that f chooses, a page in each transaction. They are chosen by a reader, since looking
// for them may take long, and looked at again by the writer.
func (s *Store) change(ctx context.Context, what string, f message.QueueFilter, do func(*tx, *row) (bool, error)) (changed, inFlight int, err error) {
	var last message.RecipientID
	for f.Limit <= 0 || changed < f.Limit {
		page := changePage
		if f.Limit > 0 {
			page = min(page, f.Limit-changed)
		}
		found, err := s.find(ctx, f, last, page)
		if err != nil || len(found) == 0 {
			return changed, inFlight, wrap(what, err)
		}
		last = found[len(found)-1].id()
		var c, i int
		err = s.writer.do(ctx, rest, len(found), func(t *tx) (err error) {
			c, i, err = t.changeRows(f, found, do)
			return err
		})
		if err != nil {
			return changed, inFlight, wrap(what, err)
		}
		changed, inFlight = changed+c, inFlight+i
	}
	return changed, inFlight, nil
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (t *tx) changeRows(f message.QueueFilter, found []row, do func(*tx, *row) (bool, error)) (changed, inFlight int, err error) {
	now, err := t.db.again(t, found)
	if err != nil {
		return 0, 0, err
	}
	for i := range now {
		r := &now[i]
		switch {
		case r.owner != 0:
			inFlight++
			continue
		case f.State != nil && r.State != *f.State:
			continue
		}
		ok, err := do(t, r)
		if err != nil {
			return 0, 0, err
		}
		if ok {
			changed++
		}
	}
	return changed, inFlight, nil
}

// holdKey is meta.key of a stream on hold.
const holdKey = "hold:"

// HoldStream holds, or stops holding, all mail of a stream, also what is yet to come. It outlives a restart. Rows stay
// as they are.
func (s *Store) HoldStream(ctx context.Context, stream string, hold bool) error {
	err := s.writer.do(ctx, rest, 1, func(t *tx) (err error) {
		if hold {
			_, err = t.exec("INSERT INTO meta(key, value) VALUES(?, ?) ON CONFLICT(key) DO NOTHING", holdKey+stream, t.now.Format("2006-01-02T15:04:05Z"))
		} else {
			_, err = t.exec("DELETE FROM meta WHERE key = ?", holdKey+stream)
			t.lanes[stream] = true
		}
		t.holds = true
		t.after = append(t.after, func() { s.setHeld(stream, hold) })
		return err
	})
	if err != nil {
		return fmt.Errorf("hold stream %s: %w", stream, err)
	}
	return nil
}

// StreamHeld reports whether an operator holds the whole stream.
func (s *Store) StreamHeld(stream string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held[stream]
}

func (s *Store) setHeld(stream string, hold bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[stream] = hold
	s.heldChanges++
}

// holdSelect finds the streams on hold.
const holdSelect = "SELECT key FROM meta WHERE substr(key, 1, 5) = 'hold:'"

func (s *Store) loadHolds(t *tx) error {
	held := map[string]bool{}
	err := t.db.query(func(r scanner) (bool, error) {
		var key string
		err := r.Scan(&key)
		held[strings.TrimPrefix(key, holdKey)] = true
		return err == nil, err
	}, holdSelect)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = held
	return err
}

// Lanes counts what is in the queue, lane by lane. It walks over all of it: it is for people, not for timers.
func (s *Store) Lanes(ctx context.Context) ([]message.LaneCount, error) {
	lanes := map[string]*message.LaneCount{}
	for _, part := range []struct {
		count func(*message.LaneCount) *int
		query string
	}{
		{func(l *message.LaneCount) *int { return &l.Queued }, "owner = 0 AND state = 0"},
		{func(l *message.LaneCount) *int { return &l.InFlight }, "owner <> 0"},
		{func(l *message.LaneCount) *int { return &l.Held }, "owner = 0 AND state <> 0"},
	} {
		err := s.read(ctx, func(rows scanner) (bool, error) {
			var name string
			var n int
			var oldest, accepted int64
			if err := rows.Scan(&name, &n, &oldest, &accepted); err != nil {
				return false, err
			}
			l := lanes[name]
			if l == nil {
				l = &message.LaneCount{Lane: name}
				lanes[name] = l
			}
			*part.count(l) = n
			if t := at(accepted); l.Oldest.IsZero() || t.Before(l.Oldest) {
				l.Oldest = t
			}
			return true, nil
		}, "SELECT c.*, coalesce((SELECT accepted_at FROM message WHERE id = c.oldest), 0) FROM (SELECT lane, count(*), min(message) AS oldest FROM recipient WHERE "+part.query+" GROUP BY lane) c")
		if err != nil {
			return nil, fmt.Errorf("count the queue: %w", err)
		}
	}
	list := make([]message.LaneCount, 0, len(lanes))
	for _, name := range slices.Sorted(maps.Keys(lanes)) {
		list = append(list, *lanes[name])
	}
	return list, nil
}
