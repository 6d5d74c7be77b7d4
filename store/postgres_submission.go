package store

import (
	"maps"
	"slices"

	"gatepost/message"
)

// How a batch takes the keys of its messages. Two nodes that insert the same key at the same moment wait for each other's
// commit, always in order of key; whose it is then is what the last statement tells. A key that is another's is not
// locked, so that the settlement which forgets it need not wait for those who ask.
const (
	freeKeys  = "WITH s AS MATERIALIZED (SELECT ctid AS place FROM submission WHERE key = ANY($1) AND expires_at + 0 <= $2 ORDER BY key FOR UPDATE)" + deletePlaces
	claimKeys = `INSERT INTO submission(key, message, status, expires_at)
		SELECT key, message, status, expires_at FROM unnest($1::bytea[], $2::bigint[], $3::integer[], $4::bigint[]) AS o(key, message, status, expires_at)
		ON CONFLICT(key) DO NOTHING`
	keyHolders   = keyHolder + "= ANY($1)"
	deletePlaces = " DELETE FROM submission o USING s WHERE o.ctid = s.place"
)

// askOrders takes the keys that messages of a batch come under, each for the first of them, and learns whose they are.
func (d *pgDB) askOrders(t *tx, orders map[string]*message.Message) {
	if len(orders) == 0 {
		return
	}
	var rows columns
	for _, key := range slices.Sorted(maps.Keys(orders)) {
		m := orders[key]
		rows.add([]byte(key), int64(m.ID), statusOf(m), d.f.clock.stored(m.ExpiresAt))
	}
	d.batch.Queue(freeKeys, rows[0], ms(t.now))
	d.batch.Queue(claimKeys, rows...)
	d.asked.orders = map[string]message.Duplicate{}
	d.ask(func(r scanner) (bool, error) {
		holder, key, err := scanHolder(r)
		d.asked.orders[string(key)] = holder
		return err == nil, err
	}, keyHolders, rows[0])
}

// claimKey finds no holder where the one there was has let go of the key between the insert and the question.
func (d *pgDB) claimKey(t *tx, m *message.Message) (holder message.Duplicate, err error) {
	holder, ok := d.asked.orders[string(t.submissionKey(m))]
	if !ok {
		return holder, errFreed
	}
	return holder, nil
}

func (d *pgDB) forgetKey(id message.ID) error {
	maps.DeleteFunc(d.asked.orders, func(_ string, holder message.Duplicate) bool { return holder.Of == id })
	return d.change(forgetKey, int64(id))
}

// cutKeys leaves out what a Put is taking over.
func (d *pgDB) cutKeys() string {
	return "WITH s AS MATERIALIZED (SELECT ctid AS place FROM submission WHERE expires_at <= ? ORDER BY expires_at LIMIT ? FOR UPDATE SKIP LOCKED)" + deletePlaces
}
