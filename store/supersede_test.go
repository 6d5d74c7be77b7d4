package store

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"

	"gatepost/event"
	"gatepost/message"
)

// failOnce opens a store whose next commit, once fail is set, reports an error: after it has happened, or instead.
func failOnce(t *testing.T, fail *atomic.Bool, durable bool) *Store {
	t.Helper()
	return openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error {
			if !fail.CompareAndSwap(true, false) {
				return commitTx(db)
			}
			if durable {
				if err := commitTx(db); err != nil {
					return err
				}
			}
			return errors.New("fsync: input/output error")
		}
	})
}

func kindsOf(t *testing.T, s *Store, id message.ID) (kinds []event.Kind) {
	t.Helper()
	for _, e := range must(s.Events(t.Context(), EventQuery{Message: id})) {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func TestWhatAFailedCommitSupersededHasItsEnd(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		durable bool
		first   []event.Kind
		queued  int
	}{
		"durable after all": {true, []event.Kind{event.Accepted, event.Superseded}, 0},
		"not durable":       {false, []event.Kind{event.Accepted}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			s := failOnce(t, &fail, tt.durable)
			first, second := newMessage(s, message.Auth, 0), newMessage(s, message.Auth, 0)
			first.Supersede, second.Supersede = []byte("k"), []byte("k")
			mustPut(t, s, false, first)
			fail.Store(true)
			w := s.Put([]*message.Message{second}, false)
			<-w.Done()
			if res, err := w.Result(); replyCode(err) != 451 || len(res.Superseded) != 0 {
				t.Errorf("put: %v, %v, want 451 and nothing superseded", res, err)
			}
			eventually(t, "the database is open again", func() bool { return s.Ready(message.Auth) == nil && !s.failing.Load() })
			if got := kindsOf(t, s, first.ID); !slices.Equal(got, tt.first) {
				t.Errorf("events of the older %v, want %v", got, tt.first)
			}
			if rows := must(s.List(t.Context(), message.QueueFilter{})); len(rows) != tt.queued {
				t.Errorf("%d rows are queued, want %d: the newer was taken back", len(rows), tt.queued)
			}
		})
	}
}

func TestANotificationIsQueuedOnceThoughItsCommitFailed(t *testing.T) {
	t.Parallel()
	for name, durable := range map[string]bool{"durable after all": true, "not durable": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			s := failOnce(t, &fail, durable)
			m, notification := newMessage(s, message.Marketing, 0), newMessage(s, message.Marketing, 0)
			mustPut(t, s, true, m)
			ss := delivered(m, s.epoch.Load())
			ss[0].Outcome, ss[0].Notification = message.Bounced, notification
			fail.Store(true)
			if _, err := s.Settle(t.Context(), ss); err == nil {
				t.Error("a settlement whose commit failed succeeded")
			}
			eventually(t, "it is settled", func() bool {
				_, err := s.Settle(t.Context(), ss)
				return err == nil
			})
			rows := must(s.List(t.Context(), message.QueueFilter{}))
			if len(rows) != 1 || rows[0].ID != notification.ID {
				t.Errorf("queued are %+v, want the notification alone", rows)
			}
			if got := kindsOf(t, s, m.ID); !slices.Equal(got, []event.Kind{event.Bounced}) {
				t.Errorf("events %v, want one bounced", got)
			}
		})
	}
}
