package ingress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/reply"
)

// The answers around STARTTLS (RFC 3207).
var (
	errNoTLS       = reply.New(502, "5.5.1", "STARTTLS is not offered")
	errTLSAlready  = reply.New(503, "5.5.1", "TLS is in use already")
	errTLSArgument = reply.New(501, "5.5.4", "STARTTLS takes no parameter")
	errTLSAhead    = reply.New(503, "5.5.1", "Nothing may be sent behind STARTTLS before the handshake")
)

// tlsFiles is a certificate with its key, and what client certificates are verified against, as the files have them
// now. They are looked at before each handshake, so a renewed certificate needs no reload.
type tlsFiles struct {
	paths [3]string // certificate, key, and CA of clients or ""
	over  []string  // protocols over TLS (ALPN); nil where there is no choice
	log   *slog.Logger

	mu     sync.Mutex
	seen   [3]os.FileInfo // nil where there was no file
	config *tls.Config
}

// newTLSFiles reads the files of l.
func newTLSFiles(l *config.Listen, log *slog.Logger) (*tlsFiles, error) {
	f := &tlsFiles{paths: [3]string{l.TLSCertFile, l.TLSKeyFile, l.TLSClientCAFile}, log: log.With("listener", l.Name)}
	if l.HTTP() {
		f.over = []string{"h2", "http/1.1"}
	}
	f.seen = f.look()
	var err error
	f.config, err = f.read()
	return f, err
}

// current returns what a handshake uses. Files that have changed are read again; where they are broken, what they held
// before stays, and the log tells once.
func (f *tlsFiles) current() *tls.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.look()
	if f.same(now) {
		return f.config
	}
	f.seen = now
	next, err := f.read()
	if err != nil {
		f.log.Error("the changed certificate cannot be used, the one before stays in use", "err", err)
		return f.config
	}
	f.config = next
	f.log.Info("the certificate was read again", "file", f.paths[0])
	return f.config
}

func (f *tlsFiles) look() (infos [3]os.FileInfo) {
	for i, path := range f.paths {
		if info, err := os.Stat(path); err == nil {
			infos[i] = info
		}
	}
	return infos
}

// same reports whether the files are those that were read last.
func (f *tlsFiles) same(now [3]os.FileInfo) bool {
	for i, was := range f.seen {
		is := now[i]
		if (is == nil) != (was == nil) {
			return false
		}
		if is != nil && (!os.SameFile(is, was) || !is.ModTime().Equal(was.ModTime()) || is.Size() != was.Size()) {
			return false
		}
	}
	return true
}

func (f *tlsFiles) read() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.paths[0], f.paths[1])
	if err != nil {
		return nil, fmt.Errorf("load certificate %s with key %s: %w", f.paths[0], f.paths[1], err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: f.over}
	if f.paths[2] == "" {
		return c, nil
	}
	pem, err := os.ReadFile(f.paths[2])
	if err != nil {
		return nil, fmt.Errorf("read the CA of client certificates: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the CA of client certificates: %s has no certificate in it", f.paths[2])
	}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	return c, nil
}

func (c *conn) offersTLS() bool { return c.set.TLS == "starttls" && !c.secure }

// startTLS answers STARTTLS (RFC 3207 §4) and does what it asks for. Octets that came behind it in clear may be
// somebody else's: they are dropped, and the connection with them.
func (c *conn) startTLS(line []byte) {
	switch command := strings.TrimRight(string(line), " "); {
	case c.secure:
		c.refuse(errTLSAlready)
	case !c.offersTLS():
		c.refuse(errNoTLS)
	case !strings.EqualFold(command, "STARTTLS"):
		c.refuse(errTLSArgument)
	case c.r < c.w:
		c.r = c.w
		c.hangUp(errTLSAhead)
	default:
		c.out = append(c.out, "220 2.0.0 Go ahead with TLS\r\n"...)
		if c.flush() == nil {
			c.upgrade()
		}
	}
}

// upgrade does the TLS handshake, after which the session begins anew, and asks again who the client is where
// certificates can tell.
func (c *conn) upgrade() {
	t := tls.Server(c.raw, c.set.tls.current())
	if err := c.handshake(t); err != nil {
		c.silence(err)
		c.logTurned("TLS handshake failed", &reply.Error{Code: 421, Text: "none", Err: err})
		return
	}
	c.link, c.secure = t, true
	if err := errors.Join(c.forget(), c.readCertificate(t.ConnectionState())); err != nil {
		c.instead(reply.Of(err))
	}
}

func (c *conn) handshake(t *tls.Conn) error {
	until := time.Now().Add(c.smtp.Timeouts.Handshake)
	if err := errors.Join(c.armRead(until), c.raw.SetWriteDeadline(until)); err != nil {
		return err
	}
	return t.Handshake()
}

// forget drops all that was said in clear.
func (c *conn) forget() error {
	c.helo, c.extended, c.loggedIn, c.authenticated = "", false, false, false
	if c.session != nil {
		c.session.Reset()
	}
	return c.become(c.known)
}

// readCertificate takes the client for the one that its certificate names.
func (c *conn) readCertificate(s tls.ConnectionState) error {
	if c.set.TLSClientCAFile == "" {
		return nil
	}
	if len(s.VerifiedChains) > 0 {
		c.peer.Names = s.VerifiedChains[0][0].DNSNames
	}
	client, err := c.identify()
	if err != nil {
		return err
	}
	c.known = client
	return c.become(client)
}
