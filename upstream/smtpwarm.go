package upstream

import (
	"context"
	"time"
)

// Connections are kept ready for sign-in mail, so that a code that comes after an hour of silence is with the host as fast
// as one that comes after another: one for each auth lane, also while the others are in use. What the kept ones cost the
// host is a NOOP now and then. A connection that is being made or asked holds a slot, so there are never more of them than
// are configured, or than the host wants.

const noopTime = 5 * time.Second // what a host gets to answer NOOP

// warm opens a connection beside the caller where one of the spares is missing and a slot is free.
func (u *smtpUpstream) warm() {
	if !u.wantsSpare() {
		return
	}
	if u.slots.try(u.spareLane()) {
		if u.beside(u.openSpare) {
			return
		}
		u.slots.give(u.spareLane())
	}
	u.mu.Lock()
	u.coming--
	u.mu.Unlock()
}

// wantsSpare reports whether a connection is missing, and counts it as coming then.
func (u *smtpUpstream) wantsSpare() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pool)+u.coming >= u.spares() || u.closing.Err() != nil {
		return false
	}
	u.coming++
	return true
}

// spares returns how many connections are to be kept.
func (u *smtpUpstream) spares() int { return len(u.slots.auth) }

// spareLane is the lane in whose name a spare holds its slot.
func (u *smtpUpstream) spareLane() string { return u.slots.auth[0] }

// openSpare makes good on wantsSpare.
func (u *smtpUpstream) openSpare() {
	defer u.slots.give(u.spareLane())
	u.open()
	u.mu.Lock()
	u.coming--
	u.mu.Unlock()
}

// open connects and puts the connection into the pool. Where that fails nobody waits for it: the next mail finds out for
// itself.
func (u *smtpUpstream) open() {
	c, err := u.connect(context.Background())
	if err != nil {
		u.crowded(err)
		return
	}
	u.checkIn(c)
}

// refresh is what happens to a connection that has waited in the pool for idleTime. One that is to be kept is asked
// whether it still works, or replaced where it is old; others end.
func (u *smtpUpstream) refresh(c *smtpConn) {
	if u.surplus() || !u.slots.try(u.spareLane()) {
		u.retire(c)
		return
	}
	if !u.beside(func() {
		if time.Since(c.born)+2*idleTime >= maxAge {
			u.open()
			u.retire(c)
		} else if u.take(c) {
			u.ask(c)
		}
		u.slots.give(u.spareLane())
		u.warm()
	}) {
		u.slots.give(u.spareLane())
	}
}

// surplus reports whether more connections wait than are to be kept.
func (u *smtpUpstream) surplus() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.pool) > u.spares()
}

// take takes c out of the pool, where it still is there.
func (u *smtpUpstream) take(c *smtpConn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.remove(c)
}

// ask says NOOP on c and puts it back.
func (u *smtpUpstream) ask(c *smtpConn) {
	ctx, cancel := context.WithTimeout(u.closing, noopTime)
	defer cancel()
	stop := c.until(ctx)
	r, err := c.command("NOOP")
	stop()
	c.broken = c.broken || err != nil || r.class() != 2
	u.checkIn(c)
}
