package dkim

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/config"
)

// block returns PEM of a type, from a pair that encoding returned.
func block(t *testing.T, kind string) func(der []byte, err error) string {
	return func(der []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0") // to make the keys that must be refused
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestKeyFiles(t *testing.T) {
	rsa1024, rsa512 := rsaKey(t, 1024), rsaKey(t, 512)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public := block(t, "PUBLIC KEY")(x509.MarshalPKIXPublicKey(ed.Public()))
	good := block(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(ed))
	for name, tt := range map[string]struct {
		content string
		mode    os.FileMode
		want    string // part of the problem; "" for a key that works
	}{
		"Ed25519 in PKCS #8":                {good, 0o600, ""},
		"RSA in PKCS #8":                    {block(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(rsa1024)), 0o600, ""},
		"RSA in PKCS #1":                    {block(t, "RSA PRIVATE KEY")(x509.MarshalPKCS1PrivateKey(rsa1024), nil), 0o600, ""},
		"read-only for its owner":           {good, 0o400, ""},
		"a public key in front":             {public + good, 0o600, ""},
		"a group may read it":               {good, 0o640, "group or others have access"},
		"everybody may read it":             {good, 0o604, "group or others have access"},
		"RSA below 1024 bits":               {block(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(rsa512)), 0o600, "512 bits"},
		"an elliptic curve of another kind": {block(t, "PRIVATE KEY")(x509.MarshalPKCS8PrivateKey(ec)), 0o600, "neither RSA nor Ed25519"},
		"openssl's form of such a curve":    {block(t, "EC PRIVATE KEY")(x509.MarshalECPrivateKey(ec)), 0o600, "no DKIM key"},
		"a public key":                      {public, 0o600, "public key where a private one"},
		"a key under a passphrase":          {block(t, "ENCRYPTED PRIVATE KEY")([]byte{1}, nil), 0o600, "passphrase"},
		"a damaged key":                     {block(t, "PRIVATE KEY")([]byte{1}, nil), 0o600, "damaged"},
		"something else":                    {"hello", 0o600, "no private key"},
		"nothing":                           {"", 0o600, "no private key"},
		"a disk image":                      {strings.Repeat("x", maxKeyFile+1), 0o600, "too large"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(file, []byte(tt.content), tt.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, tt.mode); err != nil { // whatever the umask
				t.Fatal(err)
			}
			_, err := ReadKey(file)
			checkProblem(t, err, file, tt.want)
		})
	}
}

// checkProblem wants no error where want is empty, else one problem about file with a hint.
func checkProblem(t *testing.T, err error, file, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	ps := config.Problems(err)
	if len(ps) != 1 || ps[0].File != file || !strings.Contains(ps[0].Text, want) || ps[0].Hint == "" {
		t.Errorf("problems %+v (%v), want one of %s with %q and a hint", ps, err, file, want)
	}
}

func TestKeyFileThatIsNone(t *testing.T) {
	dir := t.TempDir()
	_, err := ReadKey(dir)
	checkProblem(t, err, dir, "not a regular file")
	missing := filepath.Join(dir, "missing.pem")
	_, err = ReadKey(missing)
	checkProblem(t, err, missing, "no such file")
}

func TestCredentialsOfSystemdMayBeGroupReadable(t *testing.T) {
	file := keyFile(t, "ed25519")
	if err := os.Chmod(file, 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(file))
	if _, err := ReadKey(file); err != nil {
		t.Errorf("inside the credentials directory: %v", err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(filepath.Dir(file), "other"))
	if _, err := ReadKey(file); err == nil {
		t.Error("outside of it a group-readable key was accepted")
	}
}

func TestEveryBadKeyIsReported(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.pem"), filepath.Join(dir, "b.pem")
	_, err := NewSigner([]config.DKIM{{Selector: "a", KeyFile: a}, {Selector: "b", KeyFile: b}})
	if ps := config.Problems(err); len(ps) != 2 || ps[0].File != a || ps[1].File != b {
		t.Errorf("problems %v, want one for each key file", err)
	}
}

func TestShortRSAKeysAreWarnedOf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "short.pem")
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey(t, 1024))
	if err := os.WriteFile(file, []byte(block(t, "PRIVATE KEY")(der, err)), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: file}, config.DKIM{Selector: "gp2", KeyFile: keyFile(t, "rsa")})
	if ws := s.Warnings(); len(ws) != 1 || !strings.Contains(ws[0], "1024 bits") || !strings.Contains(ws[0], file) {
		t.Errorf("warnings %q, want one that names the file and its 1024 bits", ws)
	}
}

func TestGeneratedKeysAreForTheirOwnerAlone(t *testing.T) {
	for _, algorithm := range []string{"rsa", "ed25519"} {
		file := keyFile(t, algorithm)
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, want 0600", algorithm, info.Mode())
		}
		if _, err := ReadKey(file); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

func TestKeyIsNeverOverwritten(t *testing.T) {
	file := keyFile(t, "ed25519")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	checkProblem(t, WriteKey(file, []byte("other")), file, "never overwritten")
	if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
		t.Errorf("the key file changed (%v)", err)
	}
}

func TestGenerateRefusesWhatReceiversWould(t *testing.T) {
	for name, tt := range map[string]struct {
		algorithm string
		bits      int
	}{
		"RSA of 1024 bits":     {"rsa", 1024},
		"RSA of 8192 bits":     {"rsa", 8192},
		"Ed25519 with a size":  {"ed25519", 2048},
		"an unknown algorithm": {"dsa", 0},
	} {
		t.Run(name, func(t *testing.T) {
			if k, err := GenerateKey(tt.algorithm, tt.bits); err == nil || k != nil {
				t.Errorf("GenerateKey: %d octets, %v, want an error", len(k), err)
			}
		})
	}
}
