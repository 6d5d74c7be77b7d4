package doctor

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"strings"
	"time"

	"gatepost/config"
)

// expirySoon is how long before its end a certificate is warned of.
const expirySoon = 14 * 24 * time.Hour

// certificate checks what listener l shows to clients: its time, its name, and who would trust it.
func certificate(l *config.Listen, hostname string) Finding {
	f := Finding{Level: OK, Check: "certificate", Subject: "listener " + l.Name}
	pair, err := tls.LoadX509KeyPair(l.TLSCertFile, l.TLSKeyFile)
	if err != nil {
		f.Level, f.Text, f.Hint = Fail, err.Error(), "look at tls_cert_file and tls_key_file of [listen."+l.Name+"]"
		return f
	}
	leaf := pair.Leaf
	f.Level, f.Text, f.Hint = validity(leaf, time.Now())
	if f.Level != OK {
		return f
	}
	if err := leaf.VerifyHostname(hostname); err != nil {
		f.Level, f.Text = Warn, fmt.Sprintf("it is not for %s but for %s", hostname, names(leaf))
		f.Hint = "clients have to connect by a name that it has"
		return f
	}
	if !publiclyTrusted(leaf, pair.Certificate[1:]) {
		f.Text += "; this host does not trust who signed it: clients need that certificate too (docs/clients says where)"
	}
	return f
}

// clientCA checks the certificates that those of clients are verified against.
func clientCA(l *config.Listen) Finding {
	f := Finding{Level: OK, Check: "client ca", Subject: "listener " + l.Name}
	certs, err := readCertificates(l.TLSClientCAFile)
	if err != nil {
		f.Level, f.Text, f.Hint = Fail, err.Error(), "tls_client_ca_file is a PEM file of certificates"
		return f
	}
	for _, c := range certs {
		level, text, hint := validity(c, time.Now())
		if f.Text == "" || level != OK {
			f.Level, f.Text, f.Hint = level, c.Subject.String()+": "+text, hint
		}
	}
	return f
}

// validity tells how a certificate stands in time.
func validity(c *x509.Certificate, now time.Time) (level Level, text, hint string) {
	const day = "2006-01-02"
	switch left := c.NotAfter.Sub(now); {
	case left <= 0:
		return Fail, "it expired on " + c.NotAfter.Format(day), "renew it; gatepost takes up the new files by itself"
	case now.Before(c.NotBefore):
		return Fail, "it is not valid before " + c.NotBefore.Format(day), "look at the clock of this host"
	case left < expirySoon:
		return Warn, fmt.Sprintf("it expires on %s, in %d days", c.NotAfter.Format(day), int(left.Hours()/24)), "renew it; gatepost takes up the new files by itself"
	}
	return OK, "valid until " + c.NotAfter.Format(day) + " for " + names(c), ""
}

// names returns whom a certificate is for.
func names(c *x509.Certificate) string {
	all := c.DNSNames
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	if len(all) == 0 {
		return c.Subject.String()
	}
	return strings.Join(all, ", ")
}

// publiclyTrusted reports whether this host's roots vouch for leaf, by way of the rest of its chain.
func publiclyTrusted(leaf *x509.Certificate, chain [][]byte) bool {
	between := x509.NewCertPool()
	for _, der := range chain {
		if c, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(c)
		}
	}
	_, err := leaf.Verify(x509.VerifyOptions{Intermediates: between})
	return err == nil
}

func readCertificates(file string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificates in %s: %w", file, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", file)
	}
	return certs, nil
}
