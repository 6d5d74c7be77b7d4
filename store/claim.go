package store

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"gatepost/message"
)

// Claim stamps up to max due recipients of lane as ours in one commit, those due first, only those whose need is in can.
// They come grouped by message and with bodies; their messages' sizes add up to maxBytes at most, but one message always
// comes. Rows past their lifetime are left to Expire. A delivery whose body cannot be opened comes as Held.
func (s *Store) Claim(ctx context.Context, lane string, can []string, max int, maxBytes int64) ([]*message.Delivery, error) {
	if max <= 0 || len(can) == 0 {
		return nil, nil
	}
	j := &claimJob{s: s, lane: lane, can: can, max: max, maxBytes: maxBytes, done: make(chan struct{})}
	if err := s.writer.queue.add(rest, j); err != nil {
		return nil, err
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(claimOpen, claimAbandoned) {
			return nil, context.Cause(ctx)
		}
		<-j.done
	}
	if j.err != nil {
		return nil, j.err
	}
	ds, err := s.deliveries(j.claimed, j.epoch)
	if err != nil {
		s.giveBack(j.claimed)
		return nil, fmt.Errorf("read claimed mail: %w", err)
	}
	return ds, nil
}

const (
	claimOpen int32 = iota
	claimTaken
	claimAbandoned // the caller has left: what is claimed for it goes back
)

type claimJob struct {
	s        *Store
	lane     string
	can      []string
	max      int
	maxBytes int64

	epoch   int64 // under which
	claimed []row
	err     error
	done    chan struct{}
	state   atomic.Int32
}

func (j *claimJob) size() (messages, octets int) { return min(j.max, batchMessages/8), 0 }

func (j *claimJob) apply(t *tx) (err error) {
	if j.state.Load() == claimAbandoned {
		return nil
	}
	j.epoch = t.epoch
	found, err := t.db.due(t, j)
	if err != nil {
		return err
	}
	j.claimed = j.cut(found)
	return t.db.stamp(t, j)
}

// cut keeps as many rows as may be claimed.
func (j *claimJob) cut(found []row) []row {
	found = found[:min(len(found), j.max)]
	var octets int64
	seen := map[message.ID]bool{}
	for i, r := range found {
		if seen[r.message.ID] {
			continue
		}
		if octets += int64(r.message.Size); octets > j.maxBytes && len(seen) > 0 {
			return found[:i]
		}
		seen[r.message.ID] = true
	}
	return found
}

func (j *claimJob) finish(err error) {
	j.err = err
	if !j.state.CompareAndSwap(claimOpen, claimTaken) && err == nil {
		j.s.giveBack(j.claimed)
	}
	close(j.done)
}

// undo frees what a claim took whose commit failed: its caller knows nothing of it.
func (j *claimJob) undo(t *tx) error { return t.db.release(t, idsOf(j.claimed)) }

// giveBack frees claimed rows that nobody works on, without waiting. While that is not possible they are strays: ours, so
// that nobody else may have them, and they must not stay so.
func (s *Store) giveBack(rows []row) {
	if len(rows) == 0 {
		return
	}
	s.addStrays(idsOf(rows))
	s.returnStrays()
}

func (s *Store) addStrays(ids []message.RecipientID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strays = append(s.strays, ids...)
}

// returnStrays queues what frees the strays. It is called again when the database is well again.
func (s *Store) returnStrays() {
	s.mu.Lock()
	ids := s.strays
	s.strays = nil
	s.mu.Unlock()
	if len(ids) == 0 {
		return
	}
	if err := s.writer.queue.add(settlement, &strayJob{s, ids}); err != nil {
		s.addStrays(ids)
	}
}

// strayJob frees rows that were claimed and that nobody works on.
type strayJob struct {
	s   *Store
	ids []message.RecipientID
}

func (j *strayJob) size() (messages, octets int) { return min(len(j.ids), batchMessages/8), 0 }

func (j *strayJob) apply(t *tx) error { return t.db.release(t, j.ids) }

func (j *strayJob) finish(err error) {
	if err != nil {
		j.s.addStrays(j.ids)
		j.s.log.LogAttrs(context.Background(), slog.LevelWarn, "claimed mail could not be given back, it is tried again", slog.Any("err", err))
	}
}

func idsOf(rows []row) []message.RecipientID {
	ids := make([]message.RecipientID, len(rows))
	for i := range rows {
		ids[i] = rows[i].id()
	}
	return ids
}

// deliveries groups claimed rows by message and reads the bodies. It needs no transaction with the claim: rows that are
// ours are changed by nobody else, and so the writer is free for the next commit meanwhile.
func (s *Store) deliveries(rows []row, epoch int64) ([]*message.Delivery, error) {
	var ds []*message.Delivery
	byID := map[message.ID]*message.Delivery{}
	for _, r := range rows {
		d := byID[r.message.ID]
		if d == nil {
			m := r.message
			m.AcceptedAt, m.ExpiresAt = s.local(m.AcceptedAt), s.local(m.ExpiresAt)
			d = &message.Delivery{Message: m, Epoch: epoch}
			if r.broken {
				hold(d, heldBroken)
			}
			byID[r.message.ID] = d
			ds = append(ds, d)
		}
		r.DueAt = s.local(r.DueAt)
		d.Message.Recipients = append(d.Message.Recipients, r.Recipient)
	}
	if err := s.readBodies(ds); err != nil {
		return nil, err
	}
	return ds, s.readSignatures(ds)
}

// readBodies fills in what rowSelect leaves out.
func (s *Store) readBodies(ds []*message.Delivery) error {
	if s.fleet != nil {
		return s.fleet.readBodies(ds)
	}
	for _, d := range ds {
		var b storedBody
		found := false
		err := s.read(context.Background(), func(r scanner) (bool, error) {
			found = true
			return false, r.Scan(&d.Message.BodyHash, &b.format, &b.keyID, &b.octets, &b.data)
		}, "SELECT m.body_hash, b.format, b.key_id, b.octets, b.data FROM message m JOIN body b ON b.id = m.id WHERE m.id = ?", int64(d.Message.ID))
		if err == nil {
			err = s.openBody(d, b, found)
		}
		if err != nil {
			return fmt.Errorf("message %v: %w", d.Message.ID, err)
		}
	}
	return nil
}

// What a lane asks between claims: a step or two in an index, however much is queued.
const (
	needFirst  = "SELECT need FROM recipient WHERE owner = 0 AND state = 0 AND lane = ? AND need >= ? ORDER BY need LIMIT 1"
	needAbove  = "SELECT need FROM recipient WHERE owner = 0 AND state = 0 AND lane = ? AND need > ? ORDER BY need LIMIT 1"
	dueNear    = "SELECT due_at FROM recipient WHERE owner = 0 AND state = 0 AND lane = ? AND need = ? AND due_at <= ? ORDER BY due_at LIMIT 1"
	dueFar     = "SELECT due_at FROM recipient WHERE owner = 0 AND state = 0 AND lane = ? AND need = ? AND due_at > ? ORDER BY due_at LIMIT 1"
	nextExpiry = `SELECT m.expires_at FROM message m
		WHERE (SELECT 1 FROM recipient r WHERE r.message = m.id AND r.owner = 0 LIMIT 1) IS NOT NULL ORDER BY m.expires_at LIMIT 1`
)

// Needs returns the distinct values of need among lane's unowned queued recipients, in order.
func (s *Store) Needs(ctx context.Context, lane string) ([]string, error) {
	var needs []string
	query := needFirst
	for from := ""; ; query = needAbove {
		found := false
		err := s.read(ctx, func(r scanner) (bool, error) {
			found = true
			return false, r.Scan(&from)
		}, query, lane, from)
		if err != nil {
			return nil, fmt.Errorf("read needs of %s: %w", lane, err)
		}
		if !found {
			return needs, nil
		}
		needs = append(needs, from)
	}
}

// NextDue returns when the earliest unowned queued recipient of lane whose need is in can is due. A time further off
// than the longest wait of a ladder means now: the clock went back.
func (s *Store) NextDue(ctx context.Context, lane string, can []string) (due time.Time, ok bool, err error) {
	far := s.now().Add(longestStep)
	for _, need := range can {
		for _, query := range []string{dueNear, dueFar} {
			t, found, err := s.readTime(ctx, query, lane, need, ms(far))
			if err != nil {
				return time.Time{}, false, fmt.Errorf("read when mail of %s is due: %w", lane, err)
			}
			if found && t.After(far) {
				t = s.now()
			}
			if found && (!ok || t.Before(due)) {
				due, ok = t, true
			}
		}
	}
	return s.local(due), ok, nil
}

// NextExpiry returns when the lifetime of the earliest message with an unowned recipient ends.
func (s *Store) NextExpiry(ctx context.Context) (time.Time, bool, error) {
	t, ok, err := s.readTime(ctx, nextExpiry)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("read what expires next: %w", err)
	}
	return s.local(t), ok, nil
}

// local returns a stored time by the host's clock, which in a fleet may be another than the database's.
func (s *Store) local(t time.Time) time.Time {
	if s.fleet == nil {
		return t
	}
	return s.fleet.clock.local(t)
}

// readTime returns the one time that query finds.
func (s *Store) readTime(ctx context.Context, query string, args ...any) (t time.Time, ok bool, err error) {
	err = s.read(ctx, func(r scanner) (bool, error) {
		var v int64
		err := r.Scan(&v)
		t, ok = at(v), true
		return false, err
	}, query, args...)
	return t, ok, err
}
