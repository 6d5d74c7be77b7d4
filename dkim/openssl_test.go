//go:build openssl

package dkim

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"strings"
	"sync"
	"testing"
)

// keyPair returns a new RSA key, and the same in OpenSSL.
func keyPair(t *testing.T, bits int) (*rsa.PrivateKey, crypto.Signer) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	fast, err := accelerated(private)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := fast.(*opensslKey); !ok {
		t.Fatalf("a key of %d bits signs with %T", bits, fast)
	}
	return private, fast
}

// PKCS #1 v1.5 has one signature for each key and digest.
func TestOpenSSLMakesTheSignaturesOfCryptoRSAManyAtOnce(t *testing.T) {
	for _, bits := range []int{1024, 2048, 3072, 4096} {
		private, fast := keyPair(t, bits)
		if !private.PublicKey.Equal(fast.Public()) {
			t.Errorf("%d bits: another public key", bits)
		}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					digest := sha256.Sum256([]byte{byte(i), byte(j)})
					want, err := private.Sign(nil, digest[:], crypto.SHA256)
					if err != nil {
						t.Error(err)
					}
					if got, err := fast.Sign(nil, digest[:], crypto.SHA256); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bits: %x, %v, want %x", bits, got, err, want)
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestOpenSSLSignsNothingButSHA256(t *testing.T) {
	_, fast := keyPair(t, 2048)
	digest := sha512.Sum512(nil)
	for name, try := range map[string]struct {
		digest []byte
		opts   crypto.SignerOpts
	}{
		"SHA-512":         {digest[:], crypto.SHA512},
		"no digest":       {nil, crypto.SHA256},
		"half a digest":   {digest[:16], crypto.SHA256},
		"the text itself": {digest[:32], crypto.Hash(0)},
		"PSS":             {digest[:32], &rsa.PSSOptions{Hash: crypto.SHA256}},
	} {
		if signature, err := fast.Sign(nil, try.digest, try.opts); err == nil || signature != nil {
			t.Errorf("%s: %x, %v, want an error and nothing else", name, signature, err)
		}
	}
}

func TestAKeyThatOpenSSLDoesNotTakeIsAnErrorInItsWords(t *testing.T) {
	for name, der := range map[string][]byte{"nothing": nil, "no key": []byte("0123456789"), "cut short": {0x30, 0x82, 0x04, 0xbd, 0x02, 0x01, 0x00}} {
		if _, err := loadKey(der, nil); err == nil || !strings.Contains(err.Error(), "error:") {
			t.Errorf("%s: %v, want what OpenSSL says", name, err)
		}
	}
}

func TestAKeyWhoseSignaturesDoNotVerifyIsRefused(t *testing.T) {
	_, one := keyPair(t, 2048)
	_, other := keyPair(t, 2048)
	swapped := &opensslKey{other.(*opensslKey).public, one.(*opensslKey).key}
	if err := swapped.check(); err == nil || !strings.Contains(err.Error(), "make build") {
		t.Errorf("%v, want what to do instead", err)
	}
}

func TestOpenSSLTellsItsVersion(t *testing.T) {
	if v := OpenSSL(); !strings.HasPrefix(v, "3.") {
		t.Errorf("version %q, want one of OpenSSL 3", v)
	}
}
