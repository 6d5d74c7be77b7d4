package store

import (
	"cmp"
	"slices"
	"time"

	"gatepost/message"
)

// Here each change is a statement of its own: they cost no round trips.

func (d *liteDB) begin(*tx) error {
	d.finishCopy()
	_, err := d.exec("BEGIN IMMEDIATE")
	return err
}

func (d *liteDB) commit() error {
	if _, err := d.exec("COMMIT"); err != nil {
		return err
	}
	d.copier.committed(d.conn)
	return nil
}

// rollback may find that SQLite has done it already. If neither has, the next begin fails and the database is reopened.
func (d *liteDB) rollback() error {
	d.exec("ROLLBACK")
	return nil
}

func (d *liteDB) prepare(*tx, []job) error { return nil }

func (d *liteDB) locking(query string) string { return query }

func (d *liteDB) change(query string, args ...any) error {
	_, err := d.exec(query, args...)
	return err
}

// What a start asks of the database: the end of an index each.
const (
	lastSeq     = "SELECT coalesce((SELECT seq FROM event WHERE node = 1 ORDER BY seq DESC LIMIT 1), 0)"
	lastID      = "SELECT max(coalesce((SELECT max(id) FROM message), 0), coalesce((SELECT max(message) FROM event), 0), coalesce((SELECT max(id) FROM body_part), 0))"
	ownedSelect = rowColumns + " FROM recipient r INDEXED BY recipient_owned CROSS JOIN message m ON m.id = r.message WHERE r.owner <> 0"
)

func (d *liteDB) load(t *tx) error {
	var last int64
	for _, max := range []struct {
		to  *int64
		sql string
	}{
		{&t.seq, lastSeq},
		{&last, lastID},
	} {
		if err := t.one(max.sql, max.to); err != nil {
			return err
		}
	}
	t.s.ids.raise(message.ID(last))
	return nil
}

// takeOver makes this process the owner of the database and frees what the one before left.
func (s *Store) takeOver(t *tx) error {
	if err := t.db.load(t); err != nil {
		return err
	}
	if err := s.loadHolds(t); err != nil {
		return err
	}
	if err := s.newEpoch(t); err != nil {
		return err
	}
	return s.freeOwned(t)
}

// newEpoch makes the stamp under which this incarnation owns rows. The database's own id is made with its first epoch.
func (s *Store) newEpoch(t *tx) error {
	if _, err := t.exec("INSERT INTO meta(key, value) VALUES('database', lower(hex(randomblob(16)))) ON CONFLICT(key) DO NOTHING"); err != nil {
		return err
	}
	if _, err := t.exec("INSERT INTO node(id, name, epoch) VALUES(1, 'local', 1) ON CONFLICT(id) DO UPDATE SET epoch = epoch + 1"); err != nil {
		return err
	}
	if err := t.one("SELECT epoch FROM node WHERE id = 1", &t.epoch); err != nil {
		return err
	}
	s.epoch.Store(t.epoch)
	return nil
}

// freeOwned frees what the last incarnation was handing over. Each of it may have been sent.
func (s *Store) freeOwned(t *tx) error {
	var owned []row
	if err := t.rows(&owned, ownedSelect); err != nil {
		return err
	}
	for i := range owned {
		r := &owned[i]
		if err := t.recovered(r); err != nil {
			return err
		}
		if _, err := t.exec("UPDATE recipient SET owner = 0, epoch = 0, maybe_sent = 1, copies = ?, due_at = ? WHERE message = ? AND n = ?",
			r.Copies, ms(r.DueAt), int64(r.message.ID), r.N); err != nil {
			return err
		}
	}
	return nil
}

func (d *liteDB) put(t *tx, m *message.Message, attrs string, b storedBody, own bool) error {
	if _, err := d.exec(`INSERT INTO message(id, stream, client, mail_from, header_from, size, flags, body_hash, accepted_at, expires_at, supersede, attrs)
		VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, int64(m.ID), m.Stream, m.Client, m.MailFrom, m.HeaderFrom, m.Size, flags(m),
		m.BodyHash, ms(m.AcceptedAt), ms(m.ExpiresAt), m.Supersede, attrs); err != nil {
		return err
	}
	if _, err := d.exec("INSERT INTO body(id, format, key_id, data, octets) VALUES(?, ?, ?, ?, ?)", int64(m.ID), b.format, b.keyID, b.data, b.octets); err != nil {
		return err
	}
	owner, epoch := 0, int64(0)
	if own {
		owner, epoch = t.s.node, t.epoch
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		if _, err := d.exec(`INSERT INTO recipient(message, n, address, lane, need, state, due_at, attempts, maybe_sent, copies, owner, epoch, refused, last_upstream, last_reply)
			VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, int64(m.ID), r.N, r.Address, r.Lane, r.Need, int(r.State), ms(r.DueAt), r.Attempts,
			r.MaybeSent, r.Copies, owner, epoch, joinNames(r.Refused), r.LastUpstream, message.Mask(r.LastReply)); err != nil {
			return err
		}
	}
	return nil
}

func (d *liteDB) putEvent(_ *tx, r *record) error {
	e := &r.event
	_, err := d.exec("INSERT INTO event(node, seq, at, message, n, kind, stream, upstream, address, address_key, data) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		e.Node, e.Seq, ms(e.At), int64(e.Message), e.N, int(e.Kind), e.Stream, e.Upstream, r.address, r.key, r.data)
	return err
}

func (d *liteDB) settle(t *tx, s *message.Settlement) (ours bool, err error) {
	id, r := s.ID(), &s.Recipient
	var n int64
	switch {
	case s.Outcome != message.None:
		n, err = d.exec("DELETE FROM recipient WHERE message = ? AND n = ? AND owner = ? AND epoch = ?", int64(id.Message), id.N, t.s.node, s.Epoch)
	case s.Paused:
		n, err = d.exec("UPDATE recipient SET owner = 0, epoch = 0 WHERE message = ? AND n = ? AND owner = ? AND epoch = ?", int64(id.Message), id.N, t.s.node, s.Epoch)
	default:
		n, err = d.exec(`UPDATE recipient SET owner = 0, epoch = 0, state = ?, due_at = ?, attempts = ?, maybe_sent = ?, copies = ?,
			refused = ?, last_upstream = ?, last_reply = ? WHERE message = ? AND n = ? AND owner = ? AND epoch = ?`,
			int(r.State), ms(r.DueAt), r.Attempts, r.MaybeSent, r.Copies, joinNames(r.Refused), r.LastUpstream, message.Mask(r.LastReply),
			int64(id.Message), id.N, t.s.node, s.Epoch)
	}
	return n > 0, err
}

// maxScan bounds the rows that one Claim looks at for each need: those past their lifetime are passed over, and a long
// run of them must not hold up everybody's commit. Expire takes them away meanwhile.
const maxScan = 4096

// Rows of a lane that are due, earliest first, straight from index recipient_due.
const (
	claimDue = rowSelect + ` WHERE r.owner = 0 AND r.state = 0 AND r.lane = ? AND r.need = ? AND r.due_at <= ?
	ORDER BY r.due_at, r.message, r.n LIMIT ?`
	claimFar = rowSelect + ` WHERE r.owner = 0 AND r.state = 0 AND r.lane = ? AND r.need = ? AND r.due_at > ?
	ORDER BY r.due_at, r.message, r.n LIMIT ?`
)

// due chooses the rows that j may claim.
func (d *liteDB) due(t *tx, j *claimJob) ([]row, error) {
	near, err := d.find(t, j, claimDue, t.now)
	if err != nil || len(near) >= j.max {
		return near, err
	}
	far, err := d.find(t, j, claimFar, t.now.Add(longestStep))
	return append(near, far...), err
}

// find returns up to max living rows of each need, merged in order.
func (d *liteDB) find(t *tx, j *claimJob, query string, limit time.Time) ([]row, error) {
	var found []row
	for _, need := range j.can {
		n := 0
		err := d.query(func(rows scanner) (bool, error) {
			r, err := scanRow(rows)
			if err == nil && r.message.ExpiresAt.After(t.now) {
				found = append(found, r)
				n++
			}
			return n < j.max, err
		}, query, j.lane, need, ms(limit), maxScan)
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, inOrder)
	return found, nil
}

// inOrder is the order in which rows are claimed.
func inOrder(a, b row) int {
	return cmp.Or(a.DueAt.Compare(b.DueAt), cmp.Compare(a.message.ID, b.message.ID), cmp.Compare(a.N, b.N))
}

func (d *liteDB) stamp(t *tx, j *claimJob) error {
	for _, r := range j.claimed {
		if _, err := d.exec("UPDATE recipient SET owner = ?, epoch = ? WHERE message = ? AND n = ?", t.s.node, t.epoch, int64(r.message.ID), r.N); err != nil {
			return err
		}
	}
	return nil
}

func (d *liteDB) release(t *tx, ids []message.RecipientID) error {
	for _, id := range ids {
		err := d.query(func(r scanner) (bool, error) {
			var lane string
			err := r.Scan(&lane)
			t.lanes[lane] = true
			return true, err
		}, "UPDATE recipient SET owner = 0, epoch = 0 WHERE message = ? AND n = ? AND owner = ? AND epoch = ? RETURNING lane",
			int64(id.Message), id.N, t.s.node, t.epoch)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *liteDB) claimKey(t *tx, m *message.Message) (holder message.Duplicate, err error) {
	key := t.submissionKey(m)
	n, err := d.exec(claimKey, key, int64(m.ID), statusOf(m), ms(m.ExpiresAt), ms(t.now))
	if err != nil || n > 0 {
		return message.Duplicate{Of: m.ID}, err
	}
	err = d.query(func(r scanner) (_ bool, err error) { holder, _, err = scanHolder(r); return false, err }, keyHolder+"= ?", key)
	return holder, err
}

// claimKey takes a key that is free or whose message's lifetime has ended.
const claimKey = `INSERT INTO submission(key, message, status, expires_at) VALUES(?1, ?2, ?3, ?4)
	ON CONFLICT(key) DO UPDATE SET message = excluded.message, status = excluded.status, expires_at = excluded.expires_at WHERE expires_at <= ?5`

func (d *liteDB) forgetKey(id message.ID) error {
	_, err := d.exec(forgetKey, int64(id))
	return err
}

func (d *liteDB) cutKeys() string {
	return "DELETE FROM submission WHERE key IN (SELECT key FROM submission WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"
}

func (d *liteDB) waits(*tx, []byte) bool { return true }

func (d *liteDB) again(t *tx, found []row) (now []row, err error) {
	for i := range found {
		if err := t.rows(&now, rowSelect+" WHERE r.message = ? AND r.n = ?", int64(found[i].message.ID), found[i].N); err != nil {
			return nil, err
		}
	}
	return now, nil
}

func (d *liteDB) takeBack(_ *tx, id message.ID) (ns []int, err error) {
	err = d.query(func(r scanner) (bool, error) {
		var n int
		err := r.Scan(&n)
		ns = append(ns, n)
		return err == nil, err
	}, "DELETE FROM recipient WHERE message = ? RETURNING n", int64(id))
	return ns, err
}

func (d *liteDB) end(_ *tx, id message.RecipientID) error {
	_, err := d.exec("DELETE FROM recipient WHERE message = ? AND n = ?", int64(id.Message), id.N)
	return err
}

// endMessage removes a message that has no recipients left. The parts of a large body are removed afterwards.
func (d *liteDB) endMessage(t *tx, id message.ID) error {
	n, err := d.exec("DELETE FROM message WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM recipient WHERE message = ?1)", int64(id))
	if err != nil || n == 0 {
		return err
	}
	if err := d.forgetSignature(id); err != nil {
		return err
	}
	if n, err = d.exec("DELETE FROM body WHERE id = ? AND octets = 0", int64(id)); err != nil || n > 0 {
		return err
	}
	if n, err = d.exec("DELETE FROM body WHERE id = ?", int64(id)); n > 0 {
		t.after = append(t.after, func() { t.s.partsDead(id) })
	}
	return err
}

// nextLarge steps from one large body to the next.
const nextLarge = `SELECT p.id, EXISTS (SELECT 1 FROM body b WHERE b.id = p.id AND b.octets > 0) FROM body_part p WHERE p.id > ? ORDER BY p.id LIMIT 1`

func (d *liteDB) leftovers(_ *tx, after message.ID) (found []message.ID, last message.ID, end bool, err error) {
	for range searchPage {
		var alive bool
		end = true
		err := d.query(func(r scanner) (bool, error) {
			end = false
			return false, r.Scan((*int64)(&after), &alive)
		}, nextLarge, int64(after))
		if err != nil || end {
			return found, after, end, err
		}
		if !alive {
			found = append(found, after)
		}
	}
	return found, after, false, nil
}

const freePagesKept = 4096 // 16 MB of free pages stay in the file: giving back what is needed again is waste

func (d *liteDB) giveBack(t *tx) (more bool, err error) {
	var free int
	if err := t.one("PRAGMA freelist_count", &free); err != nil || free <= freePagesKept {
		return false, err
	}
	_, err = d.exec("PRAGMA incremental_vacuum(64)")
	return true, err
}
