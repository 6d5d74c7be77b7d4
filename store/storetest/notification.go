package storetest

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// notifying makes a message whose sender is to be told of failures.
func (r *rig) notifying(to ...string) *message.Message {
	m := r.marketing(to...)
	m.SetNotifyTo("news@example.com")
	return m
}

// notification makes the message that tells of it.
func (r *rig) notification() *message.Message {
	return Message(r.Store, "dsn:news", message.Marketing, "news@example.com")
}

func testNotification(t *testing.T, r *rig) {
	m, n := r.notifying("a@example.net", "b@example.net", "c@example.net"), r.notification()
	epoch := r.put(t, true, m).Epoch
	var ss []message.Settlement
	for i := range m.Recipients {
		ss = append(ss, outcome(m, i, epoch, message.Bounced))
		ss[i].Notification = n
	}
	ss[0].Outcome, ss[0].Notification = message.Delivered, nil
	r.settle(t, ss...)
	for _, e := range r.history(t, m.ID) {
		if told := strings.Contains(e.Data.Text, n.ID.String()); told != (e.Kind == event.Bounced) {
			t.Errorf("event %v says %q", e.Kind, e.Data.Text)
		}
	}
	r.wantKinds(t, n.ID, event.Accepted)
	select {
	case <-r.Wake("dsn:news"):
	default:
		t.Error("the notification woke no lane")
	}
	ds := r.claim(t, "dsn:news")
	if len(ds) != 1 || ds[0].Message.ID != n.ID || !bytes.Equal(ds[0].Message.Raw, n.Raw) || ds[0].Message.NotifyTo() != "" {
		t.Errorf("claimed %+v, want the notification, once", ds)
	}
	if es := r.history(t, n.ID); es[0].Stream != "dsn:news" {
		t.Errorf("the notification's event is of stream %q", es[0].Stream)
	}
}

func testNotificationLost(t *testing.T, r *rig) {
	m, n := r.notifying("a@example.net", "b@example.net"), r.notification()
	epoch := r.put(t, true, m).Epoch
	stale := outcome(m, 0, epoch-1, message.Bounced)
	stale.Notification = n
	if lost, err := r.Settle(t.Context(), []message.Settlement{stale}); len(lost) != 1 || err != nil {
		t.Errorf("lost %v, err %v", lost, err)
	}
	r.wantState(t, n.ID)
	ours := outcome(m, 1, epoch, message.Bounced)
	ours.Notification = n
	if lost, err := r.Settle(t.Context(), []message.Settlement{stale, ours}); len(lost) != 1 || err != nil {
		t.Errorf("lost %v, err %v", lost, err)
	}
	r.wantState(t, n.ID, "queued")
}

func testNotificationAllOrNone(t *testing.T, r *rig) {
	m, n := r.notifying("a@example.net"), r.notification()
	epoch := r.put(t, true, m).Epoch
	r.put(t, false, n)
	s := outcome(m, 0, epoch, message.Bounced)
	s.Notification = n // its id is taken
	if _, err := r.Settle(t.Context(), []message.Settlement{s}); err == nil {
		t.Error("settled without the notification")
	}
	r.wantState(t, m.ID, "in-flight")
	r.wantKinds(t, m.ID)
}

func testExpireNotification(t *testing.T, r *rig) {
	past := time.Now().Add(-time.Second)
	told, other, quiet := r.notifying("a@example.net", "b@example.net"), r.notifying("c@example.net"), r.marketing("d@example.net")
	told.Recipients[1].State = message.HeldUnconfirmed
	told.Recipients[0].LastUpstream, told.Recipients[0].LastReply = "one", "450 4.2.1 busy"
	for _, m := range []*message.Message{told, other, quiet} {
		m.ExpiresAt = past
	}
	r.put(t, false, told, other, quiet)
	n := r.notification()
	var asked []message.ID
	count, err := r.Expire(t.Context(), 100, func(failed []message.Settlement) *message.Message {
		m := failed[0].Message
		asked = append(asked, m.ID)
		if m.NotifyTo() != "news@example.com" || !bytes.Equal(m.Raw, told.Raw) || m.MailFrom != told.MailFrom {
			t.Errorf("asked with %+v", m)
		}
		if m.ID != told.ID {
			return nil
		}
		if len(failed) != 2 || failed[0].Outcome != message.Expired || failed[1].Outcome != message.Unconfirmed ||
			failed[0].Recipient.Address != "a@example.net" || failed[0].Recipient.LastReply != "450 4.2.1 busy" {
			t.Errorf("asked about %+v", failed)
		}
		return n
	})
	if count != 4 || err != nil {
		t.Errorf("expired %d, err %v, want 4", count, err)
	}
	if slices.Sort(asked); !slices.Equal(asked, []message.ID{told.ID, other.ID}) {
		t.Errorf("asked about %v, want %v and %v, once each", asked, told.ID, other.ID)
	}
	r.wantState(t, n.ID, "queued")
	r.wantKinds(t, told.ID, event.Accepted, event.Accepted, event.Expired, event.Unconfirmed)
	if e := r.history(t, told.ID)[2]; !strings.Contains(e.Data.Text, n.ID.String()) {
		t.Errorf("the event says %q, want the notification's id", e.Data.Text)
	}
	if e := r.history(t, other.ID)[1]; strings.Contains(e.Data.Text, "told") {
		t.Errorf("without a notification the event says %q", e.Data.Text)
	}
}

func testExpireNotificationLarge(t *testing.T, r *rig) {
	past := time.Now().Add(-time.Second)
	header := "From: a@example.com\r\n\r\n"
	for range 3 {
		m := r.notifying("a@example.net", "b@example.net")
		m.ExpiresAt = past
		m.Raw = message.Raw(header + strings.Repeat("x", 3<<20))
		m.Size = len(m.Raw)
		r.put(t, false, m)
	}
	asked := 0
	n, err := r.Expire(t.Context(), 100, func(failed []message.Settlement) *message.Message {
		asked++
		if raw := failed[0].Message.Raw; len(raw) != 64<<10 || !strings.HasPrefix(string(raw), header) {
			t.Errorf("asked with %d octets of the message, want its first 65536", len(raw))
		}
		return r.notification()
	})
	if n != 6 || asked != 3 || err != nil {
		t.Errorf("expired %d, asked %d times, err %v, want 6 and 3", n, asked, err)
	}
	if ds := r.claim(t, "dsn:news"); len(ds) != 3 {
		t.Errorf("%d notifications are queued, want 3", len(ds))
	}
}
