package store

import (
	"encoding/json"
	"strings"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// Bits of message.flags.
const (
	flagSMTPUTF8 = 1 << iota
	flagAuth
)

// rowSelect reads recipients with what of their message is needed beside them. The join is a CROSS JOIN so that r is
// walked, by the index that its condition asks for.
const (
	rowSelect  = rowColumns + " FROM recipient r CROSS JOIN message m ON m.id = r.message"
	rowColumns = `SELECT r.message, r.n, r.address, r.lane, r.need, r.state, r.due_at, r.attempts, r.maybe_sent, r.copies, r.owner,
	r.refused, r.last_upstream, r.last_reply,
	m.stream, m.client, m.mail_from, m.header_from, m.size, m.flags, m.accepted_at, m.expires_at, m.attrs`
)

// row is one recipient as stored.
type row struct {
	message.Recipient
	message *message.Message // without body, hash and recipients
	owner   int64
	broken  bool // cannot be read whole, and is not to be sent
}

func scanRow(rows scanner) (row, error) {
	r := row{message: &message.Message{}}
	m := r.message
	var dueAt, acceptedAt, expiresAt, flags int64
	var refused, attrs string
	err := rows.Scan((*int64)(&m.ID), &r.N, &r.Address, &r.Lane, &r.Need, (*int)(&r.State), &dueAt, &r.Attempts, &r.MaybeSent, &r.Copies, &r.owner,
		&refused, &r.LastUpstream, &r.LastReply,
		&m.Stream, &m.Client, &m.MailFrom, &m.HeaderFrom, &m.Size, &flags, &acceptedAt, &expiresAt, &attrs)
	var unread error
	m.Attrs, unread = decodeAttrs(attrs)
	r.broken = unread != nil
	r.DueAt, m.AcceptedAt, m.ExpiresAt = at(dueAt), at(acceptedAt), at(expiresAt)
	r.Refused = splitNames(refused)
	m.SMTPUTF8 = flags&flagSMTPUTF8 != 0
	if m.Kind = message.Marketing; flags&flagAuth != 0 {
		m.Kind = message.Auth
	}
	return r, err
}

// rows appends what a query made of rowSelect finds.
func (t *tx) rows(to *[]row, query string, args ...any) error {
	return t.db.query(func(rows scanner) (bool, error) {
		r, err := scanRow(rows)
		*to = append(*to, r)
		return err == nil, err
	}, query, args...)
}

// id returns the row's key.
func (r *row) id() message.RecipientID { return message.RecipientID{Message: r.message.ID, N: r.N} }

// event starts the record of something that happened to r at now.
func (r *row) event(kind event.Kind, now time.Time) event.Event {
	return recipientEvent(kind, r.message, &r.Recipient, now)
}

// recovered marks r as freed from an owner that is gone, who may have sent it, and records that.
func (t *tx) recovered(r *row) error {
	r.MaybeSent, r.Copies, r.DueAt = true, r.Copies+1, t.now
	e := r.event(event.Recovered, t.now)
	e.Data.Text = "the process ended while this was being handed over"
	return t.append(e)
}

// end removes an unowned row that is over, and its message with the body when it was the last one.
func (t *tx) end(id message.RecipientID) error {
	if err := t.db.end(t, id); err != nil {
		return err
	}
	return t.db.endMessage(t, id.Message)
}

// joinNames and splitNames store lists of config names, which hold no commas.
func joinNames(names []string) string { return strings.Join(names, ",") }

func splitNames(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// encodeAttrs and decodeAttrs store a message's attributes as JSON, none as "".
func encodeAttrs(attrs map[string]string) (string, error) {
	if len(attrs) == 0 {
		return "", nil
	}
	b, err := json.Marshal(attrs)
	return string(b), err
}

func decodeAttrs(s string) (attrs map[string]string, err error) {
	if s != "" {
		err = json.Unmarshal([]byte(s), &attrs)
	}
	return attrs, err
}
