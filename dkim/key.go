package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gatepost/config"
)

const (
	minBits     = 1024 // receivers must ignore less (RFC 8301 §3.2)
	goodBits    = 2048 // what to use
	maxBits     = 4096 // receivers need not verify more (RFC 8301 §3.2)
	maxKeyFile  = 64 << 10
	privateType = "PRIVATE KEY"
)

// ReadKey reads a private key from a PEM file: RSA of at least 1024 bits in PKCS #1 or PKCS #8, or Ed25519 in PKCS #8.
// The file must be for its owner alone, except below $CREDENTIALS_DIRECTORY, which systemd guards. Errors are
// *config.Problem with a hint; none holds any of the file's content.
func ReadKey(file string) (crypto.Signer, error) {
	data, err := readPrivate(file)
	if err != nil {
		return nil, err
	}
	k, text, hint := parseKey(data)
	if text != "" {
		return nil, &config.Problem{File: file, Text: text, Hint: hint}
	}
	return k, nil
}

// readPrivate returns the file's content, having checked on the open file that it is one and whose.
func readPrivate(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, openProblem(file, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, openProblem(file, err)
	}
	switch {
	case !info.Mode().IsRegular():
		return nil, &config.Problem{File: file, Text: "it is not a regular file", Hint: "name a PEM file with a private key"}
	case info.Mode().Perm()&0o077 != 0 && !isCredential(file):
		return nil, &config.Problem{File: file, Text: fmt.Sprintf("group or others have access to the private key (mode %04o)", info.Mode().Perm()),
			Hint: "chmod 600 " + file}
	case info.Size() > maxKeyFile:
		return nil, &config.Problem{File: file, Text: "it is too large for a private key", Hint: "name a PEM file with a private key"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, openProblem(file, err)
	}
	return data, nil
}

func openProblem(file string, err error) error {
	cause, hint := "it cannot be read", "check the file system"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		cause, hint = "there is no such file", "make a key with: gatepost dkim generate"
	case errors.Is(err, fs.ErrPermission):
		cause, hint = "permission denied", "let the user that gatepost runs as own it: chown USER "+file
	}
	return &config.Problem{File: file, Text: "read DKIM key: " + cause, Hint: hint}
}

// isCredential reports whether systemd keeps the file for this service alone (LoadCredential=).
func isCredential(file string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return false
	}
	rel, err := filepath.Rel(dir, file)
	return err == nil && filepath.IsLocal(rel)
}

// parseKey returns the first private key in data, or what is wrong and what to do.
func parseKey(data []byte) (k crypto.Signer, text, hint string) {
	const generate = "make a key with: gatepost dkim generate"
	block := firstPrivate(data)
	switch {
	case block == nil && bytes.Contains(data, []byte("-----BEGIN PUBLIC KEY-----")):
		return nil, "it holds a public key where a private one is needed", "name the file with the private key"
	case block == nil:
		return nil, "it holds no private key in PEM form", generate
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, "the private key is protected by a passphrase", "remove it: openssl pkey -in OLD -out NEW"
	}
	var parsed any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case privateType:
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	default:
		return nil, fmt.Sprintf("a PEM block of type %q is no DKIM key", block.Type), generate
	}
	if err != nil {
		return nil, "the private key is damaged", generate
	}
	switch k := parsed.(type) {
	case *rsa.PrivateKey:
		if n := k.N.BitLen(); n < minBits {
			return nil, fmt.Sprintf("the RSA key has %d bits; receivers ignore signatures of less than %d", n, minBits), generate
		}
		return k, "", ""
	case ed25519.PrivateKey:
		return k, "", ""
	}
	return nil, "the private key is neither RSA nor Ed25519, the two that DKIM knows", generate
}

// firstPrivate skips what openssl and others put in front of a key: certificates, parameters, public keys.
func firstPrivate(data []byte) *pem.Block {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil || strings.HasSuffix(block.Type, privateType) {
			return block
		}
	}
}

// weakness says why a usable key should be replaced, "" for a good one.
func weakness(k crypto.Signer) string {
	private, ok := k.(*rsa.PrivateKey)
	if !ok {
		return ""
	}
	switch n := private.N.BitLen(); {
	case n < goodBits:
		return fmt.Sprintf("the RSA key has %d bits; make one of %d (RFC 8301)", n, goodBits)
	case n > maxBits:
		return fmt.Sprintf("the RSA key has %d bits; receivers need not verify more than %d (RFC 8301)", n, maxBits)
	}
	return ""
}

// GenerateKey makes a private key and returns it as PKCS #8 PEM. algorithm is "rsa" or "ed25519"; bits are for RSA,
// 2048 to 4096, 0 for 2048.
func GenerateKey(algorithm string, bits int) ([]byte, error) {
	var k crypto.Signer
	var err error
	switch algorithm {
	case "rsa":
		if bits == 0 {
			bits = goodBits
		}
		if bits < goodBits || bits > maxBits {
			return nil, fmt.Errorf("generate an RSA key: %d bits are not between %d and %d", bits, goodBits, maxBits)
		}
		k, err = rsa.GenerateKey(rand.Reader, bits)
	case "ed25519":
		if bits != 0 {
			return nil, errors.New("generate an Ed25519 key: its size is fixed, leave bits out")
		}
		_, k, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("generate a key: algorithm %q is not rsa or ed25519", algorithm)
	}
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: privateType, Bytes: der}), nil
}

// WriteKey writes a key made by GenerateKey to a new file with mode 0600 and returns once it is on disk. It never
// overwrites: a key that is published in DNS cannot be made again.
func WriteKey(file string, key []byte) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return &config.Problem{File: file, Text: "the file exists; a key is never overwritten", Hint: "choose another name, or move the old key away"}
	}
	if err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	_, err = f.Write(key)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("write key: %w", err), os.Remove(file))
	}
	return syncDir(filepath.Dir(file))
}

// syncDir makes the name of a new file durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}
