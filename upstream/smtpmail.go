package upstream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"gatepost/message"
)

// maxBurst is how many octets of commands are sent before their replies are read. It keeps clear of a deadlock of two
// full windows (RFC 2920 §3.1).
const maxBurst = 8 << 10

// mail is one mail transaction on its way.
type mail struct {
	envelope message.Envelope
	from     string   // reverse-path
	to       []string // forward-paths, in the envelope's order
	wire     net.Buffers
	size     int64
	verdicts []message.Verdict // by recipient; of no class yet where undecided
	open     int               // recipients without a verdict
	heard    bool              // the host has answered some of it
	invited  bool              // DATA was answered 354
}

// newMail checks e against what the host offers and parses every address again before it goes into a command.
// Recipients that cannot be asked for have their verdict at once.
func newMail(e message.Envelope, wire net.Buffers, caps Caps) *mail {
	m := &mail{
		envelope: e, from: "<>", to: make([]string, len(e.To)), wire: wire, size: octets(wire),
		verdicts: make([]message.Verdict, len(e.To)), open: len(e.To),
	}
	switch {
	case e.SMTPUTF8 && !caps.SMTPUTF8:
		m.fail(refusal(message.Permanent, message.ScopeMessage, 550, "5.6.7", "the host does not offer SMTPUTF8, which this mail needs"))
	case e.EightBit && !caps.EightBitMIME:
		// Whoever rendered it knew better a moment ago: that cannot be the mail's fault.
		m.fail(refusal(message.Temporary, message.ScopeMessage, 451, "4.6.3", "the host does not offer 8BITMIME, which this mail was rendered for"))
	case caps.Size > 0 && m.size > caps.Size:
		m.fail(refusal(message.Permanent, message.ScopeMessage, 552, "5.3.4", fmt.Sprintf("the mail has %d octets, the host takes %d", m.size, caps.Size)))
	}
	m.addresses()
	return m
}

// addresses makes the paths.
func (m *mail) addresses() {
	var err error
	if m.envelope.From != "" {
		if m.from, err = path(m.envelope.From, m.envelope.SMTPUTF8); err != nil {
			m.fail(refusal(message.Permanent, message.ScopeMessage, 553, "5.1.7", "envelope sender: "+err.Error()))
		}
	}
	for i, to := range m.envelope.To {
		if m.to[i], err = path(to, m.envelope.SMTPUTF8); err != nil {
			m.decide(i, refusal(message.Permanent, message.ScopeRecipient, 553, "5.1.3", "recipient: "+err.Error()))
		}
	}
}

// refusal is a verdict of our own on what need not be tried with this host.
func refusal(class message.Class, scope message.Scope, code int, enhanced, text string) message.Verdict {
	return message.Verdict{Class: class, Scope: scope, Code: code, Enhanced: enhanced, Text: text}
}

// path returns addr in angle brackets. Only what parses goes on the wire, so nothing can pass as a parameter or a
// second command.
func path(addr string, utf8 bool) (string, error) {
	a, err := message.ParseAddress(addr)
	if err != nil {
		return "", err
	}
	if a.UTF8() && !utf8 {
		return "", errors.New("the address has letters beyond ASCII, but the mail does not ask for SMTPUTF8")
	}
	return "<" + a.String() + ">", nil
}

// decide gives recipient i its verdict, if it has none.
func (m *mail) decide(i int, v message.Verdict) {
	if m.verdicts[i].Class == "" {
		m.verdicts[i] = v
		m.open--
	}
}

// fail gives v to all recipients that have no verdict yet; v may be a good one.
func (m *mail) fail(v message.Verdict) {
	for i := range m.verdicts {
		m.decide(i, v)
	}
}

// refused reports whether any recipient was.
func (m *mail) refused() bool { return m.open < len(m.verdicts) }

// command is one line of the envelope.
type command struct {
	verb      string
	line      string
	recipient int // of RCPT
}

// commands returns the envelope of m in the order of the dialogue.
func (c *smtpConn) commands(m *mail) []command {
	var cmds []command
	if c.dirty {
		cmds = append(cmds, command{verb: "RSET", line: "RSET"})
	}
	cmds = append(cmds, command{verb: "MAIL", line: c.mailCommand(m)})
	for i, to := range m.to {
		if m.verdicts[i].Class == "" {
			cmds = append(cmds, command{verb: "RCPT", line: "RCPT TO:" + to, recipient: i})
		}
	}
	return append(cmds, command{verb: "DATA", line: "DATA"})
}

// octetsOf returns what cmds take on the wire.
func octetsOf(cmds []command) (n int) {
	for _, cmd := range cmds {
		n += len(cmd.line) + len("\r\n")
	}
	return n
}

func (c *smtpConn) mailCommand(m *mail) string { return "MAIL FROM:" + m.from + c.mailParams(m) }

// mailParams returns those parameters of MAIL that the host offers and the mail needs.
func (c *smtpConn) mailParams(m *mail) string {
	var b strings.Builder
	if c.offers("SIZE") {
		fmt.Fprintf(&b, " SIZE=%d", m.size)
	}
	if m.envelope.EightBit {
		b.WriteString(" BODY=8BITMIME")
	}
	if m.envelope.SMTPUTF8 {
		b.WriteString(" SMTPUTF8")
	}
	return b.String()
}

// envelope says RSET where it is due, MAIL, RCPT for each recipient and DATA, in as few writes as the host allows
// (RFC 2920), and puts every reply to its command. What is refused has its verdict afterwards. After an error the
// connection can only be closed.
func (c *smtpConn) envelope(ctx context.Context, m *mail) error {
	for cmds := c.commands(m); len(cmds) > 0 && m.open > 0; {
		if c.owes && !c.offers("PIPELINING") {
			if err := c.noopSoon(ctx); err != nil {
				return err
			}
		}
		n, err := c.sendBurst(cmds)
		if err != nil {
			return c.failed(cmds[0].verb, err)
		}
		if c.owes {
			if err := c.noopSoon(ctx); err != nil {
				return err
			}
		}
		for _, cmd := range cmds[:n] {
			if err := c.answer(m, cmd); err != nil {
				return err
			}
		}
		cmds = cmds[n:]
	}
	c.dirty = false
	return nil
}

// sendBurst sends the first of cmds, and as many more as may go unanswered, and returns how many went.
func (c *smtpConn) sendBurst(cmds []command) (n int, err error) {
	size := 0
	for n < len(cmds) && (n == 0 || c.offers("PIPELINING") && size < maxBurst) {
		size += len(cmds[n].line) + len("\r\n")
		c.bw.WriteString(cmds[n].line)
		c.bw.WriteString("\r\n")
		n++
	}
	return n, c.bw.Flush()
}

// answer reads the reply to cmd and takes it in.
func (c *smtpConn) answer(m *mail, cmd command) error {
	r, err := readReply(c.br)
	if err != nil {
		return c.failed(cmd.verb, err)
	}
	if r.code == 421 {
		v := r.verdict()
		v.Class, v.Scope = message.Throttled, message.ScopeUpstream
		return &Paused{Verdict: v}
	}
	m.heard = m.heard || cmd.verb != "RSET"
	switch ok, bad := r.class() == 2, r.class() >= 4; {
	case cmd.verb == "DATA" && r.code == 354:
		m.invited = true
	case cmd.verb == "MAIL" && bad:
		m.fail(classify(stageMail, r))
	case cmd.verb == "RCPT" && bad:
		m.decide(cmd.recipient, classify(stageRcpt, r))
	case cmd.verb == "DATA" && bad:
		m.fail(classify(stageData, r))
	case !ok || cmd.verb == "DATA":
		return c.failed(cmd.verb, fmt.Errorf("malformed reply: code %d is no answer to this", r.code))
	}
	return nil
}

// failed says at which step the connection failed.
func (c *smtpConn) failed(step string, err error) error {
	return fmt.Errorf("%s: %s: %w", c.host, step, cause(err))
}

// octets returns the size of wire as the host will count it.
func octets(wire net.Buffers) (n int64) {
	atStart := true // of a line
	for _, b := range wire {
		n += int64(len(b))
		if len(b) > 0 {
			atStart = b[len(b)-1] == '\n'
		}
	}
	if !atStart {
		n += int64(len("\r\n"))
	}
	return n
}

// writeBody writes wire with its dots stuffed (RFC 5321 §4.5.2) and a CRLF at its end, but without the final dot.
func writeBody(w *bufio.Writer, wire net.Buffers) error {
	atStart := true // of a line
	for _, b := range wire {
		for len(b) > 0 {
			if atStart && b[0] == '.' {
				w.WriteByte('.')
			}
			n := len(b)
			if i := bytes.Index(b, []byte("\n.")); i >= 0 {
				n = i + 1
			}
			w.Write(b[:n])
			atStart = b[n-1] == '\n'
			b = b[n:]
		}
	}
	if !atStart {
		w.WriteString("\r\n")
	}
	return w.Flush()
}
