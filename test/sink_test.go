package test

import (
	"crypto/tls"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"gatepost/message"
)

// arrival is a mail as it reached the far end.
type arrival struct {
	id   string      // that the test gave to it: the left part of its Message-ID
	at   time.Time   // when its last octet was there
	peer *connection // that it came over
	helo string
	from string
	to   []string
	raw  message.Raw // as received
}

// connection is one TCP connection to a sink.
type connection struct {
	net.Conn
	sink   *sink
	source netip.Addr
	opened time.Time
	closed time.Time // zero while it is open; guarded by sink.mu
}

// sink is an SMTP host at the far end, which keeps what it gets.
type sink struct {
	t    *testing.T
	addr string

	mu       sync.Mutex
	server   *smtp.Server
	ln       net.Listener
	done     chan struct{} // closed when server has ended
	peers    []*connection
	arrivals []arrival
	tls      *tls.Config           // for STARTTLS; nil where it is not offered
	password string                // the one that is good; "" where none is asked for
	answer   func(a arrival) error // nil accepts; runs after the mail is kept
	envelope func(from netip.Addr) // runs before a recipient is accepted; may be nil
	careless bool                  // throws mail away
}

// newSink starts a sink on a port of its own.
func newSink(t *testing.T) *sink {
	t.Helper()
	return newSinkOn(t, freeAddress(t))
}

func newSinkOn(t *testing.T, addr string) *sink {
	t.Helper()
	s := &sink{t: t, addr: addr}
	s.start()
	t.Cleanup(s.stop)
	return s
}

// start makes the sink listen, again where it was stopped.
func (s *sink) start() {
	s.t.Helper()
	ln := listen(s.t, s.addr)
	server := smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) {
		return &sinkSession{sink: s, conn: c}, nil
	}))
	server.Domain = "mx.example.net"
	server.EnableSMTPUTF8 = true
	server.AllowInsecureAuth = true
	server.TLSConfig = s.tls
	server.ErrorLog = log.New(io.Discard, "", 0) // it tells of connections that broke
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(&sinkListener{ln, s}) // returns once the server is closed
	}()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server, s.ln, s.done = server, ln, done
}

// stop ends the sink as an outage does: connections break, new ones are refused.
func (s *sink) stop() {
	s.mu.Lock()
	server, ln, done := s.server, s.ln, s.done
	s.mu.Unlock()
	server.Close() // fails where it is closed already
	ln.Close()     // which a server that has not come to serve it yet does not know
	<-done
}

// setAnswer makes f decide, and delay, the reply to every mail from now on.
func (s *sink) setAnswer(f func(a arrival) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// setEnvelope makes f see, and delay, the reply to every recipient from now on; from is where the connection comes from.
func (s *sink) setEnvelope(f func(from netip.Addr)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.envelope = f
}

// forget makes the sink throw away what it accepts.
func (s *sink) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.careless = true
}

func (s *sink) forgets() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.careless
}

// useTLS makes the sink offer STARTTLS with a certificate for 127.0.0.1, and returns it in PEM.
func (s *sink) useTLS() []byte {
	host := httptest.NewTLSServer(nil) // for its certificate
	host.Close()
	s.stop()
	s.tls = &tls.Config{Certificates: host.TLS.Certificates}
	s.start()
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: host.Certificate().Raw})
}

// setPassword makes the sink demand a login with it.
func (s *sink) setPassword(password string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.password = password
}

// all returns what has arrived so far.
func (s *sink) all() []arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.arrivals[:len(s.arrivals):len(s.arrivals)]
}

// copies returns the arrivals of each mail by the id that the test gave it.
func (s *sink) copies() map[string][]arrival {
	m := make(map[string][]arrival)
	for _, a := range s.all() {
		m[a.id] = append(m[a.id], a)
	}
	return m
}

// wait waits until n mails have arrived and returns them.
func (s *sink) wait(n int, within time.Duration) []arrival {
	s.t.Helper()
	eventually(s.t, within, "the mail has arrived at the far end", func() bool { return len(s.all()) >= n })
	return s.all()
}

// connections returns every connection that was made so far.
func (s *sink) connections() []*connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peers[:len(s.peers):len(s.peers)]
}

// openBetween counts the connections that were open at some moment between from and to.
func (s *sink) openBetween(from, to time.Time) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.peers {
		if c.opened.Before(to) && (c.closed.IsZero() || c.closed.After(from)) {
			n++
		}
	}
	return n
}

// sinkListener keeps every connection on record.
type sinkListener struct {
	net.Listener
	sink *sink
}

func (l *sinkListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &connection{Conn: conn, sink: l.sink, opened: time.Now(), source: conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()}
	l.sink.mu.Lock()
	defer l.sink.mu.Unlock()
	l.sink.peers = append(l.sink.peers, c)
	return c, nil
}

func (c *connection) Close() error {
	c.sink.mu.Lock()
	if c.closed.IsZero() {
		c.closed = time.Now()
	}
	c.sink.mu.Unlock()
	return c.Conn.Close()
}

// sinkSession implements smtp.AuthSession.
type sinkSession struct {
	sink *sink
	conn *smtp.Conn
	in   bool // logged in
	from string
	to   []string
}

func (s *sinkSession) expected() string {
	s.sink.mu.Lock()
	defer s.sink.mu.Unlock()
	return s.sink.password
}

func (s *sinkSession) AuthMechanisms() []string {
	if s.expected() == "" {
		return nil
	}
	return []string{sasl.Plain}
}

func (s *sinkSession) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, _, password string) error {
		if password != s.expected() {
			return smtp.ErrAuthFailed
		}
		s.in = true
		return nil
	}), nil
}

func (s *sinkSession) Mail(from string, _ *smtp.MailOptions) error {
	if s.expected() != "" && !s.in {
		return &smtp.SMTPError{Code: 530, EnhancedCode: smtp.EnhancedCode{5, 7, 0}, Message: "Log in first"}
	}
	s.from = from
	return nil
}

func (s *sinkSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.sink.mu.Lock()
	envelope := s.sink.envelope
	s.sink.mu.Unlock()
	if envelope != nil {
		envelope(peerOf(s.conn.Conn()).source)
	}
	s.to = append(s.to, to)
	return nil
}

func (s *sinkSession) Data(r io.Reader) error {
	if s.sink.forgets() {
		_, err := io.Copy(io.Discard, r)
		return err
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	a := arrival{at: time.Now(), peer: peerOf(s.conn.Conn()), helo: s.conn.Hostname(), from: s.from, to: s.to, raw: raw}
	a.id = submatch(testIDs, a.raw.Header())
	s.sink.mu.Lock()
	s.sink.arrivals = append(s.sink.arrivals, a)
	answer := s.sink.answer
	s.sink.mu.Unlock()
	if answer != nil {
		return answer(a)
	}
	return nil
}

// peerOf returns the connection below TLS.
func peerOf(c net.Conn) *connection {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return c.(*connection)
}

func (s *sinkSession) Reset() { s.from, s.to = "", nil }

func (s *sinkSession) Logout() error { return nil }

var (
	testIDs  = regexp.MustCompile(`(?mi)^Message-ID: <([^@>]+)@`)
	queueIDs = regexp.MustCompile(`(?m)^\tby \S+ with \S+ id ([0-9a-z]{13});`)
)

// queueID returns the id that gatepost gave to a mail, from its Received field.
func queueID(raw message.Raw) string { return submatch(queueIDs, raw.Header()) }

func submatch(re *regexp.Regexp, b []byte) string {
	if m := re.FindSubmatch(b); m != nil {
		return string(m[1])
	}
	return ""
}
