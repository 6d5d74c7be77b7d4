package store

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
)

// Write is a Put under way: Done is closed once it is durable or has failed, and Result may be called then. Its error
// is a *reply.Error: 452 where the disk or the queue is full, else 451.
type Write = interface {
	Done() <-chan struct{}
	Result() (message.PutResult, error)
}

// Put queues ms, all or none, for the next shared flush and returns at once. With own their rows are born ours; else
// each gets an accepted event, and their lanes are woken. Where one has a Key that a message has which was put before
// and whose lifetime has not ended, nothing is put, and the error is a *message.Duplicate. Bodies of auth mail are sealed before they reach the disk.
// Large bodies are written first, in parts, a commit for each, so that others' mail need not wait for all of them.
// Where a message has a supersede key, older ones with the same that only wait end in the same transaction.
func (s *Store) Put(ms []*message.Message, own bool) Write {
	j := &putJob{s: s, messages: ms, own: own, class: rest, done: make(chan struct{})}
	for _, m := range ms {
		b, err := bodyOf(m)
		if err != nil {
			j.finish(fmt.Errorf("store message %v: %w", m.ID, err))
			return j
		}
		j.bodies = append(j.bodies, b)
		j.octets += len(b.data)
		if !b.isLarge() {
			j.inline += len(b.data)
		}
	}
	kind := message.Marketing
	if len(ms) > 0 && ms[0].Kind == message.Auth {
		j.class, kind = authPut, message.Auth
	}
	if !s.space.letIn(kind, j.octets) {
		j.finish(errNoRoom)
		return j
	}
	j.room = j.octets
	err := j.record()
	if err == nil {
		err = j.begin()
	}
	if err != nil {
		j.finish(err)
	}
	return j
}

// record makes the records that rows which nobody owns begin with.
func (j *putJob) record() error {
	if j.own {
		return nil
	}
	now := at(ms(j.s.now()))
	for _, m := range j.messages {
		rs, err := j.s.accepted(m, now)
		if err != nil {
			return err
		}
		j.records = append(j.records, rs)
	}
	return nil
}

// accepted returns the records of m's recipients that begin unowned.
func (s *Store) accepted(m *message.Message, now time.Time) (rs []record, err error) {
	rs = make([]record, len(m.Recipients))
	for i := range rs {
		if rs[i], err = s.record(recipientEvent(event.Accepted, m, &m.Recipients[i], now)); err != nil {
			return nil, err
		}
	}
	return rs, nil
}

// begin queues j, or where it has large bodies the first part of them.
func (j *putJob) begin() error {
	if j.inline == j.octets {
		return j.s.writer.queue.add(j.class, j)
	}
	if err := j.s.writer.queue.beginLarge(j.class, j.octets-j.inline); err != nil {
		return err
	}
	j.begun = true
	if err := j.seal(); err != nil {
		return err
	}
	j.advance(&partJob{put: j})
	return nil
}

// putJob is a Put as the writer sees it and as a Write.
type putJob struct {
	s        *Store
	messages []*message.Message
	bodies   []body // of messages, one for one
	own      bool
	records  [][]record // of each message's recipients; nil with own
	class    class
	octets   int                // of all bodies
	inline   int                // … of those that are written with their messages
	room     int                // … that the disk has room kept for
	begun    bool               // its large bodies are counted by the queue
	large    []*largeBody       // the others, which are durable before the messages are written
	known    *message.Duplicate // that was put under one of their keys before; nil for none
	result   message.PutResult
	err      error
	done     chan struct{}
}

func (j *putJob) Done() <-chan struct{}              { return j.done }
func (j *putJob) Result() (message.PutResult, error) { return j.result, j.err }

func (j *putJob) size() (messages, octets int) { return len(j.messages), j.inline }

func (j *putJob) apply(t *tx) error {
	j.result = message.PutResult{} // of an earlier try, whose transaction was undone
	known, err := t.claimKeys(j.messages)
	if j.known = known; err != nil || known != nil {
		return err
	}
	if j.own {
		j.result.Epoch = t.epoch
	}
	for i, m := range j.messages {
		var records []record
		if !j.own {
			records = j.records[i]
		}
		if err := t.put(m, j.bodies[i], records, j.largeOf(m)); err != nil {
			return fmt.Errorf("store message %v: %w", m.ID, err)
		}
		superseded, err := t.supersede(m)
		if err != nil {
			return fmt.Errorf("supersede what message %v takes the place of: %w", m.ID, err)
		}
		j.result.Superseded = append(j.result.Superseded, superseded...)
	}
	return nil
}

func (j *putJob) finish(err error) {
	j.letOut(j.room)
	switch {
	case err != nil:
		j.result, j.err = message.PutResult{}, putError(err)
	case j.known != nil:
		j.err = j.known
	}
	if j.begun {
		j.endLarge(j.err != nil)
	}
	close(j.done)
}

// letOut gives back room that was kept for octets which are on disk, or never will be.
func (j *putJob) letOut(octets int) {
	j.room -= octets
	j.s.space.letOut(octets)
}

// errNoRoom refuses mail that would take the room which settlements need.
var errNoRoom = errors.New("the disk is nearly full")

// putError chooses the client's reply.
func putError(err error) error {
	if isFull(err) || errors.Is(err, errCrowd) || errors.Is(err, errNoRoom) {
		return &reply.Error{Code: 452, Enhanced: "4.3.1", Text: "Insufficient system storage, please try again later", Err: err}
	}
	return &reply.Error{Code: 451, Enhanced: "4.3.0", Text: "The message could not be stored, please try again later", Err: err}
}

// put stores a message with its recipients, which are ours where there are no records of them, else free to be claimed. A
// large body is there in parts already.
func (t *tx) put(m *message.Message, b body, records []record, large *largeBody) error {
	if len(m.Recipients) == 0 {
		return errors.New("it has no recipients")
	}
	attrs, err := encodeAttrs(m.Attrs)
	if err != nil {
		return err
	}
	stored, err := t.seal(m, b, large)
	if err != nil {
		return err
	}
	if err := t.db.put(t, m, attrs, stored, records == nil); err != nil {
		return err
	}
	for i := range records {
		t.lanes[m.Recipients[i].Lane] = true
		if err := t.write(records[i]); err != nil {
			return err
		}
	}
	return nil
}

// seal returns b, the body of m, as it is written.
func (t *tx) seal(m *message.Message, b body, large *largeBody) (stored storedBody, err error) {
	stored.format = b.format
	switch {
	case large != nil:
		stored.keyID, stored.octets, stored.data = large.keyID, len(large.data), []byte{}
	case b.sealed:
		stored.keyID, stored.data, err = t.s.keys.seal(t.now, m.ID, b.data)
	default:
		stored.data = b.data
	}
	return stored, err
}

// undo takes back a Put whose client was told to try again. What was said to be accepted is said to be dropped, so that
// history holds no message without an end. Where nothing is there to be taken back, another node may have sent it all, and
// what the client tries again is to find that: the key stays.
func (j *putJob) undo(t *tx) error {
	taken := 0
	for _, m := range j.messages {
		ns, err := t.db.takeBack(t, m.ID)
		if err == nil {
			err = t.db.endMessage(t, m.ID)
		}
		if err != nil {
			return fmt.Errorf("take back message %v: %w", m.ID, err)
		}
		taken += len(ns)
		for i := range m.Recipients {
			if j.own || !slices.Contains(ns, m.Recipients[i].N) {
				continue
			}
			e := recipientEvent(event.Dropped, m, &m.Recipients[i], t.now)
			e.Data.Text = "the disk failed while this was being stored; the client was told to try again"
			if err := t.append(e); err != nil {
				return err
			}
		}
	}
	if taken == 0 {
		return nil
	}
	return t.forgetKeys(j.messages)
}

func flags(m *message.Message) (f int) {
	if m.SMTPUTF8 {
		f |= flagSMTPUTF8
	}
	if m.Kind == message.Auth {
		f |= flagAuth
	}
	return f
}
