package ingress

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"gatepost/message"
	"gatepost/reply"
)

// session is one client's conversation as go-smtp drives it: a command after the other, on one goroutine.
type session struct {
	smtp *SMTP
	conn *conn

	open bool // after MAIL
	from string
	utf8 bool // SMTPUTF8 was declared
	to   []message.Address
	told bool // a refused recipient of this transaction was logged
}

func (s *SMTP) newSession(c *smtp.Conn) (smtp.Session, error) {
	conn := c.Conn().(*conn)
	conn.session = &session{smtp: s, conn: conn}
	return conn.session, nil
}

// Reset implements smtp.Session: RSET, EHLO, or a message was answered.
func (s *session) Reset() {
	s.open, s.from, s.utf8, s.to, s.told = false, "", false, nil, false
	s.conn.setInMail(false)
}

// Logout implements smtp.Session.
func (s *session) Logout() error { return nil }

// Mail implements smtp.Session.
func (s *session) Mail(from string, opts *smtp.MailOptions) error {
	if err := s.mail(from, opts); err != nil {
		return s.refuse("sender refused", err)
	}
	return nil
}

func (s *session) mail(from string, opts *smtp.MailOptions) (err error) {
	defer recovered(&err)
	if s.open {
		return reply.New(503, "5.5.1", "MAIL was given already, RSET starts over")
	}
	if from != "" {
		a, err := address(from, opts.UTF8, wrongAddress["MAIL"])
		if err != nil {
			return err
		}
		from = a.String()
	}
	if opts.Size > s.conn.limit(nil) {
		return errTooBig
	}
	if err := s.smtp.Acceptor.Ready(s.conn.client, from); err != nil {
		return err
	}
	s.open, s.from, s.utf8 = true, from, opts.UTF8
	s.conn.setInMail(true)
	return nil
}

// Rcpt implements smtp.Session.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	err := s.rcpt(to)
	switch {
	case err == nil:
		return nil
	case s.told: // one line a transaction is enough
		return wire(err)
	}
	s.told = true
	return s.refuse("recipient refused", err)
}

func (s *session) rcpt(to string) error {
	if len(s.to) >= s.conn.set.MaxRecipients {
		return reply.New(452, "4.5.3", "Too many recipients, send them in another mail")
	}
	a, err := address(to, s.utf8, wrongAddress["RCPT"])
	if err != nil {
		return err
	}
	s.to = append(s.to, a)
	return nil
}

// address reads what the parser left of a path. It has taken quotes off: what needed them is refused here, what did
// not is the same mailbox without (RFC 5321 §4.1.2).
func address(path string, utf8 bool, enhanced string) (message.Address, error) {
	a, err := message.ParseAddress(path)
	if err != nil {
		return a, &reply.Error{Code: 553, Enhanced: enhanced, Text: "Address refused: " + err.Error()}
	}
	if a.UTF8() && !utf8 {
		return a, reply.New(553, "5.6.7", "Address refused: it is not ASCII, and MAIL did not say SMTPUTF8")
	}
	return a, nil
}

// Data implements smtp.Session. It reads the message from the connection itself and leaves the reader alone: see conn.
func (s *session) Data(io.Reader) error {
	receipt, err := s.data()
	if err != nil {
		return s.refuse("message refused", err)
	}
	s.conn.log(slog.LevelDebug, "message taken", slog.String("msg_id", receipt.ID.String()), slog.Int("code", 250))
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "queued as " + receipt.ID.String()}
}

func (s *session) data() (_ message.Receipt, err error) {
	defer recovered(&err)
	limit := s.conn.limit(nil)
	in := &intake{limit: limit, patience: 2*limit + drainSlack, budget: s.smtp.Budget, reserve: s.smtp.Reserve(s.conn.client),
		limitOf: func(header []byte) int64 { return s.conn.limit(header) }}
	defer in.close()
	if err := s.conn.readData(in); err != nil {
		return message.Receipt{}, err
	}
	ended := time.Now()
	raw, room, err := in.raw()
	if err != nil {
		return message.Receipt{}, err
	}
	if err := checkLoop(raw); err != nil {
		return message.Receipt{}, err
	}
	s.conn.flush() // what was answered before does not wait for this message
	receipts, err := s.smtp.Acceptor.Accept(s.smtp.life, []*message.Submission{{
		Client:    s.conn.client,
		Listener:  s.smtp.Listen.Name,
		Remote:    s.conn.remote,
		Helo:      s.conn.helo,
		With:      s.protocol(),
		MailFrom:  s.from,
		To:        s.to,
		SMTPUTF8:  s.utf8,
		Raw:       raw,
		Room:      room,
		StartedAt: ended,
	}})
	if err != nil {
		return message.Receipt{}, err
	}
	return receipts[0], nil
}

// protocol is the word for the Received field (RFC 3848, RFC 6531 §4.3).
func (s *session) protocol() string {
	c := s.conn
	word := "ESMTP"
	switch {
	case s.utf8:
		word = "UTF8SMTP"
	case !c.extended:
		return "SMTP"
	}
	if c.secure {
		word += "S"
	}
	if c.authenticated {
		word += "A"
	}
	return word
}

// refuse logs err, once, and makes it a reply.
func (s *session) refuse(what string, err error) error {
	if errors.Is(err, errLeft) {
		s.conn.log(slog.LevelInfo, "client left before the end of its message", slog.String("err", err.Error()))
		return wire(err)
	}
	e := reply.Of(err)
	level := slog.LevelInfo
	switch {
	case errors.Is(err, errPanic):
		level = slog.LevelError
	case e.Temporary():
		level = slog.LevelWarn
	}
	s.conn.log(level, what, refusalAttrs(e)...)
	return wire(err)
}

// refusalAttrs are what the log tells of a refusal.
func refusalAttrs(e *reply.Error) []slog.Attr {
	attrs := []slog.Attr{slog.Int("code", e.Code), slog.String("reply", e.Text)}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", e.Err.Error()))
	}
	return attrs
}

// wire makes err the only kind of error that go-smtp does not turn into a permanent one with our words in it.
func wire(err error) *smtp.SMTPError {
	e := reply.Of(err)
	out := &smtp.SMTPError{Code: e.Code, Message: oneLine(e.Text)}
	if out.Code < 400 || out.Code > 599 { // an Error says no
		out.Code = 451
	}
	var ec smtp.EnhancedCode
	if _, err := fmt.Sscanf(e.Enhanced, "%d.%d.%d", &ec[0], &ec[1], &ec[2]); err == nil && ec[0] == out.Code/100 {
		out.EnhancedCode = ec
	}
	return out
}

// oneLine makes text fit for a reply line (RFC 5321 §4.5.3.1.5).
func oneLine(text string) string {
	text = strings.Join(strings.Fields(text), " ")
	return strings.ToValidUTF8(text[:min(len(text), 480)], "")
}

// errPanic marks what a panic was made into.
var errPanic = errors.New("panic")

// recovered, deferred, turns a panic into an error, which is a 451: a mistake in one session ends no other, and
// bounces no mail.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v\n%s", errPanic, v, debug.Stack())
	}
}
