package store

import (
	"context"
	"fmt"

	"gatepost/event"
	"gatepost/message"
)

// expirePage bounds the rows that one transaction ends.
const expirePage = 256

// expireSelect walks over messages by the end of their lifetime.
const expireSelect = rowColumns + ` FROM message m CROSS JOIN recipient r ON r.message = m.id
	WHERE m.expires_at <= ? AND r.owner = 0 ORDER BY m.expires_at LIMIT ?`

// Expire ends up to max unowned rows past their lifetime, of whatever lane and state, each with an event: unconfirmed
// where a copy may have reached somebody, else expired. Both are alarms.
func (s *Store) Expire(ctx context.Context, max int) (n int, err error) {
	for n < max {
		page := min(max-n, expirePage)
		ended := 0
		err := s.writer.do(ctx, rest, page, func(t *tx) (err error) {
			ended, err = t.expire(page)
			return err
		})
		if err != nil {
			return n, fmt.Errorf("expire mail: %w", err)
		}
		if n += ended; ended < page {
			break
		}
	}
	return n, nil
}

func (t *tx) expire(max int) (n int, err error) {
	var over []row
	if err := t.rows(&over, expireSelect, ms(t.now), max); err != nil {
		return 0, err
	}
	for _, r := range over {
		if err := t.end(r.id()); err != nil {
			return 0, err
		}
		if err := t.append(expiredEvent(&r, t)); err != nil {
			return 0, err
		}
	}
	return len(over), nil
}

func expiredEvent(r *row, t *tx) event.Event {
	e := r.event(event.Expired, t.now)
	e.Upstream, e.Data.Reply = r.LastUpstream, r.LastReply
	e.Data.Alarm, e.Data.Text = true, "its lifetime ended before it could be handed over"
	if r.MaybeSent || r.Copies > 0 || r.State == message.HeldUnconfirmed {
		e.Kind, e.Data.Class = event.Unconfirmed, message.Unknown
		e.Data.Text = "its lifetime ended and it is not known whether a copy was sent"
	}
	return e
}
