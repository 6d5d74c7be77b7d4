package store

import (
	"gatepost/message"
)

// submitted returns the message that was put under the key of one of ms before, where that is still remembered; 0 for
// none.
func (t *tx) submitted(ms []*message.Message) (known message.ID, err error) {
	for _, m := range ms {
		if len(m.Key) == 0 || known != 0 {
			continue
		}
		err = t.db.query(func(r scanner) (bool, error) { return false, r.Scan((*int64)(&known)) },
			"SELECT message FROM submission WHERE key = ? AND expires_at > ?", m.Key, t.now.UnixMilli())
		if err != nil {
			return 0, err
		}
	}
	return known, nil
}

// statusTaken is submission.status of what was put: a repetition is told that it was accepted.
const statusTaken = 200

// putKey remembers m's key for as long as m could live. One that is there has expired.
func (t *tx) putKey(m *message.Message) error {
	if len(m.Key) == 0 {
		return nil
	}
	_, err := t.exec(`INSERT INTO submission(key, message, status, expires_at) VALUES(?, ?, ?, ?)
	ON CONFLICT(key) DO UPDATE SET message = excluded.message, status = excluded.status, expires_at = excluded.expires_at`,
		m.Key, int64(m.ID), statusTaken, ms(m.ExpiresAt))
	return err
}

// forgetKey makes the key that a message was put under, if there is one, free again.
func (t *tx) forgetKey(id message.ID) error {
	_, err := t.exec("DELETE FROM submission WHERE message = ?", int64(id))
	return err
}

// submissionPage bounds the keys that one turn of upkeep removes.
const submissionPage = 500

// cutSubmissions deletes a page of keys whose messages' lifetimes have ended.
func (t *tx) cutSubmissions() (more bool, err error) {
	n, err := t.exec("DELETE FROM submission WHERE key IN (SELECT key FROM submission WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)",
		t.now.UnixMilli(), submissionPage)
	return n >= submissionPage, err
}
