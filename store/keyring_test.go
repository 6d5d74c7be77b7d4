package store

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/message"
)

func TestAuthBodiesAreNeverOnDiskUnsealed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	found := func(text string) (files []string) {
		for _, f := range []string{"spool.db", "spool.db-wal", "spool.db-shm"} {
			b, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(b, []byte(text)) {
				files = append(files, f)
			}
		}
		return files
	}
	m := newMessage(s, message.Auth, 20000)
	mustPut(t, s, false, m)
	for _, secret := range []string{"735914", "Sign in", "xxxxxxxx"} {
		if files := found(secret); files != nil {
			t.Errorf("%q is in %v", secret, files)
		}
	}
	mustPut(t, s, false, newMessage(s, message.Marketing, 0))
	if found("735914") == nil {
		t.Error("a body of marketing mail was not found either: the test looks in the wrong place")
	}
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
		t.Error("the sealed body did not come back")
	}
}

// keyIDs returns the ids in a key file.
func keyIDs(t *testing.T, dir string) (ids []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "spool.key"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		ids = append(ids, strings.Fields(line)[0])
	}
	return ids
}

func TestKeysAreRotatedAndDestroyed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var ahead atomic.Int64
	s := openTest(t, Options{Dir: dir}, func(s *Store) {
		s.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	first := keyIDs(t, dir)
	a, b := newMessage(s, message.Auth, 0), newMessage(s, message.Auth, 0)
	mustPut(t, s, true, a)
	ahead.Store(int64(keyLife - time.Minute))
	mustPut(t, s, true, newMessage(s, message.Auth, 0))
	if got := keyIDs(t, dir); !slices.Equal(got, first) {
		t.Errorf("keys %v within ten minutes, want %v", got, first)
	}
	ahead.Store(int64(keyLife))
	mustPut(t, s, true, b)
	if got := keyIDs(t, dir); len(got) != 2 || got[0] != first[0] {
		t.Errorf("keys %v after ten minutes, want a second one", got)
	}
	info, err := os.Stat(filepath.Join(dir, "spool.key"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, err %v, want 0600", info.Mode(), err)
	}
	second := keyIDs(t, dir)[1]
	if err := s.writer.do(t.Context(), rest, 1, func(*tx) error { s.writer.retireKeys(); return nil }); err != nil {
		t.Fatal(err)
	}
	if got := keyIDs(t, dir); len(got) != 2 {
		t.Errorf("keys %v, want both while rows need them", got)
	}
	if _, _, err := s.Drop(t.Context(), message.QueueFilter{}); err != nil {
		t.Fatal(err)
	}
	epoch, _ := s.Lease()
	for _, row := range must(s.List(t.Context(), message.QueueFilter{})) {
		m := &message.Message{ID: row.ID}
		if row.ID != b.ID {
			must(s.Settle(t.Context(), []message.Settlement{{Message: m, Epoch: epoch, Outcome: message.Delivered}}))
		}
	}
	eventually(t, "the first key is destroyed", func() bool { return slices.Equal(keyIDs(t, dir), []string{second}) })
	closeTest(t, s)
	s = openTest(t, Options{Dir: dir}, nil)
	if got := keyIDs(t, dir); len(got) != 2 || got[0] != second {
		t.Errorf("keys %v after a restart, want %s and a new one", got, second)
	}
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, b.Raw) {
		t.Error("a body sealed before the restart did not come back")
	}
}

func TestABodyWithoutItsKeyIsHeldNotDropped(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(path string) error{
		"file gone": os.Remove,
		"another key under its number": func(path string) error {
			f := strings.Fields(string(must(os.ReadFile(path))))
			f[2] = base64.StdEncoding.EncodeToString(make([]byte, keySize))
			return os.WriteFile(path, []byte(strings.Join(f, " ")), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openTest(t, Options{Dir: dir}, nil)
			m := newMessage(s, message.Auth, 0)
			mustPut(t, s, false, m)
			closeTest(t, s)
			if err := spoil(filepath.Join(dir, "spool.key")); err != nil {
				t.Fatal(err)
			}
			s = openTest(t, Options{Dir: dir}, nil)
			ds := claimAll(t, s, "auth")
			if len(ds) != 1 || ds[0].Held == "" || ds[0].Message.Raw != nil || len(ds[0].Message.Recipients) != 1 {
				t.Fatalf("claimed %+v, want it as held, without a body", ds)
			}
		})
	}
}
