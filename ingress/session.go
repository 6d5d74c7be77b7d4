package ingress

import (
	"context"
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
	smtp  *SMTP
	conn  *conn
	greet *smtp.Conn // knows what the client calls itself

	open bool // after MAIL
	from string
	utf8 bool // SMTPUTF8 was declared
	to   []message.Address
	told bool // a refused recipient of this transaction was logged
}

func (s *SMTP) newSession(c *smtp.Conn) (smtp.Session, error) {
	return &session{smtp: s, conn: c.Conn().(*conn), greet: c}, nil
}

// Reset implements smtp.Session: RSET, EHLO, or a message was answered.
func (s *session) Reset() {
	s.open, s.from, s.utf8, s.to, s.told = false, "", false, nil, false
	s.conn.setInMail(false)
}

// Logout implements smtp.Session.
func (s *session) Logout() error { return nil }

// Mail implements smtp.Session. The parser has compared SIZE to the limit.
func (s *session) Mail(from string, opts *smtp.MailOptions) error {
	if err := s.mail(from, opts.UTF8); err != nil {
		return s.refuse("sender refused", err)
	}
	return nil
}

func (s *session) mail(from string, utf8 bool) (err error) {
	defer recovered(&err)
	if s.open {
		return reply.New(503, "5.5.1", "MAIL was given already, RSET starts over")
	}
	if from != "" {
		a, err := address(from, utf8, "5.1.7")
		if err != nil {
			return err
		}
		from = a.String()
	}
	if err := s.smtp.Acceptor.Ready(s.conn.client); err != nil {
		return err
	}
	s.open, s.from, s.utf8 = true, from, utf8
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
	if len(s.to) >= s.smtp.Listen.MaxRecipients {
		return reply.New(452, "4.5.3", "Too many recipients, send them in another mail")
	}
	a, err := address(to, s.utf8, "5.1.3")
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
	s.log(slog.LevelDebug, "message taken", slog.String("msg_id", receipt.ID.String()), slog.Int("code", 250))
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: "queued as " + receipt.ID.String()}
}

func (s *session) data() (_ message.Receipt, err error) {
	defer recovered(&err)
	in := &intake{limit: s.smtp.Listen.MaxSize, budget: s.smtp.Budget, reserve: s.smtp.Reserve(s.conn.client)}
	defer in.close()
	if err := s.conn.readData(in); err != nil {
		return message.Receipt{}, err
	}
	ended := time.Now()
	raw := in.raw()
	if err := checkHeader(raw); err != nil {
		return message.Receipt{}, err
	}
	s.conn.flush() // what was answered before does not wait for this message
	receipts, err := s.smtp.Acceptor.Accept(s.smtp.life, []*message.Submission{{
		Client:    s.conn.client,
		Listener:  s.smtp.Listen.Name,
		Remote:    s.conn.remote,
		Helo:      s.greet.Hostname(),
		With:      s.protocol(),
		MailFrom:  s.from,
		To:        s.to,
		SMTPUTF8:  s.utf8,
		Raw:       raw,
		StartedAt: ended,
	}})
	if err != nil {
		return message.Receipt{}, err
	}
	return receipts[0], nil
}

// protocol is the word for the Received field (RFC 3848, RFC 6531 §4.3).
func (s *session) protocol() string {
	switch {
	case s.utf8:
		return "UTF8SMTP"
	case s.conn.extended:
		return "ESMTP"
	}
	return "SMTP"
}

// refuse logs err, once, and makes it a reply.
func (s *session) refuse(what string, err error) error {
	if errors.Is(err, errLeft) {
		s.log(slog.LevelInfo, "client left before the end of its message", slog.String("err", err.Error()))
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
	attrs := []slog.Attr{slog.Int("code", e.Code), slog.String("reply", e.Text)}
	if e.Err != nil {
		attrs = append(attrs, slog.String("err", e.Err.Error()))
	}
	s.log(level, what, attrs...)
	return wire(err)
}

func (s *session) log(level slog.Level, what string, attrs ...slog.Attr) {
	s.smtp.Log.LogAttrs(context.Background(), level, what, append([]slog.Attr{
		slog.String("listener", s.smtp.Listen.Name), slog.String("client", s.conn.client),
		slog.String("remote", s.conn.remote.String()),
	}, attrs...)...)
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
