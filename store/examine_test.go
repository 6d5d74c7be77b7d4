package store

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/store/storetest/pgtest"
)

// examined returns what Examine finds of a database, with a key file that is good.
func examined(t *testing.T, dsn string) Examination {
	t.Helper()
	path, _ := newKeyFile(t)
	e := Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: path, Node: "test"})
	for _, f := range e.Faults {
		if f.Text == "" || f.Hint == "" || strings.Contains(f.Text+f.Hint, "\n") {
			t.Errorf("a fault without a text or without what to do, or with line breaks: %+v", f)
		}
	}
	return e
}

// wantFault checks that there is one fault, by what its text and hint hold.
func wantFault(t *testing.T, e Examination, text, hint string) {
	t.Helper()
	if len(e.Faults) != 1 || !strings.Contains(e.Faults[0].Text, text) || !strings.Contains(e.Faults[0].Hint, hint) {
		t.Errorf("found %+v, want %q with the hint %q", e.Faults, text, hint)
	}
}

// inDatabase runs a statement as the superuser in the database of dsn.
func inDatabase(t *testing.T, s *pgtest.Server, dsn, sql string) {
	t.Helper()
	c := must(pgx.ParseConfig(dsn))
	conn := must(pgx.Connect(t.Context(), s.DSN("postgres", c.Database)))
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func TestWhatIsWrongWithADatabaseIsToldWithWhatToDo(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	good := s.Database(t)
	if e := examined(t, good); len(e.Faults) > 0 || !strings.HasPrefix(e.About, "PostgreSQL ") || !strings.Contains(e.About, fmt.Sprintf("127.0.0.1:%d", s.Port)) {
		t.Errorf("a good database is told as %+v", e)
	}
	silent := must(net.Listen("tcp", "127.0.0.1:0")) // takes connections and says nothing
	defer silent.Close()
	closed := must(net.Listen("tcp", "127.0.0.1:0"))
	closed.Close()
	for name, tt := range map[string]struct{ dsn, text, hint string }{
		"a wrong password":         {strings.Replace(good, s.Password, "hunter2", 1), "28P01", "ALTER ROLE gatepost PASSWORD"},
		"an unknown user":          {s.DSN("nobody", "postgres"), "28P01", "CREATE ROLE gatepost LOGIN"},
		"an unknown database":      {s.DSN(pgtest.Role, "nowhere"), "3D000", "CREATE DATABASE gatepost OWNER gatepost"},
		"nobody listens":           {"postgres://gatepost:hunter2@" + closed.Addr().String() + "/gatepost", "connection refused", "listen_addresses"},
		"nobody answers":           {"postgres://gatepost:hunter2@" + silent.Addr().String() + "/gatepost?connect_timeout=1", "", "no answer"},
		"a host that is not there": {"postgres://gatepost:hunter2@db.invalid/gatepost", "db.invalid", "DNS"},
		"TLS that is not offered":  {strings.Replace(good, "sslmode=disable", "sslmode=require", 1), "refused TLS", "sslmode"},
		"no DSN":                   {"gatepost hunter2", "cannot be understood", "postgres://USER"},
		"an @ in the password":     {"postgres://gatepost:hun@ter2:x@/@db/gatepost", "", ""},
		"key=value without =":      {"host=db password=hunter2 nonsense", "cannot be understood", "dbname=DATABASE"},
	} {
		t.Run(name, func(t *testing.T) {
			e := examined(t, tt.dsn)
			wantFault(t, e, tt.text, tt.hint)
			for _, f := range e.Faults {
				for _, secret := range []string{"hunter2", "ter2", s.Password} {
					if strings.Contains(f.Text+f.Hint, secret) {
						t.Errorf("the password is told: %+v", f)
					}
				}
			}
		})
	}
}

func TestRightsThatAreMissingAreTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	t.Run("no tables can be made", func(t *testing.T) {
		dsn := s.Database(t)
		inDatabase(t, s, dsn, "DROP SCHEMA public; CREATE SCHEMA public AUTHORIZATION postgres; GRANT USAGE ON SCHEMA public TO gatepost")
		wantFault(t, examined(t, dsn), "may not make tables in schema public", `GRANT CREATE, USAGE ON SCHEMA "public" TO "gatepost"`)
	})
	t.Run("no schema", func(t *testing.T) {
		dsn := s.Database(t)
		inDatabase(t, s, dsn, "DROP SCHEMA public")
		wantFault(t, examined(t, dsn), "no schema of the search_path", `CREATE SCHEMA gatepost AUTHORIZATION "gatepost"`)
	})
	t.Run("tables of somebody else", func(t *testing.T) {
		dsn := s.Database(t)
		inDatabase(t, s, dsn, "CREATE TABLE recipient(); CREATE TABLE event(); GRANT ALL ON event TO gatepost")
		wantFault(t, examined(t, dsn), "gatepost may not read and write recipient", "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES")
	})
	t.Run("no connection to the database", func(t *testing.T) {
		dsn := s.Database(t)
		inDatabase(t, s, dsn, "ALTER DATABASE "+must(pgx.ParseConfig(dsn)).Database+" OWNER TO postgres; REVOKE ALL ON DATABASE "+must(pgx.ParseConfig(dsn)).Database+" FROM public")
		wantFault(t, examined(t, dsn), "42501", "ALTER DATABASE gatepost OWNER TO gatepost")
	})
}

func TestAServerThatCouldLoseOrRefuseMailIsTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t, "fsync=off", "full_page_writes=off", "synchronous_commit=off")
	e := examined(t, s.Database(t))
	if len(e.Faults) != 3 {
		t.Fatalf("found %+v, want one fault each", e.Faults)
	}
	for i, name := range []string{"fsync", "full_page_writes", "synchronous_commit"} {
		if !strings.HasPrefix(e.Faults[i].Text, name+" is off") || e.Faults[i].Bearable {
			t.Errorf("found %+v, want %s", e.Faults[i], name)
		}
	}
}

func TestAServerThatCannotBeWrittenToIsTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	dsn := s.Database(t)
	inDatabase(t, s, dsn, "ALTER ROLE gatepost SET default_transaction_read_only = on")
	wantFault(t, examined(t, dsn), "transactions are read-only for gatepost", "default_transaction_read_only = off")
	inDatabase(t, s, dsn, "ALTER ROLE gatepost RESET default_transaction_read_only")

	var dir string
	conn := must(pgx.Connect(t.Context(), s.DSN("postgres", "postgres")))
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&dir); err != nil {
		t.Fatal(err)
	}
	conn.Close(t.Context())
	standby := filepath.Join(dir, "standby.signal")
	if err := os.WriteFile(standby, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s.Restart(t, pgtest.Fast)
	wantFault(t, examined(t, dsn), "the server is a standby", "host=a,b")
	if err := os.Remove(standby); err != nil {
		t.Fatal(err)
	}
	s.Restart(t, pgtest.Fast)
}

func TestAnEncodingThatCannotHoldEveryAddressIsTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	s.Admin(t, "CREATE DATABASE latin OWNER gatepost ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
	wantFault(t, examined(t, s.DSN(pgtest.Role, "latin")), "the encoding of the database is SQL_ASCII", "ENCODING 'UTF8'")
}

func TestAnOldServerIsTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	e := &examiner{conn: must(pgx.Connect(t.Context(), s.Database(t))), oldest: 990000}
	defer e.conn.Close(context.WithoutCancel(t.Context()))
	if err := e.server(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantFault(t, e.Examination, "is too old", "99 is the oldest that works")
}

func TestKeysThatAreMissingAreTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	dsn := s.Database(t)
	e := Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: filepath.Join(t.TempDir(), "none")})
	wantFault(t, e, "the keys cannot be used", "gatepost store init-key")

	path, key := newKeyFile(t)
	open := must(OpenPostgres(t.Context(), PostgresOptions{Options: Options{Dir: t.TempDir()}, DSN: dsn, KeyFile: path, Node: "a"}))
	closeTest(t, open)
	if e := Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: path}); len(e.Faults) > 0 {
		t.Errorf("with the fleet's keys is told %+v", e.Faults)
	}
	inDatabase(t, s, dsn, fmt.Sprintf("INSERT INTO body SELECT i, 1, CASE WHEN i < 4 THEN %d WHEN i < 6 THEN 77 ELSE 0 END, '', 0 FROM generate_series(1, 9) i", key.ID))
	e = Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: path})
	wantFault(t, e, "mail in the queue (2) is sealed with keys that are not in key_file", "copy the file from a node that has them")
	other, _ := newKeyFile(t)
	wantFault(t, Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: other}), "key_file belongs to another fleet", "copy the file from a node that runs")
	inDatabase(t, s, dsn, "DELETE FROM meta WHERE key = 'history_check'") // as the hint says
	closeTest(t, must(OpenPostgres(t.Context(), PostgresOptions{Options: Options{Dir: t.TempDir()}, DSN: dsn, KeyFile: other, Node: "a"})))
	if needed := must(NeededKeys(t.Context(), dsn)); len(needed) != 2 || needed[key.ID] != 3 || needed[77] != 2 {
		t.Errorf("needed are %v", needed)
	}
}

func TestASchemaThatIsTooNewOrForeignIsTold(t *testing.T) {
	t.Parallel()
	s := pgtest.New(t)
	dsn := s.Database(t)
	path, _ := newKeyFile(t)
	closeTest(t, must(OpenPostgres(t.Context(), PostgresOptions{Options: Options{Dir: t.TempDir()}, DSN: dsn, KeyFile: path, Node: "a"})))
	inDatabase(t, s, dsn, "UPDATE meta SET value = '99' WHERE key IN ('schema', 'schema_min')")
	wantFault(t, Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: path}), "run that version or a newer one", "gatepost version")
	inDatabase(t, s, dsn, "DROP TABLE meta; CREATE TABLE meta AS SELECT 'a' AS key, 'b' AS value; ALTER TABLE meta OWNER TO gatepost")
	wantFault(t, Examine(t.Context(), PostgresOptions{DSN: dsn, KeyFile: path}), "is not gatepost's", "gatepost version")
}

func TestClocksThatAreApartAreTold(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{3 * time.Second, -time.Hour} {
		e := &examiner{}
		e.apart(off)
		if len(e.Faults) != 1 || !e.Faults[0].Bearable || !strings.Contains(e.Faults[0].Hint, "timedatectl") {
			t.Errorf("%v apart is told as %+v", off, e.Faults)
		}
	}
	e := &examiner{}
	e.apart(time.Second)
	e.apart(-time.Second)
	if len(e.Faults) > 0 {
		t.Errorf("a second apart is told as %+v", e.Faults)
	}
}
