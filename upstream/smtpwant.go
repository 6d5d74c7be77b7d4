package upstream

import (
	"context"
	"slices"
)

// want is a mail that waits for a connection. One is being made for it, and it takes one that comes back sooner: the host's
// answer to the mail before is often nearer than the three round trips of a login. What was being made for it goes to the
// pool then.
type want struct {
	lane   string
	ctx    context.Context // of the making
	cancel context.CancelFunc
	made   chan struct{} // closed when the making has ended
	ready  chan struct{} // closed once conn or err is set
	conn   *smtpConn
	err    error
	give   func() // gives back the slot of a making that is not for this mail any more; nil before
}

// newWant makes the want of a mail with that context.
func newWant(ctx context.Context, lane string) *want {
	w := &want{lane: lane, made: make(chan struct{}), ready: make(chan struct{})}
	w.ctx, w.cancel = context.WithCancel(context.WithoutCancel(ctx)) // it may outlive the mail
	return w
}

// await returns the first connection that there is for w. Its error is *Paused, ctx's own, or errClosed.
func (u *smtpUpstream) await(ctx context.Context, w *want) (*smtpConn, error) {
	if !u.beside(func() { u.make(w) }) {
		u.make(w) // which ends at once
	}
	select {
	case <-w.ready:
		return w.conn, w.err
	case <-ctx.Done():
		u.giveUp(w)
		return nil, ctx.Err()
	}
}

// make makes a connection for w, or for the pool where w has got another meanwhile.
func (u *smtpUpstream) make(w *want) {
	defer close(w.made)
	defer w.cancel()
	c, err := u.newConn(w.ctx, w.lane)
	if u.deliver(w, c, err) {
		return
	}
	if err == nil {
		u.checkIn(c)
	} else {
		u.crowded(err)
	}
	u.came()
	w.give()
}

// deliver gives what was made for w to it, and reports false where that has got another.
func (u *smtpUpstream) deliver(w *want, c *smtpConn, err error) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err == nil {
		u.absence.barred = false
	}
	if w.give != nil {
		return false
	}
	u.making--
	if u.leave(w) {
		w.conn, w.err = c, err
		close(w.ready)
	} else if err == nil { // the mail has given up
		u.end(c)
	}
	return true
}

// foremost returns the want that is next, sign-in mail first; nil for none. mu is held.
func (u *smtpUpstream) foremost() *want {
	if i := slices.IndexFunc(u.wants, func(w *want) bool { return slices.Contains(u.slots.auth, w.lane) }); i >= 0 {
		return u.wants[i]
	}
	if len(u.wants) > 0 {
		return u.wants[0]
	}
	return nil
}

// hand gives c, which comes back, to w where what is being made for that can have a slot of its own, and reports whether
// it did. mu is held.
func (u *smtpUpstream) hand(c *smtpConn, w *want) bool {
	if !u.slots.try(w.lane) {
		return false
	}
	ctx, give := u.slots.visit(u.closing, w.lane)
	context.AfterFunc(ctx, w.cancel)
	w.give = give
	u.making--
	u.coming++
	u.leave(w)
	c.reused = true
	w.conn = c
	close(w.ready)
	return true
}

// leave takes w out of the line, and reports whether it stood there. mu is held.
func (u *smtpUpstream) leave(w *want) bool {
	i := slices.Index(u.wants, w)
	if i < 0 {
		return false
	}
	u.wants = slices.Delete(u.wants, i, i+1)
	return true
}

// giveUp ends the waiting of w, and puts back what it got at the same moment.
func (u *smtpUpstream) giveUp(w *want) {
	u.mu.Lock()
	waited := u.leave(w)
	u.mu.Unlock()
	if waited {
		w.cancel()
		<-w.made
	} else if w.conn != nil {
		u.checkIn(w.conn)
	}
}
