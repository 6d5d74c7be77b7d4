//go:build !openssl

package dkim

import "crypto"

// OpenSSL returns "": this build signs with Go's own crypto.
func OpenSSL() string { return "" }

func accelerated(k crypto.Signer) (crypto.Signer, error) { return k, nil }
