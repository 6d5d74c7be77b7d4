package store

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"slices"

	"gatepost/message"
)

// errFreed says that a key was another message's when it was asked for, and nobody's right after.
var errFreed = errors.New("the key that the message came under has just become free")

// claimKeys remembers the keys of ms for as long as each could live. Where one is that of a message which was put before
// and could still live, none is remembered, and that message returned; else nil.
func (t *tx) claimKeys(ms []*message.Message) (known *message.Duplicate, err error) {
	for _, m := range ms {
		if len(m.Key) == 0 {
			continue
		}
		holder, err := t.db.claimKey(t, m)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(ms, func(m *message.Message) bool { return m.ID == holder.Of }) {
			return &holder, t.forgetKeys(ms)
		}
	}
	return nil, nil
}

// submissionKey returns what the database has of m's Key, which may be the hash of a request with a code in it: whoever has
// no more than the database cannot find that out by trying all codes.
func (t *tx) submissionKey(m *message.Message) []byte {
	h := hmac.New(sha256.New, t.s.history)
	h.Write([]byte("submission\x00"))
	h.Write(m.Key)
	return h.Sum(nil)
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

// statusTaken is submission.status of what was put with a key alone.
const statusTaken = 200

// statusOf returns what submission.status says of m: that it was put, and with which fingerprint.
func statusOf(m *message.Message) int {
	if m.Print == 0 {
		return statusTaken
	}
	return int(m.Print)
}

// keyHolder asks for the message that has a key. scanHolder reads the answer.
const keyHolder = "SELECT key, message, status FROM submission WHERE key "

func scanHolder(r scanner) (holder message.Duplicate, key []byte, err error) {
	err = r.Scan(&key, (*int64)(&holder.Of), &holder.Fingerprint)
	if holder.Fingerprint == statusTaken {
		holder.Fingerprint = 0
	}
	return holder, key, err
}

const forgetKey = "DELETE FROM submission WHERE message = ?"

// submissionPage bounds the keys that one turn of upkeep removes.
const submissionPage = 500

// cutSubmissions deletes a page of keys whose messages' lifetimes have ended.
func (t *tx) cutSubmissions() (more bool, err error) {
	n, err := t.exec(t.db.cutKeys(), ms(t.now), submissionPage)
	return n >= submissionPage, err
}
