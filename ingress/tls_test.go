package ingress

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	file string
	last int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), "ca.pem"), pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true}
	der, key := a.sign(t, template)
	a.key = key
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	write(t, a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return a
}

// sign signs template with the authority's key, or, where it has none yet, with the certificate's own.
func (a *authority) sign(t testing.TB, template *x509.Certificate) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, by := a.cert, a.key
	if by == nil {
		parent, by = template, key
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by); err != nil {
		t.Fatal(err)
	}
	return der, key
}

// issue writes a certificate for names, with its key, into dir, and returns the files.
func (a *authority) issue(t testing.TB, dir string, names ...string) (cert, key string) {
	t.Helper()
	a.last++
	der, k := a.sign(t, &x509.Certificate{SerialNumber: big.NewInt(a.last), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: time.Now().Add(time.Hour)})
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return cert, key
}

// write replaces a file as certificate tools do.
func write(t testing.TB, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// withTLS gives a door a certificate of a for gw.example.com.
func withTLS(t testing.TB, a *authority, mode string, more func(o *SMTPOptions, f *fakeRelay)) func(o *SMTPOptions, f *fakeRelay) {
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	return func(o *SMTPOptions, f *fakeRelay) {
		o.Listen.TLS, o.Listen.TLSCertFile, o.Listen.TLSKeyFile = mode, cert, key
		if more != nil {
			more(o, f)
		}
	}
}

// trust is a client's TLS configuration, with a certificate where the files of one are given.
func (a *authority) trust(t testing.TB, pair ...string) *tls.Config {
	t.Helper()
	c := &tls.Config{RootCAs: a.pool, ServerName: "gw.example.com"}
	if len(pair) == 2 {
		cert, err := tls.LoadX509KeyPair(pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{cert}
	}
	return c
}

// startTLS upgrades c, which must have nothing unread.
func (c *client) startTLS(config *tls.Config) *tls.Conn {
	c.t.Helper()
	c.do("STARTTLS", "220 2.0.0 ")
	conn := tls.Client(c.Conn, config)
	if err := conn.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.Conn, c.r = conn, bufio.NewReader(conn)
	return conn
}

// dialTLS connects to a door of implicit TLS.
func (d *door) dialTLS(t testing.TB, config *tls.Config) *client {
	t.Helper()
	conn, err := tls.Dial("tcp", d.addr(), config)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func TestSTARTTLSBeginsTheSessionAnew(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, withTLS(t, a, "starttls", nil))
	c := d.dial(t)
	c.want("220 ")
	if offer := c.do("EHLO before.example", "250-"); !strings.Contains(offer, "250-STARTTLS\r\n") {
		t.Errorf("offered in clear: %q", offer)
	}
	c.do("MAIL FROM:<before@auth.example.com> SMTPUTF8", "250 ")
	c.do("RCPT TO:<before@example.net>", "250 ")
	if v := c.startTLS(a.trust(t)).ConnectionState().Version; v < tls.VersionTLS12 {
		t.Errorf("TLS version %x", v)
	}
	c.do("RCPT TO:<between@example.net>", "503 5.5.1 ")
	c.do("DATA", "503 5.5.1 ")
	c.do("MAIL FROM:<a@auth.example.com>", "503 5.5.1 ")
	if offer := c.do("EHLO after.example", "250-gw.example.com\r\n"); strings.Contains(offer, "STARTTLS") {
		t.Errorf("offered over TLS: %q", offer)
	}
	c.do("RCPT TO:<between@example.net>", "503 5.5.1 ")
	c.do("STARTTLS", "503 5.5.1 ")
	c.toData()
	c.do(mail+".", "250 ")
	c.do("QUIT", "221 ")
	if rest := c.rest(); rest != "" {
		t.Errorf("after QUIT came %q", rest)
	}
	s := d.relay.submissions()[0]
	if s.Helo != "after.example" || s.With != "ESMTPS" || s.MailFrom != "a@auth.example.com" || fmt.Sprint(s.To) != "[b@example.net]" || s.SMTPUTF8 {
		t.Errorf("submission %+v", s)
	}
}

func TestNothingSentInClearIsObeyedAfterSTARTTLS(t *testing.T) {
	a := newAuthority(t)
	injected := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	for name, behind := range map[string]string{"commands": injected, "half a command": "NO", "a line end": "\r\n"} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, withTLS(t, a, "starttls", nil))
			c := d.dial(t)
			c.hello()
			c.send("STARTTLS\r\n" + behind)
			c.want("503 5.5.1 ")
			if rest := c.rest(); rest != "" || len(d.relay.submissions()) != 0 {
				t.Errorf("then came %q, and %d messages were accepted", rest, len(d.relay.submissions()))
			}
		})
	}
	t.Run("commands in a packet of their own", func(t *testing.T) {
		d := openTCP(t, withTLS(t, a, "starttls", nil))
		c := d.dial(t)
		c.hello()
		c.do("STARTTLS", "220 ")
		c.send(injected)
		if rest := c.rest(); strings.Contains(rest, "250") || len(d.relay.submissions()) != 0 {
			t.Errorf("then came %q, and %d messages were accepted", rest, len(d.relay.submissions()))
		}
		d.gone(t)
	})
}

func TestSTARTTLSIsRefusedWithTheRightCode(t *testing.T) {
	a := newAuthority(t)
	c := openTCP(t, withTLS(t, a, "starttls", nil)).dial(t)
	c.hello()
	c.do("STARTTLS now", "501 5.5.4 ")
	c.do("STARTTLSX", "501 5.5.4 ")
	c.do("starttls ", "220 ")

	plain := openTCP(t, nil).dial(t)
	plain.want("220 ")
	if offer := plain.do("EHLO x", "250-"); strings.Contains(offer, "STARTTLS") {
		t.Errorf("offered without a certificate: %q", offer)
	}
	plain.do("STARTTLS", "502 5.5.1 ")
}

func TestImplicitTLSComesBeforeTheBanner(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, withTLS(t, a, "implicit", nil))
	c := d.dialTLS(t, a.trust(t))
	c.want("220 gw.example.com ")
	if offer := c.do("EHLO x", "250-gw.example.com\r\n"); strings.Contains(offer, "STARTTLS") {
		t.Errorf("offered over TLS: %q", offer)
	}
	c.do("STARTTLS", "503 5.5.1 ")
	c.do("MAIL FROM:<> SMTPUTF8", "250 ")
	c.do("RCPT TO:<b@example.net>", "250 ")
	c.do("DATA", "354 ")
	c.do(mail+".", "250 ")
	if s := d.relay.submissions()[0]; s.With != "UTF8SMTPS" || string(s.Raw) != mail {
		t.Errorf("submission %+v", s)
	}

	clear := d.dial(t)
	clear.send("EHLO x\r\nQUIT\r\n")
	if rest := clear.rest(); strings.Contains(rest, "220") || strings.Contains(rest, "250") {
		t.Errorf("a client without TLS was told %q", rest)
	}
}

func TestOldTLSIsRefused(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, withTLS(t, a, "implicit", nil))
	config := a.trust(t)
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if conn, err := tls.Dial("tcp", d.addr(), config); err == nil {
		conn.Close()
		t.Error("TLS 1.1 was accepted")
	}
	d.until(t, "the log tells", func() bool { return strings.Contains(d.log.String(), "TLS handshake failed") })
}

func TestAHandshakeMayTakeFiveSeconds(t *testing.T) {
	a := newAuthority(t)
	for _, mode := range []string{"starttls", "implicit"} {
		t.Run(mode, func(t *testing.T) {
			change := withTLS(t, a, mode, nil)
			synctest.Test(t, func(t *testing.T) {
				l := newConnListener()
				d := open(t, l, change)
				c := l.pipe(t)
				if mode == "starttls" {
					c.hello()
					c.do("STARTTLS", "220 ")
				}
				c.drip(strings.Repeat("\x16", 1), 1, time.Second)
				start := time.Now()
				synctest.Wait() // until the door has taken the connection
				for d.count() > 0 {
					time.Sleep(100 * time.Millisecond)
				}
				if took := time.Since(start).Round(time.Second); took != 5*time.Second {
					t.Errorf("cut off after %v", took)
				}
			})
		})
	}
}

func TestARenewedCertificateIsUsedAndABrokenOneIsNot(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	cert, key := a.issue(t, dir, "gw.example.com")
	d := openTCP(t, func(o *SMTPOptions, _ *fakeRelay) {
		o.Listen.TLS, o.Listen.TLSCertFile, o.Listen.TLSKeyFile = "implicit", cert, key
	})
	serial := func() int64 {
		c := d.dialTLS(t, a.trust(t))
		c.hello()
		return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 1 {
		t.Errorf("certificate %d, want 1", n)
	}
	a.issue(t, dir, "gw.example.com")
	if n := serial(); n != 2 {
		t.Errorf("certificate %d after renewal, want 2", n)
	}
	write(t, cert, []byte("no certificate"))
	if serial(); serial() != 2 {
		t.Error("the broken certificate took the place of the one before")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if serial() != 2 {
		t.Error("the key that is gone took the certificate with it")
	}
	if n := strings.Count(d.log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors in the log, want one for each change:\n%s", n, d.log)
	}
	a.issue(t, dir, "gw.example.com")
	if n := serial(); n != 3 {
		t.Errorf("certificate %d after the repair, want 3", n)
	}
}

func TestABrokenCertificateStopsTheStart(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	_, other := a.issue(t, t.TempDir(), "gw.example.com")
	for name, tt := range map[string]struct{ cert, key, ca, want string }{
		"no certificate there":       {cert + ".none", key, "", "listen smtp: load certificate " + cert + ".none with key"},
		"the key of another":         {cert, other, "", "private key does not match public key"},
		"no CA there":                {cert, key, cert + ".none", "read the CA of client certificates: open"},
		"a CA that is a private key": {cert, key, key, "has no certificate in it"},
	} {
		t.Run(name, func(t *testing.T) {
			o := SMTPOptions{Listen: listen()}
			o.Listen.TLS, o.Listen.TLSCertFile, o.Listen.TLSKeyFile, o.Listen.TLSClientCAFile = "starttls", tt.cert, tt.key, tt.ca
			o.Log = discard()
			if _, err := NewSMTP(o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewSMTP: %v, want %s", err, tt.want)
			}
		})
	}
}

func TestACertificateMakesTheClient(t *testing.T) {
	a, elsewhere := newAuthority(t), newAuthority(t)
	byName := func(_ string, p message.Peer) (string, error) {
		switch strings.Join(p.Names, " ") {
		case "kratos.example":
			return "kratos", nil
		case "":
			return "logto", nil
		}
		return "", errStranger
	}
	strangers := func(_ string, p message.Peer) (string, error) {
		if len(p.Names) == 0 {
			return "", errStranger
		}
		return byName("", p)
	}
	for name, tt := range map[string]struct {
		identify func(string, message.Peer) (string, error)
		names    string // of the certificate
		of       *authority
		want     string // the client, or how the reply begins
	}{
		"that it names":                              {byName, "kratos.example", a, "kratos"},
		"although its address is nobody's":           {strangers, "kratos.example", a, "kratos"},
		"without one the address does":               {byName, "", a, "logto"},
		"without one a stranger is one":              {strangers, "", a, "554 5.7.1 gw.example.com listener \"smtp\": "},
		"a name that is no client's is a stranger's": {byName, "other.example", a, "554 5.7.1 gw.example.com listener \"smtp\": neither your certificate"},
		"one of another authority counts for nobody": {byName, "kratos.example", elsewhere, ""},
	} {
		for _, mode := range []string{"starttls", "implicit"} {
			t.Run(name+", "+mode, func(t *testing.T) {
				d := openTCP(t, withTLS(t, a, mode, func(o *SMTPOptions, f *fakeRelay) {
					o.Listen.TLSClientCAFile, f.identify = a.file, tt.identify
				}))
				config := a.trust(t)
				if tt.names != "" {
					cert, key := tt.of.issue(t, t.TempDir(), tt.names)
					config = a.trust(t, cert, key)
				}
				if tt.want == "" {
					offerForeign(t, d, mode, config)
					return
				}
				var c *client
				if mode == "implicit" {
					c = d.dialTLS(t, config)
				} else {
					c = d.dial(t)
					c.hello()
					c.startTLS(config)
				}
				if tt.want[0] == '5' {
					c.want(tt.want)
					c.rest()
					return
				}
				if mode == "implicit" {
					c.want("220 ")
				}
				c.do("EHLO x", "250-")
				c.toData()
				c.do(mail+".", "250 ")
				if got := d.relay.submissions()[0].Client; got != tt.want {
					t.Errorf("client %q, want %q", got, tt.want)
				}
			})
		}
	}
}

// offerForeign shows a certificate that nobody trusts, whether the server asked for such a one or not.
func offerForeign(t *testing.T, d *door, mode string, config *tls.Config) {
	t.Helper()
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &config.Certificates[0], nil }
	c := d.dial(t)
	if mode == "starttls" {
		c.hello()
		c.do("STARTTLS", "220 ")
	}
	conn := tls.Client(c.Conn, config)
	fmt.Fprint(conn, "EHLO x\r\nMAIL FROM:<>\r\n")
	if n, err := conn.Read(make([]byte, 100)); err == nil {
		t.Errorf("the door said %d octets to a foreign certificate", n)
	}
	d.gone(t)
}

func TestARefusalOverTLSReachesAClientThatIsStillSending(t *testing.T) {
	a := newAuthority(t)
	c := openTCP(t, withTLS(t, a, "implicit", nil)).dialTLS(t, a.trust(t))
	c.hello()
	c.toData()
	c.send("a\nb\r\n.\r\n" + strings.Repeat("NOOP\r\n", 100))
	c.want("550 5.6.0 ")
}

func TestStoppingEndsSessionsOverTLSToo(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, withTLS(t, a, "starttls", nil))
	idle, mailing, shaking := d.dial(t), d.dial(t), d.dial(t)
	for _, c := range []*client{idle, mailing, shaking} {
		c.hello()
	}
	for _, c := range []*client{idle, mailing} {
		c.startTLS(a.trust(t))
		c.do("EHLO x", "250-")
	}
	mailing.toData()
	shaking.do("STARTTLS", "220 ")
	d.stop()
	idle.want("421 4.3.2 ")
	mailing.do(mail+".", "250 ")
	mailing.want("421 4.3.2 ")
	if err := d.wait(t); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
