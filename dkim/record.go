package dkim

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
)

// maxString is what one character-string of a TXT record holds (RFC 1035 §3.3).
const maxString = 255

// Record is the DNS TXT record that publishes a key (RFC 6376 §3.6).
type Record struct {
	Name  string `json:"name"`  // "gp1._domainkey.auth.example.com", without a final dot
	Value string `json:"value"` // as one string, as most DNS consoles want it
}

// NewRecord returns the record for the public half of a key under selector and domain.
func NewRecord(selector, domain string, public crypto.PublicKey) (Record, error) {
	r := Record{Name: selector + "._domainkey." + domain}
	switch p := public.(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(p)
		if err != nil {
			return Record{}, fmt.Errorf("encode the public key: %w", err)
		}
		r.Value = "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
	case ed25519.PublicKey: // the bare key, not in ASN.1 (RFC 8463 §4.2)
		r.Value = "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(p)
	default:
		return Record{}, fmt.Errorf("a public key of type %T is neither RSA nor Ed25519", public)
	}
	return r, nil
}

// Zone returns the record as it stands in a zone file, its value split into strings of at most 255 octets.
func (r Record) Zone() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s. IN TXT (", r.Name)
	for v := r.Value; v != ""; {
		n := min(len(v), maxString)
		fmt.Fprintf(&b, " %q", v[:n])
		v = v[n:]
	}
	b.WriteString(" )")
	return b.String()
}

// Published returns a lookup for Verify that knows these records and no others: for keys not yet in DNS.
func Published(records ...Record) func(domain string) ([]string, error) {
	return func(domain string) ([]string, error) {
		var values []string
		for _, r := range records {
			if strings.EqualFold(strings.TrimSuffix(domain, "."), r.Name) {
				values = append(values, r.Value)
			}
		}
		if values == nil {
			return nil, fmt.Errorf("no record %s is known here", domain)
		}
		return values, nil
	}
}
