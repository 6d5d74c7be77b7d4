-- Addresses are found a thousand events at a time, so that what is recorded together is written together: in one index over
-- all of history each event has a page of its own, which has to be read, written to the log and copied back.
DROP INDEX event_address;
CREATE INDEX event_address ON event(seq >> 10, address_key);
