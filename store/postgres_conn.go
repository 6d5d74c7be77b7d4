package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"
)

const (
	oldestServer = 140000 // server_version_num
	maxNode      = 1<<10 - 1
	inUseWithin  = 5 * time.Second // for which a name may be held by a connection that is just ending
)

// nodeLocks is the class of advisory locks by node number. It is the table's own number, so that two schemas of one
// database have locks of their own. A session that writes holds the lock of number + writerLock.
const (
	nodeLocks  = "'node'::regclass::oid::bigint::bit(32)::integer"
	writerLock = 1 << 16
)

// configure sets what every connection needs. All queries are walks over an index, so the planner is kept from what
// looks cheap while a table is small, and plans are made once.
func configure(cfg *pgxpool.Config, node string) {
	c := &cfg.ConnConfig.Config
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = connectWithin
	}
	if c.ValidateConnect == nil {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if c.RuntimeParams["application_name"] == "" {
		c.RuntimeParams["application_name"] = "gatepost " + node
	}
	maps.Copy(c.RuntimeParams, map[string]string{
		"statement_timeout": strconv.Itoa(int(readWithin.Milliseconds())), "lock_timeout": "2000", "idle_in_transaction_session_timeout": "10000",
		"tcp_keepalives_idle": "10", "tcp_keepalives_interval": "3", "tcp_keepalives_count": "3", "tcp_user_timeout": "15000",
		"default_transaction_isolation": "read committed", "client_encoding": "UTF8", "client_min_messages": "warning",
		"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "enable_bitmapscan": "off", "jit": "off", "plan_cache_mode": "force_generic_plan",
	})
	c.DialFunc = dialPostgres
}

// dialPostgres notices within seconds that the other end is gone, also where nothing says so.
func dialPostgres(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 3 * time.Second, Count: 3},
		Control: func(network, _ string, c syscall.RawConn) (err error) {
			if network == "unix" {
				return nil
			}
			if failed := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15000) }); failed != nil {
				return failed
			}
			return err
		},
	}
	return d.DialContext(ctx, network, address)
}

// backend is a session as the server knows it.
type backend struct {
	pid     uint32
	started time.Time
}

// connect connects the writer, makes sure that what it commits is durable, and takes this node's place. After a failure it
// waits until the server has done with the connection before: only then is it decided what of it happened.
func (f *fleet) connect() (database, error) {
	ctx, cancel := context.WithTimeout(f.ending, openWithin)
	defer cancel()
	d := &pgDB{f: f}
	cfg := f.conns.Copy()
	cfg.OnNotice = d.notice
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.where(), err)
	}
	d.conn = conn
	if err := f.admit(ctx, conn); err != nil {
		d.close()
		return nil, fmt.Errorf("open %s: %w", f.where(), err)
	}
	return d, nil
}

// admit does all that comes before the first transaction.
func (f *fleet) admit(ctx context.Context, conn *pgx.Conn) error {
	for _, step := range []func(context.Context, *pgx.Conn) error{
		checkServer, f.migrate, f.checkDatabase, f.takeNumber, f.takePlace, f.clock.read,
	} {
		if err := step(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// checkServer refuses a server that would lose what it has committed, or can't do what is asked of it. What decides how
// this session commits is fixed for as long as it lasts.
func checkServer(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var fsync, pages, sync, encoding, readOnly string
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version_num')::integer, current_setting('fsync'), current_setting('full_page_writes'),
		current_setting('synchronous_commit'), current_setting('server_encoding'), current_setting('transaction_read_only')`).
		Scan(&version, &fsync, &pages, &sync, &encoding, &readOnly); err != nil {
		return fmt.Errorf("read its settings: %w", err)
	}
	switch {
	case version < oldestServer:
		return fmt.Errorf("it runs PostgreSQL %d.%d, and gatepost needs 14 or newer: upgrade the server", version/10000, version%10000)
	case readOnly == "on":
		return errors.New("it can only be read (a standby, or default_transaction_read_only is on): connect to the primary")
	case fsync == "off":
		return errors.New("fsync is off, so a power cut would lose mail that was accepted: set fsync = on in postgresql.conf and restart PostgreSQL")
	case pages == "off":
		return errors.New("full_page_writes is off, so a power cut could tear pages: set full_page_writes = on in postgresql.conf and reload PostgreSQL")
	case sync == "off":
		return errors.New("synchronous_commit is off, so a crash would lose mail that was accepted: run ALTER ROLE " +
			pgx.Identifier{conn.Config().User}.Sanitize() + " SET synchronous_commit = on, or set it in postgresql.conf")
	case encoding != "UTF8":
		return fmt.Errorf("its encoding is %s: make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	_, err := conn.Exec(ctx, "SELECT set_config('synchronous_commit', $1, false)", sync)
	return err
}

func postgresMigrations() []string {
	names, err := fs.Glob(migrations, "migrations/postgres/*.sql") // sorted, since embed.FS reads directories in order
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return names
}

// migrate brings the schema to ours when this node starts. Later it only looks: where the tables are gone somebody is
// about to put others in their place, such as a backup's.
func (f *fleet) migrate(ctx context.Context, conn *pgx.Conn) error {
	if f.database == "" {
		return migratePostgres(ctx, conn)
	}
	version, err := schemaVersion(ctx, conn, len(postgresMigrations()))
	if err == nil && version == 0 {
		err = errors.New("the tables of the queue are gone: restore them, or restart gatepost if it is to make new ones")
	}
	return err
}

// migratePostgres brings the schema to ours, one node at a time. A newer one is fine unless it says that it needs a newer
// release: during an upgrade two run side by side.
func migratePostgres(ctx context.Context, conn *pgx.Conn) error {
	names := postgresMigrations()
	version, err := schemaVersion(ctx, conn, len(names))
	if err != nil || version >= len(names) {
		return err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(context.Background())
	// Others that start at the same moment wait here; a change of the schema waits for mail under way, and may take a while.
	if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '10s', true)`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('gatepost schema ' || current_schema(), 0))`); err != nil {
		return fmt.Errorf("wait for another node that changes the schema: %w", err)
	}
	if version, err = schemaVersion(ctx, conn, len(names)); err != nil {
		return err
	}
	for i := version; i < len(names); i++ {
		if err := applyMigration(ctx, conn, names[i], i+1); err != nil {
			return fmt.Errorf("bring the schema from %d to %d: %s: %w", version, len(names), names[i], err)
		}
	}
	return tx.Commit(ctx)
}

// applyMigration runs a migration's file in the transaction under way.
func applyMigration(ctx context.Context, conn *pgx.Conn, name string, version int) error {
	text, err := migrations.ReadFile(name)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, string(text), pgx.QueryExecModeSimpleProtocol); err != nil {
		if isCode(err, "42501") { // insufficient_privilege
			err = fmt.Errorf("%w: let the role make tables there (GRANT USAGE, CREATE ON SCHEMA …), or give gatepost a database of its own (CREATE DATABASE … OWNER %s)",
				err, pgx.Identifier{conn.Config().User}.Sanitize())
		}
		return err
	}
	_, err = conn.Exec(ctx, `INSERT INTO meta(key, value) VALUES('schema', $1), ('schema_min', '1'), ('database', replace(gen_random_uuid()::text, '-', ''))
		ON CONFLICT(key) DO UPDATE SET value = excluded.value WHERE meta.key = 'schema'`, strconv.Itoa(version))
	return err
}

// schemaVersion returns the schema's version, 0 where there is none yet.
func schemaVersion(ctx context.Context, conn *pgx.Conn, known int) (version int, err error) {
	var schema, other *string
	var there bool
	if err := conn.QueryRow(ctx, `SELECT current_schema(), EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
		WHERE c.relname = 'meta' AND s.nspname = current_schema()), (SELECT s.nspname FROM pg_proc p JOIN pg_namespace s ON s.oid = p.pronamespace
		WHERE p.oid = to_regprocedure('hold_epoch(integer, bigint)') AND s.nspname <> current_schema())`).Scan(&schema, &there, &other); err != nil {
		return 0, fmt.Errorf("look for its tables: %w", err)
	}
	switch {
	case schema == nil:
		return 0, errors.New("no schema of the search_path exists: run CREATE SCHEMA …, or name one with search_path in the DSN")
	case !there && other != nil:
		return 0, fmt.Errorf("the queue is in schema %s, and the search_path puts %s before it: add search_path=%[1]s to the DSN, or search_path=%[2]s for a queue of its own there", *other, *schema)
	case !there:
		return 0, nil
	}
	var text, least string
	if err := conn.QueryRow(ctx, `SELECT coalesce((SELECT value FROM meta WHERE key = 'schema'), ''), coalesce((SELECT value FROM meta WHERE key = 'schema_min'), '')`).
		Scan(&text, &least); err != nil && !isCode(err, "42703") { // a table meta without such columns
		return 0, fmt.Errorf("read the version of schema %s: %w", *schema, err)
	}
	version, err1 := strconv.Atoi(text)
	needs, err2 := strconv.Atoi(least)
	switch {
	case errors.Join(err1, err2) != nil:
		return 0, fmt.Errorf("schema %s has a table meta that is not gatepost's: give gatepost a database or a schema of its own", *schema)
	case needs > known:
		return 0, fmt.Errorf("schema %s is %d and needs a gatepost that knows %d, this one knows up to %d: run that version or a newer one", *schema, version, needs, known)
	}
	return version, nil
}

// checkDatabase makes sure that all nodes have the same keys, and that it is still the database that was opened.
func (f *fleet) checkDatabase(ctx context.Context, conn *pgx.Conn) error {
	var id, check, channel string
	if _, err := conn.Exec(ctx, "INSERT INTO meta(key, value) VALUES('history_check', $1) ON CONFLICT(key) DO NOTHING", f.s.history.check()); err != nil {
		return fmt.Errorf("write to it: %w", err)
	}
	if err := conn.QueryRow(ctx, `SELECT (SELECT value FROM meta WHERE key = 'database'), (SELECT value FROM meta WHERE key = 'history_check'),
		'gatepost_' || 'node'::regclass::oid`).Scan(&id, &check, &channel); err != nil {
		return fmt.Errorf("read its id: %w", err)
	}
	if check != f.s.history.check() {
		return fmt.Errorf("the history key in %s is not the one that the fleet uses: copy the key file from a node that runs", f.s.keys.path)
	}
	if f.database == "" {
		f.database, f.channel = id, channel
	}
	if f.database != id || f.channel != channel {
		return errors.New("it is not the database that was opened at start: restart gatepost if it is to use this one")
	}
	return nil
}

// takeNumber finds the node's number by its name; a new name gets a new number.
func (f *fleet) takeNumber(ctx context.Context, conn *pgx.Conn) error {
	var id int
	for range 10 { // others may be new at the same moment
		err := conn.QueryRow(ctx, "SELECT id FROM node WHERE name = $1", f.name).Scan(&id)
		if err == nil {
			if f.writer.pid == 0 {
				f.s.node = id
			}
			if f.s.node != id {
				return fmt.Errorf("node %s has another number than at start: restart gatepost", f.name)
			}
			return nil
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("read the node's number: %w", err)
		}
		for _, number := range []string{newNumber, oldNumber} {
			tag, err := conn.Exec(ctx, number, f.name, maxNode)
			if err != nil && !isCode(err, "23505") { // unique_violation: another has just got that name
				return fmt.Errorf("number the node: %w", err)
			}
			if err == nil && tag.RowsAffected() > 0 {
				break
			}
		}
	}
	return fmt.Errorf("all %d node numbers are taken, by nodes that have run within a week: give nodes names that outlive a restart (store.node)", maxNode)
}

// A new node gets a number that nobody has or, where there is none, that of the node which has been gone longest, a week at
// least, and owns nothing. Epochs begin at the time: none that rows are stamped with comes back.
const (
	newNumber = "INSERT INTO node(id, name, epoch, lease_until) SELECT n, $1, " + serverNow + ", " + serverNow + ` FROM generate_series(1, $2::integer) n
		WHERE NOT EXISTS (SELECT 1 FROM node WHERE id = n) ORDER BY n LIMIT 1 ON CONFLICT DO NOTHING`
	oldNumber = `UPDATE node SET name = $1, epoch = greatest(epoch + 1, ` + serverNow + `), lease_until = ` + serverNow + ` WHERE id = (SELECT n.id FROM node n
		WHERE n.lease_until < ` + serverNow + ` - 7 * 86400000 AND (SELECT 1 FROM recipient r WHERE r.owner = n.id AND r.owner <> 0 LIMIT 1) IS NULL
		AND (SELECT count(*) FROM node) >= $2 ORDER BY n.lease_until LIMIT 1 FOR UPDATE SKIP LOCKED)`
)

// takePlace makes this session the only one that writes as this node. It waits for, and ends, the one before it.
func (f *fleet) takePlace(ctx context.Context, conn *pgx.Conn) error {
	for end := time.Now().Add(inUseWithin); ; {
		var ours bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock("+nodeLocks+", $1)", f.s.node+writerLock).Scan(&ours); err != nil {
			return fmt.Errorf("take the place of node %s: %w", f.name, err)
		}
		if ours {
			return f.remember(ctx, conn)
		}
		if time.Now().After(end) || !f.pause(100*time.Millisecond) {
			return fmt.Errorf("node %s: %w", f.name, errInUse)
		}
		if f.writer.pid != 0 {
			if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2",
				int32(f.writer.pid), f.writer.started); err != nil {
				return fmt.Errorf("end the connection before: %w", err)
			}
		}
	}
}

// remember notes what this session is, to find it again from the next one.
func (f *fleet) remember(ctx context.Context, conn *pgx.Conn) error {
	b := backend{pid: conn.PgConn().PID()}
	if err := conn.QueryRow(ctx, "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()").Scan(&b.started); err != nil {
		return fmt.Errorf("look at this connection: %w", err)
	}
	f.writer = b
	return nil
}

// isCode reports whether err is the server's, with that SQLSTATE.
func isCode(err error, codes ...string) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	return slices.Contains(codes, e.Code)
}
