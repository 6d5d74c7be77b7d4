package test

import (
	"database/sql"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// client runs a program of PostgreSQL's on the database at dsn.
func (f *fleet) client(program, dsn string, args ...string) string {
	f.t.Helper()
	needs(f.t, program, "postgresql-client")
	out, err := exec.CommandContext(f.t.Context(), program, append([]string{"-d", dsn}, args...)...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

// documented returns the statement that a page tells to run on a restored backup, behind the command that runs it.
func documented(t *testing.T, page, command string) string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(regexp.QuoteMeta(command) + ` '(UPDATE .*)'`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s does not tell what to do with a restored backup", page)
	}
	return string(m[1])
}

func TestWhatARestoredFileBringsWaitsForItsOperator(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.bulk.stop()
	s.start()
	id := bulkStream.mustPost(t, s.listen, "restored", "123456")
	s.daemon.stop()
	db, err := sql.Open("sqlite", s.path("state/spool.db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.ExecContext(t.Context(), documented(t, "../docs/operating.md", "sqlite3 spool.db"))
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s.bulk.start()
	s.start()
	bulkStream.mustPost(t, s.listen, "new", "123456")
	s.bulk.wait(1, 10*time.Second)
	if held := s.queue("--state", "held"); len(held) != 1 {
		t.Errorf("%d recipients are held, want the one of the backup", len(held))
	}
	s.run("queue", "release", id)
	s.bulk.wait(2, 15*time.Second)
	s.wantOneCopyEach(t)
}

func TestWhatARestoredBackupBringsWaitsForItsOperator(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	s := f.nodes[0]
	s.bulk.stop()
	sent := bulkStream.mustPost(t, s.listen, "sent", "123456")
	unsent := bulkStream.mustPost(t, s.listen, "unsent", "123456")
	backup := s.path("backup.sql")
	f.client("pg_dump", f.dsn, "-f", backup)
	s.run("queue", "drop", unsent) // after the backup, so that it alone has it
	s.bulk.start()
	s.bulk.wait(1, 15*time.Second)
	s.waitEmpty(10 * time.Second)
	s.daemon.stop()

	restored := f.db.Database(t)
	f.client("psql", restored, "-q", "-v", "ON_ERROR_STOP=1", "-f", backup)
	f.client("psql", restored, "-c", documented(t, "../docs/postgres.md", "psql -d gatepost -c"))
	s.write("store.dsn", restored+"\n")
	s.start()
	authStream.mustPost(t, s.listen, "new", "123456")
	s.auth.wait(1, 10*time.Second)
	if held := s.queue("--state", "held"); len(held) != 2 {
		t.Errorf("%d recipients are held, want both of the backup", len(held))
	}
	s.run("queue", "drop", sent)
	s.run("queue", "release", unsent)
	s.bulk.wait(2, 15*time.Second)
	s.waitEmpty(10 * time.Second)
	s.wantOneCopyEach(t)
	if strings.Contains(s.daemon.log.String(), f.db.Password) {
		t.Error("the log holds the password of the database")
	}
}
