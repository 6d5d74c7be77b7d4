package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/event"
	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// A server of its own for each test that stops one.

func TestNothingDurableIsLostWhenTheDatabaseCrashes(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t)
	f := newTestFleet(t, server)
	nodes := []*Store{f.node(t, "a"), f.node(t, "b")}
	var mu sync.Mutex
	durable, refused := map[message.ID]bool{}, 0
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for p := range 8 {
		wg.Go(func() {
			s := nodes[p%2]
			for {
				select {
				case <-stop:
					return
				default:
				}
				m := newMessage(s, message.Auth, 1000)
				err := put(s, p%4 < 2, m)
				mu.Lock()
				if err == nil {
					durable[m.ID] = true
				} else if refused++; replyCode(err) != 451 {
					t.Errorf("put: %v, want 451", err)
				}
				mu.Unlock()
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(durable)
	}
	for range 2 {
		before := count()
		eventually(t, "mail is stored", func() bool { return count() > before+100 })
		server.Restart(t, pgtest.Immediate)
	}
	before := count()
	eventually(t, "mail is stored again", func() bool { return count() > before+100 })
	close(stop)
	wg.Wait()
	if refused == 0 {
		t.Error("nothing was refused while the database was away")
	}
	queued := map[message.ID]bool{}
	for _, r := range must(nodes[0].List(t.Context(), message.QueueFilter{Limit: 1 << 20})) {
		queued[r.ID] = true
	}
	for id := range durable {
		if !queued[id] {
			t.Errorf("message %v was said to be stored and is lost", id)
		}
		delete(queued, id)
	}
	if len(queued) > 0 { // commits whose answer was lost
		t.Errorf("%d messages are queued though their clients were told to try again", len(queued))
	}
	for n, s := range nodes {
		for i, e := range must(s.Events(t.Context(), EventQuery{Node: n + 1, Limit: maxEvents})) {
			if e.Seq != int64(i+1) {
				t.Fatalf("node %d: event %d has number %d", n+1, i+1, e.Seq)
			}
		}
	}
}

func TestADatabaseThatHangsIsAnsweredForFastAndNothingIsSentWithoutALease(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t)
	f := newTestFleet(t, server)
	s := f.node(t, "a")
	m := newMessage(s, message.Auth, 0)
	mustPut(t, s, true, m)
	epoch, valid := s.Lease()
	if !valid(time.Second) {
		t.Fatal("no lease")
	}
	resume := server.Pause(t)
	paused := time.Now()
	w := s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, true)
	<-w.Done()
	if _, err := w.Result(); replyCode(err) != 451 {
		t.Errorf("put: %v, want 451", err)
	}
	if took := time.Since(paused); took > writeWithin+2*time.Second {
		t.Errorf("what was under way was answered after %v", took)
	}
	for range 3 {
		start := time.Now()
		if err := put(s, true, newMessage(s, message.Auth, 0)); replyCode(err) != 451 {
			t.Errorf("put: %v, want 451", err)
		}
		if err := s.Ready(message.Auth); replyCode(err) != 451 {
			t.Errorf("ready: %v, want 451", err)
		}
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("a later one was answered after %v", took)
		}
	}
	eventually(t, "the lease is over", func() bool { return !valid(0) })
	if took := time.Since(paused); took > testLease+writeWithin+3*time.Second {
		t.Errorf("the lease was over after %v", took)
	}
	if _, err := s.Settle(t.Context(), delivered(m, epoch)); err == nil {
		t.Error("a settlement was durable in a database that hangs")
	}
	resume()
	resumed := time.Now()
	eventually10(t, "mail is taken again", func() bool { return s.Ready(message.Auth) == nil })
	eventually10(t, "the lease is there again", func() bool { now, valid := s.Lease(); return now == epoch && valid(0) })
	if took := time.Since(resumed); took > openWithin+5*time.Second {
		t.Errorf("it went on after %v", took)
	}
	must(0, put(s, true, newMessage(s, message.Auth, 0)))
	if lost := must(s.Settle(t.Context(), delivered(m, epoch))); len(lost) != 0 {
		t.Error("what was in flight was lost though nobody took over")
	}
}

func eventually10(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// failingOnce makes a node's next commit, once fail is set, report that its answer was lost: after it happened, or
// instead.
func failingOnce(fail *atomic.Bool, durable bool) func(*Store) {
	return func(s *Store) {
		s.writer.commit = func(db database) error {
			if !fail.CompareAndSwap(true, false) {
				return commitTx(db)
			}
			if durable {
				if err := commitTx(db); err != nil {
					return err
				}
			}
			db.(*pgDB).conn.PgConn().Conn().Close()
			return errors.New("connection reset by peer")
		}
	}
}

func TestACommitWhoseAnswerWasLostIsTakenBack(t *testing.T) {
	t.Parallel()
	for name, durable := range map[string]bool{"durable after all": true, "not durable": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var fail atomic.Bool
			sink := &collector{}
			s := must(newTestFleet(t, pgtest.Shared(t)).open(t, "a", sink, failingOnce(&fail, durable)))
			well := func() bool { return s.Ready(message.Auth) == nil }
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

func TestWhatAnotherNodeHasClaimedMeanwhileIsNotTakenBack(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	b := f.node(t, "b")
	var fail atomic.Bool
	gate := make(chan struct{})
	a := must(f.open(t, "a", nil, func(s *Store) {
		failingOnce(&fail, true)(s)
		connect := s.writer.open
		s.writer.open = func() (database, error) { <-gate; return connect() }
	}))
	fail.Store(true)
	m := newMessage(a, message.Auth, 0)
	m.Recipients = append(m.Recipients, m.Recipients[0])
	m.Recipients[1].N, m.Recipients[1].DueAt = 1, time.Now().Add(time.Minute)
	if err := put(a, false, m); replyCode(err) != 451 {
		t.Errorf("put: %v, want 451", err)
	}
	ds := claimAll(t, b, "auth")
	if len(ds) != 1 || len(ds[0].Message.Recipients) != 1 {
		t.Fatalf("the other node claimed %+v", ds)
	}
	close(gate)
	eventually(t, "the database is open again", func() bool { return a.Ready(message.Auth) == nil })
	rows := must(a.Show(t.Context(), m.ID))
	if len(rows) != 1 || rows[0].N != 0 || rows[0].State != "in-flight" {
		t.Errorf("rows %+v, want what is in flight", rows)
	}
	if got, want := kindsOf(t, a, m.ID), []event.Kind{event.Accepted, event.Accepted, event.Dropped}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if lost := must(b.Settle(t.Context(), delivered(ds[0].Message, ds[0].Epoch))); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
}

func TestTheKeyOfWhatAnotherNodeHasClaimedMeanwhileIsNotFreed(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	b := f.node(t, "b")
	var fail atomic.Bool
	gate := make(chan struct{})
	a := must(f.open(t, "a", nil, func(s *Store) {
		failingOnce(&fail, true)(s)
		connect := s.writer.open
		s.writer.open = func() (database, error) { <-gate; return connect() }
	}))
	fail.Store(true)
	m, again := newMessage(a, message.Auth, 0), newMessage(a, message.Auth, 0)
	m.Key, again.Key = []byte("k"), []byte("k")
	if err := put(a, false, m); replyCode(err) != 451 {
		t.Errorf("put: %v, want 451", err)
	}
	ds := claimAll(t, b, "auth")
	if len(ds) != 1 {
		t.Fatalf("the other node claimed %+v", ds)
	}
	if lost := must(b.Settle(t.Context(), delivered(ds[0].Message, ds[0].Epoch))); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	close(gate)
	eventually(t, "the database is open again", func() bool { return a.Ready(message.Auth) == nil })
	if dup, ok := errors.AsType[*message.Duplicate](put(a, true, again)); !ok || dup.Of != m.ID {
		t.Errorf("what was delivered was put a second time: %v", dup)
	}
}

func TestAKeyThatIsFreedWhileItIsAskedForIsTaken(t *testing.T) {
	t.Parallel()
	s := newTestFleet(t, pgtest.Shared(t)).node(t, "a")
	first, second := newMessage(s, message.Auth, 0), newMessage(s, message.Auth, 0)
	first.Key, second.Key = []byte("k"), []byte("k")
	mustPut(t, s, true, first)
	conn := must(pgx.ConnectConfig(t.Context(), s.fleet.conns.Copy()))
	defer conn.Close(context.Background())
	for _, sql := range []string{
		"CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END'",
		"CREATE TRIGGER pause AFTER INSERT ON submission FOR EACH STATEMENT EXECUTE FUNCTION pause()",
		"SELECT pg_advisory_lock(1)",
	} {
		must(conn.Exec(t.Context(), sql))
	}
	w := s.Put([]*message.Message{second}, true)
	eventually(t, "the key was not free", func() (waits bool) {
		must(0, conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))").Scan(&waits))
		return waits
	})
	must(conn.Exec(t.Context(), s.fleet.text(forgetKey), int64(first.ID)))
	must(conn.Exec(t.Context(), "SELECT pg_advisory_unlock(1)"))
	<-w.Done()
	if _, err := w.Result(); err != nil {
		t.Errorf("put: %v", err)
	}
	third := newMessage(s, message.Auth, 0)
	third.Key = []byte("k")
	if dup, ok := errors.AsType[*message.Duplicate](put(s, true, third)); !ok || dup.Of != second.ID {
		t.Errorf("it was put again: %v", dup)
	}
}

func TestACommitThatTheServerWarnsOfIsTakenBack(t *testing.T) {
	t.Parallel()
	s := newTestFleet(t, pgtest.Shared(t)).node(t, "a")
	// It stands for a standby that has not confirmed: the server then warns and reports success.
	for _, sql := range []string{
		"CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'not replicated'; RETURN NULL; END $$",
		"CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON message DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.client = 'unlucky') EXECUTE FUNCTION warn()",
	} {
		if _, err := s.fleet.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	m := newMessage(s, message.Auth, 0)
	m.Client = "unlucky"
	if err := put(s, true, m); replyCode(err) != 451 {
		t.Errorf("put: %v, want 451", err)
	}
	eventually(t, "the database is open again", func() bool { return s.Ready(message.Auth) == nil })
	if rows := must(s.Show(t.Context(), m.ID)); len(rows) != 0 {
		t.Errorf("it is queued though its client was told to try again: %+v", rows)
	}
}

func TestOneBadMessageTakesNobodyAlongOnPostgreSQL(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	var commits atomic.Int32
	s := must(newTestFleet(t, pgtest.Shared(t)).open(t, "a", nil, func(s *Store) {
		s.writer.commit = func(db database) error {
			if commits.Add(1) == 1 {
				<-gate // the others form a batch meanwhile
			}
			return commitTx(db)
		}
	}))
	first := s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, true)
	eventually(t, "the first commit", func() bool { return commits.Load() == 1 })
	var writes []Write
	for i := range 4 {
		m := newMessage(s, message.Auth, 0)
		switch i {
		case 1:
			m.Recipients = append(m.Recipients, m.Recipients[0]) // one key twice
		case 2: // what a text column does not take
			m.Recipients[0].LastReply, m.Recipients[0].Address = "a\x00b\xff", "a\x00\xfe@example.net"
		case 3:
			m.Recipients = nil
		}
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
	if es := must(s.Events(t.Context(), EventQuery{})); len(es) != 2 || es[0].Seq != 1 || es[1].Seq != 2 {
		t.Errorf("events %+v, want two without a gap", es)
	}
}

func TestRowsThatCannotBeReadBlockNobody(t *testing.T) {
	t.Parallel()
	for engine, open := range map[string]func(t *testing.T) *Store{
		"SQLite":     func(t *testing.T) *Store { return openTest(t, Options{Dir: t.TempDir()}, nil) },
		"PostgreSQL": func(t *testing.T) *Store { return newTestFleet(t, pgtest.Shared(t)).node(t, "a") },
	} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			var ms []*message.Message
			for range 5 {
				m := newMessage(s, message.Auth, 0)
				mustPut(t, s, false, m)
				ms = append(ms, m)
			}
			for i, spoil := range []string{
				"UPDATE body SET data = ? WHERE id = ?",
				"UPDATE message SET attrs = ? WHERE id = ?",
				"UPDATE body SET key_id = 7, format = length(?) WHERE id = ?",
				"DELETE FROM body WHERE ? <> '' AND id = ?",
			} {
				var with any = "{not what it was"
				if i == 0 {
					with = []byte("not what it was")
				}
				if err := s.writer.do(t.Context(), rest, 1, func(x *tx) error { _, err := x.exec(spoil, with, int64(ms[i].ID)); return err }); err != nil {
					t.Fatal(err)
				}
			}
			ds := claimAll(t, s, "auth")
			if len(ds) != 5 {
				t.Fatalf("claimed %d, want 5", len(ds))
			}
			for i, d := range ds {
				if d.Message.ID != ms[i].ID || (d.Held != "") != (i < 4) {
					t.Errorf("message %d: %v, held %v", i, d.Message.ID, d.Held)
				}
				settle := delivered(d.Message, d.Epoch)
				if d.Held != "" {
					settle[0].Outcome, settle[0].Recipient.State = message.None, message.Held
				}
				if lost := must(s.Settle(t.Context(), settle)); len(lost) > 0 {
					t.Errorf("message %d: lost", i)
				}
			}
			if rows := must(s.List(t.Context(), message.QueueFilter{})); len(rows) != 4 || rows[0].State != "held" {
				t.Errorf("%+v, want four that are held", rows)
			}
		})
	}
}

func TestANodeWhoseClockIsWrongNeitherExpiresNorDelaysMail(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-26 * time.Hour, -time.Hour, time.Hour, 26 * time.Hour} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			t.Parallel()
			f := newTestFleet(t, pgtest.Shared(t))
			good := f.node(t, "good")
			wall := func() time.Time { return time.Now().Add(off) }
			wrong := must(f.open(t, "wrong", nil, func(s *Store) { s.fleet.clock.wall = wall }))
			theirs := newMessage(good, message.Auth, 0)
			theirs.ExpiresAt = theirs.AcceptedAt.Add(10 * time.Minute)
			mustPut(t, good, false, theirs)
			if n, err := wrong.Expire(t.Context(), 100, nil); n != 0 || err != nil {
				t.Errorf("the node whose clock is wrong expired %d, %v", n, err)
			}
			m := newMessage(wrong, message.Marketing, 0)
			m.AcceptedAt, m.ExpiresAt, m.Recipients[0].DueAt = wall(), wall().Add(10*time.Minute), wall()
			mustPut(t, wrong, false, m)
			if n, err := good.Expire(t.Context(), 100, nil); n != 0 || err != nil {
				t.Errorf("the other node expired %d, %v", n, err)
			}
			if ds := claimAll(t, good, "news"); len(ds) != 1 || time.Until(ds[0].Message.ExpiresAt) < 9*time.Minute || time.Until(ds[0].Message.ExpiresAt) > 11*time.Minute {
				t.Errorf("the other node claimed %+v, want it due and to live on for ten minutes", ds)
			}
			ds := claimAll(t, wrong, "auth")
			if len(ds) != 1 {
				t.Fatalf("claimed %d, want what the other node has put", len(ds))
			}
			if left := ds[0].Message.ExpiresAt.Sub(wall()); left < 9*time.Minute || left > 11*time.Minute {
				t.Errorf("%v are left by the wrong clock, want ten minutes", left)
			}
			s := delivered(ds[0].Message, ds[0].Epoch)
			s[0].Outcome, s[0].Recipient.DueAt = message.None, wall().Add(time.Minute)
			if lost := must(wrong.Settle(t.Context(), s)); len(lost) > 0 {
				t.Error("lost")
			}
			due, ok, err := good.NextDue(t.Context(), "auth", []string{""})
			if wait := time.Until(due); !ok || err != nil || wait < 55*time.Second || wait > 65*time.Second {
				t.Errorf("it is due in %v, %v, %v, want a minute", wait, ok, err)
			}
			if id := wrong.NewID(); time.Until(id.Time()).Abs() > time.Minute {
				t.Errorf("an id tells %v", id.Time())
			}
		})
	}
}

func TestALeaseIsLostInTimeAndANewOneFollows(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	a := f.node(t, "a")
	m := newMessage(a, message.Auth, 0)
	mustPut(t, a, true, m)
	epoch, valid := a.Lease()
	// What another node does once the lease is over, but early.
	if _, err := a.fleet.pool.Exec(context.Background(), "UPDATE node SET epoch = epoch + 1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it goes on under a new epoch", func() bool { now, valid := a.Lease(); return now > epoch && valid(0) })
	if valid(0) {
		t.Error("the old epoch is still valid")
	}
	eventually(t, "what was owned comes back", func() bool {
		ds := claimAll(t, a, "auth")
		return len(ds) == 1 && ds[0].Message.Recipients[0].MaybeSent
	})
	if lost := must(a.Settle(t.Context(), delivered(m, epoch))); len(lost) != 1 {
		t.Errorf("lost %v, want it lost", lost)
	}
}

func TestWhatNobodyWasToldOfIsFoundByLooking(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	a, b := f.node(t, "a"), f.node(t, "b")
	b.Wake("auth")
	a.fleet.notices.Lock() // from here on nobody notifies
	a.fleet.channel = "elsewhere"
	a.fleet.notices.Unlock()
	mustPut(t, a, false, newMessage(a, message.Auth, 0))
	select {
	case <-b.Wake("auth"):
	case <-time.After(testRenew * 10):
		t.Error("the other node did not look")
	}
	if err := a.HoldStream(t.Context(), "auth", true); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other node sees the hold", func() bool { return b.StreamHeld("auth") })
}

func TestATakeoverWaitsForTheEndOfACommit(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	gate, inside := make(chan struct{}), make(chan struct{}, 1)
	var hold atomic.Bool
	a := must(f.open(t, "a", nil, func(s *Store) {
		s.writer.commit = func(db database) error {
			if hold.CompareAndSwap(true, false) {
				inside <- struct{}{}
				<-gate
			}
			return commitTx(db)
		}
	}))
	b := f.node(t, "b")
	settling, other := newMessage(a, message.Auth, 0), newMessage(a, message.Auth, 0)
	mustPut(t, a, true, settling, other)
	epoch, valid := a.Lease()
	hold.Store(true)
	settled := make(chan []message.RecipientID)
	go func() { settled <- must(a.Settle(context.Background(), delivered(settling, epoch))) }()
	<-inside
	abandon(a)
	eventually(t, "the lease is over", func() bool { return !valid(0) })
	time.Sleep(3 * testRenew) // b has looked by now
	if rows := must(b.Show(t.Context(), other.ID)); len(rows) != 1 || rows[0].State != "in-flight" {
		t.Errorf("%+v, want it left until the commit has ended", rows)
	}
	close(gate)
	if lost := <-settled; len(lost) > 0 {
		t.Error("what was settled before the takeover was lost")
	}
	eventually(t, "the rest is taken over", func() bool { ds := claimAll(t, b, "auth"); return len(ds) == 1 && ds[0].Message.ID == other.ID })
	if got, want := kindsOf(t, b, settling.ID), []event.Kind{event.Delivered}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestTheClockFollowsAServerThatTookTheDatabasesPlace(t *testing.T) {
	t.Parallel()
	c := fleetClock{wall: time.Now}
	start := time.Now()
	c.set(start.Add(time.Hour).UnixMilli(), bootTime())
	if d := c.now().Sub(start.Add(time.Hour)); d.Abs() > time.Minute || c.skew() < 50*time.Minute {
		t.Errorf("off by %v, skew %v", d, c.skew())
	}
	last := c.now()
	c.set(start.Add(time.Hour).Add(-time.Second).UnixMilli(), bootTime())
	if now := c.now(); now.Before(last) {
		t.Errorf("it went back from %v to %v", last, now)
	}
	c.set(start.UnixMilli(), bootTime())
	if d := c.now().Sub(start); d.Abs() > time.Minute || c.skew() != 0 {
		t.Errorf("off by %v, skew %v", d, c.skew())
	}
}

func TestAFullDiskOfTheDatabaseIsAnsweredWith452AndLosesNothing(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t)
	f := newTestFleet(t, server)
	s := f.node(t, "a")
	disk := smallDisk(t)
	owner := must(user.Lookup("postgres"))
	must(0, os.Chown(disk, must(strconv.Atoi(owner.Uid)), must(strconv.Atoi(owner.Gid))))
	must(0, os.Chmod(filepath.Dir(disk), 0o711))
	server.Admin(t, "CREATE TABLESPACE small LOCATION '"+disk+"'")
	t.Cleanup(func() { server.Stop(t, pgtest.Immediate) }) // before it is unmounted
	server.Admin(t, "GRANT CREATE ON TABLESPACE small TO "+pgtest.Role)
	for _, table := range []string{"body", "body_part"} {
		must(s.fleet.pool.Exec(t.Context(), "ALTER TABLE "+table+" SET TABLESPACE small"))
	}
	var stored []*message.Message
	refused := 0
	for i := range 400 { // 20 MB
		size := 50000
		if i%20 == 0 {
			size = maxInline + 50000
		}
		m := newMessage(s, message.Auth, size)
		switch err := put(s, false, m); replyCode(err) {
		case 0:
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, m)
		case 452:
			refused++
		default:
			t.Fatalf("put: %v, want 452", err)
		}
	}
	if len(stored) < 20 || refused < 100 {
		t.Fatalf("%d stored, %d refused", len(stored), refused)
	}
	got := map[message.ID]bool{}
	drain := func(max int) {
		for _, d := range must(s.Claim(t.Context(), "auth", []string{""}, max, 1<<30)) {
			got[d.Message.ID] = d.Held == "" && len(d.Message.Raw) > 50000
			must(s.Settle(t.Context(), delivered(d.Message, d.Epoch)))
		}
	}
	drain(len(stored) / 2) // which the full disk does not keep it from
	must(0, syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=64m"))
	eventually(t, "it takes mail again", func() bool { return s.Ready(message.Auth) == nil && s.Ready(message.Marketing) == nil })
	mustPut(t, s, false, newMessage(s, message.Auth, 50000))
	drain(1000)
	for _, m := range stored {
		if !got[m.ID] {
			t.Errorf("message %v is lost", m.ID)
		}
	}
}

func TestClaimedMailThatCannotBeReadIsGivenBackOnceTheDatabaseIsWell(t *testing.T) {
	t.Parallel()
	var spoil atomic.Bool
	f := newTestFleet(t, pgtest.Shared(t))
	s := must(f.open(t, "a", nil, func(s *Store) {
		s.writer.commit = func(db database) error {
			err := commitTx(db)
			if spoil.CompareAndSwap(true, false) { // from here on the database is away
				must(s.fleet.pool.Exec(context.Background(), "ALTER TABLE body RENAME TO elsewhere"))
				s.failing.Store(true)
				finish(s.writer.queue.stop(errNotOpen), errNotOpen)
			}
			return err
		}
	}))
	m := newMessage(s, message.Auth, 0)
	mustPut(t, s, false, m)
	spoil.Store(true)
	if ds, err := s.Claim(t.Context(), "auth", []string{""}, 10, 1<<20); err == nil {
		t.Fatalf("claimed %+v", ds)
	}
	if rows := must(s.Show(t.Context(), m.ID)); len(rows) != 1 || rows[0].State != "in-flight" {
		t.Fatalf("rows %+v", rows)
	}
	must(s.fleet.pool.Exec(t.Context(), "ALTER TABLE elsewhere RENAME TO body"))
	s.failing.Store(false)
	s.writer.queue.stop(nil)
	s.returnStrays() // as when the database is open again
	eventually(t, "it can be claimed again", func() bool { return len(claimAll(t, s, "auth")) == 1 })
}
