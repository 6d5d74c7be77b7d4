-- A large body lies in parts, which are written and removed one to a commit, so that nobody waits for all of it.
-- body.octets is 0 where body.data holds the body; else data is empty, and the data of its parts, in order of n, is the
-- body, as long as octets says (and sealed, as a whole, where key_id is not 0). Parts are written before their body row
-- and removed after it: those without one belong to no message.
ALTER TABLE body ADD COLUMN octets INTEGER NOT NULL DEFAULT 0;
CREATE TABLE body_part(id INTEGER NOT NULL, n INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY(id, n));
