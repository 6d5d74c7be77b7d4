package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificateFor describes a certificate that is valid now.
func certificateFor(names ...string) *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
}

// writeCertificate signs c with its own key and writes both as NAME.pem and NAME.key.
func writeCertificate(t *testing.T, dir, name string, c *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: pkcs8},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// withTLS is the small config with a certificate on its listener.
func withTLS(lines string) string {
	return strings.Replace(show2, "[listen.smtp]\n", "[listen.smtp]\n"+lines, 1)
}

const pair = "tls_cert_file = \"gw.pem\"\ntls_key_file = \"gw.key\"\n"

func TestACertificateAndItsKeyBelongTogether(t *testing.T) {
	for name, tt := range map[string]struct {
		lines string
		spoil func(dir string) error
		want  string // of the one problem; "" for none
	}{
		"a pair": {pair, nil, ""},
		"a pair with the certificates of clients": {pair + "tls_client_ca_file = \"other.pem\"\n", nil, ""},
		"a certificate without a key":             {"tls_cert_file = \"gw.pem\"\n", nil, "4: listen.smtp.tls_cert_file: has no tls_key_file"},
		"a key without a certificate":             {"tls_key_file = \"gw.key\"\n", nil, "4: listen.smtp.tls_key_file: has no tls_cert_file"},
		"TLS without a certificate":               {"tls = \"starttls\"\n", nil, `4: listen.smtp.tls: "starttls" needs a certificate`},
		"a certificate that is not used":          {pair + "tls = \"none\"\n", nil, `4: listen.smtp.tls_cert_file: has no meaning where tls is "none"`},
		"certificates of clients without TLS":     {"tls_client_ca_file = \"gw.pem\"\n", nil, `4: listen.smtp.tls_client_ca_file: has no meaning where tls is "none"`},
		"a key that anybody can read":             {pair, func(dir string) error { return os.Chmod(dir+"/gw.key", 0o644) }, "5: listen.smtp.tls_key_file: DIR/gw.key can be read or written by group or others (mode 0644)"},
		"the key of another certificate":          {strings.Replace(pair, "gw.key", "other.key", 1), nil, "4: listen.smtp.tls_cert_file: DIR/gw.pem and DIR/other.key are not a certificate and its key: tls: private key does not match public key"},
		"a certificate that is missing":           {pair, func(dir string) error { return os.Remove(dir + "/gw.pem") }, "4: listen.smtp.tls_cert_file: DIR/gw.pem does not exist"},
		"a certificate that is a directory":       {strings.Replace(pair, "gw.pem", ".", 1), nil, "4: listen.smtp.tls_cert_file: DIR is not a regular file"},
		"a certificate that is none":              {pair, func(dir string) error { return os.WriteFile(dir+"/gw.pem", []byte("x"), 0o644) }, "4: listen.smtp.tls_cert_file: DIR/gw.pem and DIR/gw.key are not a certificate and its key: tls: failed to find any PEM data in certificate input"},
		"certificates of clients that are none":   {pair + "tls_client_ca_file = \"gw.key\"\n", nil, "6: listen.smtp.tls_client_ca_file: DIR/gw.key holds no PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem")
			writeCertificate(t, dir, "gw", certificateFor("gw.auth.example.com"))
			writeCertificate(t, dir, "other", certificateFor("other.example"))
			if tt.spoil != nil {
				if err := tt.spoil(dir); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(told(t, dir, withTLS(tt.lines)), "\n"); got != tt.want {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

func TestACertificateThatClientsWouldNotTrustIsAWarning(t *testing.T) {
	past, future := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC), time.Date(2120, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, tt := range map[string]struct {
		change func(*x509.Certificate)
		want   []string
	}{
		"a good one":      {func(c *x509.Certificate) {}, nil},
		"a wildcard":      {func(c *x509.Certificate) { c.DNSNames = []string{"*.auth.example.com"} }, nil},
		"expired":         {func(c *x509.Certificate) { c.NotAfter = past }, []string{"4: listen.smtp.tls_cert_file: DIR/gw.pem is expired since 2020-01-02 03:04 UTC"}},
		"not valid yet":   {func(c *x509.Certificate) { c.NotBefore, c.NotAfter = future, future }, []string{"4: listen.smtp.tls_cert_file: DIR/gw.pem is not valid before 2120-01-02 03:04 UTC"}},
		"for other names": {func(c *x509.Certificate) { c.DNSNames = []string{"mail.example.com"} }, []string{"4: listen.smtp.tls_cert_file: DIR/gw.pem does not cover hostname (gw.auth.example.com)"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem")
			certificate := certificateFor("gw.auth.example.com")
			tt.change(certificate)
			writeCertificate(t, dir, "gw", certificate)
			c := parse(t, dir, withTLS(pair))
			if got := lines(c.File, c.Warnings); !slices.Equal(got, tt.want) {
				t.Errorf("warned %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTLSIsWhatACertificateAndThePortSay(t *testing.T) {
	for name, tt := range map[string]struct{ address, lines, want string }{
		"no certificate":                    {"127.0.0.1:2525", "", "none"},
		"no certificate on port 465":        {"127.0.0.1:465", "", "none"},
		"a certificate":                     {"127.0.0.1:2525", pair, "starttls"},
		"a certificate on port 465":         {"127.0.0.1:465", pair, "implicit"},
		"a word wins over the port":         {"127.0.0.1:465", pair + "tls = \"starttls\"\n", "starttls"},
		"implicit TLS on a port of its own": {"127.0.0.1:2465", pair + "tls = \"implicit\"\n", "implicit"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem")
			writeCertificate(t, dir, "gw", certificateFor("gw.auth.example.com"))
			c := parse(t, dir, strings.Replace(withTLS(tt.lines), "127.0.0.1:2525", tt.address, 1))
			if got := c.Listen["smtp"].TLS; got != tt.want {
				t.Errorf("tls is %q, want %q", got, tt.want)
			}
			again := parse(t, dir, c.Effective())
			if got := again.Listen["smtp"]; got.TLS != tt.want || got.TLSKeyFile != c.Listen["smtp"].TLSKeyFile {
				t.Errorf("its effective form gives %+v", got)
			}
		})
	}
}
