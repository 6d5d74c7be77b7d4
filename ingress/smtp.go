package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"

	"gatepost/config"
)

// Timeouts bounds how long a session may take. Zero fields take the default.
type Timeouts struct {
	Idle    time.Duration // for a whole command to come, and for the next octet of a message (5 min, RFC 5321 §4.5.3.2.7)
	Session time.Duration // for a session; one in a transaction may go on for Idle (1 h)
	Grace   time.Duration // in which a message may come at any speed (2 min) …
	MinRate int64         // … after that it must have come at this many octets a second (1024)
	Write   time.Duration // for a client to take replies (1 min)
	Drain   time.Duration // when stopping: to finish a transaction that was begun (8 s)
	Answer  time.Duration // when stopping: to answer what came in until then; afterwards connections are cut (1.5 s)
}

func (t Timeouts) withDefaults() Timeouts {
	return Timeouts{
		Idle:    cmp.Or(t.Idle, 5*time.Minute),
		Session: cmp.Or(t.Session, time.Hour),
		Grace:   cmp.Or(t.Grace, 2*time.Minute),
		MinRate: cmp.Or(t.MinRate, 1024),
		Write:   cmp.Or(t.Write, time.Minute),
		Drain:   cmp.Or(t.Drain, 8*time.Second),
		Answer:  cmp.Or(t.Answer, 1500*time.Millisecond),
	}
}

// SMTPOptions is what an SMTP door needs. All fields but Reserve and Timeouts are required.
type SMTPOptions struct {
	Listen   *config.Listen
	Hostname string // in the banner and in replies
	Acceptor Acceptor
	Budget   *Budget                  // shared by all doors
	Reserve  func(client string) bool // whether the client may use the reserve of Budget (one that sends auth mail); nil for nobody
	Log      *slog.Logger
	Timeouts Timeouts
}

// SMTP is a door that speaks SMTP (RFC 5321) with PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES and SIZE.
// go-smtp parses commands and dispatches them. Everything that touches the connection is ours: see conn.
//
// CHUNKING is not offered and BDAT refused, since go-smtp takes a chunk that was broken off for a whole one.
type SMTP struct {
	SMTPOptions
	server *smtp.Server
	table  *table
	life   context.Context // given to Accept: outlives clients and the stop signal, ends when connections are cut
	cut    context.CancelFunc
}

// NewSMTP returns a door that is ready to Serve, once.
func NewSMTP(o SMTPOptions) *SMTP {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Reserve == nil {
		o.Reserve = func(string) bool { return false }
	}
	s := &SMTP{SMTPOptions: o, table: newTable(o.Listen.MaxConnections, o.Listen.MaxPerSource)}
	s.server = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.server.Domain = o.Hostname
	s.server.EnableSMTPUTF8 = true
	s.server.MaxMessageBytes = o.Listen.MaxSize // for SIZE at EHLO and MAIL
	s.server.MaxLineLength = maxCommand + 1     // conn is stricter
	s.server.ErrorLog = serverLog{o.Log.With("listener", o.Listen.Name)}
	return s
}

// Listen binds the address of l. Its errors say what is in the way.
func Listen(ctx context.Context, l *config.Listen) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", l.Address)
	switch {
	case err == nil:
		return ln, nil
	case errors.Is(err, syscall.EADDRINUSE):
		err = fmt.Errorf("%s is in use: stop the program that holds it, or change the address", l.Address)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		err = fmt.Errorf("%s is not an address of this host", l.Address)
	case errors.Is(err, syscall.EACCES):
		err = fmt.Errorf("%s may not be bound by this user: ports below 1024 need CAP_NET_BIND_SERVICE", l.Address)
	}
	return nil, fmt.Errorf("listen %s: %w", l.Name, err)
}

// Serve answers the clients that connect to ln until ctx ends, then stops: no new connections, idle sessions get 421
// at once, those in a transaction may finish it within Timeouts.Drain. It returns nil after the last session is
// answered, or an error when ln failed or sessions had to be cut off. It closes ln.
func (s *SMTP) Serve(ctx context.Context, ln net.Listener) error {
	s.life, s.cut = context.WithCancel(context.WithoutCancel(ctx))
	defer s.cut()
	l := &listener{Listener: ln, smtp: s}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	err := s.server.Serve(l)
	if ctx.Err() != nil {
		err = nil // the listener was closed on purpose
	} else {
		err = fmt.Errorf("listen %s: accept connections: %w", s.Listen.Name, err)
	}
	l.Close()
	return errors.Join(err, s.drain())
}

// drain ends all sessions and returns when they are gone, or soon after Drain + Answer.
func (s *SMTP) drain() error {
	idle := s.table.drain(time.Now().Add(s.Timeouts.Drain))
	if waitFor(idle, s.Timeouts.Drain+s.Timeouts.Answer) {
		return nil
	}
	n := s.table.cut()
	s.cut()
	waitFor(idle, s.Timeouts.Answer/3)
	return fmt.Errorf("listen %s: %d sessions were cut off: they did not end within %v", s.Listen.Name, n,
		s.Timeouts.Drain+s.Timeouts.Answer)
}

func waitFor(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// serverLog takes what go-smtp has to say: connections that broke, which are no news, and its own panics, which are.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Printf(format string, v ...any) {
	level := slog.LevelDebug
	if strings.HasPrefix(format, "panic") {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "smtp server", "err", fmt.Sprintf(format, v...))
}

func (l serverLog) Println(v ...any) { l.Printf("%s", strings.TrimSpace(fmt.Sprintln(v...))) }
