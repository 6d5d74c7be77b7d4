package upstream

import (
	"context"
	"slices"
	"time"
)

// What a host that was told QUIT gets to close a connection before it is closed here, because another is to take its
// place. Sign-in mail does not wait for long: a host that still counts the old one may answer 421, but need not. If it does,
// the rest of the time is waited for after all.
const (
	roomTime     = 250 * time.Millisecond
	roomTimeAuth = 50 * time.Millisecond
)

// makeRoom waits, where a connection that is to be made for lane would be one too many, until one of those has gone that
// were told QUIT: until it has read that, the host counts them. Then it counts the new one as being dialed. Its error is
// ctx's. Where it could not wait for long enough, the host may still count one more until the time that it returns.
func (u *smtpUpstream) makeRoom(ctx context.Context, lane string) (counted time.Time, err error) {
	patience := roomTime
	if slices.Contains(u.slots.auth, lane) {
		patience = roomTimeAuth
	}
	until := time.Now().Add(patience)
	u.mu.Lock()
	defer u.mu.Unlock()
	for ctx.Err() == nil && u.isFull() {
		c := u.firstToEnd()
		told := u.ending[c]
		if left := min(time.Until(until), time.Until(told.Add(patience))); left > 0 {
			u.wait(ctx, left)
			continue
		}
		c.tcp.Close()
		delete(u.ending, c)
		counted = told.Add(roomTime)
	}
	if ctx.Err() != nil {
		return counted, ctx.Err()
	}
	u.dialing++
	return counted, nil
}

// isFull reports whether the host may have as many connections as it wants, and some of them are about to go. mu is held.
func (u *smtpUpstream) isFull() bool {
	limit, _ := u.slots.room()
	return len(u.ending) > 0 && len(u.live)+u.dialing+len(u.ending) >= limit
}

// wait waits until a connection has gone, for d at most. mu is held, but not meanwhile.
func (u *smtpUpstream) wait(ctx context.Context, d time.Duration) {
	gone := u.gone
	u.mu.Unlock()
	defer u.mu.Lock()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-gone:
	case <-t.C:
	case <-ctx.Done():
	}
}

// firstToEnd returns the connection that was told QUIT before the others. mu is held.
func (u *smtpUpstream) firstToEnd() (first *smtpConn) {
	for c, told := range u.ending {
		if first == nil || told.Before(u.ending[first]) {
			first = c
		}
	}
	return first
}

// oneLess tells whoever makes room that a connection has gone. mu is held.
func (u *smtpUpstream) oneLess() {
	close(u.gone)
	u.gone = make(chan struct{})
}

// quit ends c politely, beside the caller, who holds the lock.
func (u *smtpUpstream) quit(c *smtpConn) {
	delete(u.live, c)
	if u.closed {
		c.tcp.Close()
		return
	}
	u.ending[c] = time.Now()
	u.leaving.Go(func() {
		c.quit()
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.ending, c)
		u.oneLess()
	})
}
