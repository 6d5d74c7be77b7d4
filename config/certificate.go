package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"time"
)

// listenTLS reads what a listener shows and asks for in a TLS handshake.
func (l *loader) listenTLS(t *table, s *Listen) {
	s.TLSCertFile = l.certificate(t)
	s.TLSKeyFile = t.private("tls_key_file")
	s.TLSClientCAFile = t.certificates("tls_client_ca_file")
	def := "none"
	if _, port := socket(s.Address); t.has("tls_cert_file") && (port == "465" || s.HTTP()) {
		def = "implicit"
	} else if t.has("tls_cert_file") {
		def = "starttls"
	}
	s.TLS = t.choice("tls", def, "none", "starttls", "implicit")
	if s.HTTP() && s.TLS == "starttls" {
		t.bad(t.at("tls"), `write tls = "implicit"`, "%q is not there in HTTP", s.TLS)
	}
	l.checkTLSKeys(t, s)
	if s.TLSCertFile != "" && s.TLSKeyFile != "" {
		l.checkPairOfFiles(t, s)
	}
}

// checkTLSKeys notes keys that need others.
func (l *loader) checkTLSKeys(t *table, s *Listen) {
	switch {
	case t.has("tls_cert_file") && !t.has("tls_key_file"):
		t.bad(t.at("tls_cert_file"), "name the key in tls_key_file", "has no tls_key_file")
	case t.has("tls_key_file") && !t.has("tls_cert_file"):
		t.bad(t.at("tls_key_file"), "name the certificate, with its chain, in tls_cert_file", "has no tls_cert_file")
	case s.TLS != "none" && !t.has("tls_cert_file"):
		t.bad(t.at("tls"), `add tls_cert_file and tls_key_file, or write tls = "none"`, "%q needs a certificate", s.TLS)
	case s.TLS == "none" && t.has("tls_cert_file"):
		t.bad(t.at("tls_cert_file"), `remove it, or tls = "none"`, `has no meaning where tls is "none"`)
	}
	if s.TLS == "none" && t.has("tls_client_ca_file") {
		t.bad(t.at("tls_client_ca_file"), "add tls_cert_file and tls_key_file: clients show certificates in a TLS handshake", `has no meaning where tls is "none"`)
	}
}

// certificate returns the path of the file named at tls_cert_file. What is in it is looked at together with its key.
func (l *loader) certificate(t *table) string {
	name := t.text("tls_cert_file")
	if name == "" {
		return ""
	}
	file, looked := t.resolve(name)
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.bad(t.at("tls_cert_file"), looked, "%s does not exist", file)
	case err != nil:
		t.bad(t.at("tls_cert_file"), "", "%s cannot be looked at: %v", file, cause(err))
	case !info.Mode().IsRegular(): // opening a pipe could wait forever
		t.bad(t.at("tls_cert_file"), "", "%s is not a regular file", file)
	}
	return file
}

// checkPairOfFiles refuses a certificate and key that do not work together, and warns of a certificate that clients will
// not trust. That is no reason not to start: mail of clients that verify nothing still comes in, and a new certificate
// is taken up without a restart.
func (l *loader) checkPairOfFiles(t *table, s *Listen) {
	cert, errCert := readRegular(s.TLSCertFile)
	key, errKey := readRegular(s.TLSKeyFile)
	if errKey != nil || errors.Is(errCert, fs.ErrNotExist) || errors.Is(errCert, errNotRegular) {
		return // told where the file is named
	}
	if errCert != nil {
		t.bad(t.at("tls_cert_file"), "", "%s cannot be read: %v", s.TLSCertFile, cause(errCert))
		return
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.bad(t.at("tls_cert_file"), "the file has the certificate first and then its chain, in PEM; the key is in tls_key_file",
			"%s and %s are not a certificate and its key: %v", s.TLSCertFile, s.TLSKeyFile, err)
		return
	}
	l.warnCertificate(t, s, pair.Leaf)
}

func (l *loader) warnCertificate(t *table, s *Listen, leaf *x509.Certificate) {
	path, now := t.at("tls_cert_file"), time.Now()
	const stamp = "2006-01-02 15:04 UTC"
	switch {
	case now.After(leaf.NotAfter):
		t.warn(path, "renew it: clients that verify certificates do not connect", "%s is expired since %s", s.TLSCertFile, leaf.NotAfter.UTC().Format(stamp))
	case now.Before(leaf.NotBefore):
		t.warn(path, "look at the clock of this host", "%s is not valid before %s", s.TLSCertFile, leaf.NotBefore.UTC().Format(stamp))
	}
	if l.c.Hostname != "" && leaf.VerifyHostname(l.c.Hostname) != nil {
		t.warn(path, "clients must connect by a name that the certificate has", "%s does not cover hostname (%s)", s.TLSCertFile, l.c.Hostname)
	}
}

var errNotRegular = errors.New("not a regular file")

// readRegular is readBounded for what may be a pipe.
func readRegular(file string) ([]byte, error) {
	if info, err := os.Stat(file); err == nil && !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	return readBounded(file)
}
