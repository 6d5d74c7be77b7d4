package store

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// putOff settles m as deferred, due at once, with a signature to keep.
func putOff(t *testing.T, s *Store, m *message.Message) {
	t.Helper()
	r := m.Recipients[0]
	r.Attempts, r.DueAt = 1, time.Now()
	lost, err := s.Settle(t.Context(), []message.Settlement{{Message: m, Recipient: r, Epoch: s.epoch.Load(),
		Signature: &message.Signature{Fields: []byte("DKIM-Signature: a\r\n")}}})
	if err != nil || len(lost) > 0 {
		t.Fatalf("settle: lost %v, %v", lost, err)
	}
}

func countSignatures(t *testing.T, s *Store) (n int) {
	t.Helper()
	if err := s.read(context.Background(), func(r scanner) (bool, error) { return false, r.Scan(&n) }, "SELECT count(*) FROM signature"); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestASignatureIsInTheDatabaseForAsLongAsItsMessage(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	for name, open := range map[string]func() *Store{
		"sqlite":   func() *Store { return openTest(t, Options{Dir: t.TempDir()}, nil) },
		"postgres": func() *Store { return newTestFleet(t, server).node(t, "a") },
	} {
		t.Run(name, func(t *testing.T) {
			s := open()
			code, kept, dropped := newMessage(s, message.Auth, 10), newMessage(s, message.Marketing, 10), newMessage(s, message.Marketing, 10)
			for _, m := range []*message.Message{code, kept, dropped} {
				mustPut(t, s, true, m)
				putOff(t, s, m)
			}
			if n := countSignatures(t, s); n != 2 {
				t.Errorf("%d signatures are kept, want those of the two newsletters", n)
			}
			if _, _, err := s.Drop(t.Context(), message.QueueFilter{IDs: []message.ID{dropped.ID}}); err != nil {
				t.Fatal(err)
			}
			ds := claimAll(t, s, "news")
			if len(ds) != 1 || ds[0].Signature == nil {
				t.Fatalf("%d newsletters came back, want one with its signature", len(ds))
			}
			must(s.Settle(t.Context(), delivered(ds[0].Message, ds[0].Epoch)))
			if n := countSignatures(t, s); n != 0 {
				t.Errorf("%d signatures are left of mail that is over", n)
			}
		})
	}
}

func TestADatabaseWithoutSignaturesIsMigratedWithItsMail(t *testing.T) {
	t.Parallel()
	check := func(t *testing.T, s *Store) {
		ds := claimAll(t, s, "news")
		if len(ds) != 1 {
			t.Fatalf("%d newsletters came back, want 1", len(ds))
		}
		putOff(t, s, ds[0].Message)
		if ds = claimAll(t, s, "news"); len(ds) != 1 || ds[0].Signature == nil {
			t.Errorf("the newsletter came back without its signature")
		}
	}
	t.Run("sqlite", func(t *testing.T) {
		dir := t.TempDir()
		s := openTest(t, Options{Dir: dir}, nil)
		mustPut(t, s, false, newMessage(s, message.Marketing, 10))
		closeTest(t, s)
		if err := sqlOn(filepath.Join(dir, databaseFile), "DROP TABLE signature", "UPDATE meta SET value = '3' WHERE key = 'schema'"); err != nil {
			t.Fatal(err)
		}
		check(t, openTest(t, Options{Dir: dir}, nil))
	})
	t.Run("postgres", func(t *testing.T) {
		f := newTestFleet(t, pgtest.Shared(t))
		s := f.node(t, "a")
		mustPut(t, s, false, newMessage(s, message.Marketing, 10))
		closeTest(t, s)
		sqlAt(t, f, "DROP TABLE signature", "UPDATE meta SET value = '2' WHERE key = 'schema'")
		check(t, f.node(t, "a"))
	})
}

func TestANodeThatKnowsNoSignaturesRemovesThemWithItsMail(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	s := f.node(t, "a")
	m := newMessage(s, message.Marketing, 10)
	mustPut(t, s, true, m)
	putOff(t, s, m)
	sqlAt(t, f, "DELETE FROM recipient", "DELETE FROM message")
	if n := countSignatures(t, s); n != 0 {
		t.Errorf("%d signatures are left", n)
	}
}
