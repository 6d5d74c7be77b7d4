package upstream

import (
	"context"
	"slices"
	"time"
)

// A connection that waits in the pool is looked at now and then. One that the host has closed is replaced before a mail
// finds out, and tells how long the host lets connections be: those to come are asked, or replaced, in time. What a kept
// one costs the host is a NOOP, whose answer nobody waits for: the connection stays where a mail finds it.

const (
	lookTime   = time.Second
	noopTime   = 5 * time.Second // what a host gets to answer NOOP
	shortRest  = 3 * time.Second // who closes a connection that rests for less keeps none
	shortLife  = 30 * time.Second
	learnedFor = 10 * time.Minute // what one connection showed counts for so long: the host may have been restarted
)

// habits is what is known of how a host keeps connections.
type habits struct {
	rest  time.Duration // how long it lets them be without a word
	life  time.Duration // how long in all
	until time.Time     // of both; afterwards it is as if nothing were known
}

// bounds returns how long a connection may rest, and how long it may last.
func (h *habits) bounds() (rest, life time.Duration) {
	if time.Now().After(h.until) {
		h.rest, h.life = idleTime, maxAge
	}
	return h.rest, h.life
}

// learn notes that c, which was well when it had rested for that long, was closed soon after: because of its age, where it
// had outlived a longer rest before. Who closes connections sooner than anybody can ask has no habit that would help.
func (h *habits) learn(c *smtpConn, well time.Duration) {
	rest, life := h.bounds()
	switch {
	case c.outlived > 0 && well <= c.outlived:
		life = max(shortLife, min(life, time.Since(c.born)*3/4))
	case well >= shortRest:
		rest = max(shortRest, min(rest, well*3/4))
	default:
		return
	}
	h.rest, h.life, h.until = rest, life, time.Now().Add(learnedFor)
}

// bounds is habits.bounds.
func (u *smtpUpstream) bounds() (rest, life time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.habits.bounds()
}

// resting says what there is to do about a connection that waits in the pool.
type resting int

const (
	nothing   resting = iota // also where it waits no more
	hungUp                   // the host has closed it, and a spare is missing
	rested                   // it was taken out: it has been without a word for as long as it may
	answering                // it was taken out: the answer to NOOP is there, or overdue
	old                      // it is too old to be asked
)

// look is what happens to c, every lookTime, while it waits in the pool.
func (u *smtpUpstream) look(c *smtpConn) {
	switch u.glance(c) {
	case hungUp:
		u.missed(true, false)
		u.warm()
	case rested:
		if !u.beside(func() { u.ask(c) }) {
			u.kill(c)
		}
	case answering:
		if !u.beside(func() { u.hear(c) }) {
			u.kill(c)
		}
	case old:
		u.refresh(c)
	}
}

// glance finds out what look has to do, and does what needs no waiting: one that is not to be kept ends.
func (u *smtpUpstream) glance(c *smtpConn) resting {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.pool, c) {
		return nothing
	}
	rest, life := u.habits.bounds()
	waits := time.Since(c.restsSince)
	switch said, closed := c.peek(); {
	case closed || said && !c.owes:
		well := waits - lookTime
		if c.owes { // it is NOOP that it did not outlive
			well = c.before * 2 / 3
		}
		u.habits.learn(c, well)
		u.remove(c)
		u.end(c)
		if len(u.pool) < u.spares() {
			return hungUp
		}
		return nothing
	case c.owes && (said || waits >= noopTime):
		u.remove(c)
		return answering
	case !c.owes && waits >= rest:
		if len(u.pool) <= u.spares() && time.Since(c.born)+2*rest >= life {
			return old
		}
		u.remove(c)
		if len(u.pool) < u.spares() {
			return rested
		}
		u.quit(c)
		return nothing
	case c.owes:
		rest = noopTime
	}
	c.idle.Reset(min(lookTime, max(0, rest-waits)))
	return nothing
}

// ask says NOOP on c and puts it back at once.
func (u *smtpUpstream) ask(c *smtpConn) {
	ctx, cancel := context.WithTimeout(u.closing, noopTime)
	defer cancel()
	stop := c.until(ctx)
	c.bw.WriteString("NOOP\r\n")
	err := c.bw.Flush()
	stop()
	c.owes, c.before = true, time.Since(c.restsSince)
	u.heard(c, err)
}

// hear takes in the answer to NOOP.
func (u *smtpUpstream) hear(c *smtpConn) { u.heard(c, c.noopSoon(u.closing)) }

// heard puts c back after ask or hear, or replaces it where that came to err.
func (u *smtpUpstream) heard(c *smtpConn, err error) {
	c.broken = c.broken || err != nil
	u.checkIn(c)
	if err != nil {
		u.mu.Lock()
		u.habits.learn(c, c.before*2/3)
		u.mu.Unlock()
		u.missed(true, false)
		u.warm()
	}
}

// noopAnswer reads the answer that c owes. Whatever it is, the host is there, unless it says that it goes.
func (c *smtpConn) noopAnswer() error {
	r, err := readReply(c.br)
	c.owes = false
	switch {
	case err != nil:
		return c.failed("NOOP", err)
	case r.code == 421:
		return pausedBy("NOOP", r)
	}
	c.outlived = max(c.outlived, c.before)
	return nil
}

// noopSoon is noopAnswer for who may as well take another connection.
func (c *smtpConn) noopSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	defer c.until(ctx)()
	return c.noopAnswer()
}

// unfit reports whether c, which was kept, can take no mail: the host has closed it, or said something that nobody asked
// for, or does not answer. It does not wait for an answer that may still come.
func (c *smtpConn) unfit(ctx context.Context) bool {
	said, closed := c.peek()
	switch {
	case closed:
		return true
	case !c.owes:
		return said || c.br.Buffered() > 0
	case said:
		return c.noopSoon(ctx) != nil || c.spoken()
	}
	return time.Since(c.restsSince) > patience
}
