package store

import (
	"gatepost/event"
	"gatepost/message"
)

// supersedeSelect finds what waits under a supersede key, of messages older than one.
const supersedeSelect = rowColumns + ` FROM message m INDEXED BY message_supersede CROSS JOIN recipient r ON r.message = m.id
	WHERE m.supersede = ? AND m.id + 0 < ? AND r.owner = 0 AND r.state = 0`

// supersede ends the recipients of messages with m's key that are older than m and only wait to be sent: not those in
// flight, which may have arrived, nor those an operator holds. It returns the ids of the messages, each once.
func (t *tx) supersede(m *message.Message) (ids []message.ID, err error) {
	if len(m.Supersede) == 0 || !t.db.waits(t, m.Supersede) {
		return nil, nil
	}
	var older []row
	if err := t.rows(&older, t.db.locking(supersedeSelect), m.Supersede, int64(m.ID)); err != nil {
		return nil, err
	}
	for _, r := range older {
		if err := t.end(r.id()); err != nil {
			return nil, err
		}
		e := r.event(event.Superseded, t.now)
		e.Data.Text = "message " + m.ID.String() + " took its place"
		if err := t.append(e); err != nil {
			return nil, err
		}
		if len(ids) == 0 || ids[len(ids)-1] != r.message.ID {
			ids = append(ids, r.message.ID)
		}
	}
	return ids, nil
}
