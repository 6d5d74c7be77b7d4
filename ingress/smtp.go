package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"
	"golang.org/x/time/rate"

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

	Handshake time.Duration // for a PROXY header, and for a TLS handshake (5 s)
	Login     time.Duration // for a client to log in that is nobody without (30 s)
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

		Handshake: cmp.Or(t.Handshake, 5*time.Second),
		Login:     cmp.Or(t.Login, 30*time.Second),
	}
}

// SMTPOptions is what an SMTP door needs. All fields but Connections, Reserve and Timeouts are required.
type SMTPOptions struct {
	Listen      *config.Listen // as at the start; see Reconfigure
	Hostname    string         // in the banner and in replies; see Reconfigure
	Acceptor    Acceptor
	Budget      *Budget                  // shared by all doors
	Connections *Connections             // shared by all doors; nil sets clients no limits of their own
	Reserve     func(client string) bool // whether the client may use the reserves: it sends auth mail; nil for nobody. Asked each time
	Log         *slog.Logger
	Timeouts    Timeouts
}

// SMTP is a door that speaks SMTP (RFC 5321) with PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, SIZE, STARTTLS
// (RFC 3207) and AUTH (RFC 4954). go-smtp parses commands and dispatches them. Everything that touches the connection,
// TLS and logins among it, is ours: see conn.
//
// CHUNKING is not offered and BDAT refused, since go-smtp takes a chunk that was broken off for a whole one.
type SMTP struct {
	SMTPOptions
	settings atomic.Pointer[settings]
	server   *smtp.Server
	table    *table
	turned   rate.Sometimes  // lines about connections that came to nothing: a flood must not fill the log
	serving  context.Context // ends with the stop signal
	life     context.Context // given to Accept: outlives clients and the stop signal, ends when connections are cut
	cut      context.CancelFunc
}

// settings are what Reconfigure changes. A connection keeps those that it began with.
type settings struct {
	*config.Listen
	hostname string
	tls      *tlsFiles // nil where TLS is "none"
}

// NewSMTP returns a door that is ready to Serve, once. Its error says what is wrong with the certificate.
func NewSMTP(o SMTPOptions) (*SMTP, error) {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Reserve == nil {
		o.Reserve = func(string) bool { return false }
	}
	if o.Connections == nil {
		o.Connections = NewConnections(func(string) int { return 0 })
	}
	s := &SMTP{SMTPOptions: o, turned: rate.Sometimes{Interval: 10 * time.Second}}
	s.table = newTable(func() bool { return slices.ContainsFunc(s.settings.Load().Clients, o.Reserve) })
	apply, err := s.Reconfigure(o.Listen, o.Hostname)
	if err != nil {
		return nil, err
	}
	apply()
	s.server = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.server.EnableSMTPUTF8 = true
	s.server.MaxLineLength = maxCommand + 1 // conn is stricter
	s.server.ErrorLog = serverLog{o.Log.With("listener", o.Listen.Name)}
	return s, nil
}

// Reconfigure makes ready what l, which has the same name and address, and hostname change: all that can fail is done
// when it returns. apply, called once, then puts them in force for connections to come. Those that are open keep what
// they began with; none is closed, not even where fewer are allowed now.
func (s *SMTP) Reconfigure(l *config.Listen, hostname string) (apply func(), err error) {
	next := &settings{Listen: l, hostname: hostname}
	if l.TLS == "starttls" || l.TLS == "implicit" {
		if next.tls, err = newTLSFiles(l, s.Log); err != nil {
			return nil, fmt.Errorf("listen %s: %w", l.Name, err)
		}
	}
	return func() {
		before := s.settings.Swap(next)
		s.table.resize(l.MaxConnections, l.MaxPerSource)
		if before != nil {
			resetMode(before.Listen, l, s.Log)
		}
	}, nil
}

// resetMode gives an open socket the permissions that it has now, where they were others before.
func resetMode(before, now *config.Listen, log *slog.Logger) {
	path, ok := strings.CutPrefix(now.Address, "unix:")
	if !ok || before.SocketMode == now.SocketMode {
		return
	}
	if err := os.Chmod(path, fs.FileMode(now.SocketMode)); err != nil {
		log.Error("the mode of the socket could not be changed", "listener", now.Name, "err", err)
	}
}

// Serve answers the clients that connect to ln until ctx ends, then stops: no new connections, idle sessions get 421
// at once, those in a transaction may finish it within Timeouts.Drain. It returns nil after the last session is
// answered, or an error when ln failed or sessions had to be cut off. It closes ln.
func (s *SMTP) Serve(ctx context.Context, ln net.Listener) error {
	s.serving = ctx
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
