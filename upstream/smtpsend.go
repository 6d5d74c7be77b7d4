package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"gatepost/message"
)

// smtpSlot is the right to one mail transaction, and the connection for it.
type smtpSlot struct {
	upstream *smtpUpstream
	lane     string
	conn     *smtpConn
	caps     Caps // as told; the connection may be replaced
}

// Caps implements Slot.
func (s *smtpSlot) Caps() Caps { return s.caps }

// Local implements Slot.
func (s *smtpSlot) Local() string { return s.conn.local() }

// Release implements Slot. The first connection to a host that offers chunks ends with a probe of how it takes them.
func (s *smtpSlot) Release() {
	u := s.upstream
	if s.probe() {
		return
	}
	u.checkIn(s.conn)
	u.slots.give(s.lane)
	u.warm()
}

// probe begins to find out how the host takes chunks, where that is not known and nobody waits for the slot. The slot is
// the probe's then.
func (s *smtpSlot) probe() bool {
	u, c := s.upstream, s.conn
	if c.broken || c.dirty || c.sender == "" || !c.oneFlight() {
		return false
	}
	if _, waiting := u.slots.room(); waiting || !u.chunks.ask(c.offer) {
		return false
	}
	return u.beside(func() {
		ctx, give := u.slots.visit(u.closing, s.lane)
		u.findOut(ctx, c)
		give()
		u.warm()
	})
}

// Send implements Slot. A small mail goes in one flight where the host is known to take that; others take two: the
// envelope, then the mail. Where the host has closed a kept connection, the mail goes over a new one.
func (s *smtpSlot) Send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	vs := s.send(ctx, e, wire, commit)
	if slices.ContainsFunc(vs, func(v message.Verdict) bool { return v.Class == message.Throttled }) {
		s.upstream.slots.throttled()
	}
	return vs
}

func (s *smtpSlot) send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	m := newMail(e, wire, s.caps)
	if m.open == 0 {
		return m.verdicts
	}
	defer func() {
		// Another Send may follow for more recipients, and the host may be gone by then.
		s.conn.reused = true
		if s.conn.broken {
			s.upstream.kill(s.conn)
		}
	}()
	// What a kept connection says unasked is no answer to this mail.
	if s.conn.reused && !s.conn.broken && s.conn.unfit(ctx) {
		if err := s.reconnect(ctx); err != nil {
			m.fail(lost(stopped(ctx, err)))
			return m.verdicts
		}
	}
	if s.flies(m) {
		if vs, again := s.chunk(ctx, m, commit); !again {
			return vs
		}
	}
	return s.twoFlights(ctx, m, commit)
}

// flies reports whether m goes in one flight.
func (s *smtpSlot) flies(m *mail) bool {
	c := s.conn
	return m.size > 0 && m.size <= maxChunk && c.oneFlight() && s.upstream.chunks.isSafe(c.offer) && octetsOf(c.commands(m)) <= maxBurst
}

// twoFlights sends the envelope and, once that was answered, the mail.
func (s *smtpSlot) twoFlights(ctx context.Context, m *mail, commit func() error) []message.Verdict {
	// That a kept connection is gone shows before anything of the mail was answered.
	err := s.envelope(ctx, m)
	if err != nil && s.conn.reused && !m.heard && ctx.Err() == nil {
		if err = s.reconnect(ctx); err == nil {
			err = s.envelope(ctx, m)
		}
	}
	if err != nil {
		s.conn.broken = true
		m.fail(lost(err))
		return m.verdicts
	}
	if m.open == 0 {
		s.conn.dirty = true
		// The host waits for a mail that nobody is to get: what is sent now would be a mail, so nothing is.
		s.conn.broken = s.conn.broken || m.invited
		return m.verdicts
	}
	return s.data(ctx, m, commit)
}

// envelope leads the dialogue up to the reply to DATA, while ctx lasts.
func (s *smtpSlot) envelope(ctx context.Context, m *mail) error {
	stop := s.conn.until(ctx)
	defer stop()
	return stopped(ctx, s.conn.envelope(ctx, m))
}

// reconnectSoon is reconnect for a mail whose first commit has stopped the timer that ran until then: the next upstream
// waits.
func (s *smtpSlot) reconnectSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, againTime)
	defer cancel()
	err := s.reconnect(ctx)
	if _, told := errors.AsType[*Paused](err); err != nil && !told {
		return fmt.Errorf("not connected again within %v: %w", againTime, err)
	}
	return err
}

// reconnect replaces the connection by a new one, which must offer the same.
func (s *smtpSlot) reconnect(ctx context.Context) error {
	c, err := s.upstream.replace(ctx, s.conn, s.lane)
	if err != nil {
		return err
	}
	s.conn = c
	if c.caps != s.caps {
		return errors.New("the host offers other extensions than a moment ago")
	}
	return nil
}

// data sends the mail itself and its end, once commit lets it, and takes the answer to that.
func (s *smtpSlot) data(ctx context.Context, m *mail, commit func() error) []message.Verdict {
	c := s.conn
	stop := c.until(ctx)
	defer stop()
	// Until the host has answered the end of the data, the connection can only be closed.
	c.broken = true
	err := writeBody(c.bw, m.wire)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		m.fail(lost(stopped(ctx, c.failed("mail", err))))
		return m.verdicts
	}
	if commit() != nil {
		return nil
	}
	v := c.finish(ctx)
	if v.Class == message.Accepted {
		c.sender = c.mailCommand(m)
	}
	m.fail(v)
	return m.verdicts
}

// finish sends the final dot and returns what the host makes of it.
func (c *smtpConn) finish(ctx context.Context) message.Verdict {
	// A host that has gone, or answered ahead of the dot, has not taken the mail: that is certain only while the dot
	// is not sent.
	if c.spoken() {
		return lost(stopped(ctx, c.failed("mail", errors.New("the connection was closed, or the host answered, before its end"))))
	}
	if n, err := io.WriteString(c.conn, ".\r\n"); err != nil && n == 0 {
		return lost(stopped(ctx, c.failed("final dot", err)))
	}
	r, err := readReply(c.br)
	if err == nil && r.class() == 3 {
		err = fmt.Errorf("malformed reply: code %d is no answer to this", r.code)
	}
	if err != nil {
		return upstreamDown(message.Unknown, stopped(ctx, c.failed("answer to the final dot", err)).Error())
	}
	c.broken = r.code == 421 || c.br.Buffered() > 0
	c.mails++
	if r.class() != 2 {
		c.dirty = true
		return classify(stageDot, r)
	}
	return accepted(r)
}

// accepted is the verdict on a mail that the host took with r.
func accepted(r smtpReply) message.Verdict {
	v := r.verdict()
	v.Class, v.ProviderID = message.Accepted, providerID(v.Text)
	return v
}

// lost is the verdict on a hand-over that ended before its commit without the host refusing it.
func lost(err error) message.Verdict {
	if p, ok := errors.AsType[*Paused](err); ok {
		return p.Verdict
	}
	return upstreamDown(message.Temporary, err.Error())
}

// stopped returns err, which is about the end of ctx where that has ended: a deadline of ours reads as a timeout then.
func stopped(ctx context.Context, err error) error {
	if _, told := errors.AsType[*Paused](err); err == nil || told || ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("%w (stopped: %w)", err, context.Cause(ctx))
}
