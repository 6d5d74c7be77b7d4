package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	databaseFile  = "spool.db"
	applicationID = 0x67617465 // "gate": tells our file from any other SQLite database
	readerCount   = 3
)

//go:embed migrations/sqlite/*.sql migrations/postgres/*.sql
var migrations embed.FS

// tables are those a database of any version must have; each is touched once at start, so that a damaged root page shows then.
var tables = []string{"meta", "node", "message", "body", "recipient", "submission", "event", "cursor", "suppression"}

// liteDB is an open database in a file: one pinned connection that writes, with its prepared statements, a
// few that read, and the copier's.
type liteDB struct {
	writers *sql.DB
	conn    *sql.Conn

	signatures bool // some may be kept

	stmts   map[string]*sql.Stmt
	readers *sql.DB
	copier  *copier
}

// openDatabase opens the database in dir, makes it if there is none, and brings it to our schema. A file that is
// damaged, foreign or of a newer schema is refused without being touched.
func openDatabase(dir string) (*liteDB, error) {
	path := filepath.Join(dir, databaseFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if err := createDatabase(path); err != nil {
			return nil, err
		}
	}
	version, err := inspect(path)
	if err != nil {
		return nil, err
	}
	d := &liteDB{stmts: map[string]*sql.Stmt{}}
	if err := d.connect(path, version); err != nil {
		d.close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

func dsn(path, query string) string {
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: query}).String()
}

// createDatabase makes the file under another name first, so that under its own it is either whole or not there.
func createDatabase(path string) error {
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		return fmt.Errorf("%s is missing, but its log %s-wal is there and may hold mail: put the database back, or move the log away to start with an empty queue", path, path)
	}
	tmp := path + ".new"
	for _, suffix := range []string{"", "-journal", "-wal", "-shm"} {
		os.Remove(tmp + suffix)
	}
	if err := fillDatabase(tmp); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// fillDatabase makes the file for its owner only; SQLite gives its log the same mode.
func fillDatabase(path string) (err error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=rwc"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	ctx := context.Background()
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, p := range []string{"page_size = " + strconv.Itoa(pageSize), "auto_vacuum = INCREMENTAL", "synchronous = FULL", "application_id = " + strconv.Itoa(applicationID)} {
		if _, err := conn.ExecContext(ctx, "PRAGMA "+p); err != nil {
			return err
		}
	}
	return migrate(ctx, conn, 0)
}

// inspect returns the schema version of the file at path. It opens it for reading only.
func inspect(path string) (version int, err error) {
	damaged := func(why any) error {
		return fmt.Errorf("%s is damaged or not gatepost's (%v) and was left as it is: restore it from a backup, or move it away, together with its -wal file, to start with an empty queue", path, why)
	}
	if why := checkHeader(path); why != nil {
		return 0, damaged(why)
	}
	db, err := sql.Open("sqlite", dsn(path, "mode=ro&_pragma=busy_timeout(5000)"))
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
	}
	defer db.Close()
	if err := touch(db, tables); err != nil {
		return 0, damaged(err)
	}
	if err := db.QueryRow("SELECT value FROM meta WHERE key = 'schema'").Scan(&version); err != nil {
		return 0, damaged(fmt.Errorf("no schema version: %w", err))
	}
	if known := len(migrationNames()); version > known {
		return 0, fmt.Errorf("%s was written by a newer gatepost (schema %d, this one knows up to %d) and was left as it is: run that version or a newer one", path, version, known)
	}
	for since, table := range map[int]string{2: "body_part", 4: "signature"} {
		if version < since {
			continue
		}
		if err := touch(db, []string{table}); err != nil {
			return 0, damaged(err)
		}
	}
	return version, nil
}

// touch reads a row of each table.
func touch(db *sql.DB, tables []string) error {
	for _, table := range tables {
		var one int
		if err := db.QueryRow("SELECT 1 FROM " + table + " LIMIT 1").Scan(&one); err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
	}
	return nil
}

// checkHeader reads what the SQLite file format fixes about the first page, before SQLite is let near the file.
func checkHeader(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var h [100]byte
	if _, err := io.ReadFull(f, h[:]); err != nil {
		return errors.New("it is shorter than a database header")
	}
	if string(h[:16]) != "SQLite format 3\x00" {
		return errors.New("it is not an SQLite database")
	}
	if binary.BigEndian.Uint32(h[68:]) != applicationID {
		return errors.New("it is another program's SQLite database")
	}
	return nil
}

func migrationNames() []string {
	names, err := fs.Glob(migrations, "migrations/sqlite/*.sql") // sorted, since embed.FS reads directories in order
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return names
}

// migrate applies the migrations above version in one transaction.
func migrate(ctx context.Context, conn *sql.Conn, version int) (err error) {
	names := migrationNames()
	if version == len(names) {
		return nil
	}
	tx, err := conn.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, name := range names[version:] {
		text, err := migrations.ReadFile(name)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO meta(key, value) VALUES('schema', ?1) ON CONFLICT(key) DO UPDATE SET value = ?1", strconv.Itoa(len(names))); err != nil {
		return err
	}
	return tx.Commit()
}

// connect opens the connections and makes sure that a commit is durable.
func (d *liteDB) connect(path string, version int) (err error) {
	ctx := context.Background()
	copyAt := copyAt(filepath.Dir(path))
	late := strconv.Itoa(copyAt * checkpointLate)
	if d.writers, err = sql.Open("sqlite", dsn(path, "mode=rw&_dqs=0")); err != nil {
		return err
	}
	if d.conn, err = d.writers.Conn(ctx); err != nil {
		return err
	}
	for _, p := range []struct{ name, set, want string }{
		{"busy_timeout", "5000", "5000"},
		{"journal_mode", "WAL", "wal"},
		{"synchronous", "FULL", "2"}, // less would answer 250 before the log is on disk
		{"cache_size", "-8192", "-8192"},
		{"mmap_size", "0", "0"},
		{"journal_size_limit", "16777216", "16777216"},
		{"wal_autocheckpoint", late, late},
	} {
		var got string
		if _, err := d.conn.ExecContext(ctx, "PRAGMA "+p.name+" = "+p.set); err != nil {
			return fmt.Errorf("set %s: %w", p.name, err)
		}
		if err := d.conn.QueryRowContext(ctx, "PRAGMA "+p.name).Scan(&got); err != nil || got != p.want {
			return fmt.Errorf("%s is %q after it was set to %q (%v): state_dir must be on a local file system", p.name, got, p.want, err)
		}
	}
	if err := migrate(ctx, d.conn, version); err != nil {
		return fmt.Errorf("bring the schema from %d to %d: %w", version, len(migrationNames()), err)
	}
	if err := d.conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM signature)").Scan(&d.signatures); err != nil {
		return err
	}
	if d.readers, err = sql.Open("sqlite", dsn(path, "mode=ro&_dqs=0&_pragma=busy_timeout(5000)&_pragma=mmap_size(0)&_pragma=query_only(1)")); err != nil {
		return err
	}
	d.readers.SetMaxOpenConns(readerCount)
	d.readers.SetMaxIdleConns(readerCount)
	if err := d.readers.Ping(); err != nil {
		return err
	}
	d.copier, err = openCopier(path, copyAt)
	return err
}

// close closes what is open; SQLite writes its log back into the database when the last connection goes.
func (d *liteDB) close() error {
	var errs []error
	if d.copier != nil {
		errs = append(errs, d.copier.close())
	}
	if d.readers != nil {
		errs = append(errs, d.readers.Close())
	}
	for _, s := range d.stmts {
		errs = append(errs, s.Close())
	}
	if d.conn != nil {
		errs = append(errs, d.conn.Close())
	}
	if d.writers != nil {
		errs = append(errs, d.writers.Close())
	}
	return errors.Join(errs...)
}

// prepared returns the statement for query on the writing connection. Queries are constants, so there are few.
func (d *liteDB) prepared(query string) (*sql.Stmt, error) {
	if s, ok := d.stmts[query]; ok {
		return s, nil
	}
	s, err := d.conn.PrepareContext(context.Background(), query)
	if err == nil {
		d.stmts[query] = s
	}
	return s, err
}

// exec runs a statement on the writing connection and returns how many rows it changed. It can't be cancelled: that
// would cost a goroutine each time and could abort everybody's batch.
func (d *liteDB) exec(query string, args ...any) (int64, error) {
	s, err := d.prepared(query)
	if err != nil {
		return 0, err
	}
	r, err := s.ExecContext(context.Background(), args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// query runs a query on the writing connection and calls scan for each row until it returns false.
func (d *liteDB) query(scan func(scanner) (more bool, err error), query string, args ...any) error {
	s, err := d.prepared(query)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(context.Background(), args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// read runs a query on a reading connection.
func (d *liteDB) read(ctx context.Context, scan func(scanner) (more bool, err error), query string, args ...any) error {
	rows, err := d.readers.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	return each(rows, scan)
}

// each walks over rows and closes them.
func each(rows *sql.Rows, scan func(scanner) (more bool, err error)) error {
	defer rows.Close()
	for rows.Next() {
		if more, err := scan(rows); err != nil || !more {
			return err
		}
	}
	return rows.Err()
}

// code returns SQLite's primary result code of err, 0 where it has none.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return 0
}

// isFull reports whether err says that the disk is full. The engine has undone the transaction then.
func isFull(err error) bool {
	return code(err) == sqlite3.SQLITE_FULL || isCode(err, "53100") || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// isBusy reports whether err says that others keep the database locked, or that it took too long.
func isBusy(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_BUSY || c == sqlite3.SQLITE_LOCKED || isCode(err, "55P03", "57014")
}
