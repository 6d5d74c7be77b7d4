-- What deferred mail was signed with, for its next try; never of sealed mail, since bh= is a hash of what is sealed.
-- profile identifies what the signatures in data were made with. A row goes with its message, also where a node that does
-- not know of it removes that.
CREATE TABLE signature(message bigint PRIMARY KEY REFERENCES message(id) ON DELETE CASCADE, profile bytea NOT NULL, data bytea NOT NULL)
	WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, vacuum_truncate = false);
ALTER TABLE signature ALTER COLUMN data SET STORAGE EXTERNAL; -- random octets cannot be compressed
