package store

import (
	"context"
	"fmt"

	"gatepost/event"
	"gatepost/message"
)

const (
	expirePage         = 256      // rows that one transaction ends at most
	expireOctets       = 4 << 20  // of messages that one transaction reads for their notifications; one is always read
	notificationOctets = 64 << 10 // of a message that its notification is made from
)

// expireSelect walks over messages by the end of their lifetime, the recipients of each in a row.
const expireSelect = rowColumns + ` FROM message m CROSS JOIN recipient r ON r.message = m.id
	WHERE m.expires_at <= ? AND r.owner = 0 ORDER BY m.expires_at LIMIT ?`

// bodyHead reads the beginning of a body that is not sealed.
const bodyHead = `SELECT substr(CASE WHEN octets > 0 THEN (SELECT p.data FROM body_part p WHERE p.id = b.id AND p.n = 0) ELSE data END, 1, ?)
	FROM body b WHERE id = ? AND key_id = 0`

// Notifier makes the message that tells a sender of failures, all of one message, or returns nil where nobody is told.
// It is called by the writer, so it must be quick and must not wait for the store.
type Notifier = func(failed []message.Settlement) *message.Message

// Expire ends up to max unowned rows past their lifetime, of whatever lane and state, each with an event: unconfirmed
// where a copy may have reached somebody, else expired. Both are alarms. notify is asked for the message that tells the
// sender, where Message.NotifyTo wants one, and shown the first 64 KB of Raw; what it returns is queued in the same
// transaction. It may be nil. For a minute after the clock of a shared database has jumped nothing expires.
func (s *Store) Expire(ctx context.Context, max int, notify Notifier) (n int, err error) {
	if s.fleet != nil && s.fleet.clock.jumped(greatJump, jumpGrace) {
		return 0, nil
	}
	for n < max {
		e := expiry{max: min(max-n, expirePage), notify: notify}
		err := s.writer.do(ctx, rest, e.max, func(t *tx) error { return e.turn(t) })
		if err != nil {
			return n, fmt.Errorf("expire mail: %w", err)
		}
		if n += e.ended; !e.more {
			break
		}
	}
	return n, nil
}

// expiry is one page of what expires.
type expiry struct {
	max    int
	notify Notifier

	ended int
	more  bool // than this page may be past its lifetime
}

// turn ends a page, and the messages on it that are to be told of only as far as they may be read.
func (e *expiry) turn(t *tx) error {
	var over []row
	if err := t.rows(&over, t.db.locking(expireSelect), ms(t.now), e.max); err != nil {
		return err
	}
	e.ended, e.more = 0, len(over) == e.max
	for octets := 0; len(over) > 0; {
		n, m := sameMessage(over), over[0].message
		if e.wanted(m) {
			if octets > 0 && octets+m.Size > expireOctets {
				e.more = true
				return nil
			}
			octets += m.Size
		}
		if err := e.end(t, over[:n]); err != nil {
			return err
		}
		over = over[n:]
		e.ended += n
	}
	return nil
}

// wanted reports whether somebody may have to be told of m's end.
func (e *expiry) wanted(m *message.Message) bool { return e.notify != nil && m.NotifyTo() != "" }

// sameMessage returns how many rows at the head of list are of one message.
func sameMessage(list []row) int {
	for i := range list {
		if list[i].message.ID != list[0].message.ID {
			return i
		}
	}
	return len(list)
}

// end ends rows of one message.
func (e *expiry) end(t *tx, rows []row) error {
	notification, err := e.ask(t, rows)
	if err != nil {
		return err
	}
	for i := range rows {
		if err := t.end(rows[i].id()); err != nil {
			return err
		}
		ev := expiredEvent(&rows[i], t)
		if notification != nil {
			ev.Data.Text = toldBy(ev.Data.Text, notification)
		}
		if err := t.append(ev); err != nil {
			return err
		}
	}
	if notification == nil {
		return nil
	}
	return t.notify(notification)
}

// ask returns the notification about rows of one message, nil for none.
func (e *expiry) ask(t *tx, rows []row) (*message.Message, error) {
	m := rows[0].message
	if !e.wanted(m) {
		return nil, nil
	}
	if err := t.db.query(func(r scanner) (bool, error) { return false, r.Scan((*[]byte)(&m.Raw)) },
		bodyHead, notificationOctets, int64(m.ID)); err != nil {
		return nil, err
	}
	failed := make([]message.Settlement, len(rows))
	for i := range rows {
		failed[i] = message.Settlement{Message: m, Recipient: rows[i].Recipient, Outcome: expiredOutcome(&rows[i])}
	}
	return e.notify(failed), nil
}

// expiredOutcome returns how a row ends whose lifetime is over.
func expiredOutcome(r *row) message.Outcome {
	if r.MaybeSent || r.Copies > 0 || r.State == message.HeldUnconfirmed {
		return message.Unconfirmed
	}
	return message.Expired
}

func expiredEvent(r *row, t *tx) event.Event {
	outcome := expiredOutcome(r)
	e := r.event(event.OfOutcome(outcome), t.now)
	e.Upstream, e.Data.Reply = r.LastUpstream, r.LastReply
	e.Data.Alarm, e.Data.Text = true, "its lifetime ended before it could be handed over"
	if outcome == message.Unconfirmed {
		e.Data.Class = message.Unknown
		e.Data.Text = "its lifetime ended and it is not known whether a copy was sent"
	}
	return e
}
