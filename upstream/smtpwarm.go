package upstream

import (
	"context"
	"errors"
	"time"

	"gatepost/message"
)

// Connections are kept ready for sign-in mail, so that a code that comes after an hour of silence is with the host as fast
// as one that comes after another: one for each auth lane, also while the others are in use. What the kept ones cost the
// host is a NOOP now and then. A connection that is being made or asked holds a slot, and gives it up soon after a mail
// waits for one; there are never more of them than are configured, or than the host wants.

const (
	firstAbsence = 30 * time.Second
	longAbsence  = 10 * time.Minute
)

// absence is why there is no spare: a host that gave none, or kept none, is left alone for longer each time. Too many
// logins that fail lock an account.
type absence struct {
	fails  int
	barred bool        // the login was refused: only one made for mail shows that it is right again
	retry  *time.Timer // until then none is tried
}

func (a *absence) over() bool { return !a.barred && a.retry == nil }

// note counts a failure, and has try called when the next may follow. One spare that did not last says little.
func (a *absence) note(lasted, barred bool, try func()) {
	a.fails++
	a.barred = a.barred || barred
	if a.retry == nil && (!lasted || a.fails > 1) {
		a.retry = time.AfterFunc(min(firstAbsence<<min(a.fails-1, 10), longAbsence), try)
	}
}

// forget ends the waiting for good.
func (a *absence) forget() {
	if a.retry != nil {
		a.retry.Stop()
	}
}

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
	u.came()
}

// wantsSpare reports whether a connection is missing that may be made, and counts it as coming then.
func (u *smtpUpstream) wantsSpare() bool {
	limit, _ := u.slots.room()
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.pool)+u.coming >= u.spares() || u.count() >= limit || !u.absence.over() || u.closing.Err() != nil {
		return false
	}
	u.coming++
	return true
}

// came takes back what wantsSpare counted.
func (u *smtpUpstream) came() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.coming--
}

// spares returns how many connections are to be kept.
func (u *smtpUpstream) spares() int { return len(u.slots.auth) }

// spareLane is the lane in whose name a spare holds its slot.
func (u *smtpUpstream) spareLane() string { return u.slots.auth[0] }

// openSpare makes good on wantsSpare.
func (u *smtpUpstream) openSpare() {
	ctx, give := u.slots.visit(u.closing, u.spareLane())
	u.open(ctx)
	u.came()
	give()
	u.warm()
}

// open connects and puts the connection into the pool. Where that fails nobody waits for it: the next mail finds out for
// itself.
func (u *smtpUpstream) open(ctx context.Context) {
	c, err := u.newConn(ctx, "")
	if err != nil {
		u.crowded(err)
		p, told := errors.AsType[*Paused](err)
		u.missed(false, told && p.Verdict.Class == message.Unauthorised)
		return
	}
	u.checkIn(c)
}

// missed notes that a spare could not be had, or did not last.
func (u *smtpUpstream) missed(lasted, barred bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closing.Err() != nil {
		return
	}
	u.absence.note(lasted, barred, func() {
		u.mu.Lock()
		u.absence.retry = nil
		u.mu.Unlock()
		u.warm()
	})
}

// refresh puts a new connection in the place of c beside the caller, or ends c where there is no slot for that.
func (u *smtpUpstream) refresh(c *smtpConn) {
	if !u.slots.try(u.spareLane()) {
		u.retire(c)
		return
	}
	if !u.beside(func() {
		ctx, give := u.slots.visit(u.closing, u.spareLane())
		u.renew(ctx, c)
		give()
		u.warm()
	}) {
		u.slots.give(u.spareLane())
	}
}

// renew puts a new connection in the place of c, which stays until that is there, unless both were one too many.
func (u *smtpUpstream) renew(ctx context.Context, c *smtpConn) {
	if limit, _ := u.slots.room(); !u.claim(limit) {
		if !u.take(c) {
			return
		}
		c.quit()
		u.kill(c)
		if !u.claim(limit) {
			return
		}
	}
	u.open(ctx)
	u.came()
	u.retire(c)
}

// claim counts a connection as coming where there may be one more.
func (u *smtpUpstream) claim(limit int) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.count() >= limit {
		return false
	}
	u.coming++
	return true
}

// take takes c out of the pool, where it still is there.
func (u *smtpUpstream) take(c *smtpConn) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.remove(c)
}
