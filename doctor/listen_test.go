package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/config"
)

func TestAListenersAddressIsTried(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file, live, dead := filepath.Join(dir, "file"), filepath.Join(dir, "live"), filepath.Join(dir, "dead")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{live, dead} {
		ln, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		defer ln.Close()
		if path == dead {
			ln.Close()
		}
	}
	for name, tt := range map[string]struct {
		address string
		level   Level
		text    string
	}{
		"a free port":                        {"127.0.0.1:0", OK, "is free"},
		"a port in use":                      {taken.Addr().String(), Fail, "in use"},
		"an address of another host":         {"192.0.2.1:2525", Fail, "not an address of this host"},
		"a socket to be made":                {"unix:" + filepath.Join(dir, "new"), OK, "is free"},
		"a socket that nobody serves":        {"unix:" + dead, OK, "will be replaced"},
		"a socket in use":                    {"unix:" + live, Fail, "in use"},
		"a file in its place":                {"unix:" + file, Fail, "is no socket"},
		"a directory that is not there":      {"unix:" + filepath.Join(dir, "none", "s"), Fail, "not a directory"},
		"a socket that no unit of systemd's": {"systemd:no-such-socket-of-gatepost", Warn, "no socket unit"},
	} {
		t.Run(name, func(t *testing.T) {
			level, text, hint := address(tt.address)
			if level != tt.level || !strings.Contains(text, tt.text) || level != OK && hint == "" {
				t.Errorf("%s: %s %q, hint %q; want %s with %q", tt.address, level, text, hint, tt.level, tt.text)
			}
		})
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("the check has made a socket")
	}
}

func TestAnAddressThatGatepostItselfHasIsNoProblem(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := &config.Config{Listen: map[string]*config.Listen{"smtp": {Name: "smtp", Address: taken.Addr().String()}}}
	found := listeners(cfg, Options{Ours: func(l *config.Listen) bool { return l.Address == taken.Addr().String() }})
	if len(found) != 1 || found[0].Level != OK || !strings.Contains(found[0].Text, "already") {
		t.Errorf("%+v, want OK", found)
	}
}

func TestASocketUnitIsFoundByTheNameItGives(t *testing.T) {
	dir := t.TempDir()
	unit := filepath.Join(dir, "gatepost.socket")
	if err := os.WriteFile(unit, []byte("[Socket]\nListenStream=25\nFileDescriptorName=smtp\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := socketUnit([]string{"/nowhere", dir}, "smtp"); got != unit {
		t.Errorf("for smtp: %q, want %s", got, unit)
	}
	if got := socketUnit([]string{dir}, "smt"); got != "" {
		t.Errorf("for smt: %q, want none", got)
	}
	t.Setenv("LISTEN_FDNAMES", "http:handed")
	if level, text, _ := activation("handed"); level != OK {
		t.Errorf("a socket that was handed over: %s %s", level, text)
	}
}

func TestTheOwnSocketUnitNamesWhatTheDocsUse(t *testing.T) {
	if socketUnit([]string{"../systemd"}, "smtp") == "" {
		t.Error(`systemd/gatepost.socket does not go with address = "systemd:smtp"`)
	}
}

// pair writes a certificate for gw.example.com with the given times, signed by itself, and its key.
func pair(t *testing.T, from, until time.Time) *config.Listen {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: from, NotAfter: until, DNSNames: []string{"gw.example.com"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	l := &config.Listen{Name: "smtp", Address: "127.0.0.1:0", TLSCertFile: filepath.Join(dir, "cert.pem"), TLSKeyFile: filepath.Join(dir, "key.pem")}
	l.TLSClientCAFile = l.TLSCertFile
	for file, block := range map[string]*pem.Block{l.TLSCertFile: {Type: "CERTIFICATE", Bytes: cert}, l.TLSKeyFile: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestACertificateIsLookedAtAsClientsDo(t *testing.T) {
	const day = 24 * time.Hour
	now := time.Now()
	for name, tt := range map[string]struct {
		from, until time.Time
		hostname    string
		level       Level
		text        string
	}{
		"a good one":               {now.Add(-day), now.Add(30 * day), "gw.example.com", OK, "does not trust who signed it"},
		"one that ends soon":       {now.Add(-day), now.Add(13*day + time.Hour), "gw.example.com", Warn, "in 13 days"},
		"one that has ended":       {now.Add(-2 * day), now.Add(-day), "gw.example.com", Fail, "expired on"},
		"one that is yet to begin": {now.Add(day), now.Add(30 * day), "gw.example.com", Fail, "not valid before"},
		"one for another name":     {now.Add(-day), now.Add(30 * day), "mx.example.com", Warn, "not for mx.example.com but for gw.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			l := pair(t, tt.from, tt.until)
			cfg := &config.Config{Hostname: tt.hostname, Listen: map[string]*config.Listen{"smtp": l}}
			found := listeners(cfg, Options{})
			if f := find(t, found, "certificate"); f.Level != tt.level || !strings.Contains(f.Text, tt.text) || f.Level != OK && f.Hint == "" {
				t.Errorf("%+v, want %s with %q", f, tt.level, tt.text)
			}
			wrong := tt.level
			if tt.hostname != "gw.example.com" {
				wrong = OK // nobody connects to a CA
			}
			if f := find(t, found, "client ca"); f.Level != wrong {
				t.Errorf("as client CA: %+v, want %s", f, wrong)
			}
		})
	}
}

func TestAKeyOfAnotherCertificateFails(t *testing.T) {
	now := time.Now()
	l, other := pair(t, now, now.Add(time.Hour)), pair(t, now, now.Add(time.Hour))
	l.TLSKeyFile = other.TLSKeyFile
	if f := certificate(l, "gw.example.com"); f.Level != Fail || f.Hint == "" {
		t.Errorf("%+v, want FAIL with a hint", f)
	}
}

func TestPasswordFilesAreCountedAndNotShown(t *testing.T) {
	for name, tt := range map[string]struct {
		content string
		level   Level
		text    string
	}{
		"a plain one":        {"hunter2hunter2\n", OK, "one, not hashed"},
		"a hashed one":       {"$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\n", OK, "one, hashed"},
		"two while rotating": {"hunter2hunter2\n\n$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNoaGFzaA\n", OK, "two: take the old one out"},
		"none":               {"\n", Fail, "it has 0 passwords"},
		"no hash at all":     {"$argon2id$v=19$hunter2\n", Fail, "the hash cannot be used"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "password")
			if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := &config.Config{Client: map[string]*config.Client{"news": {Name: "news", Password: config.Secret{File: file}}, "app": {Name: "app"}}}
			found := passwords(cfg)
			if len(found) != 1 || found[0].Level != tt.level || !strings.Contains(found[0].Text, tt.text) {
				t.Errorf("%+v, want %s with %q", found, tt.level, tt.text)
			}
			if strings.Contains(found[0].Text+found[0].Hint, "hunter2") {
				t.Error("it shows the password")
			}
		})
	}
}
