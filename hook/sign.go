package hook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gatepost/config"
)

// ErrSignature says that a request is not signed as it must be, in whatever way.
var ErrSignature = errors.New("the signature is missing, wrong or too old")

const (
	tolerance     = 5 * time.Minute // between the caller's clock and ours, either way
	maxSignatures = 10              // of one request
)

// sum is the HMAC-SHA256 of parts in a row.
func sum(key []byte, parts ...[]byte) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// matches reports whether one of given is the HMAC of parts with one of keys. Each is compared with each, so that the
// time does not tell which was near.
func matches(given [][]byte, keys [][]byte, parts ...[]byte) bool {
	found := false
	for _, key := range keys {
		want := sum(key, parts...)
		for _, g := range given[:min(len(given), maxSignatures)] {
			found = hmac.Equal(g, want) || found
		}
	}
	return found
}

// fresh reports whether a time in seconds since 1970 is now, more or less.
func fresh(seconds string, now time.Time) bool {
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return false
	}
	off := now.Sub(time.Unix(n, 0))
	return off <= tolerance && off >= -tolerance
}

func octets(keys []string) [][]byte {
	all := make([][]byte, len(keys))
	for i, k := range keys {
		all[i] = []byte(k)
	}
	return all
}

// verifyZitadel checks "t=SECONDS,v1=HEX", v1 any number of times, over "SECONDS.BODY".
func verifyZitadel(h http.Header, body []byte, keys []string, now time.Time) error {
	at, given := "", [][]byte{}
	for part := range strings.SplitSeq(h.Get("ZITADEL-Signature"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "t":
			at = value
		case "v1":
			if s, err := hex.DecodeString(value); err == nil {
				given = append(given, s)
			}
		}
	}
	if !matches(given, octets(keys), []byte(at), []byte("."), body) || !fresh(at, now) {
		return ErrSignature
	}
	return nil
}

// verifyWebhook checks the signature of Standard Webhooks (standardwebhooks.com): "v1,BASE64" over "ID.SECONDS.BODY". The
// list has spaces between; Supabase Auth writes commas and spaces.
func verifyWebhook(h http.Header, body []byte, keys []string, now time.Time) error {
	id, at := h.Get("Webhook-Id"), h.Get("Webhook-Timestamp")
	var given [][]byte
	for word := range strings.FieldsSeq(h.Get("Webhook-Signature")) {
		if text, ok := strings.CutPrefix(strings.TrimSuffix(word, ","), "v1,"); ok {
			if s, err := base64.StdEncoding.DecodeString(text); err == nil {
				given = append(given, s)
			}
		}
	}
	var secrets [][]byte
	var unusable error // the cause, maybe, where a file was changed
	for _, k := range keys {
		s, err := config.ParseWebhookSecret(k)
		if err != nil {
			unusable = fmt.Errorf("a signing secret cannot be used: %w", err)
			continue
		}
		secrets = append(secrets, s)
	}
	if id == "" || !matches(given, secrets, []byte(id), []byte("."), []byte(at), []byte("."), body) || !fresh(at, now) {
		return errors.Join(ErrSignature, unusable)
	}
	return nil
}

// verifyNovu checks the HMAC of the body, in hex. There is no time in it: what is repeated is found by its body.
func verifyNovu(h http.Header, body []byte, keys []string) error {
	given, err := hex.DecodeString(h.Get("X-Novu-Signature"))
	if err != nil || !matches([][]byte{given}, octets(keys), body) {
		return ErrSignature
	}
	return nil
}
