package store

import (
	"context"
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
	j := &settleJob{list: slices.Clone(list), records: make([]record, len(list))} // the caller may leave before it is used
	now := at(ms(s.now()))
	for i := range j.list {
		if j.records[i], err = s.record(settlementEvent(&j.list[i], now)); err != nil {
			return nil, fmt.Errorf("record what became of message %v: %w", j.list[i].Message.ID, err)
		}
	}
	j.task = task{len(list), func(t *tx) (err error) {
		j.lost, err = t.settleAll(j.list, j.records)
		return err
	}, make(chan error, 1)}
	if err := s.writer.wait(ctx, settlement, j, j.done); err != nil {
		return nil, err
	}
	return j.lost, nil
}

// settleJob is a Settle as the writer sees it.
type settleJob struct {
	task
	list    []message.Settlement
	records []record // of each
	lost    []message.RecipientID
}

// urgent implements urgent: a slot for sign-in mail comes free, and who waits for a refusal gets it.
func (j *settleJob) urgent() bool {
	return slices.ContainsFunc(j.list, func(s message.Settlement) bool { return s.Message.Kind == message.Auth })
}

// settleAll applies settlements and writes their records, queues their notifications, and returns the rows that were not ours.
func (t *tx) settleAll(list []message.Settlement, records []record) (lost []message.RecipientID, err error) {
	var queued *message.Message
	for i := range list {
		s := &list[i]
		ours, err := t.settle(s, records[i])
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
		if err := t.notify(s.Notification); err != nil {
			return nil, err
		}
		queued = s.Notification
	}
	return lost, nil
}

// notify queues a notification.
func (t *tx) notify(m *message.Message) error {
	b, err := bodyOf(m)
	if err != nil {
		return fmt.Errorf("store notification %v: %w", m.ID, err)
	}
	accepted, err := t.s.accepted(m, t.now)
	if err == nil {
		err = t.put(m, b, accepted, nil)
	}
	if err != nil {
		return fmt.Errorf("store notification %v: %w", m.ID, err)
	}
	return nil
}

// settle applies one settlement, whose record is r, and reports whether the row was ours.
func (t *tx) settle(s *message.Settlement, r record) (ours bool, err error) {
	if ours, err = t.db.settle(t, s); err != nil || !ours {
		return false, err
	}
	if s.Outcome != message.None {
		err = t.db.endMessage(t, s.Message.ID)
	}
	if err == nil {
		err = t.keepSignature(s)
	}
	if err == nil && s.Forget {
		err = t.db.forgetKey(s.Message.KeyOf())
	}
	if err == nil && !s.Paused {
		err = t.write(r)
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
	return s.writer.do(ctx, settlement, len(ids), func(t *tx) error { return t.db.release(t, ids) })
}
