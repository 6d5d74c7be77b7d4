package store

import (
	"errors"
	"sync"
	"time"
)

// Bounds of one commit, so that nobody waits long for others' mail, and of what may wait in memory.
const (
	batchMessages   = 256
	batchOctets     = 4 << 20
	batchOctetsAuth = 1 << 20 // while auth mail waits
	maxSkips        = 16      // batches that may pass over a job that is too big for them

	maxWaiting     = 64 << 20 // octets of mail that wait for a commit; auth may use all of it
	maxWaitingRest = maxWaiting * 3 / 4
	maxRecords     = 8192 // events that wait for a commit and that nobody waits for
)

// A commit costs as much as the work of several mails. So where jobs come in crowds, more of them share it: the next batch
// begins a moment after the one before did, unless it hurries: something of sign-in mail waits, or there are plenty by
// then. Where all who send do so one mail after another, and are no crowd, nobody waits.
const (
	crowd  = 3  // jobs in a batch
	plenty = 32 // jobs that wait
	enough = 16 // of them that settle: each holds a connection until it is durable
	moment = 4 * time.Millisecond
)

var (
	errClosed = errors.New("the store is closed")
	errCrowd  = errors.New("too much waits for the disk")
)

// job is one thing to be done inside a transaction that it shares with others.
type job interface {
	// size returns the messages and octets it adds to a batch.
	size() (messages, octets int)
	// apply does it. It may be called again after a rollback and must then start over.
	apply(t *tx) error
	// finish tells whoever waits that it is durable, or why it is not.
	finish(err error)
}

// urgent is a job that says itself whether it is one of sign-in mail, so that the next batch does not wait for others.
type urgent interface {
	job
	urgent() bool
}

func isUrgent(c class, j job) bool {
	u, ok := j.(urgent)
	return c == authPut || ok && u.urgent()
}

// undoer is a job that must be taken back if the commit it was in failed but proves durable after all.
type undoer interface {
	job
	undo(t *tx) error
}

// class orders jobs within a batch.
type class int

const (
	authPut class = iota
	settlement
	rest
	bulk // parts of large bodies: one in a batch
	classes
)

// queue holds what waits for the next commit.
type queue struct {
	mu      sync.Mutex
	jobs    [classes][]job
	octets  int
	records int
	urgent  int   // jobs
	large   int   // octets of large bodies on their way, of which one part at a time is queued
	puts    int   // how many Puts these are of
	skipped int   // batches in which the head of rest did not fit
	late    int   // … that of bulk
	refuse  error // why nothing is taken now
	closed  bool
	ready   chan struct{} // holds a value when something was added
	hurry   chan struct{} // … when what was added should not wait for more
}

func newQueue() *queue { return &queue{ready: make(chan struct{}, 1), hurry: make(chan struct{}, 1)} }

// add queues j, or says why not; then j is not finished.
func (q *queue) add(c class, j job) error {
	_, octets := j.size()
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.admit(c, j, octets); err != nil {
		return err
	}
	q.push(c, j, octets)
	return nil
}

// push queues j. Parts are no mail that waits, they belong to some that is counted in large.
func (q *queue) push(c class, j job, octets int) {
	q.jobs[c] = append(q.jobs[c], j)
	if c != bulk {
		q.octets += octets
	}
	if isUrgent(c, j) {
		q.urgent++
	}
	q.signal()
	if q.hurries() {
		signal(q.hurry)
	}
}

// hurries reports whether the next batch should not wait for more. mu is held.
func (q *queue) hurries() bool {
	return q.closed || q.urgent > 0 || len(q.jobs[settlement]) >= enough ||
		len(q.jobs[settlement])+len(q.jobs[rest])+len(q.jobs[bulk]) >= plenty
}

// gather waits until then, or until the next batch should not wait for more.
func (q *queue) gather(until time.Time) {
	q.mu.Lock()
	select {
	case <-q.hurry: // of the batch before
	default:
	}
	hurries := q.hurries()
	q.mu.Unlock()
	d := time.Until(until)
	if hurries || d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-q.hurry:
	}
}

func (q *queue) admit(c class, j job, octets int) error {
	switch {
	case q.closed:
		return errClosed
	case q.refuse != nil:
		return q.refuse
	}
	switch j := j.(type) {
	case *recordJob:
		if q.records+len(j.events) > maxRecords {
			return errCrowd
		}
		q.records += len(j.events)
	case *putJob:
		return q.crowd(c, octets)
	}
	return nil
}

// crowd refuses mail while too much waits.
func (q *queue) crowd(c class, octets int) error {
	limit := maxWaitingRest
	if c == authPut {
		limit = maxWaiting
	}
	if waiting := q.octets + q.large; waiting > 0 && waiting+octets > limit {
		return errCrowd
	}
	return nil
}

// beginLarge takes up large bodies of a Put, or says why not. Until endLarge their octets count as waiting.
func (q *queue) beginLarge(c class, octets int) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return errClosed
	case q.refuse != nil:
		return q.refuse
	}
	if err := q.crowd(c, octets); err != nil {
		return err
	}
	q.large += octets
	q.puts++
	return nil
}

func (q *queue) endLarge(octets int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.large -= octets
	q.puts--
	q.signal()
}

// goOn queues the next step of a Put that was let in by beginLarge, which Close waits for.
func (q *queue) goOn(c class, j job) error {
	_, octets := j.size()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse != nil {
		return q.refuse
	}
	q.push(c, j, octets)
	return nil
}

func (q *queue) signal() { signal(q.ready) }

// signal leaves a value in c, where there is none yet.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// take removes the next batch: auth mail first, then settlements, then the rest in order, then a part of a large body.
// Auth leaves a quarter of a batch to the others, so that a flood of it cannot keep slots from being freed.
func (q *queue) take() []job {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := batch{messages: batchMessages, octets: batchOctets}
	if len(q.jobs[authPut]) > 0 {
		b.octets = batchOctetsAuth
	}
	kept := q.keepForBulk()
	b.octets -= kept
	b.messages -= batchMessages / 4
	q.move(&b, authPut)
	b.messages += batchMessages / 8
	q.move(&b, settlement)
	b.messages += batchMessages / 8
	before := len(q.jobs[rest])
	if q.skipped >= maxSkips && before > 0 {
		q.moveHead(&b, rest)
	}
	q.move(&b, rest)
	if len(q.jobs[rest]) < before || before == 0 {
		q.skipped = 0
	} else {
		q.skipped++
	}
	b.octets += kept
	q.moveBulk(&b)
	return b.jobs
}

// keepForBulk returns the octets of a batch that a late job of bulk needs.
func (q *queue) keepForBulk() (octets int) {
	if len(q.jobs[bulk]) > 0 && q.late >= maxSkips {
		_, octets = q.jobs[bulk][0].size()
	}
	return octets
}

// moveBulk takes one job of bulk if it fits: however many there are, they make no batch large.
func (q *queue) moveBulk(b *batch) {
	if len(q.jobs[bulk]) == 0 {
		return
	}
	if _, o := q.jobs[bulk][0].size(); len(b.jobs) > 0 && o > b.octets {
		q.late++
		return
	}
	q.late = 0
	q.moveHead(b, bulk)
}

// batch is what one transaction may still take up.
type batch struct {
	jobs             []job
	messages, octets int
}

// move takes jobs of one class while they fit. The first job of a batch always fits.
func (q *queue) move(b *batch, c class) {
	for len(q.jobs[c]) > 0 {
		m, o := q.jobs[c][0].size()
		if len(b.jobs) > 0 && (m > b.messages || o > b.octets) {
			return
		}
		q.moveHead(b, c)
	}
}

func (q *queue) moveHead(b *batch, c class) {
	j := q.jobs[c][0]
	m, o := j.size()
	b.jobs = append(b.jobs, j)
	b.messages -= m
	b.octets -= o
	if c != bulk {
		q.octets -= o
	}
	if r, ok := j.(*recordJob); ok {
		q.records -= len(r.events)
	}
	if isUrgent(c, j) {
		q.urgent--
	}
	q.jobs[c][0] = nil // the backing array must not keep a body alive
	q.jobs[c] = q.jobs[c][1:]
}

// stop refuses everything with err until it is called with nil, and returns what was waiting.
func (q *queue) stop(err error) (waiting []job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.refuse = err; err == nil {
		return nil
	}
	for c, jobs := range q.jobs {
		waiting = append(waiting, jobs...)
		q.jobs[c] = nil
	}
	q.octets, q.records, q.urgent = 0, 0, 0
	return waiting
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
	signal(q.hurry)
}

// isOver reports whether the queue is closed and nothing is on its way into it.
func (q *queue) isOver() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed && q.puts == 0
}

func (q *queue) isClosed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed
}
