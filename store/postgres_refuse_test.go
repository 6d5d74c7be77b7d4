package store

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// sqlAt runs statements as the owner of a database.
func sqlAt(t testing.TB, f testFleet, statements ...string) {
	t.Helper()
	s := f.node(t, "sql")
	for _, sql := range statements {
		if _, err := s.fleet.pool.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	closeTest(t, s)
}

func TestAServerThatWouldLoseMailIsRefused(t *testing.T) {
	t.Parallel()
	server := pgtest.New(t)
	f := newTestFleet(t, server)
	for _, tt := range []struct{ setting, value, want string }{
		{"fsync", "off", "fsync is off, so a power cut would lose mail that was accepted: set fsync = on"},
		{"full_page_writes", "off", "full_page_writes is off"},
		{"synchronous_commit", "off", `run ALTER ROLE "gatepost" SET synchronous_commit = on`},
		{"default_transaction_read_only", "on", "read only"},
	} {
		server.Admin(t, "ALTER SYSTEM SET "+tt.setting+" = "+tt.value)
		server.Admin(t, "SELECT pg_reload_conf()")
		var err error
		eventually(t, tt.setting+" is seen", func() bool {
			var s *Store
			if s, err = OpenPostgres(t.Context(), f.options(t, "a", nil)); err == nil {
				closeTest(t, s) // the server has not read it yet
			}
			return err != nil
		})
		if !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), server.Password) {
			t.Errorf("%s: %v, want an error with %q", tt.setting, err, tt.want)
		}
		server.Admin(t, "ALTER SYSTEM RESET "+tt.setting)
		server.Admin(t, "SELECT pg_reload_conf()")
	}
	eventually(t, "the server is taken", func() bool {
		s, err := OpenPostgres(t.Context(), f.options(t, "a", nil))
		if err == nil {
			closeTest(t, s)
		}
		return err == nil
	})
}

func TestWhatStillSyncsIsTaken(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"local", "remote_write", "remote_apply"} {
		f := newTestFleet(t, pgtest.Shared(t))
		f.dsn += "&synchronous_commit=" + level
		s := f.node(t, "a")
		var got string
		if err := s.writer.do(t.Context(), rest, 1, func(x *tx) error { return x.one("SHOW synchronous_commit", &got) }); err != nil || got != level {
			t.Errorf("synchronous_commit is %s, %v, want %s", got, err, level)
		}
		mustPut(t, s, true, newMessage(s, message.Auth, 0))
		closeTest(t, s)
	}
}

func TestWhatAnOperatorSetsForOthersChangesNothing(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	var alter []string
	want := map[string]string{"transaction_isolation": "read committed", "statement_timeout": "10s", "client_min_messages": "warning", "enable_seqscan": "off"}
	for setting, value := range map[string]string{"default_transaction_isolation": "serializable", "statement_timeout": "1", "client_min_messages": "error", "enable_seqscan": "on"} {
		alter = append(alter, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET "+setting+" = ''"+value+"''', current_database()); END $$")
	}
	sqlAt(t, f, alter...)
	s := f.node(t, "a")
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
	for setting, want := range want {
		var got string
		if err := s.writer.do(t.Context(), rest, 1, func(x *tx) error { return x.one("SHOW "+setting, &got) }); err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", setting, got, err, want)
		}
	}
}

func TestADatabaseThatIsNotOursOrNotForUsIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, s *pgtest.Server, f *testFleet)
		want  string
	}{
		"another program's": {func(t *testing.T, _ *pgtest.Server, f *testFleet) {
			sqlAt(t, *f, "CREATE SCHEMA theirs", "CREATE TABLE theirs.meta(version int)")
			f.dsn += "&search_path=theirs"
		}, "give gatepost a database or a schema of its own"},
		"no schema": {func(_ *testing.T, _ *pgtest.Server, f *testFleet) { f.dsn += "&search_path=nowhere" }, "run CREATE SCHEMA"},
		"a schema before that of the queue": {func(t *testing.T, _ *pgtest.Server, f *testFleet) {
			sqlAt(t, *f, "CREATE SCHEMA "+pgtest.Role)
		}, "the queue is in schema public, and the search_path puts gatepost before it: add search_path=public to the DSN"},
		"more names than numbers": {func(t *testing.T, _ *pgtest.Server, f *testFleet) {
			sqlAt(t, *f, "INSERT INTO node(id, name, epoch, lease_until) SELECT n, 'n' || n, 1, "+serverNow+" FROM generate_series(2, 1023) n")
		}, "all 1023 node numbers are taken, by nodes that have run within a week"},
		"a newer schema that needs a newer release": {func(t *testing.T, _ *pgtest.Server, f *testFleet) {
			sqlAt(t, *f, "UPDATE meta SET value = '99' WHERE key IN ('schema', 'schema_min')")
		}, "needs a gatepost that knows 99"},
		"other keys": {func(t *testing.T, _ *pgtest.Server, f *testFleet) {
			sqlAt(t, *f)
			f.keys = filepath.Join(t.TempDir(), "other.key")
			must(0, NewKeyFile(f.keys))
		}, "copy the key file from a node that runs"},
		"a wrong password": {func(_ *testing.T, s *pgtest.Server, f *testFleet) {
			f.dsn = strings.Replace(f.dsn, s.Password, "wrong-"+s.Password, 1)
		}, "password authentication failed"},
		"no such database": {func(_ *testing.T, s *pgtest.Server, f *testFleet) { f.dsn = s.DSN(pgtest.Role, "nothing") }, "does not exist"},
		"nobody there": {func(_ *testing.T, s *pgtest.Server, f *testFleet) {
			f.dsn = "postgres://u:" + s.Password + "@127.0.0.1:1/d"
		}, "127.0.0.1"},
		"not a DSN":          {func(_ *testing.T, s *pgtest.Server, f *testFleet) { f.dsn = "postgres://u:" + s.Password + "@h:port/d" }, "read the DSN"},
		"rights are missing": {func(t *testing.T, s *pgtest.Server, f *testFleet) { f.dsn = s.DSN(pgtest.Role, "postgres") }, "GRANT USAGE, CREATE ON SCHEMA"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := pgtest.Shared(t)
			f := newTestFleet(t, server)
			tt.spoil(t, server, &f)
			_, err := OpenPostgres(t.Context(), f.options(t, "a", nil))
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), server.Password) {
				t.Errorf("open: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestTwoReleasesRunSideBySide(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	sqlAt(t, f, "UPDATE meta SET value = '99' WHERE key = 'schema'", "ALTER TABLE message ADD COLUMN of_the_next text", "ALTER TABLE recipient ADD COLUMN of_the_next integer NOT NULL DEFAULT 7")
	s := f.node(t, "a")
	m := newMessage(s, message.Auth, 0)
	mustPut(t, s, false, m)
	if ds := claimAll(t, s, "auth"); len(ds) != 1 {
		t.Errorf("claimed %d", len(ds))
	}
	var version string
	if err := s.fleet.pool.QueryRow(t.Context(), "SELECT value FROM meta WHERE key = 'schema'").Scan(&version); err != nil || version != "99" {
		t.Errorf("the schema says %s, %v", version, err)
	}
}

func TestNodesThatStartAtOnceMakeOneSchema(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	opened := make(chan error)
	for i := range 6 {
		o := f.options(t, fmt.Sprint("node", i), nil)
		go func() {
			s, err := OpenPostgres(t.Context(), o)
			if err == nil {
				err = s.Close(t.Context())
			}
			opened <- err
		}()
	}
	for range 6 {
		if err := <-opened; err != nil {
			t.Error(err)
		}
	}
}

func TestAKeySealsFromItsTimeOnAndNodesLearnOfItBefore(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	s := f.node(t, "a")
	sealed := func() (key int64) {
		t.Helper()
		m := newMessage(s, message.Auth, 0)
		mustPut(t, s, false, m)
		if err := s.read(t.Context(), func(r scanner) (bool, error) { return false, r.Scan(&key) }, "SELECT key_id FROM body WHERE id = ?", int64(m.ID)); err != nil {
			t.Fatal(err)
		}
		return key
	}
	first := sealed()
	next := must(RotateKeyFile(f.keys, time.Now().Add(3*time.Second)))
	time.Sleep(rereadEvery)
	if key := sealed(); key != first {
		t.Errorf("sealed with %d before its time, want %d", key, first)
	}
	eventually(t, "the next key seals", func() bool { return sealed() == next })
	if dropped := must(DropKeys(f.keys, must(NeededKeys(t.Context(), f.dsn)))); len(dropped) != 0 {
		t.Errorf("keys %v were dropped though rows need them", dropped)
	}
	ds := claimAll(t, s, "auth")
	for _, d := range ds {
		if d.Held != "" {
			t.Error("a body could not be opened")
		}
		if must(s.Settle(t.Context(), delivered(d.Message, d.Epoch))) != nil {
			t.Error("lost")
		}
	}
	if dropped := must(DropKeys(f.keys, must(NeededKeys(t.Context(), f.dsn)))); len(dropped) != 1 || dropped[0] != first {
		t.Errorf("dropped %v, want %d", dropped, first)
	}
	if key := sealed(); key != next {
		t.Errorf("sealed with %d, want %d", key, next)
	}
}

func TestABodyWhoseKeyIsNotInTheFileIsHeldUntilItIs(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	s := f.node(t, "a")
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
	text := must(os.ReadFile(f.keys))
	other := filepath.Join(t.TempDir(), "other.key")
	must(0, NewKeyFile(other))
	lines := strings.SplitAfter(string(text), "\n")
	stranger := strings.SplitAfter(string(must(os.ReadFile(other))), "\n")
	must(0, os.WriteFile(f.keys, []byte(lines[0]+stranger[1]), 0o600))
	b := f.node(t, "b")
	ds := claimAll(t, b, "auth")
	if len(ds) != 1 || ds[0].Held == "" || ds[0].Message.Raw != nil {
		t.Fatalf("claimed %+v, want it as held", ds)
	}
	must(0, b.Release(t.Context(), idsOfDelivery(ds[0])))
	must(0, os.WriteFile(f.keys, text, 0o600))
	time.Sleep(rereadEvery)
	if ds := claimAll(t, b, "auth"); len(ds) != 1 || ds[0].Held != "" {
		t.Errorf("claimed %+v, want it whole", ds)
	}
}

func idsOfDelivery(d *message.Delivery) (ids []message.RecipientID) {
	for _, r := range d.Message.Recipients {
		ids = append(ids, message.RecipientID{Message: d.Message.ID, N: r.N})
	}
	return ids
}

func TestKeyFilesOfAFleetThatAreUnsafeOrBrokenAreRefused(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString(make([]byte, keySize))
	good := "history 1 " + key + "\n1 1 " + key + "\n"
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"readable by others":    {good, 0o640, "run chmod 600"},
		"no history":            {"1 1 " + key + "\n", 0o600, "lacks its line history"},
		"history alone":         {"history 1 " + key + "\n", 0o600, "lacks its line history, or has no other"},
		"history twice":         {good + "history 2 " + key + "\n", 0o600, ":3: not a key"},
		"a key twice":           {good + "1 2 " + key + "\n", 0o600, ":3: not a key"},
		"a short key":           {good + "2 2 AAAA\n", 0o600, ":3: not a key"},
		"a short history":       {"history 2 AAAA\n1 1 " + key + "\n", 0o600, ":1: not a key"},
		"an empty file":         {"", 0o600, "lacks its line history"},
		"not a key":             {"hello\n", 0o600, ":1: not a key"},
		"a name of a key alone": {good + "2\n", 0o600, ":3: not a key"},
	} {
		path := filepath.Join(t.TempDir(), "store.key")
		must(0, os.WriteFile(path, []byte(tt.text), 0o600))
		must(0, os.Chmod(path, tt.mode))
		for what, err := range map[string]error{
			"open":   func() error { _, _, err := openSharedKeys(path, time.Now); return err }(),
			"rotate": func() error { _, err := RotateKeyFile(path, time.Now()); return err }(),
			"new":    NewKeyFile(path),
		} {
			want := tt.want
			if what == "new" {
				want = "it is there already"
			}
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), key) {
				t.Errorf("%s: %s: %v, want an error with %q", name, what, err, want)
			}
		}
		if got := must(os.ReadFile(path)); string(got) != tt.text {
			t.Errorf("%s: the file was changed to %q", name, got)
		}
	}
	if _, _, err := openSharedKeys(filepath.Join(t.TempDir(), "none"), time.Now); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("no file: %v", err)
	}
}

func TestAKeyFileThatBreaksWhileInUseChangesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.key")
	must(0, NewKeyFile(path))
	k, _, err := openSharedKeys(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	before, sealed, err := k.seal(time.Now(), 7, []byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	must(0, os.WriteFile(path, []byte("half a"), 0o600))
	time.Sleep(rereadEvery)
	if after, _, err := k.seal(time.Now(), 7, []byte("body")); after != before || err != nil {
		t.Errorf("sealed with %d, %v, want %d", after, err, before)
	}
	if body, err := k.open(before, 7, sealed); string(body) != "body" || err != nil {
		t.Errorf("opened %q, %v", body, err)
	}
}
