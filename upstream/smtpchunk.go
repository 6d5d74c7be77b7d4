package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"gatepost/message"
)

// A mail in one flight: MAIL, RCPT, the mail as one chunk and the end of it (BDAT, RFC 3030) leave together, so it is with
// the host half a round trip after it is ready. The end is a chunk of its own, of nothing: some hosts take what they have
// for the whole mail where a connection breaks within the last chunk, and before the commit there is none.
//
// What makes a flight safe is not self-evident: a host that refuses the envelope has the mail on its doorstep, and one that
// does not drop it would read it as commands. So a host is tried first with chunks of no consequence, and a connection on
// which anything of a flight was refused is closed.

const (
	maxChunk   = 64 << 10 // octets of a mail that goes in one flight; a larger one would fill windows for nothing
	lastChunk  = "BDAT 0 LAST\r\n"
	probeTime  = 10 * time.Second
	probeAgain = 10 * time.Minute // after a probe that told nothing, at least
	maxOffers  = 8                // a host that shows more faces than these gets no further probes
)

// distrust is how long a host gets no flights after one whose fate is not known because the connection broke: it would
// have told before the mail was on its way otherwise.
const distrust = 10 * time.Minute

// chunking is what is known of how a host takes chunks. One that offers something else than before (another program, or
// another machine behind the same name) is another host.
type chunking struct {
	setting string

	mu      sync.Mutex
	safe    map[string]bool // by what the host offers
	probing bool
	next    time.Time // no probe before
	until   time.Time // of the distrust; zero for none
}

// newChunking starts from what the config says of the host.
func newChunking(setting string) *chunking {
	return &chunking{setting: setting, safe: map[string]bool{}}
}

// ask reports whether somebody has to find out about the host that offers this, and leaves that to the caller.
func (k *chunking) ask(offer string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, known := k.safe[offer]
	if known || k.fixed() || k.probing || len(k.safe) >= maxOffers || time.Now().Before(k.next) {
		return false
	}
	k.probing = true
	return true
}

// fixed reports whether the config says how the host takes chunks.
func (k *chunking) fixed() bool { return k.setting == "always" || k.setting == "never" }

// found ends what ask began.
func (k *chunking) found(offer string, known, safe bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.probing = false
	if known {
		k.safe[offer] = safe
	} else {
		k.next = time.Now().Add(probeAgain)
	}
}

// refused notes that the host takes no chunks, whatever was found or configured.
func (k *chunking) refused(offer string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.safe) >= maxOffers {
		clear(k.safe)
	}
	k.safe[offer] = false
}

func (k *chunking) isSafe(offer string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	safe, known := k.safe[offer]
	return (safe || !known && k.setting == "always") && !time.Now().Before(k.until)
}

// broke notes that a connection broke in mid-flight.
func (k *chunking) broke() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.until = time.Now().Add(distrust)
}

// oneFlight reports whether c offers what a mail in one flight needs.
func (c *smtpConn) oneFlight() bool { return c.offers("PIPELINING") && c.offers("CHUNKING") }

// probe finds out on c, which ends with it, whether the host drops what it refuses: a chunk outside a transaction, and a
// flight that nobody is to get. What is in them is a command that does nothing. Whatever is not as it must be counts against
// the host; known is false where the connection broke, so that another may tell.
func (c *smtpConn) probe() (known, safe bool) {
	const chunk = "RSET\r\n"
	for _, s := range []string{"BDAT 6 LAST\r\n", chunk, c.sender, "\r\nBDAT 6\r\n", chunk, lastChunk, "QUIT\r\n"} {
		c.bw.WriteString(s)
	}
	if c.bw.Flush() != nil {
		return false, false
	}
	var codes []int // of the chunk, MAIL, the flight's two chunks and QUIT; more where a chunk was read as commands
	for len(codes) <= 5 {
		r, err := readReply(c.br)
		if err != nil {
			return false, false
		}
		codes = append(codes, r.class())
		if r.code == 221 || r.code == 421 {
			break
		}
	}
	return true, len(codes) == 5 && codes[0] >= 4 && codes[1] == 2 && codes[3] >= 4 && codes[4] == 2
}

// findOut probes the host on c, while ctx lasts and the caller's slot is held, and ends c.
func (u *smtpUpstream) findOut(ctx context.Context, c *smtpConn) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	stop := c.until(ctx)
	known, safe := c.probe()
	stop()
	u.chunks.found(c.offer, known, safe)
	u.kill(c)
}

// sendChunk sends the envelope of m and all of it, but not the last chunk.
func (c *smtpConn) sendChunk(m *mail) ([]command, error) {
	cmds := c.commands(m)
	cmds = cmds[:len(cmds)-1] // DATA
	for _, cmd := range cmds {
		c.bw.WriteString(cmd.line)
		c.bw.WriteString("\r\n")
	}
	fmt.Fprintf(c.bw, "BDAT %d\r\n", m.size)
	left := m.size
	for _, b := range m.wire {
		c.bw.Write(b)
		left -= int64(len(b))
	}
	if left > 0 {
		c.bw.WriteString("\r\n")
	}
	return cmds, c.bw.Flush()
}

// chunk hands m over in one flight. again is true where the host has shown that it takes no chunks after all: it has not
// taken m then.
func (s *smtpSlot) chunk(ctx context.Context, m *mail, commit func() error) (vs []message.Verdict, again bool) {
	c := s.conn
	stop := c.until(ctx)
	defer stop()
	c.broken = true // until all of it was answered well
	cmds, err := c.sendChunk(m)
	if err == nil {
		err = ctx.Err()
	}
	if _, closed := c.peek(); closed && err == nil {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return s.beforeCommit(ctx, m, c.failed("mail", err))
	}
	if commit() != nil {
		return nil, false
	}
	if n, err := io.WriteString(c.conn, lastChunk); err != nil && n == 0 {
		m.fail(lost(stopped(ctx, c.failed("end of the mail", err))))
		return m.verdicts, false
	}
	for _, cmd := range cmds {
		if err := c.chunkedAnswer(m, cmd); err != nil {
			if s.wasIdle(m, err) && s.reconnectSoon(ctx) == nil {
				return nil, true
			}
			m.fail(s.afterCommit(ctx, err))
			return m.verdicts, false
		}
		if m.open == 0 {
			return m.verdicts, false
		}
	}
	return s.chunkAnswer(ctx, m)
}

// chunkedAnswer is answer where the one to NOOP may come first. There is no other connection to go to now, so it gets all the
// time that there is.
func (c *smtpConn) chunkedAnswer(m *mail, cmd command) error {
	if c.owes {
		if err := c.noopAnswer(); err != nil {
			return err
		}
	}
	return c.answer(m, cmd)
}

// wasIdle reports whether err, the first word of the host on m, is that a kept connection had been idle for too long: it
// takes nothing more on it, so m may go over another.
func (s *smtpSlot) wasIdle(m *mail, err error) bool {
	_, told := errors.AsType[*Paused](err)
	return told && s.conn.reused && !m.heard
}

// beforeCommit is how a flight ends that broke before its last chunk: a kept connection may have been closed by the host,
// and what it did not answer goes over a new one.
func (s *smtpSlot) beforeCommit(ctx context.Context, m *mail, err error) (vs []message.Verdict, again bool) {
	if s.conn.reused && ctx.Err() == nil {
		if err = s.reconnect(ctx); err == nil {
			return nil, true
		}
	}
	m.fail(lost(stopped(ctx, err)))
	return m.verdicts, false
}

// afterCommit is the verdict on what was not answered. A 421 says that the host ends here and takes nothing more.
func (s *smtpSlot) afterCommit(ctx context.Context, err error) message.Verdict {
	if v := lost(stopped(ctx, err)); v.Class == message.Throttled {
		return v
	}
	if ctx.Err() == nil {
		s.upstream.chunks.broke()
	}
	return upstreamDown(message.Unknown, stopped(ctx, err).Error())
}

// chunkReply reads the replies to the two chunks and returns the one that counts.
func (c *smtpConn) chunkReply() (smtpReply, error) {
	r, err := readReply(c.br)
	if err != nil {
		return r, err
	}
	last, err := readReply(c.br)
	switch {
	case r.class() == 2:
		r = last
	case err == nil && last.class() == 2:
		return r, fmt.Errorf("malformed reply: the mail was refused (%d), but its end was taken", r.code)
	default:
		err = nil // a host may leave after its refusal
	}
	if err == nil && r.class() == 3 {
		err = fmt.Errorf("malformed reply: code %d is no answer to this", r.code)
	}
	return r, err
}

// chunkAnswer reads what the host makes of the chunks of m, whose envelope was answered.
func (s *smtpSlot) chunkAnswer(ctx context.Context, m *mail) (vs []message.Verdict, again bool) {
	c := s.conn
	r, err := c.chunkReply()
	switch {
	case err != nil:
		m.fail(s.afterCommit(ctx, c.failed("answer to the mail", err)))
	case r.class() == 2:
		c.broken = m.refused() || c.br.Buffered() > 0
		c.dirty = false
		c.mails++
		c.sender = c.mailCommand(m)
		m.fail(accepted(r))
	case r.code == 500 || r.code == 502 || r.code == 503 || r.code == 504:
		// The envelope was good, so it is the command that the host does not take.
		s.upstream.chunks.refused(c.offer)
		if err := s.reconnectSoon(ctx); err != nil {
			m.fail(lost(stopped(ctx, err)))
			return m.verdicts, false
		}
		return nil, true
	default:
		if said, _ := c.peek(); said || c.br.Buffered() > 0 { // it goes on to answer what was in the mail
			s.upstream.chunks.refused(c.offer)
		}
		m.fail(classify(stageDot, r))
	}
	return m.verdicts, false
}
