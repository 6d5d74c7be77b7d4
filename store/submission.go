package store

import (
	"errors"
	"slices"

	"gatepost/message"
)

// errFreed says that a key was another message's when it was asked for, and nobody's right after.
var errFreed = errors.New("the key that the message came under has just become free")

// claimKeys remembers the keys of ms for as long as each could live. Where one is that of a message which was put before
// and could still live, none is remembered, and the id of that message returned; else 0.
func (t *tx) claimKeys(ms []*message.Message) (known message.ID, err error) {
	for _, m := range ms {
		if len(m.Key) == 0 {
			continue
		}
		holder, err := t.db.claimKey(t, m)
		if err != nil {
			return 0, err
		}
		if !slices.ContainsFunc(ms, func(m *message.Message) bool { return m.ID == holder }) {
			return holder, t.forgetKeys(ms)
		}
	}
	return 0, nil
}

func (t *tx) forgetKeys(ms []*message.Message) error {
	for _, m := range ms {
		if len(m.Key) == 0 {
			continue
		}
		if err := t.db.forgetKey(m.ID); err != nil {
			return err
		}
	}
	return nil
}

// statusTaken is submission.status of what was put: a repetition is told that it was accepted.
const statusTaken = 200

const forgetKey = "DELETE FROM submission WHERE message = ?"

// submissionPage bounds the keys that one turn of upkeep removes.
const submissionPage = 500

// cutSubmissions deletes a page of keys whose messages' lifetimes have ended.
func (t *tx) cutSubmissions() (more bool, err error) {
	n, err := t.exec(t.db.cutKeys(), ms(t.now), submissionPage)
	return n >= submissionPage, err
}
