package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// examineTime is how long an examination may take in all. A database that is slower is no use to sign-in mail.
const examineTime = 15 * time.Second

// clockTolerated is how far the clocks of a node and of the database may be apart without a word.
const clockTolerated = 2 * time.Second

// Fault is something that keeps gatepost from using a database, or with Bearable makes it work less well than it could.
type Fault struct {
	Text     string // what is wrong; never the password
	Hint     string // what to do about it
	Bearable bool
}

// Examination is what Examine found.
type Examination struct {
	About  string // "PostgreSQL 15.14 at db.example.com:5432, database gatepost, as gatepost"; "" where it cannot be reached
	Faults []Fault
}

// Examine looks whether a node can use the database and the keys that o names, and changes nothing. It finds what
// OpenPostgres would refuse, all of it at once, and what only shows later: rights, clocks, keys that others have.
func Examine(ctx context.Context, o PostgresOptions) Examination {
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	e := &examiner{oldest: oldestServer}
	_, keys, history, err := readKeyFile(o.KeyFile)
	if err != nil {
		e.fault("copy it from another node; for the first one: gatepost store init-key "+o.KeyFile, "the keys cannot be used: %v", err)
	}
	c, err := parseDSN(o.DSN)
	if err != nil {
		e.fault(dsnForms, "%v", err)
		return e.Examination
	}
	if e.conn, err = connectAny(ctx, c); err != nil {
		e.fault(Hint(err), "%s", oneLine(err))
		return e.Examination
	}
	defer e.conn.Close(context.WithoutCancel(ctx))
	for _, look := range []func(context.Context) error{e.server, e.settings, e.rights, e.clock} {
		if err := look(ctx); err != nil {
			e.fault(Hint(err), "it cannot be looked at: %s", oneLine(err))
			return e.Examination
		}
	}
	if !slices.ContainsFunc(e.Faults, func(f Fault) bool { return !f.Bearable }) {
		e.tables(ctx, keys, history)
	}
	return e.Examination
}

const dsnForms = "the first line of dsn_file is postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full, with %40 for an @ in the password and %20 for a space, " +
	"or host=HOST user=USER password='PASSWORD' dbname=DATABASE"

// errDSN says nothing of what it is about: the driver's own error may hold the password.
var errDSN = errors.New("the DSN in dsn_file cannot be understood")

func parseDSN(dsn string) (*pgxpool.Config, error) {
	c, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, errDSN
	}
	return c, nil
}

// connectAny connects to the server that can be written to or, where there is none, to one that answers.
func connectAny(ctx context.Context, c *pgxpool.Config) (*pgx.Conn, error) {
	if c.ConnConfig.ConnectTimeout == 0 || c.ConnConfig.ConnectTimeout > connectWithin {
		c.ConnConfig.ConnectTimeout = connectWithin
	}
	writable := c.ConnConfig.Copy()
	writable.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	if conn, err := pgx.ConnectConfig(ctx, writable); err == nil {
		return conn, nil
	}
	return pgx.ConnectConfig(ctx, c.ConnConfig)
}

// examiner collects faults over one connection.
type examiner struct {
	Examination
	conn   *pgx.Conn
	oldest int // that works, as server_version_num has it
}

func (e *examiner) fault(hint, format string, a ...any) {
	e.Faults = append(e.Faults, Fault{Text: fmt.Sprintf(format, a...), Hint: hint})
}

func (e *examiner) bearable(hint, format string, a ...any) {
	e.fault(hint, format, a...)
	e.Faults[len(e.Faults)-1].Bearable = true
}

// server tells what answers, and whether it may be written to.
func (e *examiner) server(ctx context.Context) error {
	var version, database, user, encoding string
	var number int
	var standby, readOnly bool
	err := e.conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num')::int, current_database(), current_user,
		current_setting('server_encoding'), pg_is_in_recovery(), current_setting('transaction_read_only')::bool`).
		Scan(&version, &number, &database, &user, &encoding, &standby, &readOnly)
	if err != nil {
		return err
	}
	version, _, _ = strings.Cut(version, " ")
	c := e.conn.Config()
	e.About = fmt.Sprintf("PostgreSQL %s at %s, database %s, as %s", version, net.JoinHostPort(c.Host, fmt.Sprint(c.Port)), database, user)
	if number < e.oldest {
		e.fault(fmt.Sprintf("upgrade it, or name another one in dsn_file: %d is the oldest that works", e.oldest/10000), "PostgreSQL %s is too old", version)
	}
	if encoding != "UTF8" {
		e.fault("make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0", "the encoding of the database is %s", encoding)
	}
	switch {
	case standby:
		e.fault("name the primary; with several hosts in dsn_file the one that can be written to is found: host=a,b", "the server is a standby, which cannot be written to")
	case readOnly:
		e.fault("ALTER ROLE "+quoteIdent(user)+" SET default_transaction_read_only = off", "transactions are read-only for %s here", user)
	}
	return nil
}

// settings looks at what makes a COMMIT durable.
func (e *examiner) settings(ctx context.Context) error {
	for _, s := range []struct{ name, bad, hint string }{
		{"fsync", "off", "ALTER SYSTEM SET fsync = on; SELECT pg_reload_conf()"},
		{"full_page_writes", "off", "ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf()"},
		{"synchronous_commit", "off", "take it out of postgresql.conf, ALTER ROLE … SET and ALTER DATABASE … SET, wherever it is: on is the default"},
	} {
		var is string
		if err := e.conn.QueryRow(ctx, "SELECT current_setting($1)", s.name).Scan(&is); err != nil {
			return err
		}
		if is == s.bad {
			e.fault(s.hint, "%s is %s: mail that was answered 250 could be lost", s.name, is)
		}
	}
	return nil
}

// rights looks whether tables can be made where there are none yet, and used where there are.
func (e *examiner) rights(ctx context.Context) error {
	var schema *string
	var create bool
	var user string
	err := e.conn.QueryRow(ctx, "SELECT current_schema(), coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), current_user").Scan(&schema, &create, &user)
	if err != nil {
		return err
	}
	if schema == nil {
		e.fault("CREATE SCHEMA gatepost AUTHORIZATION "+quoteIdent(user)+"; ALTER ROLE "+quoteIdent(user)+" SET search_path = gatepost", "no schema of the search_path is there")
		return nil
	}
	rows, err := e.conn.Query(ctx, `SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
		AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
		AND relname = ANY($1) ORDER BY relname`, ourTables)
	if err != nil {
		return err
	}
	closed, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	switch {
	case len(closed) > 0:
		e.fault("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "+quoteIdent(*schema)+" TO "+quoteIdent(user)+"; better, let it own them",
			"%s may not read and write %s", user, strings.Join(closed, ", "))
	case !create:
		e.fault("GRANT CREATE, USAGE ON SCHEMA "+quoteIdent(*schema)+" TO "+quoteIdent(user)+"; or let it own the database: ALTER DATABASE … OWNER TO "+quoteIdent(user),
			"%s may not make tables in schema %s", user, *schema)
	}
	return nil
}

// tables looks at what is in the tables, if there are any: whether they are ours, and whether there is a key for all of it.
func (e *examiner) tables(ctx context.Context, keys map[int64]sealKey, history addressKey) {
	version, err := schemaVersion(ctx, e.conn, len(postgresMigrations()))
	if err != nil {
		e.fault("gatepost version says which one this is", "%s", oneLine(err))
	}
	if err != nil || version == 0 {
		return
	}
	var check *string
	if err := e.conn.QueryRow(ctx, "SELECT (SELECT value FROM meta WHERE key = 'history_check')").Scan(&check); err != nil {
		e.fault(Hint(err), "its keys cannot be looked at: %s", oneLine(err))
		return
	}
	if check != nil && *check != history.check() {
		e.fault("copy the file from a node that runs; if it is lost for good: DELETE FROM meta WHERE key = 'history_check'", "key_file belongs to another fleet: its history key is not the one of this database")
		return
	}
	needed, err := neededKeys(ctx, e.conn)
	if err != nil {
		e.fault(Hint(err), "what is queued cannot be looked at: %s", oneLine(err))
		return
	}
	if n := missing(keys, needed); n > 0 {
		e.fault("copy the file from a node that has them; that mail is held until then", "mail in the queue (%d) is sealed with keys that are not in key_file", n)
	}
}

// missing counts the messages for which there is no key.
func missing(keys map[int64]sealKey, needed map[int64]int) (messages int) {
	for id, n := range needed {
		if _, known := keys[id]; !known {
			messages += n
		}
	}
	return messages
}

// NeededKeys returns the ids of the keys that mail in the database at dsn is sealed with, and how many messages each.
func NeededKeys(ctx context.Context, dsn string) (map[int64]int, error) {
	ctx, cancel := context.WithTimeout(ctx, examineTime)
	defer cancel()
	c, err := parseDSN(dsn)
	if err != nil {
		return nil, err
	}
	conn, err := connectAny(ctx, c)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return neededKeys(ctx, conn)
}

// neededKeys returns nothing where there are no tables yet.
func neededKeys(ctx context.Context, conn *pgx.Conn) (map[int64]int, error) {
	needed := map[int64]int{}
	var there bool
	if err := conn.QueryRow(ctx, "SELECT to_regclass('body') IS NOT NULL").Scan(&there); err != nil || !there {
		return needed, err
	}
	rows, err := conn.Query(ctx, "SELECT key_id, count(*) FROM body WHERE key_id <> 0 GROUP BY key_id")
	if err != nil {
		return nil, err
	}
	var id int64
	var n int
	_, err = pgx.ForEachRow(rows, []any{&id, &n}, func() error {
		needed[id] = n
		return nil
	})
	return needed, err
}

// ourTables are those that a node reads and writes.
var ourTables = append([]string{"body_part", "signature"}, tables...)

// clock compares the clocks of this host and of the database.
func (e *examiner) clock(ctx context.Context) error {
	var theirs time.Time
	asked := time.Now()
	if err := e.conn.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&theirs); err != nil {
		return err
	}
	e.apart(theirs.Sub(asked.Add(time.Since(asked) / 2)))
	return nil
}

// apart tells how far the clocks are from each other, where that may matter. Mail goes by the database's, on every node.
func (e *examiner) apart(off time.Duration) {
	if off = off.Abs(); off > clockTolerated {
		e.bearable("look at the time service of both hosts: timedatectl",
			"the clocks of this host and of the database are %v apart: mail goes by the database's, signatures and the log by this host's", off.Round(100*time.Millisecond))
	}
}

// Hint says what to do about an error on the way to a database, or returns "".
func Hint(err error) string {
	if errors.Is(err, errDSN) {
		return dsnForms
	}
	if errors.Is(err, errInUse) {
		return "stop it first, or give this one a name of its own: node of [store]"
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return hintByState(e)
	}
	if errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err) {
		return "no answer: see whether a firewall is in between, and whether the host is the right one"
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return "look at the host in dsn_file, and whether DNS knows it"
	}
	if isTLS(err) {
		return "look at sslmode and sslrootcert in dsn_file; sslmode=verify-full needs the name in the server's certificate"
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "see that the server runs (pg_lsclusters, systemctl status postgresql), on that port, with listen_addresses open to this host"
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return "look at host, port and sslmode in dsn_file"
	}
	return ""
}

func isTLS(err error) bool {
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	return authority || host || invalid || verification
}

// hintByState says what to do about what the server answered, by its code (PostgreSQL's appendix "Error Codes").
func hintByState(e *pgconn.PgError) string {
	switch {
	case e.Code == "28P01":
		return "the password or the user in dsn_file is wrong: ALTER ROLE gatepost PASSWORD '…', or CREATE ROLE gatepost LOGIN PASSWORD '…'"
	case strings.HasPrefix(e.Code, "28"):
		return "the server lets this user in only from elsewhere or in another way: add a line for this host to pg_hba.conf, and SELECT pg_reload_conf()"
	case e.Code == "3D000":
		return "make it: CREATE DATABASE gatepost OWNER gatepost"
	case e.Code == "42501":
		return "let the user of dsn_file own the database: ALTER DATABASE gatepost OWNER TO gatepost"
	case e.Code == "53300":
		return "raise max_connections of the server, or use fewer: docs/postgres.md says how many a node needs"
	case e.Code == "57P03":
		return "the server starts or stops: try again in a moment"
	case strings.HasPrefix(e.Code, "53"):
		return "the server has run out of disk, memory or another resource: see its log"
	case strings.HasPrefix(e.Code, "XX"), strings.HasPrefix(e.Code, "58"):
		return "the database is damaged or its disk fails: see the server's log"
	}
	return ""
}

// oneLine returns what the driver says without its line breaks.
func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }
