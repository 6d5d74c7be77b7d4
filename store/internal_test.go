package store

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/store/storetest/pgtest"
)

// collector is a sink that keeps what it gets.
type collector struct {
	mu     sync.Mutex
	events []event.Event
}

func (c *collector) Emit(events []event.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, events...)
}

func (c *collector) kinds() (kinds []event.Kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

// openTest opens a store; prepare may change it before it starts.
func openTest(t testing.TB, o Options, prepare func(*Store)) *Store {
	t.Helper()
	s := newStore(o)
	if err := s.open(o.Dir); err != nil {
		t.Fatal(err)
	}
	if prepare != nil {
		prepare(s)
	}
	s.start()
	t.Cleanup(func() { s.Close(context.Background()) })
	return s
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(context.Background()); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func newMessage(s *Store, kind message.Kind, size int) *message.Message {
	now := time.Now()
	lane := map[message.Kind]string{message.Auth: "auth", message.Marketing: "news"}[kind]
	raw := message.Raw("From: a@example.com\r\nSubject: Sign in\r\n\r\nYour code is 735914.\r\n" + strings.Repeat("x", size))
	return &message.Message{ID: s.NewID(), Stream: lane, Kind: kind, Client: "c", Size: len(raw), AcceptedAt: now, ExpiresAt: now.Add(time.Hour), Raw: raw,
		Recipients: []message.Recipient{{Address: "Anna@example.net", Lane: lane, DueAt: now}}}
}

func put(s *Store, own bool, ms ...*message.Message) error {
	w := s.Put(ms, own)
	<-w.Done()
	_, err := w.Result()
	return err
}

func mustPut(t testing.TB, s *Store, own bool, ms ...*message.Message) {
	t.Helper()
	if err := put(s, own, ms...); err != nil {
		t.Fatalf("put: %v", err)
	}
}

func claimAll(t testing.TB, s *Store, lane string) []*message.Delivery {
	t.Helper()
	ds, err := s.Claim(context.Background(), lane, []string{""}, 1000, 1<<30)
	if err != nil {
		t.Fatalf("claim: %v", err)
	}
	return ds
}

func delivered(m *message.Message, epoch int64) []message.Settlement {
	return []message.Settlement{{Message: m, Recipient: m.Recipients[0], Epoch: epoch, Outcome: message.Delivered}}
}

func replyCode(err error) int {
	if e, ok := errors.AsType[*reply.Error](err); ok {
		return e.Code
	}
	return 0
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

// plan returns how SQLite would run a query.
func plan(t *testing.T, s *Store, query string) string {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	for i := range args {
		args[i] = 1
	}
	var lines []string
	if err := s.writer.read(t.Context(), func(r scanner) (bool, error) {
		var a, b, c int
		var detail string
		err := r.Scan(&a, &b, &c, &detail)
		lines = append(lines, detail)
		return true, err
	}, "EXPLAIN QUERY PLAN "+query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return strings.Join(lines, "\n")
}

func TestQueriesOfTheHotPathUseTheirIndexAndNeverSort(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Dir: t.TempDir()}, nil)
	byAddress, _ := s.eventQuery(EventQuery{Address: "kim@example.net"})
	byAddress, _, _ = strings.Cut(byAddress, " ORDER BY ") // there are few
	for name, tt := range map[string]struct{ query, want string }{
		"by address":      {byAddress, "SEARCH event USING INDEX event_address (<expr>=? AND address_key=?"},
		"claim":           {claimDue, "SEARCH r USING INDEX recipient_due (lane=? AND need=? AND due_at<?)"},
		"claim far":       {claimFar, "SEARCH r USING INDEX recipient_due (lane=? AND need=? AND due_at>?)"},
		"needs":           {needAbove, "SEARCH recipient USING COVERING INDEX recipient_due (lane=? AND need>?)"},
		"due":             {dueNear, "SEARCH recipient USING COVERING INDEX recipient_due (lane=? AND need=? AND due_at<?)"},
		"due far":         {dueFar, "SEARCH recipient USING COVERING INDEX recipient_due (lane=? AND need=? AND due_at>?)"},
		"owned at start":  {ownedSelect, "SCAN r USING INDEX recipient_owned"},
		"expire":          {expireSelect, "SEARCH m USING INDEX message_expires (expires_at<?)"},
		"supersede":       {supersedeSelect, "SEARCH m USING INDEX message_supersede (supersede=?)"},
		"next expiry":     {nextExpiry, "SCAN m USING COVERING INDEX message_expires"},
		"last id in use":  {lastID, "SEARCH message\n"},
		"last number":     {lastSeq, "SEARCH event USING PRIMARY KEY (node=?)"},
		"next large body": {nextLarge, "SEARCH p USING COVERING INDEX sqlite_autoindex_body_part_1 (id>?)"},
		"forget a key":    {forgetKey, "SEARCH submission USING INDEX submission_message (message=?)"},
		"expired keys":    {(&liteDB{}).cutKeys(), "SEARCH submission USING COVERING INDEX submission_expires (expires_at<?)"},
		"key still used?": {keyUsed, "SEARCH body USING COVERING INDEX body_sealed (key_id=?)"},
	} {
		got := plan(t, s, tt.query)
		if !strings.Contains(got, tt.want) || strings.Contains(got, "TEMP B-TREE") {
			t.Errorf("%s:\n%s\nwant %s", name, got, tt.want)
		}
	}
}

func TestOneBadMessageTakesNobodyAlong(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	var commits atomic.Int32
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error {
			if commits.Add(1) == 1 {
				<-gate // the others form a batch meanwhile
			}
			return commitTx(db)
		}
	})
	first := s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, true)
	eventually(t, "the first commit", func() bool { return commits.Load() == 1 })
	good, bad := newMessage(s, message.Auth, 0), newMessage(s, message.Auth, 0)
	good2, bad2 := newMessage(s, message.Marketing, 0), newMessage(s, message.Marketing, 0)
	bad.Recipients = append(bad.Recipients, bad.Recipients[0]) // one key twice
	bad2.Recipients = nil
	var writes []Write
	for _, m := range []*message.Message{good, bad, good2, bad2} {
		writes = append(writes, s.Put([]*message.Message{m}, false))
	}
	close(gate)
	<-first.Done()
	var codes []int
	for _, w := range writes {
		<-w.Done()
		_, err := w.Result()
		codes = append(codes, replyCode(err))
	}
	if want := []int{0, 451, 0, 451}; !slices.Equal(codes, want) {
		t.Errorf("replies %v, want %v", codes, want)
	}
	if es, err := s.Events(t.Context(), EventQuery{}); err != nil || len(es) != 2 || es[0].Seq != 1 || es[1].Seq != 2 {
		t.Errorf("events %+v, err %v, want two without a gap", es, err)
	}
}

func TestAFailedCommitIsTakenBack(t *testing.T) {
	t.Parallel()
	for name, durable := range map[string]bool{"durable after all": true, "not durable": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			sink := &collector{}
			s := openTest(t, Options{Dir: t.TempDir(), Sink: sink}, func(s *Store) {
				s.writer.commit = func(db database) error {
					if !fail.Load() {
						return commitTx(db)
					}
					fail.Store(false)
					if durable {
						commitTx(db)
					}
					return errors.New("fsync: input/output error")
				}
			})
			_, valid := s.Lease()
			well := func() bool { return valid(0) && s.Ready(message.Auth) == nil }

			for _, own := range []bool{true, false} {
				fail.Store(true)
				m := newMessage(s, message.Auth, 0)
				m.Key = []byte("k")
				if err := put(s, own, m); replyCode(err) != 451 {
					t.Errorf("put: %v, want 451", err)
				}
				eventually(t, "the database is open again", well)
				if rows, err := s.Show(t.Context(), m.ID); len(rows) != 0 || err != nil {
					t.Errorf("own %v: the message is still there: %v, err %v", own, rows, err)
				}
			}
			m := newMessage(s, message.Auth, 0)
			m.Key = []byte("k") // which is free again
			mustPut(t, s, false, m)
			fail.Store(true)
			if _, err := s.Claim(t.Context(), "auth", []string{""}, 10, 1<<20); err == nil {
				t.Error("a claim whose commit failed succeeded")
			}
			eventually(t, "the database is open again", well)
			ds := claimAll(t, s, "auth")
			if len(ds) != 1 || ds[0].Message.Recipients[0].MaybeSent {
				t.Fatalf("claimed %+v, want the one message, not marked", ds)
			}
			fail.Store(true)
			if _, err := s.Settle(t.Context(), delivered(m, ds[0].Epoch)); err == nil {
				t.Error("a settlement whose commit failed succeeded")
			}
			eventually(t, "the database is open again", well)
			lost, err := s.Settle(t.Context(), delivered(m, ds[0].Epoch))
			if want := map[bool]int{true: 1}[durable]; err != nil || len(lost) != want {
				t.Errorf("settled again: lost %v, err %v, want %d lost", lost, err, want)
			}
			want := []event.Kind{event.Accepted, event.Delivered}
			if durable {
				want = []event.Kind{event.Accepted, event.Dropped, event.Accepted, event.Delivered}
			}
			eventually(t, "the events are handed on", func() bool { return len(sink.kinds()) == len(want) })
			if got := sink.kinds(); !slices.Equal(got, want) {
				t.Errorf("events %v, want %v", got, want)
			}
			for i, e := range sink.events {
				if e.Seq != int64(i+1) {
					t.Errorf("event %d has number %d", i+1, e.Seq)
				}
			}
		})
	}
}

func TestAHoldWhoseCommitFailedIsKnownOnceTheDatabaseIsOpenAgain(t *testing.T) {
	t.Parallel()
	for engine, open := range map[string]func(t *testing.T, prepare func(*Store)) *Store{
		"SQLite": func(t *testing.T, prepare func(*Store)) *Store {
			return openTest(t, Options{Dir: t.TempDir()}, prepare)
		},
		"PostgreSQL": func(t *testing.T, prepare func(*Store)) *Store {
			return must(newTestFleet(t, pgtest.Shared(t)).open(t, "a", nil, prepare))
		},
	} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			s := open(t, func(s *Store) {
				s.writer.commit = func(db database) error {
					err := commitTx(db)
					if fail.CompareAndSwap(true, false) {
						return errors.New("fsync: input/output error")
					}
					return err
				}
			})
			fail.Store(true)
			if err := s.HoldStream(t.Context(), "auth", true); err == nil {
				t.Error("a hold whose commit failed succeeded")
			}
			eventually(t, "the hold is known", func() bool { return s.StreamHeld("auth") })
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestFreePagesAreGivenBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	for range 30 {
		mustPut(t, s, false, newMessage(s, message.Marketing, 1<<20))
	}
	if _, _, err := s.Drop(t.Context(), message.QueueFilter{}); err != nil {
		t.Fatal(err)
	}
	free := func() (n int) {
		must(0, s.writer.do(t.Context(), rest, 1, func(t *tx) error { return t.one("PRAGMA freelist_count", &n) }))
		return n
	}
	var before int
	eventually(t, "7000 pages are free after 30 MB were dropped", func() bool { before = free(); return before >= 7000 })
	more := true
	for more {
		if err := s.writer.do(t.Context(), rest, 1, func(t *tx) (err error) { more, err = t.db.giveBack(t); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if n := free(); n > freePagesKept || n < freePagesKept-100 {
		t.Errorf("%d free pages of %d are left, want %d", n, before, freePagesKept)
	}
}

func TestCloseGivesUpInTime(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error { <-gate; return commitTx(db) }
	})
	s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, false)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v, want deadline exceeded", err)
	}
	close(gate)
}

func TestMarketingIsRefusedBeforeAuthWhenSpaceGetsShort(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Dir: t.TempDir()}, nil)
	for _, tt := range []struct {
		free            uint64
		auth, marketing int
	}{{200, 0, 0}, {199, 0, 452}, {100, 0, 452}, {99, 452, 452}} {
		s.space.mu.Lock()
		s.space.looked, s.space.free, s.space.reserve = time.Now().Add(time.Minute), tt.free, 100
		s.space.mu.Unlock()
		auth, marketing := replyCode(s.Ready(message.Auth)), replyCode(s.Ready(message.Marketing))
		if auth != tt.auth || marketing != tt.marketing {
			t.Errorf("%d free: auth %d, marketing %d, want %d, %d", tt.free, auth, marketing, tt.auth, tt.marketing)
		}
	}
}

func TestMailThatIsLetInKeepsItsRoomUntilItIsOnDisk(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error { <-gate; return commitTx(db) }
	})
	m := newMessage(s, message.Auth, 0)
	cost := uint64(len(m.Raw)) * writeCost
	s.space.mu.Lock()
	s.space.looked, s.space.free, s.space.reserve = time.Now().Add(time.Minute), 100+cost, 100
	s.space.mu.Unlock()

	first := s.Put([]*message.Message{m}, false)
	second := s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, false)
	<-second.Done()
	if _, err := second.Result(); replyCode(err) != 452 {
		t.Errorf("mail without room was answered %v, want 452", err)
	}
	if err := s.Ready(message.Auth); err != nil {
		t.Errorf("with the reserve untouched, small mail is answered %v", err)
	}
	if s.space.pending != cost {
		t.Errorf("%d octets are kept for mail under way, want %d", s.space.pending, cost)
	}
	close(gate)
	<-first.Done()
	if _, err := first.Result(); err != nil {
		t.Errorf("mail with just enough room was answered %v", err)
	}
	if s.space.pending != 0 {
		t.Errorf("%d octets are kept though nothing is under way", s.space.pending)
	}
}
