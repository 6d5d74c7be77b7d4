package store

import (
	"bytes"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gatepost/message"
)

// sqlOn runs a statement on a closed store's database, as another program would.
func sqlOn(path string, statements ...string) error {
	db, err := sql.Open("sqlite", path)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			return err
		}
	}
	return nil
}

// patch overwrites a part of a file.
func patch(path string, at int64, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, at)
	return err
}

func TestADatabaseThatIsNotOursOrNotWellIsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		spoil func(path string) error
		want  string
	}{
		"empty":                  {func(p string) error { return os.Truncate(p, 0) }, "damaged"},
		"text":                   {func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("hello "), 1000), 0o600) }, "damaged"},
		"cut short":              {func(p string) error { return os.Truncate(p, 3*4096) }, "damaged"},
		"a root page is bad":     {func(p string) error { return patch(p, 4096*3, bytes.Repeat([]byte{0xff}, 4096*2)) }, "damaged"},
		"the schema is bad":      {func(p string) error { return patch(p, 100, bytes.Repeat([]byte{0xff}, 2000)) }, "damaged"},
		"another program's":      {func(p string) error { return sqlOn(p, "PRAGMA application_id = 7") }, "another program's"},
		"a table is missing":     {func(p string) error { return sqlOn(p, "DROP TABLE event") }, "damaged"},
		"no version":             {func(p string) error { return sqlOn(p, "DELETE FROM meta WHERE key = 'schema'") }, "no schema version"},
		"a newer schema":         {func(p string) error { return sqlOn(p, "UPDATE meta SET value = '99' WHERE key = 'schema'") }, "newer gatepost (schema 99"},
		"a newer one in its log": {func(p string) error { return newerInLog(p) }, "newer gatepost (schema 99"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openTest(t, Options{Dir: dir}, nil)
			mustPut(t, s, false, newMessage(s, message.Auth, 0))
			closeTest(t, s)
			path := filepath.Join(dir, databaseFile)
			if err := tt.spoil(path); err != nil {
				t.Fatal(err)
			}
			before := sums(t, dir)
			_, err := Open(t.Context(), Options{Dir: dir})
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "left as it") {
				t.Errorf("open: %v, want an error with %q that says what was done", err, tt.want)
			}
			if after := sums(t, dir); after != before {
				t.Errorf("files changed:\n%s\nwere\n%s", after, before)
			}
		})
	}
}

// newerInLog leaves a newer schema version in the log only, as a killed newer version would.
func newerInLog(path string) error {
	db, err := sql.Open("sqlite", path+"?_pragma=wal_autocheckpoint(0)")
	if err != nil {
		return err
	}
	if _, err := db.Exec("UPDATE meta SET value = '99' WHERE key = 'schema'"); err != nil {
		return err
	}
	for _, f := range []string{path, path + "-wal"} {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f+".kept", b, 0o600); err != nil {
			return err
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	os.Rename(path+".kept", path)
	return os.Rename(path+"-wal.kept", path+"-wal")
}

// sums returns a digest of the database and its log.
func sums(t *testing.T, dir string) string {
	t.Helper()
	var lines []string
	for _, name := range []string{databaseFile, databaseFile + "-wal"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err == nil && len(b) > 0 {
			lines = append(lines, fmt.Sprintf("%s %d %x", name, len(b), sha256.Sum256(b)))
		}
	}
	return strings.Join(lines, "\n")
}

func TestALogWithoutItsDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	closeTest(t, s)
	path := filepath.Join(dir, databaseFile)
	if err := os.Rename(path, path+"-wal"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "is missing, but its log") {
		t.Errorf("open: %v", err)
	}
}

func TestAHalfMadeDatabaseIsMadeAnew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, databaseFile+".new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := openTest(t, Options{Dir: dir}, nil)
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
}

func TestOnlyOneProcessMayOpenAStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "for it")
	s := openTest(t, Options{Dir: dir}, nil)
	if _, err := Open(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another gatepost runs on this state_dir") {
		t.Errorf("a second open: %v", err)
	}
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
	closeTest(t, s)
	openTest(t, Options{Dir: dir}, nil)
}

func TestADatabaseThatAnotherProgramLocksIsNamedAsSuch(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	closeTest(t, openTest(t, Options{Dir: dir}, nil))
	db, err := sql.Open("sqlite", filepath.Join(dir, databaseFile))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "such as an sqlite3 shell") {
		t.Errorf("open: %v", err)
	}
}

func TestKeyFilesThatAreUnsafeOrBrokenAreRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"spool.key", "history.key"} {
		dir := t.TempDir()
		closeTest(t, openTest(t, Options{Dir: dir}, nil))
		path := filepath.Join(dir, name)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "run chmod 600") {
			t.Errorf("%s readable by others: %v", name, err)
		}
		text := []byte("17 not-a-key\n")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s broken: %v", name, err)
		}
		if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, text) {
			t.Errorf("%s was changed to %q, err %v", name, b, err)
		}
	}
}

func TestCommitsAreDurableByTheDatabasesOwnWord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "auto_vacuum": "2", "page_size": "4096",
		"application_id": fmt.Sprint(applicationID), "wal_autocheckpoint": fmt.Sprint(checkpointLate * copyAt(dir))} {
		var got string
		if err := s.writer.do(t.Context(), rest, 1, func(t *tx) error { return t.one("PRAGMA "+pragma, &got) }); err != nil || got != want {
			t.Errorf("%s is %q, err %v, want %q", pragma, got, err, want)
		}
	}
}

func TestTheDatabaseIsItsOwnersAlone(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	dir := t.TempDir()
	s := must(Open(t.Context(), Options{Dir: dir}))
	defer s.Close(t.Context())
	for _, f := range must(os.ReadDir(dir)) {
		if mode := must(f.Info()).Mode().Perm(); mode&0o077 != 0 {
			t.Errorf("%s has mode %o", f.Name(), mode)
		}
	}
}
