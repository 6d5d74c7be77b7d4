-- The same names and meanings as on SQLite. Integers are milliseconds since 1970 UTC, by the database's clock, where
-- they are times.
--
-- What is sent at once is written and deleted within seconds, so dead rows are what these tables are made of: they are
-- vacuumed by count and not by share, and deleted rows' space is reused long before it matters. TRUNCATE is off since
-- giving back the end of a table takes a lock that mail would wait for.

CREATE TABLE meta(key text PRIMARY KEY, value text NOT NULL);

-- The fleet. A node's rows are its own while lease_until is ahead and epoch is the one they are stamped with.
CREATE TABLE node(
	id integer PRIMARY KEY, name text NOT NULL UNIQUE,
	epoch bigint NOT NULL, lease_until bigint NOT NULL DEFAULT 0, egress text NOT NULL DEFAULT '')
	WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 100);

CREATE TABLE message(
	id bigint PRIMARY KEY,
	stream text NOT NULL, client text NOT NULL, mail_from text NOT NULL, header_from text NOT NULL,
	size integer NOT NULL, flags integer NOT NULL, body_hash bytea,
	accepted_at bigint NOT NULL, expires_at bigint NOT NULL,
	supersede bytea, attrs text NOT NULL)
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0.5,
		autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false);
CREATE INDEX message_supersede ON message(supersede, id) WHERE supersede IS NOT NULL;
CREATE INDEX message_expires ON message(expires_at);

-- format: 1 raw as repaired, unsigned. data is sealed where key_id is not 0. octets is 0 where data holds the body; else
-- data is empty, and the data of its parts, in order of n, is the body, as long as octets says. Parts are written before
-- their body row and removed after it.
CREATE TABLE body(id bigint PRIMARY KEY, format integer NOT NULL, key_id bigint NOT NULL, data bytea NOT NULL, octets integer NOT NULL)
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0.5,
		autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false,
		toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE body ALTER COLUMN data SET STORAGE EXTERNAL; -- what is sealed cannot be compressed, and the rest is soon gone
CREATE INDEX body_sealed ON body(key_id) WHERE key_id <> 0;

CREATE TABLE body_part(id bigint NOT NULL, n integer NOT NULL, data bytea NOT NULL, PRIMARY KEY(id, n))
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false,
		toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000, toast.autovacuum_vacuum_cost_delay = 0);
ALTER TABLE body_part ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE recipient(
	message bigint NOT NULL, n integer NOT NULL,
	address text NOT NULL, lane text COLLATE "C" NOT NULL, need text COLLATE "C" NOT NULL,
	state integer NOT NULL, due_at bigint NOT NULL, attempts integer NOT NULL,
	maybe_sent boolean NOT NULL, copies integer NOT NULL,
	owner integer NOT NULL, epoch bigint NOT NULL,
	refused text NOT NULL, last_upstream text NOT NULL, last_reply text NOT NULL,
	PRIMARY KEY(message, n))
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0.5,
		autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = false);
-- The only index that claiming needs, and the one that finds what a node owns that is gone. A row that is born owned
-- never enters the first.
CREATE INDEX recipient_due ON recipient(lane, need, due_at, message, n) WHERE owner = 0 AND state = 0;
CREATE INDEX recipient_owned ON recipient(owner, epoch) WHERE owner <> 0;

CREATE TABLE submission(key bytea PRIMARY KEY, message bigint NOT NULL, status integer NOT NULL, expires_at bigint NOT NULL);

CREATE TABLE event(
	node integer NOT NULL, seq bigint NOT NULL,
	at bigint NOT NULL, message bigint NOT NULL, n integer NOT NULL, kind integer NOT NULL,
	stream text NOT NULL, upstream text NOT NULL, address text, address_key bytea,
	data text NOT NULL,
	PRIMARY KEY(node, seq))
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000, autovacuum_analyze_scale_factor = 0.2, vacuum_truncate = false);
CREATE INDEX event_message ON event(message);
CREATE INDEX event_address ON event(address_key, at);

CREATE TABLE cursor(consumer text NOT NULL, node integer NOT NULL, seq bigint NOT NULL, PRIMARY KEY(consumer, node));

CREATE TABLE suppression(
	stream text NOT NULL, address text NOT NULL, reason text NOT NULL, source text NOT NULL,
	created_at bigint NOT NULL, until bigint NOT NULL, PRIMARY KEY(stream, address));

-- hold_epoch keeps the caller's transaction and a takeover of its node apart, and ends the transaction if there was one:
-- nothing is ever stamped with an epoch that is over. The lock comes first; the query behind it sees what was committed
-- while it was waited for.
CREATE FUNCTION hold_epoch(holder integer, held bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM pg_advisory_xact_lock_shared('node'::regclass::oid::bigint::bit(32)::integer, holder);
	IF NOT EXISTS (SELECT 1 FROM node WHERE id = holder AND epoch = held) THEN
		RAISE EXCEPTION 'node % does not hold epoch % any more', holder, held USING ERRCODE = 'GP001';
	END IF;
END $$;
