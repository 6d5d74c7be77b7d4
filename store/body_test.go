package store

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// templated gives m a template at an upstream.
func templated(m *message.Message) *message.Message {
	m.Provided = map[string]message.Provided{"postmark": {Template: "sign-in", Variables: json.RawMessage(`{"coupon":"hunter2-hunter2"}`)}}
	return m
}

func TestVariablesAreSealedInMailOfEveryKind(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	mustPut(t, s, false, templated(newMessage(s, message.Marketing, 100)), templated(newMessage(s, message.Auth, 100)), newMessage(s, message.Marketing, 100))
	seen := map[int]int{}
	err := s.read(t.Context(), func(r scanner) (bool, error) {
		var b storedBody
		err := r.Scan(&b.format, &b.keyID, &b.data)
		seen[b.format]++
		if b.format == bodyProvided && (b.keyID == 0 || bytes.Contains(b.data, []byte("coupon"))) {
			t.Errorf("a body is %.100q under key %d, want it sealed", b.data, b.keyID)
		}
		return true, err
	}, "SELECT format, key_id, data FROM body")
	if err != nil || seen[bodyRaw] != 1 || seen[bodyProvided] != 2 {
		t.Errorf("bodies by format: %v, err %v", seen, err)
	}
	closeTest(t, s)
	files, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, f := range files {
		if data, err := os.ReadFile(f); err != nil || bytes.Contains(data, []byte("hunter2")) {
			t.Errorf("%s has the variables in it, err %v", f, err)
		}
	}
	if len(files) == 0 {
		t.Error("there is no file")
	}
}

// wantHeldUnread checks that each body of lane that no release of today could have written is held, and says why.
func wantHeldUnread(t *testing.T, s *Store) {
	t.Helper()
	for change, want := range map[string]string{
		"UPDATE body SET format = 3":                           "format 3, which this release does not know; held",
		"UPDATE body SET format = 2, key_id = 0, data = '{no'": "is not what was written; held",
		"UPDATE body SET key_id = 1":                           "spool.key",
		"DELETE FROM body":                                     "is not in the database; held",
	} {
		m := templated(newMessage(s, message.Auth, 100))
		mustPut(t, s, false, m)
		if err := s.writer.do(t.Context(), rest, 1, func(t *tx) error { _, err := t.exec(change); return err }); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
		ds := claimAll(t, s, "auth")
		if len(ds) != 1 || !strings.Contains(ds[0].Held, want) || ds[0].Message.Raw != nil || ds[0].Message.Provided != nil {
			t.Fatalf("%s: claimed %.300v, want it held since it %q", change, ds, want)
		}
		if _, err := s.Settle(t.Context(), delivered(m, ds[0].Epoch)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestABodyThatThisReleaseCannotReadIsHeldAndNeverSent(t *testing.T) {
	t.Parallel()
	wantHeldUnread(t, openTest(t, Options{Dir: t.TempDir()}, nil))
}

func TestABodyThatThisReleaseCannotReadIsHeldOnPostgreSQLToo(t *testing.T) {
	t.Parallel()
	wantHeldUnread(t, newTestFleet(t, pgtest.Shared(t)).node(t, "a"))
}
