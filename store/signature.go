package store

import (
	"context"
	"fmt"

	"gatepost/message"
)

// Signatures are kept with deferred mail so that its next try need not make them again. Mail whose body is sealed goes
// without: the hash of the body that they hold gives away a code of six digits to whoever tries them all.

const keepSignature = `INSERT INTO signature(message, profile, data) VALUES(?, ?, ?)
	ON CONFLICT(message) DO UPDATE SET profile = excluded.profile, data = excluded.data`

// keepsSignature reports whether a signature comes with s that is to be kept: the row stays, and may.
func keepsSignature(s *message.Settlement) bool {
	return s.Signature != nil && s.Outcome == message.None && !isSealed(s.Message)
}

func (t *tx) keepSignature(s *message.Settlement) error {
	if !keepsSignature(s) {
		return nil
	}
	return t.db.keepSignature(s.Message.ID, s.Signature)
}

func (d *liteDB) keepSignature(id message.ID, kept *message.Signature) error {
	d.signatures = true
	return d.change(keepSignature, int64(id), kept.Profile[:], kept.Fields)
}

func (d *pgDB) keepSignature(id message.ID, kept *message.Signature) error {
	return d.change(keepSignature, int64(id), kept.Profile[:], kept.Fields)
}

// forgetSignature removes what was kept with a message that is over. On PostgreSQL the table sees to that.
func (d *liteDB) forgetSignature(id message.ID) error {
	if !d.signatures {
		return nil
	}
	return d.change("DELETE FROM signature WHERE message = ?", int64(id))
}

// readSignatures fills in what was kept with those of ds that were tried before.
func (s *Store) readSignatures(ds []*message.Delivery) error {
	tried := map[message.ID]*message.Delivery{}
	var ids []int64
	for _, d := range ds {
		if m := d.Message; !isSealed(m) && m.Recipients[0].Attempts > 0 {
			tried[m.ID], ids = d, append(ids, int64(m.ID))
		}
	}
	scan := func(r scanner) (bool, error) {
		var id message.ID
		var profile, data []byte
		err := r.Scan((*int64)(&id), &profile, &data)
		if s := new(message.Signature); err == nil && len(profile) == len(s.Profile) {
			s.Profile, s.Fields = [len(s.Profile)]byte(profile), data
			tried[id].Signature = s
		}
		return err == nil, err
	}
	var err error
	const query = "SELECT message, profile, data FROM signature WHERE message "
	switch {
	case len(ids) == 0:
	case s.fleet != nil:
		err = s.fleet.read(context.Background(), scan, query+"= ANY($1)", ids)
	default:
		for _, id := range ids {
			if err = s.read(context.Background(), scan, query+"= ?", id); err != nil {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("read signatures: %w", err)
	}
	return nil
}
