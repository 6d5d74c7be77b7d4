package store

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/message"
)

// pgChanges are rows to be written and removed, by column, until collect makes statements of them.
type pgChanges struct {
	messages   columns
	bodies     columns
	recipients columns
	events     columns
	gone       recipientIDs // unowned rows that have ended
	over       []int64      // messages that may have lost their last recipient
	tx         *tx          // of which they are
}

// pgAsked is what prepare has found out.
type pgAsked struct {
	ours   map[*message.Settlement]bool
	due    map[*claimJob][]row
	taken  map[message.RecipientID]bool // by claims of this transaction
	keys   map[string]bool              // under which something may wait
	values bool                         // keys is filled in
	orders map[string]message.Duplicate // whose each submission key is
}

// columns are rows, each column an array of its own as unnest takes them.
type columns []any

// add appends a row.
func (c *columns) add(values ...any) {
	if *c == nil {
		*c = make(columns, len(values))
	}
	for i, v := range values {
		switch v := v.(type) {
		case int:
			(*c)[i] = appendTo((*c)[i], int64(v))
		case int64:
			(*c)[i] = appendTo((*c)[i], v)
		case bool:
			(*c)[i] = appendTo((*c)[i], v)
		case string:
			(*c)[i] = appendTo((*c)[i], clean(v))
		case *string:
			(*c)[i] = appendTo((*c)[i], v)
		case []byte:
			(*c)[i] = appendTo((*c)[i], v)
		default:
			panic("store: no column takes such a value") // a mistake in this file
		}
	}
}

func appendTo[T any](column any, v T) any {
	list, _ := column.([]T)
	return append(list, v)
}

// recipientIDs are ids of rows as two columns.
type recipientIDs struct {
	messages []int64
	ns       []int32
}

func (r *recipientIDs) add(id message.RecipientID) {
	r.messages, r.ns = append(r.messages, int64(id.Message)), append(r.ns, int32(id.N))
}

// The statements that write and remove rows, one for each table.
const (
	insertMessages = `INSERT INTO message(id, stream, client, mail_from, header_from, size, flags, body_hash, accepted_at, expires_at, supersede, attrs)
		SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::integer[], $8::bytea[], $9::bigint[], $10::bigint[], $11::bytea[], $12::text[])`
	insertBodies     = "INSERT INTO body(id, format, key_id, data, octets) SELECT * FROM unnest($1::bigint[], $2::integer[], $3::bigint[], $4::bytea[], $5::integer[])"
	insertRecipients = `INSERT INTO recipient(message, n, address, lane, need, state, due_at, attempts, maybe_sent, copies, owner, epoch, refused, last_upstream, last_reply)
		SELECT * FROM unnest($1::bigint[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::integer[], $7::bigint[], $8::integer[], $9::boolean[], $10::integer[],
		$11::integer[], $12::bigint[], $13::text[], $14::text[], $15::text[])`
	insertEvents = `INSERT INTO event(node, seq, at, message, n, kind, stream, upstream, address, address_key, data)
		SELECT * FROM unnest($1::integer[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::integer[], $7::text[], $8::text[], $9::text[], $10::bytea[], $11::text[])`
	deleteRecipients = "WITH s AS MATERIALIZED (SELECT p.place FROM unnest($1::bigint[], $2::integer[]) AS g(message, n)" + placeOf +
		" FOR UPDATE) p) DELETE FROM recipient r USING s WHERE r.ctid = s.place"
	deleteMessages = "DELETE FROM message m WHERE m.id = ANY($1) AND (SELECT r.n FROM recipient r WHERE r.message = m.id LIMIT 1) IS NULL"
	deleteBodies   = "DELETE FROM body b WHERE b.id = ANY($1) AND (SELECT m.id FROM message m WHERE m.id = b.id) IS NULL RETURNING b.id, b.octets > 0"
)

// placeOf finds and locks the rows that g names, one by one. Plans live long, and the tables of a queue are empty one
// minute and full the next: a join would be planned for the first, and walk over everything in the second.
const placeOf = " CROSS JOIN LATERAL (SELECT ctid AS place FROM recipient WHERE message = g.message AND n = g.n"

// collect makes statements of the rows that wait, in an order in which each finds what it needs.
func (d *pgDB) collect() {
	c := d.changes
	d.changes = pgChanges{tx: c.tx}
	for _, insert := range []struct {
		sql  string
		rows columns
	}{{insertMessages, c.messages}, {insertBodies, c.bodies}, {insertRecipients, c.recipients}} {
		if insert.rows != nil {
			d.batch.Queue(insert.sql, insert.rows...)
		}
	}
	if len(c.gone.ns) > 0 {
		d.batch.Queue(deleteRecipients, c.gone.messages, c.gone.ns)
	}
	if len(c.over) > 0 {
		d.batch.Queue(deleteMessages, c.over)
		d.batch.Queue(deleteBodies, c.over).Query(func(rows pgx.Rows) error { return eachOf(rows, c.tx.bodyGone) })
	}
	if c.events != nil {
		d.batch.Queue(insertEvents, c.events...)
	}
}

// bodyGone has the parts of a large body removed once it is durable that the body is gone.
func (t *tx) bodyGone(r scanner) (bool, error) {
	var id message.ID
	var large bool
	err := r.Scan((*int64)(&id), &large)
	if large {
		t.after = append(t.after, func() { t.s.partsDead(id) })
	}
	return true, err
}

// prepare applies the settlements of a batch, finds what its claims may take, and learns which supersede keys concern
// anything, all in one round trip.
func (d *pgDB) prepare(t *tx, jobs []job) error {
	d.changes.tx = t
	settle := pgSettle{byRow: map[settled]*message.Settlement{}}
	var claims []*claimJob
	keys, orders := map[string]int{}, map[string]*message.Message{}
	for _, j := range jobs {
		switch j := j.(type) {
		case *settleJob:
			settle.add(j.list)
		case *claimJob:
			claims = append(claims, j)
		case *putJob:
			for _, m := range j.messages {
				if len(m.Supersede) > 0 {
					keys[string(m.Supersede)]++
				}
				if len(m.Key) == 0 {
					continue
				}
				if key := string(t.submissionKey(m)); orders[key] == nil {
					orders[key] = m
				}
			}
		}
	}
	if len(settle.byRow)+len(claims)+len(keys)+len(orders) == 0 {
		return nil
	}
	settle.ask(d, t) // first: what follows waits for no locks but those of submission keys, always in their order
	for _, j := range claims {
		d.askDue(t, j)
	}
	d.askKeys(keys)
	d.askOrders(t, orders)
	return d.flush()
}

// askKeys finds out under which supersede keys a message is stored, or several are about to be.
func (d *pgDB) askKeys(keys map[string]int) {
	if len(keys) == 0 {
		return
	}
	d.asked.keys, d.asked.values = map[string]bool{}, true
	list := make([][]byte, 0, len(keys))
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		list = append(list, []byte(k))
		d.asked.keys[k] = keys[k] > 1
	}
	d.ask(func(r scanner) (bool, error) {
		var key []byte
		err := r.Scan(&key)
		d.asked.keys[string(key)] = true
		return true, err
	}, "SELECT DISTINCT supersede FROM message WHERE supersede IS NOT NULL AND supersede = ANY($1)", list)
}

func (d *pgDB) waits(_ *tx, key []byte) bool { return !d.asked.values || d.asked.keys[string(key)] }

// pgSettle is what the settlements of a batch do to rows, of each kind in one statement.
type pgSettle struct {
	byRow                 map[settled]*message.Settlement
	ended, paused, others columns
	locked                []int64
}

// settled tells settlements apart. Of two that are the same only the first can be in time.
type settled struct {
	id    message.RecipientID
	epoch int64
}

func (p *pgSettle) add(list []message.Settlement) {
	for i := range list {
		s := &list[i]
		key := settled{s.ID(), s.Epoch}
		if p.byRow[key] != nil {
			continue
		}
		p.byRow[key] = s
	}
}

// The changes of settlements. The messages that may end, or get a signature, are locked first, always in order of id:
// whoever removes the last recipient has to see that the others are gone, and a signature locks its message as well.
const (
	lockMessages = "SELECT id FROM message WHERE id = ANY($1) ORDER BY id FOR UPDATE"
	ourPlaces    = placeOf + " AND owner = $1 AND epoch = g.epoch FOR UPDATE) p) "
	endOfSettle  = " WHERE r.ctid = s.place RETURNING s.message, s.n, s.epoch"
	settledRows  = "WITH s AS MATERIALIZED (SELECT g.*, p.place FROM unnest($2::bigint[], $3::integer[], $4::bigint[]) AS g(message, n, epoch)" + ourPlaces
	settleEnded  = settledRows + "DELETE FROM recipient r USING s" + endOfSettle
	settlePaused = settledRows + "UPDATE recipient r SET owner = 0, epoch = 0 FROM s" + endOfSettle
	settleOthers = `WITH s AS MATERIALIZED (SELECT g.*, p.place
		FROM unnest($2::bigint[], $3::integer[], $4::bigint[], $5::integer[], $6::bigint[], $7::integer[], $8::boolean[], $9::integer[], $10::text[], $11::text[], $12::text[])
		AS g(message, n, epoch, state, due_at, attempts, maybe_sent, copies, refused, last_upstream, last_reply)` + ourPlaces + `
		UPDATE recipient r SET owner = 0, epoch = 0, state = s.state, due_at = s.due_at, attempts = s.attempts, maybe_sent = s.maybe_sent,
		copies = s.copies, refused = s.refused, last_upstream = s.last_upstream, last_reply = s.last_reply FROM s` + endOfSettle
)

// ask queues the statements.
func (p *pgSettle) ask(d *pgDB, t *tx) {
	for key, s := range p.byRow {
		r := &s.Recipient
		id, n := int64(key.id.Message), key.id.N
		if s.Outcome != message.None || keepsSignature(s) {
			p.locked = append(p.locked, id)
		}
		switch {
		case s.Outcome != message.None:
			p.ended.add(id, n, s.Epoch)
		case s.Paused:
			p.paused.add(id, n, s.Epoch)
		default:
			p.others.add(id, n, s.Epoch, int(r.State), d.f.clock.due(r.DueAt), r.Attempts, r.MaybeSent, r.Copies,
				joinNames(r.Refused), r.LastUpstream, message.Mask(r.LastReply))
		}
	}
	d.asked.ours = map[*message.Settlement]bool{}
	if p.locked != nil {
		slices.Sort(p.locked)
		d.batch.Queue(lockMessages, slices.Compact(p.locked))
	}
	for _, change := range []struct {
		sql  string
		rows columns
	}{{settleEnded, p.ended}, {settlePaused, p.paused}, {settleOthers, p.others}} {
		if change.rows != nil {
			d.batch.Queue(change.sql, append([]any{t.s.node}, change.rows...)...).
				Query(func(rows pgx.Rows) error { return eachOf(rows, p.done(d)) })
		}
	}
}

// done notes which rows were ours.
func (p *pgSettle) done(d *pgDB) func(scanner) (bool, error) {
	return func(r scanner) (bool, error) {
		var key settled
		err := r.Scan((*int64)(&key.id.Message), &key.id.N, &key.epoch)
		d.asked.ours[p.byRow[key]] = true
		return err == nil, err
	}
}

func (d *pgDB) settle(_ *tx, s *message.Settlement) (ours bool, err error) {
	return d.asked.ours[s], nil
}

// Rows of a lane that are due, earliest first, straight from index recipient_due.
const (
	pgClaimDue = rowSelect + ` WHERE r.owner = 0 AND r.state = 0 AND r.lane = ? AND r.need = ? AND r.due_at <= ? AND m.expires_at > ?
	ORDER BY r.due_at, r.message, r.n LIMIT ? FOR UPDATE OF r SKIP LOCKED`
	pgClaimFar = rowSelect + ` WHERE r.owner = 0 AND r.state = 0 AND r.lane = ? AND r.need = ? AND r.due_at > ? AND m.expires_at > ?
	ORDER BY r.due_at, r.message, r.n LIMIT ? FOR UPDATE OF r SKIP LOCKED`
)

// askDue looks for what j may claim, and keeps others from claiming it too.
func (d *pgDB) askDue(t *tx, j *claimJob) {
	if d.asked.due == nil {
		d.asked.due, d.asked.taken = map[*claimJob][]row{}, map[message.RecipientID]bool{}
	}
	found := func(rows scanner) (bool, error) {
		r, err := scanRow(rows)
		d.asked.due[j] = append(d.asked.due[j], r)
		return err == nil, err
	}
	for _, need := range j.can {
		d.ask(found, pgClaimDue, j.lane, need, ms(t.now), ms(t.now), j.max)
		d.ask(found, pgClaimFar, j.lane, need, ms(t.now.Add(longestStep)), ms(t.now), j.max)
	}
}

func (d *pgDB) due(t *tx, j *claimJob) (rows []row, err error) {
	far := t.now.Add(longestStep)
	for _, r := range d.asked.due[j] {
		if !d.asked.taken[r.id()] {
			rows = append(rows, r)
		}
	}
	late := func(r row) int { return map[bool]int{true: 1}[r.DueAt.After(far)] }
	slices.SortFunc(rows, func(a, b row) int { return cmp.Or(cmp.Compare(late(a), late(b)), inOrder(a, b)) })
	return rows, nil
}

// stampRows leaves out what was changed in this transaction since it was looked for.
const stampRows = "WITH s AS MATERIALIZED (SELECT g.*, p.place FROM unnest($3::bigint[], $4::integer[]) AS g(message, n)" + placeOf +
	" AND owner + 0 = 0 AND state + 0 = 0 FOR UPDATE) p) UPDATE recipient r SET owner = $1, epoch = $2 FROM s WHERE r.ctid = s.place RETURNING s.message, s.n"

func (d *pgDB) stamp(t *tx, j *claimJob) error {
	if len(j.claimed) == 0 {
		return nil
	}
	var ids recipientIDs
	for i := range j.claimed {
		id := j.claimed[i].id()
		d.asked.taken[id] = true
		ids.add(id)
	}
	stamped := map[message.RecipientID]bool{}
	d.collect()
	d.batch.Queue(stampRows, t.s.node, t.epoch, ids.messages, ids.ns).Query(func(rows pgx.Rows) error {
		err := eachOf(rows, func(r scanner) (bool, error) {
			var id message.RecipientID
			err := r.Scan((*int64)(&id.Message), &id.N)
			stamped[id] = true
			return err == nil, err
		})
		j.claimed = slices.DeleteFunc(j.claimed, func(r row) bool { return !stamped[r.id()] })
		return err
	})
	return nil
}

func (d *pgDB) release(t *tx, ids []message.RecipientID) error {
	var rows recipientIDs
	for _, id := range ids {
		rows.add(id)
	}
	d.ask(func(r scanner) (bool, error) {
		var lane string
		err := r.Scan(&lane)
		t.lanes[lane] = true
		return err == nil, err
	}, releaseRows, t.s.node, t.epoch, rows.messages, rows.ns)
	return nil
}

const releaseRows = "WITH s AS MATERIALIZED (SELECT p.place FROM unnest($3::bigint[], $4::integer[]) AS g(message, n)" + placeOf +
	" AND owner = $1 AND epoch = $2 FOR UPDATE) p) UPDATE recipient r SET owner = 0, epoch = 0 FROM s WHERE r.ctid = s.place RETURNING r.lane"

func (d *pgDB) put(t *tx, m *message.Message, attrs string, b storedBody, own bool) error {
	c, clock := &d.changes, &d.f.clock
	var key []byte // NULL where there is none
	if len(m.Supersede) > 0 {
		key = m.Supersede
	}
	c.messages.add(int64(m.ID), m.Stream, m.Client, m.MailFrom, m.HeaderFrom, m.Size, flags(m), m.BodyHash,
		clock.stored(m.AcceptedAt), clock.stored(m.ExpiresAt), key, attrs)
	c.bodies.add(int64(m.ID), b.format, b.keyID, append([]byte{}, b.data...), b.octets)
	owner, epoch := 0, int64(0)
	if own {
		owner, epoch = t.s.node, t.epoch
	}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		c.recipients.add(int64(m.ID), r.N, r.Address, r.Lane, r.Need, int(r.State), clock.due(r.DueAt), r.Attempts,
			r.MaybeSent, r.Copies, owner, epoch, joinNames(r.Refused), r.LastUpstream, message.Mask(r.LastReply))
	}
	return nil
}

func (d *pgDB) putEvent(_ *tx, r *record) error {
	e, address := &r.event, r.address
	if address != nil {
		address = new(clean(*address))
	}
	d.changes.events.add(e.Node, e.Seq, ms(e.At), int64(e.Message), e.N, int(e.Kind), e.Stream, e.Upstream, address, r.key, r.data)
	return nil
}

func (d *pgDB) again(t *tx, found []row) (now []row, err error) {
	var ids recipientIDs
	for i := range found {
		ids.add(found[i].id())
	}
	const rows = rowColumns + ` FROM unnest($1::bigint[], $2::integer[]) AS g(message, n)
		CROSS JOIN LATERAL (SELECT * FROM recipient WHERE message = g.message AND n = g.n OFFSET 0) r CROSS JOIN message m ON m.id = r.message`
	locked := map[message.RecipientID]bool{}
	d.ask(func(r scanner) (bool, error) {
		one, err := scanRow(r)
		if err == nil {
			now, locked[one.id()] = append(now, one), true
		}
		return err == nil, err
	}, rows+" WHERE r.owner = 0 FOR UPDATE OF r, m SKIP LOCKED", ids.messages, ids.ns)
	d.ask(func(r scanner) (bool, error) {
		one, err := scanRow(r)
		if err == nil && !locked[one.id()] {
			one.owner = max(one.owner, 1) // another transaction has it, which is to be in flight
			now = append(now, one)
		}
		return err == nil, err
	}, rows, ids.messages, ids.ns)
	err = d.flush()
	slices.SortFunc(now, func(a, b row) int { return cmp.Or(cmp.Compare(a.message.ID, b.message.ID), cmp.Compare(a.N, b.N)) })
	return now, err
}

// takeBack leaves alone what another node has claimed meanwhile: it may have been sent.
func (d *pgDB) takeBack(t *tx, id message.ID) (ns []int, err error) {
	d.ask(func(scanner) (bool, error) { return true, nil }, lockMessages, []int64{int64(id)})
	err = d.query(func(r scanner) (bool, error) {
		var n int
		err := r.Scan(&n)
		ns = append(ns, n)
		return err == nil, err
	}, "DELETE FROM recipient WHERE message = $1 AND owner IN (0, $2) RETURNING n", int64(id), t.s.node)
	return ns, err
}

func (d *pgDB) end(_ *tx, id message.RecipientID) error {
	d.changes.gone.add(id)
	return nil
}

func (d *pgDB) endMessage(t *tx, id message.ID) error {
	d.changes.tx = t
	d.changes.over = append(d.changes.over, int64(id))
	return nil
}

// load never goes back in number: after a failover that lost events, no new one gets the number of one that others have
// seen.
func (d *pgDB) load(t *tx) error {
	var last, seq int64
	err := d.query(func(r scanner) (bool, error) { return false, r.Scan(&seq, &last) }, `SELECT coalesce((SELECT max(seq) FROM event WHERE node = $1), 0),
		greatest((SELECT max(id) FROM message), (SELECT max(message) FROM event), (SELECT max(id) FROM body_part), 0)`, t.s.node)
	t.seq = max(t.seq, seq)
	t.s.ids.raise(message.ID(last))
	return err
}

// orphanAge is how old parts without a message are when a node removes them that did not write them.
const orphanAge = time.Hour

func (d *pgDB) leftovers(t *tx, after message.ID) (found []message.ID, last message.ID, end bool, err error) {
	last, n := after, 0
	err = d.query(func(r scanner) (bool, error) {
		var alive bool
		err := r.Scan((*int64)(&last), &alive)
		n++
		if !alive && (last.Node() == t.s.node || t.now.Sub(last.Time()) > orphanAge) {
			found = append(found, last)
		}
		return err == nil, err
	}, `SELECT p.id, coalesce((SELECT b.octets > 0 FROM body b WHERE b.id = p.id), false) FROM body_part p WHERE p.id > $1 AND p.n = 0 ORDER BY p.id LIMIT $2`,
		int64(after), searchPage)
	return found, last, n < searchPage, err
}

// giveBack leaves it to VACUUM.
func (d *pgDB) giveBack(*tx) (more bool, err error) { return false, nil }

// deadSelect finds rows stamped with an epoch that is over.
const deadSelect = rowColumns + ` FROM node d CROSS JOIN LATERAL (SELECT * FROM recipient WHERE owner = d.id AND owner <> 0 AND epoch < d.epoch
	LIMIT $1 FOR UPDATE SKIP LOCKED) r CROSS JOIN message m ON m.id = r.message LIMIT $1`

const freeRows = "WITH s AS MATERIALIZED (SELECT p.place FROM unnest($1::bigint[], $2::integer[]) AS g(message, n)" + placeOf +
	" FOR UPDATE) p) UPDATE recipient r SET owner = 0, epoch = 0, maybe_sent = true, copies = r.copies + 1, due_at = $3 FROM s WHERE r.ctid = s.place"

// freeDead frees a page of what nodes owned when their epoch ended. Each of it may have been sent.
func (f *fleet) freeDead(t *tx) (n int, err error) {
	var dead []row
	if err := t.rows(&dead, deadSelect, deadPage); err != nil || len(dead) == 0 {
		return 0, err
	}
	var ids recipientIDs
	for i := range dead {
		ids.add(dead[i].id())
		t.lanes[dead[i].Lane] = true
		if err := t.recovered(&dead[i]); err != nil {
			return 0, err
		}
	}
	return len(dead), t.db.change(freeRows, ids.messages, ids.ns, ms(t.now))
}
