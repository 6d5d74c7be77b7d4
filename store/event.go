package store

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"
	"unicode"

	"gatepost/event"
	"gatepost/message"
)

const (
	defaultEvents = 100
	maxEvents     = 10000 // one answer
	maxProviderID = 256   // octets kept of an upstream's own id
)

// addressKey is the secret under which history can find an address again without holding it.
type addressKey []byte

// of returns the HMAC of an address, the same in whatever case it is written.
func (k addressKey) of(address string) []byte {
	if address == "" {
		return nil
	}
	h := hmac.New(sha256.New, k)
	h.Write([]byte(strings.ToLower(address)))
	return h.Sum(nil)
}

// recipientEvent starts the record of something that happened to a recipient at now.
func recipientEvent(kind event.Kind, m *message.Message, r *message.Recipient, now time.Time) event.Event {
	hook, ordered := m.Ordered()
	return event.Event{
		At: now, Kind: kind, Message: m.ID, N: r.N, Stream: m.Stream, MailKind: m.Kind, Address: r.Address,
		Data: event.Data{
			Client: m.Client, Hook: hook, Type: ordered, HeaderFrom: m.HeaderFrom, Size: m.Size,
			AcceptedAt: at(ms(m.AcceptedAt)), ExpiresAt: at(ms(m.ExpiresAt)), Total: event.Millis(max(0, now.Sub(m.AcceptedAt))),
			Attempt: r.Attempts, MaybeSent: r.MaybeSent, Copies: r.Copies,
		},
	}
}

// record is an event as it goes into history, but for its number. To make one takes longer than to write it, so callers do
// that where they can, and not the writer.
type record struct {
	event   event.Event
	address *string // nil where history is not to hold it
	key     []byte  // HMAC of the address
	data    string  // JSON
}

func (s *Store) record(e event.Event) (record, error) {
	data, err := json.Marshal(e.Data)
	r := record{event: e, key: s.history.of(e.Address), data: string(data)}
	if e.Address != "" && s.addresses(e.Stream, e.MailKind) == "clear" {
		r.address = new(e.Address)
	}
	return r, err
}

// append adds e to history.
func (t *tx) append(e event.Event) error {
	if e.At.IsZero() {
		e.At = t.now
	}
	r, err := t.s.record(e)
	if err != nil {
		return err
	}
	return t.write(r)
}

// write adds r to history. It gets the node's next number; numbers drawn by a transaction that is rolled back are drawn
// again.
func (t *tx) write(r record) error {
	t.seq++
	r.event.Node, r.event.Seq = t.s.node, t.seq
	if err := t.db.putEvent(t, &r); err != nil {
		return err
	}
	t.events = append(t.events, r.event)
	return nil
}

// Record appends events that belong to no settlement, in the next flush, without waiting. When far too many wait, they
// are dropped with a warning: an event must not hold up mail.
func (s *Store) Record(events ...event.Event) {
	j := &recordJob{s, events}
	if err := s.writer.queue.add(rest, j); err != nil {
		j.finish(err)
	}
}

type recordJob struct {
	s      *Store
	events []event.Event
}

func (j *recordJob) size() (messages, octets int) { return 1, 0 }

func (j *recordJob) apply(t *tx) error {
	for _, e := range j.events {
		if err := t.append(e); err != nil {
			return err
		}
	}
	return nil
}

func (j *recordJob) finish(err error) {
	if err != nil {
		j.s.log.LogAttrs(context.Background(), slog.LevelWarn, "events not recorded", slog.Int("count", len(j.events)), slog.Any("err", err))
	}
}

// EventQuery chooses events from history. Zero fields do not restrict.
type EventQuery struct {
	Message message.ID
	Address string // of a recipient, in any case
	Node    int    // by whose number After counts
	After   int64  // only numbers (Seq) above it; needs Node, where there are several
	Limit   int    // 0 for 100; 10,000 at most
	Newest  bool   // newest first; else oldest first
}

// SQLite's index of addresses is by chunk of history, so it is asked for one chunk after another, from a number on: a page
// for each thousand events.
const (
	byChunk  = " INDEXED BY event_address"
	inChunks = `seq >> 10 IN (WITH RECURSIVE chunk(n) AS (SELECT max(min(seq), ?) >> 10 FROM event WHERE node = 1
	UNION ALL SELECT n + 1 FROM chunk WHERE n < (SELECT max(seq) >> 10 FROM event WHERE node = 1)) SELECT n FROM chunk)`
)

// Events returns what history holds, in order of time; what one node recorded is in order of its numbers. Address is
// empty in events of streams that keep only its HMAC, also when they were found by address.
func (s *Store) Events(ctx context.Context, q EventQuery) (events []event.Event, err error) {
	if q.Limit = min(q.Limit, maxEvents); q.Limit <= 0 {
		q.Limit = defaultEvents
	}
	nodes := []int{q.Node} // of an index by message or address, all are read at once
	if q.Node == 0 && q.Message == 0 && q.Address == "" {
		if nodes, err = s.nodes(ctx); err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
	}
	for _, q.Node = range nodes {
		if events, err = s.appendEvents(ctx, events, q); err != nil {
			return nil, fmt.Errorf("read history: %w", err)
		}
	}
	if len(nodes) > 1 {
		slices.SortStableFunc(events, func(a, b event.Event) int {
			if q.Newest {
				a, b = b, a
			}
			return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Seq, b.Seq))
		})
	}
	return events[:min(len(events), q.Limit)], nil
}

// appendEvents reads events that q chooses.
func (s *Store) appendEvents(ctx context.Context, events []event.Event, q EventQuery) ([]event.Event, error) {
	query, args := s.eventQuery(q)
	err := s.read(ctx, func(rows scanner) (bool, error) {
		e, err := scanEvent(rows)
		events = append(events, e)
		return err == nil, err
	}, query, args...)
	return events, err
}

// eventQuery returns the query for what q chooses.
func (s *Store) eventQuery(q EventQuery) (query string, args []any) {
	var where []string
	add := func(condition string, value any) { where, args = append(where, condition), append(args, value) }
	order := "at, node, seq"
	if q.Node != 0 || s.fleet == nil {
		add("node = ?", cmp.Or(q.Node, s.node))
		add("seq > ?", q.After)
		order = "seq"
	}
	if q.Message != 0 {
		add("message = ?", int64(q.Message))
	}
	from := ""
	if q.Address != "" {
		if s.fleet == nil && q.Message == 0 {
			from = byChunk
			add(inChunks, q.After+1)
		}
		add("address_key = ?", s.history.of(q.Address))
	}
	if q.Newest {
		order = strings.ReplaceAll(order, ",", " DESC,") + " DESC"
	}
	return eventSelect + from + " WHERE " + strings.Join(where, " AND ") + " ORDER BY " + order + " LIMIT ?", append(args, q.Limit)
}

// nodes returns the numbers of all nodes that there have been.
func (s *Store) nodes(ctx context.Context) (nodes []int, err error) {
	err = s.read(ctx, func(r scanner) (bool, error) {
		var n int
		err := r.Scan(&n)
		nodes = append(nodes, n)
		return err == nil, err
	}, "SELECT id FROM node ORDER BY id")
	return nodes, err
}

const eventSelect = "SELECT node, seq, at, message, n, kind, stream, upstream, address, data FROM event"

func scanEvent(rows scanner) (e event.Event, err error) {
	var when int64
	var address sql.NullString
	var data []byte
	if err := rows.Scan(&e.Node, &e.Seq, &when, (*int64)(&e.Message), &e.N, (*int)(&e.Kind), &e.Stream, &e.Upstream, &address, &data); err != nil {
		return e, err
	}
	e.At, e.Address = at(when), address.String
	return e, json.Unmarshal(data, &e.Data)
}

// eventsAfter reads events that became durable in a commit that failed. Which kind of mail they were about is not
// stored; they pass for auth, which masks most.
func (t *tx) eventsAfter(seq int64) (events []event.Event, err error) {
	err = t.db.query(func(rows scanner) (bool, error) {
		e, err := scanEvent(rows)
		e.MailKind = message.Auth
		events = append(events, e)
		return err == nil, err
	}, eventSelect+" WHERE node = ? AND seq > ? ORDER BY seq", t.s.node, seq)
	return events, err
}

// printable bounds a foreign token: no control characters, 256 octets at most.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	for len(s) > maxProviderID {
		r := []rune(s[:maxProviderID])
		s = string(r[:len(r)-1])
	}
	return s
}
