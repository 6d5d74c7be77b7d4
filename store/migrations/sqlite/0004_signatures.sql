-- What deferred mail was signed with, for its next try; never of sealed mail, since bh= is a hash of what is sealed.
-- profile identifies what the signatures in data were made with. A row goes with its message.
CREATE TABLE signature(message INTEGER PRIMARY KEY, profile BLOB NOT NULL, data BLOB NOT NULL);
