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

	"gatepost/config"
)

// withPassword is the small config with an upstream that logs in.
var withPassword = strings.Replace(show2, "tls     = \"none\"", "username = \"u\"\npassword_file = \"esp.password\"", 1)

func TestKeysAndSecretsMustBePrivateFilesWithSomethingInThem(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(key, password string) error
		want  []string
	}{
		"private files pass":   {func(key, password string) error { return nil }, nil},
		"read-only files pass": {func(key, password string) error { return os.Chmod(key, 0o400) }, nil},
		"others could read the key": {
			func(key, password string) error { return os.Chmod(key, 0o604) },
			[]string{"17: stream.auth.dkim.key_file: DIR/auth.pem can be read or written by group or others (mode 0604)"},
		},
		"the group could write the password": {
			func(key, password string) error { return os.Chmod(password, 0o620) },
			[]string{"32: upstream.sink.password_file: DIR/esp.password can be read or written by group or others (mode 0620)"},
		},
		"missing": {
			func(key, password string) error { return os.Remove(password) },
			[]string{"32: upstream.sink.password_file: DIR/esp.password does not exist"},
		},
		"a directory": {
			func(key, password string) error { os.Remove(key); return os.Mkdir(key, 0o700) },
			[]string{"17: stream.auth.dkim.key_file: DIR/auth.pem is not a regular file"},
		},
		"empty": {
			func(key, password string) error { return os.Truncate(key, 0) },
			[]string{"17: stream.auth.dkim.key_file: DIR/auth.pem is empty"},
		},
		"a password that is only white space": {
			func(key, password string) error { return os.WriteFile(password, []byte("\n \n"), 0o600) },
			[]string{"32: upstream.sink.password_file: DIR/esp.password is empty"},
		},
		"a password in the second line": {
			func(key, password string) error { return os.WriteFile(password, []byte("\r\nx"), 0o600) },
			[]string{"32: upstream.sink.password_file: read secret DIR/esp.password: its first line is empty"},
		},
		"larger than any key": {
			func(key, password string) error { return os.Truncate(key, 2<<20) },
			[]string{"17: stream.auth.dkim.key_file: DIR/auth.pem cannot be read: it is larger than 1MB"},
		},
		"a link that leads nowhere": {
			func(key, password string) error { os.Remove(key); return os.Symlink("gone", key) },
			[]string{"17: stream.auth.dkim.key_file: DIR/auth.pem does not exist"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem", "esp.password")
			if err := tt.spoil(filepath.Join(dir, "auth.pem"), filepath.Join(dir, "esp.password")); err != nil {
				t.Fatal(err)
			}
			if got := told(t, dir, withPassword); !slices.Equal(got, tt.want) {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSystemdCredentialsWinOverFilesBesideTheConfig(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	write(t, dir, "auth.pem", "marketing.pem", "esp.password")
	write(t, credentials, "esp.password", "auth.pem")
	if err := os.Chmod(filepath.Join(credentials, "auth.pem"), 0o440); err != nil {
		t.Fatal(err) // as systemd hands it over: root's, readable by the service's group
	}
	c := parse(t, dir, withPassword)
	for what, got := range map[string][2]string{
		"password":      {c.Upstream["sink"].Password.File, credentials + "/esp.password"},
		"auth key":      {c.Stream["auth"].DKIM[0].KeyFile, credentials + "/auth.pem"},
		"marketing key": {c.Stream["marketing"].DKIM[0].KeyFile, dir + "/marketing.pem"},
	} {
		if got[0] != got[1] {
			t.Errorf("the %s is %s, want %s", what, got[0], got[1])
		}
	}
	parse(t, dir, c.Effective())

	if err := os.Remove(filepath.Join(dir, "marketing.pem")); err != nil {
		t.Fatal(err)
	}
	_, err := config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(withPassword))
	if p := config.Problems(err); len(p) != 1 || p[0].Hint != "looked in "+credentials+" (CREDENTIALS_DIRECTORY) and "+dir+"; make one with: gatepost dkim generate FILE --domain DOMAIN" {
		t.Errorf("a key in neither place is told as %v, want a hint that names both", err)
	}
}

func TestAPathCannotLeaveTheCredentialsDirectory(t *testing.T) {
	root := t.TempDir()
	write(t, root, "conf/auth.pem", "conf/marketing.pem", "run/auth.pem", "run/credentials/x")
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(root, "run/credentials"))
	text := strings.Replace(show2, `"auth.pem"`, `"../auth.pem"`, 1)
	got := told(t, filepath.Join(root, "conf"), text)
	want := []string{"17: stream.auth.dkim.key_file: " + filepath.Join(root, "auth.pem") + " does not exist"}
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestTheStateDirectoryComesFromTheFileElseFromSystemd(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	t.Setenv("STATE_DIRECTORY", "/var/lib/gatepost:/var/lib/other")
	if got := parse(t, dir, show2).StateDir; got != filepath.Join(dir, "state") {
		t.Errorf("state_dir in the file gives %s", got)
	}
	without := strings.Replace(show2, "state_dir = \"state\"\n", "", 1)
	if got := parse(t, dir, without).StateDir; got != "/var/lib/gatepost" {
		t.Errorf("without state_dir it is %s, want systemd's first", got)
	}
}

func TestVariablesOfTheEnvironmentAreFilledIn(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "keys/auth.pem", "marketing.pem")
	t.Setenv("GATEPOST_TEST_KEYS", dir+"/keys")
	t.Setenv("GATEPOST_TEST_IP", "127.0.0")
	t.Setenv("GATEPOST_TEST_SUB", "auth")
	text := strings.NewReplacer(`"auth.pem"`, `"${GATEPOST_TEST_KEYS}/auth.pem"`, `"127.0.0.2"`, `"${GATEPOST_TEST_IP}.2"`,
		`"auth.example.com"`, `"${GATEPOST_TEST_SUB}.example.com"`).Replace(show2)
	c := parse(t, dir, text)
	s := c.Stream["auth"]
	if s.DKIM[0].KeyFile != dir+"/keys/auth.pem" || c.Egress["auth"].IPv4.String() != "127.0.0.2" || s.Domains[0] != "auth.example.com" {
		t.Errorf("with variables filled in the config is\n%s", c.Effective())
	}
}

func TestACertificateFileMustHoldOne(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "ca.pem")
	text := strings.Replace(show2, "tls     = \"none\"", `tls_ca_file = "ca.pem"`, 1)
	if got, want := told(t, dir, text), []string{"31: upstream.sink.tls_ca_file: DIR/ca.pem holds no PEM certificate"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	// A certificate is public: its mode does not matter.
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	u := parse(t, dir, text).Upstream["sink"]
	if u.TLSCAFile != filepath.Join(dir, "ca.pem") || u.TLS != "starttls" || u.TLSServerName != "127.0.0.1" {
		t.Errorf("the upstream is %+v", u)
	}
}

func TestASecretIsReadAnewAndNeverPrints(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p")
	s := config.Secret{File: file}
	for content, want := range map[string]string{"one\n": "one", "two\r\nrest": "two", " three": " three"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Read(); err != nil || got != want {
			t.Errorf("Read of %q: %q, %v", content, got, err)
		}
		if out := s.String(); out != "file "+file {
			t.Errorf("a secret prints as %q", out)
		}
	}
	if (config.Secret{}).Set() || (config.Secret{}).String() != "" || !s.Set() {
		t.Error("only a secret with a file is set")
	}
}
