//go:build openssl

package dkim

// #cgo LDFLAGS: -lcrypto
// #include <openssl/crypto.h>
// #include <openssl/err.h>
// #include <openssl/evp.h>
// #include <openssl/rsa.h>
// #include <openssl/x509.h>
//
// // reason copies the oldest error of this thread to err and forgets the others.
// static void reason(char *err, size_t room) {
// 	ERR_error_string_n(ERR_get_error(), err, room);
// 	ERR_clear_error();
// }
//
// // load_key makes a key of a PKCS #8 structure in DER; NULL, and the reason in err, where it cannot.
// static EVP_PKEY *load_key(const unsigned char *der, long n, char *err, size_t room) {
// 	EVP_PKEY *key = d2i_AutoPrivateKey(NULL, &der, n);
// 	if (key == NULL) reason(err, room);
// 	return key;
// }
//
// // sign_sha256 signs a SHA-256 with PKCS #1 v1.5 into sig, which holds *n octets, and sets *n. It returns 0, and the
// // reason in err, where it cannot. Errors belong to the thread, so they are taken here, in the same call.
// static int sign_sha256(EVP_PKEY *key, const unsigned char *digest, size_t digest_len, unsigned char *sig, size_t *n, char *err, size_t room) {
// 	EVP_PKEY_CTX *ctx = EVP_PKEY_CTX_new(key, NULL);
// 	int ok = ctx != NULL && EVP_PKEY_sign_init(ctx) > 0 && EVP_PKEY_CTX_set_rsa_padding(ctx, RSA_PKCS1_PADDING) > 0 &&
// 		EVP_PKEY_CTX_set_signature_md(ctx, EVP_sha256()) > 0 && EVP_PKEY_sign(ctx, sig, n, digest, digest_len) > 0;
// 	if (!ok) reason(err, room);
// 	EVP_PKEY_CTX_free(ctx);
// 	return ok;
// }
import "C"

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"runtime"
	"unsafe"
)

// OpenSSL returns the version of the OpenSSL that RSA signatures are made with.
func OpenSSL() string { return C.GoString(C.OpenSSL_version(C.OPENSSL_VERSION_STRING)) }

// opensslKey signs with OpenSSL (EVP_PKEY_sign), which makes an RSA signature in a third of the time of crypto/rsa. It
// makes PKCS #1 v1.5 signatures over SHA-256 only, as DKIM has them, and is safe for concurrent use.
type opensslKey struct {
	public *rsa.PublicKey
	key    *C.EVP_PKEY // OpenSSL's own copy of the private key; never changed, freed with the opensslKey
}

// accelerated returns k held by OpenSSL, once a signature of its has been verified by crypto/rsa. Keys other than RSA stay
// as they are.
func accelerated(k crypto.Signer) (crypto.Signer, error) {
	private, ok := k.(*rsa.PrivateKey)
	if !ok {
		return k, nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("hand the key to OpenSSL: %w", err)
	}
	defer clear(der)
	o, err := loadKey(der, &private.PublicKey)
	if err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	return o, nil
}

// loadKey copies a private key in PKCS #8 DER, whose public key is public, to OpenSSL.
func loadKey(der []byte, public *rsa.PublicKey) (*opensslKey, error) {
	var reason [256]C.char
	key := C.load_key((*C.uchar)(unsafe.SliceData(der)), C.long(len(der)), &reason[0], C.size_t(len(reason)))
	if key == nil {
		return nil, fmt.Errorf("hand the key to OpenSSL: %s", C.GoString(&reason[0]))
	}
	o := &opensslKey{public, key}
	runtime.AddCleanup(o, func(key *C.EVP_PKEY) { C.EVP_PKEY_free(key) }, key)
	return o, nil
}

// check signs with OpenSSL and verifies with crypto/rsa.
func (o *opensslKey) check() error {
	digest := sha256.Sum256([]byte("gatepost"))
	signature, err := o.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if err := rsa.VerifyPKCS1v15(o.public, crypto.SHA256, digest[:], signature); err != nil {
		return fmt.Errorf("check a signature that OpenSSL made: %w; use the build without it (make build)", err)
	}
	return nil
}

// Public implements crypto.Signer.
func (o *opensslKey) Public() crypto.PublicKey { return o.public }

// Sign implements crypto.Signer. opts must be crypto.SHA256; the signature needs no randomness.
func (o *opensslKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts != crypto.SHA256 || len(digest) != sha256.Size {
		return nil, fmt.Errorf("sign with OpenSSL: a digest of %d octets by %v is not SHA-256", len(digest), opts)
	}
	signature := make([]byte, o.public.Size())
	n := C.size_t(len(signature))
	var reason [256]C.char
	ok := C.sign_sha256(o.key, (*C.uchar)(unsafe.SliceData(digest)), C.size_t(len(digest)), (*C.uchar)(unsafe.SliceData(signature)), &n,
		&reason[0], C.size_t(len(reason)))
	runtime.KeepAlive(o)
	if ok == 0 {
		return nil, fmt.Errorf("sign with OpenSSL: %s", C.GoString(&reason[0]))
	}
	return signature[:n], nil
}
