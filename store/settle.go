package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// Settle applies all of s or none in the next flush and returns when that is durable. A row that is not ours under its
// epoch is left alone, gets no event and comes back as lost; so does one that an earlier Settle of the same, whose
// commit failed, has ended after all: trying again is safe. When ctx ends first, the settlements are applied all the
// same. A Notification that settlements share is queued once, if any of them is applied.
func (s *Store) Settle(ctx context.Context, list []message.Settlement) (lost []message.RecipientID, err error) {
	var found []message.RecipientID
	list = slices.Clone(list) // the caller may leave before it is used
	err = s.writer.do(ctx, settlement, len(list), func(t *tx) (err error) {
		found, err = t.settleAll(list)
		return err
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// settleAll applies settlements, queues their notifications, and returns the rows that were not ours.
func (t *tx) settleAll(list []message.Settlement) (lost []message.RecipientID, err error) {
	var queued *message.Message
	for i := range list {
		s := &list[i]
		ours, err := t.settle(s)
		if err != nil {
			return nil, err
		}
		if !ours {
			lost = append(lost, s.ID())
			continue
		}
		if s.Notification == nil || s.Notification == queued {
			continue
		}
		if err := t.put(s.Notification, false, nil); err != nil {
			return nil, fmt.Errorf("store notification %v: %w", s.Notification.ID, err)
		}
		queued = s.Notification
	}
	return lost, nil
}

// settle applies one settlement, and reports whether the row was ours.
func (t *tx) settle(s *message.Settlement) (ours bool, err error) {
	id, r := s.ID(), &s.Recipient
	var n int64
	switch {
	case s.Outcome != message.None:
		n, err = t.exec("DELETE FROM recipient WHERE message = ? AND n = ? AND owner = ? AND epoch = ?", int64(id.Message), id.N, nodeID, s.Epoch)
	case s.Paused:
		n, err = t.exec("UPDATE recipient SET owner = 0, epoch = 0 WHERE message = ? AND n = ? AND owner = ? AND epoch = ?", int64(id.Message), id.N, nodeID, s.Epoch)
	default:
		n, err = t.exec(`UPDATE recipient SET owner = 0, epoch = 0, state = ?, due_at = ?, attempts = ?, maybe_sent = ?, copies = ?,
			refused = ?, last_upstream = ?, last_reply = ? WHERE message = ? AND n = ? AND owner = ? AND epoch = ?`,
			int(r.State), ms(r.DueAt), r.Attempts, r.MaybeSent, r.Copies, joinNames(r.Refused), r.LastUpstream, message.Mask(r.LastReply),
			int64(id.Message), id.N, nodeID, s.Epoch)
	}
	if err != nil || n == 0 {
		return false, err
	}
	if s.Outcome != message.None {
		err = t.endMessage(id.Message)
	}
	if err == nil && s.Forget {
		err = t.forgetKey(id.Message)
	}
	if err == nil && !s.Paused {
		err = t.append(settlementEvent(s, t.now))
	}
	return true, err
}

// settlementEvent makes the one record of a settlement.
func settlementEvent(s *message.Settlement, now time.Time) event.Event {
	e := recipientEvent(settlementKind(s), s.Message, &s.Recipient, now)
	if s.Outcome == message.None && s.Recipient.State == message.Queued {
		e.Data.DueAt = at(ms(s.Recipient.DueAt))
	}
	e.Data.Alarm, e.Data.Text = s.Alarm != "", s.Alarm
	if s.Notification != nil {
		e.Data.Text = toldBy(s.Alarm, s.Notification)
	}
	if a := s.Attempt; a != nil {
		v := a.Verdict
		e.Upstream = a.Upstream
		e.Data.Egress, e.Data.Local, e.Data.Took = a.Egress, a.Local, event.Millis(a.Took)
		e.Data.Class, e.Data.Scope, e.Data.Code = v.Class, v.Scope, v.Code
		e.Data.Reply, e.Data.ProviderID = v.Reply(), printable(v.ProviderID)
		if v.Class == message.Accepted {
			e.Data.Scope = ""
		}
	}
	if e.Kind == event.Held && s.Recipient.State == message.HeldUnconfirmed {
		e.Data.Class = message.Unknown
	}
	return e
}

// toldBy adds to an event's text which message tells the sender of it.
func toldBy(text string, notification *message.Message) string {
	told := "the sender is told by message " + notification.ID.String()
	if text == "" {
		return told
	}
	return text + "; " + told
}

func settlementKind(s *message.Settlement) event.Kind {
	switch {
	case s.Outcome != message.None:
		return event.OfOutcome(s.Outcome)
	case s.Recipient.State != message.Queued:
		return event.Held
	}
	return event.Deferred
}

// Release gives rows back unowned, their due time unchanged, in the next flush, and wakes their lanes. Rows that are not
// ours are left alone.
func (s *Store) Release(ctx context.Context, ids []message.RecipientID) error {
	return s.writer.do(ctx, settlement, len(ids), func(t *tx) error { return t.release(ids) })
}

func (t *tx) release(ids []message.RecipientID) error {
	for _, id := range ids {
		err := t.db.query(func(r *sql.Rows) (bool, error) {
			var lane string
			err := r.Scan(&lane)
			t.lanes[lane] = true
			return true, err
		}, "UPDATE recipient SET owner = 0, epoch = 0 WHERE message = ? AND n = ? AND owner = ? AND epoch = ? RETURNING lane",
			int64(id.Message), id.N, nodeID, t.s.epoch)
		if err != nil {
			return err
		}
	}
	return nil
}
