-- Integers are milliseconds since 1970 UTC where they are times. The spool (message, body, recipient) holds what is
-- still to be sent; event is the history. Both engines share these names.

CREATE TABLE meta(key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE node(
	id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
	epoch INTEGER NOT NULL, lease_until INTEGER NOT NULL DEFAULT 0, egress TEXT NOT NULL DEFAULT '');

CREATE TABLE message(
	id INTEGER PRIMARY KEY,
	stream TEXT NOT NULL, client TEXT NOT NULL, mail_from TEXT NOT NULL, header_from TEXT NOT NULL,
	size INTEGER NOT NULL, flags INTEGER NOT NULL, body_hash BLOB,
	accepted_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
	supersede BLOB, attrs TEXT NOT NULL DEFAULT '');
CREATE INDEX message_supersede ON message(supersede) WHERE supersede IS NOT NULL;
CREATE INDEX message_expires ON message(expires_at);

-- format: 1 raw as repaired, unsigned. data is sealed where key_id is not 0.
CREATE TABLE body(id INTEGER PRIMARY KEY, format INTEGER NOT NULL, key_id INTEGER NOT NULL, data BLOB NOT NULL);
-- Answers "does any row still need this key?" without reading bodies. Only sealed rows pay for it.
CREATE INDEX body_sealed ON body(key_id) WHERE key_id <> 0;

CREATE TABLE recipient(
	message INTEGER NOT NULL, n INTEGER NOT NULL,
	address TEXT NOT NULL, lane TEXT NOT NULL, need TEXT NOT NULL,
	state INTEGER NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL,
	maybe_sent INTEGER NOT NULL, copies INTEGER NOT NULL,
	owner INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
	refused TEXT NOT NULL, last_upstream TEXT NOT NULL, last_reply TEXT NOT NULL,
	PRIMARY KEY(message, n)) WITHOUT ROWID;
-- The only index that claiming needs, and the one that finds what a dead incarnation owned.
CREATE INDEX recipient_due ON recipient(lane, need, due_at, message) WHERE owner = 0 AND state = 0;
CREATE INDEX recipient_owned ON recipient(owner, epoch) WHERE owner <> 0;

CREATE TABLE submission(
	key BLOB NOT NULL PRIMARY KEY, message INTEGER NOT NULL, status INTEGER NOT NULL, expires_at INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE event(
	node INTEGER NOT NULL, seq INTEGER NOT NULL,
	at INTEGER NOT NULL, message INTEGER NOT NULL, n INTEGER NOT NULL, kind INTEGER NOT NULL,
	stream TEXT NOT NULL, upstream TEXT NOT NULL, address TEXT, address_key BLOB,
	data TEXT NOT NULL,
	PRIMARY KEY(node, seq)) WITHOUT ROWID;
CREATE INDEX event_message ON event(message);
CREATE INDEX event_address ON event(address_key, at);

CREATE TABLE cursor(consumer TEXT NOT NULL, node INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(consumer, node)) WITHOUT ROWID;

CREATE TABLE suppression(
	stream TEXT NOT NULL, address TEXT NOT NULL, reason TEXT NOT NULL, source TEXT NOT NULL,
	created_at INTEGER NOT NULL, until INTEGER NOT NULL, PRIMARY KEY(stream, address)) WITHOUT ROWID;
