package store

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"sync"

	"gatepost/message"
)

const (
	maxInline  = 512 << 10 // octets of a body that is written in one piece, with its message
	partOctets = 256 << 10 // of a larger one that are written, or removed, in one commit
	searchPage = 64        // large bodies that one turn of the search for leftovers looks at
)

// largeBody is a body as it goes to disk in parts.
type largeBody struct {
	id    message.ID
	keyID int64 // pinned where not 0
	data  []byte
}

// seal makes the large bodies of j, which the caller of Put does and not the writer: it takes a millisecond for each
// few megabytes.
func (j *putJob) seal() error {
	for i, m := range j.messages {
		if !j.bodies[i].isLarge() {
			continue
		}
		b := &largeBody{id: m.ID, data: j.bodies[i].data}
		if j.bodies[i].sealed {
			var err error
			if b.keyID, b.data, err = j.s.keys.sealPinned(j.s.now(), m.ID, b.data); err != nil {
				return err
			}
		}
		j.large = append(j.large, b)
		j.s.parts.begin(b.id)
	}
	return nil
}

// largeOf returns the large body of m, nil where it has none.
func (j *putJob) largeOf(m *message.Message) *largeBody {
	for _, b := range j.large {
		if b.id == m.ID {
			return b
		}
	}
	return nil
}

// advance queues the part behind p, or the messages themselves once all parts are durable.
func (j *putJob) advance(p *partJob) {
	for p.body < len(j.large) && p.n*partOctets >= len(j.large[p.body].data) {
		p.body, p.n = p.body+1, 0
	}
	var err error
	if p.body < len(j.large) {
		err = j.s.writer.queue.goOn(bulk, p)
	} else {
		err = j.s.writer.queue.goOn(j.class, j)
	}
	if err != nil {
		j.finish(err)
	}
}

// endLarge ends what was kept for the large bodies of a Put. The parts of one that failed are removed.
func (j *putJob) endLarge(failed bool) {
	for _, b := range j.large {
		j.s.keys.unpin(b.keyID)
		j.s.parts.end(b.id, failed)
	}
	j.s.writer.queue.endLarge(j.octets - j.inline)
	if failed {
		j.s.removeParts()
	}
}

// partJob writes the parts of a Put's large bodies, one at a time. A part that became durable in a commit that failed
// need not be taken back before anything else: nothing leads to it.
type partJob struct {
	put     *putJob
	body, n int
}

func (p *partJob) data() []byte {
	data := p.put.large[p.body].data[p.n*partOctets:]
	return data[:min(len(data), partOctets)]
}

func (p *partJob) size() (messages, octets int) { return 0, len(p.data()) }

func (p *partJob) urgent() bool { return p.put.class == authPut }

func (p *partJob) apply(t *tx) error {
	id := p.put.large[p.body].id
	if err := t.db.change("INSERT INTO body_part(id, n, data) VALUES(?, ?, ?)", int64(id), p.n, p.data()); err != nil {
		return fmt.Errorf("store part %d of message %v: %w", p.n, id, err)
	}
	return nil
}

func (p *partJob) finish(err error) {
	if err != nil {
		p.put.finish(err)
		return
	}
	p.put.letOut(min(len(p.data()), p.put.room)) // sealing adds a few octets
	p.n++
	p.put.advance(p)
}

// parts knows which large bodies are being written and which are to be removed. What a crash or a failed commit leaves
// is found by walking over all of them, in small turns.
type parts struct {
	mu       sync.Mutex
	writing  map[message.ID]int // Puts under way; more than one only by mistake
	dead     []message.ID
	searched bool       // for leftovers
	after    message.ID // where the search goes on
	busy     bool       // a removal is queued
}

func (p *parts) begin(id message.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writing == nil {
		p.writing = map[message.ID]int{}
	}
	p.writing[id]++
}

func (p *parts) end(id message.ID, failed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writing[id]--; p.writing[id] == 0 {
		delete(p.writing, id)
	}
	if failed {
		p.dead = append(p.dead, id)
	}
}

func (p *parts) add(id message.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = append(p.dead, id)
}

// next returns a body to remove a part of, if one is known, or else where the search for leftovers goes on.
func (p *parts) next() (dead message.ID, ok bool, after message.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.dead) > 0 && p.writing[p.dead[0]] > 0 {
		p.dead = p.dead[1:] // if that Put fails it comes back
	}
	if len(p.dead) == 0 {
		return 0, false, p.after
	}
	return p.dead[0], true, 0
}

// search makes the search for leftovers start anew.
func (p *parts) search() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.searched, p.after = false, 0
}

// start reports whether a removal is to be queued, and says then that one is.
func (p *parts) start() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy || len(p.dead) == 0 && p.searched {
		return false
	}
	p.busy = true
	return true
}

func (p *parts) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
}

// partsDead has the parts of a message removed that has ended.
func (s *Store) partsDead(id message.ID) {
	s.parts.add(id)
	s.removeParts()
}

// removeParts has parts removed that belong to no message, if there may be any. Where that fails, upkeep calls it again.
func (s *Store) removeParts() {
	if s.parts.start() {
		if err := s.writer.queue.add(bulk, &removal{s: s}); err != nil {
			s.parts.stop()
		}
	}
}

const removePart = `DELETE FROM body_part WHERE id = ?1 AND n = (SELECT max(n) FROM body_part WHERE id = ?1)
	AND NOT EXISTS (SELECT 1 FROM body WHERE id = ?1 AND octets > 0)`

// removal is a turn of removing: one part, or one page of the search for leftovers.
type removal struct {
	s *Store

	id    message.ID // 0 for a search
	gone  bool       // nothing of id is left
	found []message.ID
	after message.ID
	end   bool // of the search
}

func (j *removal) size() (messages, octets int) { return 0, partOctets }

func (j *removal) apply(t *tx) error {
	*j = removal{s: j.s}
	id, ok, after := j.s.parts.next()
	if !ok {
		return j.search(t, after)
	}
	n, err := t.exec(removePart, int64(id))
	j.id, j.gone = id, n == 0
	if err != nil {
		return fmt.Errorf("remove a part of message %v: %w", id, err)
	}
	return nil
}

func (j *removal) search(t *tx, after message.ID) error {
	found, last, end, err := t.db.leftovers(t, after)
	j.found, j.after, j.end = found, last, end
	return err
}

func (j *removal) finish(err error) {
	if err != nil {
		j.s.parts.stop()
		if !isFull(err) {
			j.s.log.LogAttrs(context.Background(), slog.LevelWarn, "parts of large mail that is gone could not be removed, it is tried again later", slog.Any("err", err))
		}
		return
	}
	j.s.parts.done(j)
	j.s.parts.stop()
	j.s.removeParts()
}

// done notes what a turn did.
func (p *parts) done(j *removal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case j.id == 0:
		p.dead = append(p.dead, j.found...)
		p.after, p.searched = j.after, j.end
	case j.gone && len(p.dead) > 0 && p.dead[0] == j.id:
		p.dead = p.dead[1:]
	}
}

// readParts returns a large body, or nil where a part of it is missing. Each part is read in a step of its own: a long
// one would keep the writer from clearing its log.
func (s *Store) readParts(id message.ID, octets int) ([]byte, error) {
	body := make([]byte, octets)
	for n, rest := 0, body; len(rest) > 0; n++ {
		copied := 0
		err := s.read(context.Background(), func(r scanner) (bool, error) {
			var data sql.RawBytes
			err := r.Scan(&data)
			copied = copy(rest, data)
			return false, err
		}, "SELECT data FROM body_part WHERE id = ? AND n = ?", int64(id), n)
		if err != nil || copied == 0 {
			return nil, err
		}
		rest = rest[copied:]
	}
	return body, nil
}
