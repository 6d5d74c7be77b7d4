package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"gatepost/message"
)

// A mail in one flight: MAIL, RCPT and the whole mail as one chunk (BDAT LAST, RFC 3030) leave together, so it is with
// the host half a round trip after it is ready. What makes that safe is not self-evident: a host that refuses the
// envelope has the chunk on its doorstep, and one that does not drop it would read somebody's mail as commands. So a host
// is tried first with chunks of no consequence, and a connection on which anything of a flight was refused is closed.

const (
	maxChunk  = 64 << 10 // octets of a mail that goes in one flight; a larger one would fill windows for nothing
	probeTime = 10 * time.Second
)

// distrust is how long a host gets no flights after one whose fate is not known because the connection broke: it would
// have told before the mail was on its way otherwise.
const distrust = 10 * time.Minute

// chunking is what is known of how a host takes chunks.
type chunking struct {
	mu    sync.Mutex
	known bool // or being found out
	safe  bool
	until time.Time // of the distrust; zero for none
}

// ask reports whether somebody has to find out, and leaves that to the caller.
func (k *chunking) ask() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.known
	k.known = true
	return !was
}

func (k *chunking) learn(known, safe bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.known, k.safe = known, safe
}

func (k *chunking) isSafe() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.safe && !time.Now().Before(k.until)
}

// broke notes that a connection broke in mid-flight.
func (k *chunking) broke() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.until = time.Now().Add(distrust)
}

// newChunking starts from what the config says of the host.
func newChunking(setting string) *chunking {
	return &chunking{known: setting == "always" || setting == "never", safe: setting == "always"}
}

// oneFlight reports whether c offers what a mail in one flight needs.
func (c *smtpConn) oneFlight() bool { return c.offers("PIPELINING") && c.offers("CHUNKING") }

// refusedChunks are two chunks that a host has to refuse, one outside a transaction and one without a recipient. What is
// in them is a command that does nothing. A host that drops them, as it must, gives four more replies and the one to QUIT.
var refusedChunks = []string{"BDAT 6 LAST", "RSET", "MAIL FROM:<>", "BDAT 6 LAST", "RSET", "QUIT"}

// probe finds out on c, which ends with it, whether the host drops what it refuses. Whatever is not as it must be counts
// against it; known is false where the connection broke, so that another may tell.
func (c *smtpConn) probe() (known, safe bool) {
	for _, line := range refusedChunks {
		c.bw.WriteString(line + "\r\n")
	}
	if c.bw.Flush() != nil {
		return false, false
	}
	var codes []int
	for len(codes) < len(refusedChunks) {
		r, err := readReply(c.br)
		if err != nil {
			return false, false
		}
		codes = append(codes, r.class())
		if r.code == 221 || r.code == 421 {
			break
		}
	}
	// 5yz for the first chunk, anything for MAIL, 5yz for the second, 221.
	return true, len(codes) == 4 && codes[0] >= 4 && codes[2] >= 4 && codes[3] == 2
}

// findOut probes the host on c, while the caller's slot is held, and ends c.
func (u *smtpUpstream) findOut(c *smtpConn) {
	ctx, cancel := context.WithTimeout(u.closing, probeTime)
	defer cancel()
	stop := c.until(ctx)
	known, safe := c.probe()
	stop()
	u.chunks.learn(known, safe)
	u.kill(c)
}

// sendChunk sends the envelope of m and all of its chunk but the last octet, which is an LF.
func (c *smtpConn) sendChunk(m *mail) ([]command, error) {
	cmds := c.commands(m)
	cmds = cmds[:len(cmds)-1] // DATA
	for _, cmd := range cmds {
		c.bw.WriteString(cmd.line)
		c.bw.WriteString("\r\n")
	}
	fmt.Fprintf(c.bw, "BDAT %d LAST\r\n", m.size)
	writeAllButLF(c.bw, m.wire)
	return cmds, c.bw.Flush()
}

// writeAllButLF writes wire, ended by a CRLF, without its last LF.
func writeAllButLF(w *bufio.Writer, wire net.Buffers) {
	last := len(wire) - 1
	for last >= 0 && len(wire[last]) == 0 {
		last--
	}
	for i, b := range wire[:last+1] {
		if i == last && b[len(b)-1] == '\n' {
			w.Write(b[:len(b)-1])
			return
		}
		w.Write(b)
	}
	w.WriteString("\r")
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
	if n, err := c.conn.Write([]byte("\n")); err != nil && n == 0 {
		m.fail(lost(stopped(ctx, c.failed("end of the mail", err))))
		return m.verdicts, false
	}
	for _, cmd := range cmds {
		if err := c.answer(m, cmd); err != nil {
			if s.wasIdle(m, err) && s.reconnect(ctx) == nil {
				return nil, true
			}
			m.fail(s.afterCommit(ctx, err))
			return m.verdicts, false
		}
	}
	return s.chunkAnswer(ctx, m)
}

// wasIdle reports whether err, the first word of the host on m, is that a kept connection had been idle for too long: it
// takes nothing more on it, so m may go over another.
func (s *smtpSlot) wasIdle(m *mail, err error) bool {
	_, told := errors.AsType[*Paused](err)
	return told && s.conn.reused && !m.heard
}

// beforeCommit is how a flight ends that broke before its last octet: a kept connection may have been closed by the host,
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

// chunkAnswer reads what the host makes of the chunk of m, whose envelope was answered.
func (s *smtpSlot) chunkAnswer(ctx context.Context, m *mail) (vs []message.Verdict, again bool) {
	if m.open == 0 {
		return m.verdicts, false
	}
	c := s.conn
	r, err := readReply(c.br)
	if err == nil && r.class() == 3 {
		err = fmt.Errorf("malformed reply: code %d is no answer to this", r.code)
	}
	switch {
	case err != nil:
		m.fail(s.afterCommit(ctx, c.failed("answer to the mail", err)))
	case r.class() == 2:
		c.broken = m.refused()
		c.dirty = false
		c.mails++
		v := r.verdict()
		v.Class, v.ProviderID = message.Accepted, providerID(v.Text)
		m.fail(v)
	case r.code == 500 || r.code == 502 || r.code == 503 || r.code == 504:
		// The envelope was good, so it is the command that the host does not take.
		s.upstream.chunks.learn(true, false)
		if err := s.reconnect(ctx); err != nil {
			m.fail(lost(stopped(ctx, err)))
			return m.verdicts, false
		}
		return nil, true
	default:
		m.fail(classify(stageDot, r))
	}
	return m.verdicts, false
}
