package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// newLarge makes a message whose body is written in parts, of octets that no two parts share.
func newLarge(s *Store, kind message.Kind, size int) *message.Message {
	m := newMessage(s, kind, 0)
	m.Raw = make(message.Raw, size)
	rand.Read(m.Raw)
	m.Size = size
	return m
}

// countParts returns how many parts are stored, of all bodies.
func countParts(t testing.TB, s *Store) (n int) {
	t.Helper()
	if err := s.writer.read(context.Background(), func(r scanner) (bool, error) { return false, r.Scan(&n) }, "SELECT count(*) FROM body_part"); err != nil {
		t.Fatal(err)
	}
	return n
}

// addLeftovers writes parts as a process leaves them that ends before it has stored their message.
func addLeftovers(t *testing.T, s *Store, bodies, each int) {
	t.Helper()
	if err := s.writer.do(t.Context(), rest, 1, func(t *tx) error {
		for range bodies {
			id := s.NewID()
			for n := range each {
				if _, err := t.exec("INSERT INTO body_part(id, n, data) VALUES(?, ?, x'00')", int64(id), n); err != nil {
					return err
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// wantIdle checks that nothing is kept for large mail any more.
func wantIdle(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, "nothing is kept for large mail", func() bool {
		q, p := s.writer.queue, &s.parts
		q.mu.Lock()
		defer q.mu.Unlock()
		p.mu.Lock()
		defer p.mu.Unlock()
		s.space.mu.Lock()
		defer s.space.mu.Unlock()
		s.keys.turn.Lock()
		defer s.keys.turn.Unlock()
		return q.large == 0 && q.puts == 0 && q.octets == 0 && len(p.writing) == 0 && len(p.dead) == 0 && s.space.pending == 0 && len(s.keys.pinned) == 0
	})
}

func TestLargeBodiesOfAuthMailAreNeverOnDiskUnsealed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	m := newMessage(s, message.Auth, 2<<20)
	mustPut(t, s, false, m)
	if n := countParts(t, s); n < 8 {
		t.Errorf("%d parts", n)
	}
	for _, f := range []string{"spool.db", "spool.db-wal", "spool.db-shm"} {
		b := must(os.ReadFile(filepath.Join(dir, f)))
		for _, secret := range []string{"735914", "Sign in", "xxxxxxxx"} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%q is in %s", secret, f)
			}
		}
	}
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
		t.Error("the sealed body did not come back")
	}
	wantIdle(t, s)
}

func TestTheKeyOfALargeBodyStaysWhileItIsWritten(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	var ahead atomic.Int64
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		s.writer.commit = func(db database) error { <-gate; return commitTx(db) }
	})
	m := newLarge(s, message.Auth, 1<<20)
	w := s.Put([]*message.Message{m}, false)
	unused := func(int64) (bool, error) { return false, nil }
	if n, err := s.keys.retire(time.Now().Add(keyLife), unused); n != 0 || err != nil {
		t.Errorf("%d keys destroyed, err %v, while a body is on its way", n, err)
	}
	close(gate)
	<-w.Done()
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || ds[0].Held != "" || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
		t.Error("the body did not come back")
	}
	wantIdle(t, s)
}

func TestAMissingPartHoldsTheMessage(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Dir: t.TempDir()}, nil)
	mustPut(t, s, false, newLarge(s, message.Marketing, 1<<20))
	if err := s.writer.do(t.Context(), rest, 1, func(t *tx) error { _, err := t.exec("DELETE FROM body_part WHERE n = 3"); return err }); err != nil {
		t.Fatal(err)
	}
	if ds := claimAll(t, s, "news"); len(ds) != 1 || ds[0].Held == "" || ds[0].Message.Raw != nil {
		t.Errorf("claimed %+v, want it held", ds)
	}
}

// Counted in commits, since their time is the disk's: BenchmarkPutBesideBigMail tells that.
func TestAuthMailIsInTheNextCommitWhileALargeBodyIsWritten(t *testing.T) {
	t.Parallel()
	started, gate := make(chan struct{}, 1000), make(chan struct{})
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error {
			started <- struct{}{}
			<-gate
			return commitTx(db)
		}
	})
	big := s.Put([]*message.Message{newLarge(s, message.Marketing, 40<<20)}, false)
	for range 10 {
		<-started // with a part, and ends below
		w := s.Put([]*message.Message{newMessage(s, message.Auth, 4000)}, true)
		gate <- struct{}{}
		<-started
		gate <- struct{}{}
		select {
		case <-w.Done():
		case <-time.After(5 * time.Second):
			t.Fatal("the code was not in the next commit")
		}
		if _, err := w.Result(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-big.Done():
		t.Error("40 MB were written in 20 commits")
	default:
	}
	close(gate)
	<-big.Done()
	if _, err := big.Result(); err != nil {
		t.Error(err)
	}
}

func TestALargeBodyIsWrittenAndRemovedInPieces(t *testing.T) {
	t.Parallel()
	var commits atomic.Int32
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error { commits.Add(1); return commitTx(db) }
	})
	m := newLarge(s, message.Marketing, 20*partOctets)
	mustPut(t, s, true, m)
	if n := commits.Swap(0); n < 21 {
		t.Errorf("written in %d commits, want one for each of 20 parts and one for the message", n)
	}
	if lost := must(s.Settle(t.Context(), delivered(m, s.epoch.Load()))); len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	eventually(t, "the parts are gone", func() bool { return countParts(t, s) == 0 })
	if n := commits.Load(); n < 21 {
		t.Errorf("removed in %d commits, want one for each of 20 parts and one for the message", n)
	}
	wantIdle(t, s)
}

func TestEveryWayToEndRemovesTheParts(t *testing.T) {
	t.Parallel()
	s := openTest(t, Options{Dir: t.TempDir()}, nil)
	for name, end := range map[string]func(*message.Message) error{
		"drop":   func(m *message.Message) error { _, _, err := s.Drop(t.Context(), message.QueueFilter{}); return err },
		"expire": func(m *message.Message) error { _, err := s.Expire(t.Context(), 10, nil); return err },
		"supersede": func(m *message.Message) error {
			n := newMessage(s, message.Marketing, 0)
			n.Supersede = m.Supersede
			return put(s, true, n)
		},
	} {
		m := newLarge(s, message.Marketing, 1<<20)
		m.Supersede = []byte(name)
		if name == "expire" {
			m.ExpiresAt = time.Now().Add(-time.Second)
		}
		mustPut(t, s, false, m)
		if err := end(m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		eventually(t, "the parts are gone after "+name, func() bool { return countParts(t, s) == 0 })
	}
}

func TestLeftoversAreRemovedAfterStartAndNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	m := newLarge(s, message.Marketing, 1<<20)
	addLeftovers(t, s, searchPage, 3)
	mustPut(t, s, false, m)
	addLeftovers(t, s, 2, 3)
	closeTest(t, s)

	s = openTest(t, Options{Dir: dir}, nil)
	if n := countParts(t, s); n <= 4 {
		t.Errorf("%d parts are left at start, which should remove none", n)
	}
	late := newLarge(s, message.Marketing, 1<<20)
	mustPut(t, s, false, late)
	eventually(t, "the leftovers are gone", func() bool { return countParts(t, s) == 8 })
	wantIdle(t, s)
	if ds := claimAll(t, s, "news"); len(ds) != 2 || !bytes.Equal(ds[0].Message.Raw, m.Raw) || !bytes.Equal(ds[1].Message.Raw, late.Raw) {
		t.Error("the messages did not come back whole")
	}
}

func TestAFailedCommitOfAPartOrItsMessageIsTakenBack(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		at      int32 // the commit that fails: of 5, the last is the message's
		durable bool
	}{"a part": {3, false}, "a part, durable after all": {3, true}, "the message": {5, false}, "the message, durable after all": {5, true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var left atomic.Int32
			s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
				s.writer.commit = func(db database) error {
					if left.Add(-1) != 0 {
						return commitTx(db)
					}
					if tt.durable {
						commitTx(db)
					}
					return errors.New("fsync: input/output error")
				}
			})
			wantIdle(t, s)
			m := newLarge(s, message.Marketing, 1<<20)
			left.Store(tt.at)
			if err := put(s, false, m); replyCode(err) != 451 {
				t.Errorf("put: %v, want 451", err)
			}
			eventually(t, "it is well again", func() bool { return s.Ready(message.Auth) == nil })
			eventually(t, "the parts are gone", func() bool { return countParts(t, s) == 0 })
			if rows := must(s.Show(t.Context(), m.ID)); len(rows) != 0 {
				t.Errorf("the message is there: %v", rows)
			}
			wantIdle(t, s)
			mustPut(t, s, false, newLarge(s, message.Marketing, 1<<20))
		})
	}
}

func TestADiskThatFillsUpInTheMiddleOfALargeBody(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	var commits atomic.Int32
	s := openTest(t, Options{Dir: filepath.Join(disk, "state")}, func(s *Store) {
		s.writer.commit = func(db database) error {
			if commits.Add(1) == 4 {
				os.WriteFile(ballast, make([]byte, 32<<20), 0o600) // as much of it as there is room for
			}
			return commitTx(db)
		}
	})
	m := newLarge(s, message.Auth, 4<<20)
	if err := put(s, false, m); replyCode(err) != 452 {
		t.Errorf("put: %v, want 452", err)
	}
	if rows := must(s.Show(t.Context(), m.ID)); len(rows) != 0 {
		t.Errorf("the message is there: %v", rows)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it takes mail again", func() bool { return s.Ready(message.Auth) == nil })
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
	s.removeParts() // as upkeep does every quarter of a minute
	eventually(t, "the parts are gone", func() bool { return countParts(t, s) == 0 })
	wantIdle(t, s)
	closeTest(t, s)
}

func TestCloseWaitsForALargeBodyOnItsWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	m := newLarge(s, message.Auth, 8<<20)
	w := s.Put([]*message.Message{m}, false)
	closeTest(t, s)
	<-w.Done()
	if _, err := w.Result(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, Options{Dir: dir}, nil)
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
		t.Error("the body did not come back")
	}
}

func TestAKilledProcessLeavesLargeMailWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	durable := map[message.ID]string{}
	for range 2 {
		runAndKill(t, dir, child{size: "1000000", until: 10}, durable)
	}
	s := openTest(t, Options{Dir: dir}, nil)
	queued := 0
	for _, d := range claimAll(t, s, "auth") {
		if queued++; d.Held != "" || !strings.HasSuffix(string(d.Message.Raw), strings.Repeat("x", 1000000)) {
			t.Errorf("message %v came back with %d octets, held %q", d.Message.ID, len(d.Message.Raw), d.Held)
		}
		delete(durable, d.Message.ID)
	}
	if len(durable) != 0 {
		t.Errorf("%d durable messages are lost", len(durable))
	}
	eventually(t, "only parts of messages are left", func() bool { return countParts(t, s) == 4*queued })
}

func TestADatabaseOfTheFirstSchemaIsMigratedWithItsMail(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	small, own := newMessage(s, message.Auth, 300000), newMessage(s, message.Marketing, 400000)
	mustPut(t, s, false, small)
	mustPut(t, s, true, own)
	closeTest(t, s)
	if err := sqlOn(filepath.Join(dir, databaseFile), "DROP INDEX submission_expires", "DROP INDEX submission_message", "DROP TABLE body_part", "DROP TABLE signature", "ALTER TABLE body DROP COLUMN octets",
		"DROP INDEX event_address", "CREATE INDEX event_address ON event(address_key, at)",
		"UPDATE meta SET value = '1' WHERE key = 'schema'"); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, Options{Dir: dir}, nil)
	large := newLarge(s, message.Auth, 1<<20)
	mustPut(t, s, false, large)
	ds := append(claimAll(t, s, "auth"), claimAll(t, s, "news")...)
	for i, m := range []*message.Message{small, large, own} {
		if len(ds) != 3 || !bytes.Equal(ds[i].Message.Raw, m.Raw) {
			t.Fatalf("message %d of %d did not come back", i, len(ds))
		}
		must(s.Settle(t.Context(), delivered(ds[i].Message, ds[i].Epoch)))
	}
	if es := must(s.Events(t.Context(), EventQuery{Message: own.ID})); len(es) != 2 || es[0].Kind != event.Recovered {
		t.Errorf("events %+v", es)
	}
	if es := must(s.Events(t.Context(), EventQuery{Address: own.Recipients[0].Address})); len(es) < 4 {
		t.Errorf("found by address: %+v", es)
	}
	eventually(t, "the parts are gone", func() bool { return countParts(t, s) == 0 })
}

func TestBatchesTakeOnePartAndStayBounded(t *testing.T) {
	t.Parallel()
	q := newQueue()
	for range 3 {
		if err := q.add(bulk, &filler{"part", 0, partOctets}); err != nil {
			t.Fatal(err)
		}
	}
	parts := 0
	for i := range 40 {
		for range 10 {
			if err := q.add(authPut, &filler{"auth", 1, 100 << 10}); err != nil {
				t.Fatal(err)
			}
		}
		octets, n := 0, 0
		for _, j := range q.take() {
			_, o := j.size()
			if octets += o; j.(*filler).name == "part" {
				n++
			}
		}
		if parts += n; n > 1 || octets > batchOctetsAuth {
			t.Errorf("batch %d has %d parts and %d octets", i, n, octets)
		}
	}
	if parts != 2 {
		t.Errorf("%d parts were written in 40 full batches, want one in %d", parts, maxSkips+1)
	}
	for q.take() != nil {
	}
	if q.octets != 0 {
		t.Errorf("%d octets are left in an empty queue", q.octets)
	}
}
