package hook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const whsec = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3" // "0123456789abcdef01234567"

// signer signs a body as a caller does.
type signer func(key, body string, at time.Time) http.Header

func mac(key, text string) []byte {
	h := hmac.New(sha256.New, []byte(key))
	h.Write([]byte(text))
	return h.Sum(nil)
}

func signZitadel(key, body string, at time.Time) http.Header {
	h := http.Header{}
	h.Set("ZITADEL-Signature", fmt.Sprintf("t=%d,v1=%s", at.Unix(), hex.EncodeToString(mac(key, fmt.Sprintf("%d.%s", at.Unix(), body)))))
	return h
}

func signWebhook(key, body string, at time.Time) http.Header {
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(strings.TrimPrefix(key, "v1,"), "whsec_"))
	if err != nil {
		secret = []byte(key)
	}
	h := http.Header{}
	h.Set("webhook-id", "6f1a")
	h.Set("webhook-timestamp", fmt.Sprint(at.Unix()))
	h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac(string(secret), fmt.Sprintf("6f1a.%d.%s", at.Unix(), body))))
	return h
}

func signNovu(key, body string, _ time.Time) http.Header {
	h := http.Header{}
	h.Set("X-Novu-Signature", hex.EncodeToString(mac(key, body)))
	return h
}

var signers = map[string]struct {
	adapter    Adapter
	sign       signer
	key, other string
	timed      bool
}{
	"zitadel":  {zitadel{}, signZitadel, "zitadel signing key", "another signing key", true},
	"supabase": {supabase{}, signWebhook, "v1," + whsec, "v1,whsec_" + base64.StdEncoding.EncodeToString([]byte("another key of 24 octets")), true},
	"novu":     {novu{}, signNovu, "novu secret", "another secret", false},
}

func TestASignatureHoldsForItsBodyItsKeyAndItsTimeAlone(t *testing.T) {
	const body = `{"to":"kim@example.net"}`
	now := time.Unix(1_795_000_000, 0)
	for name, s := range signers {
		t.Run(name, func(t *testing.T) {
			check := func(what string, h http.Header, body string, keys []string, want error) {
				t.Helper()
				if err := s.adapter.Verify(h, []byte(body), keys, now); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			good := s.sign(s.key, body, now)
			check("a good one", good, body, []string{s.key}, nil)
			check("the older of two keys", good, body, []string{s.other, s.key}, nil)
			check("the newer of two keys", good, body, []string{s.key, s.other}, nil)
			check("another key", good, body, []string{s.other}, ErrSignature)
			check("no key", good, body, nil, ErrSignature)
			check("an empty key", s.sign("", body, now), body, []string{s.key}, ErrSignature)
			check("no signature", http.Header{}, body, []string{s.key}, ErrSignature)
			check("an empty body", good, "", []string{s.key}, ErrSignature)
			for i := range len(body) * 8 {
				changed := []byte(body)
				changed[i/8] ^= 1 << (i % 8)
				check(fmt.Sprintf("bit %d changed", i), good, string(changed), []string{s.key}, ErrSignature)
			}
			if !s.timed {
				return
			}
			for _, off := range []time.Duration{-299 * time.Second, 299 * time.Second} {
				check("a clock that is off", s.sign(s.key, body, now.Add(off)), body, []string{s.key}, nil)
			}
			for _, off := range []time.Duration{-301 * time.Second, 301 * time.Second, -24 * time.Hour} {
				check("a stale one", s.sign(s.key, body, now.Add(off)), body, []string{s.key}, ErrSignature)
			}
			replayed := s.sign(s.key, body, now.Add(-time.Hour))
			for field, values := range replayed {
				replayed.Set(field, strings.ReplaceAll(values[0], fmt.Sprint(now.Add(-time.Hour).Unix()), fmt.Sprint(now.Unix())))
			}
			check("an old one with a new time", replayed, body, []string{s.key}, ErrSignature)
		})
	}
}

func TestSeveralSignaturesOfWhichOneIsGoodAreGood(t *testing.T) {
	const body = "{}"
	now := time.Now()
	h := signZitadel("old", body, now)
	_, newer, _ := strings.Cut(signZitadel("new", body, now).Get("ZITADEL-Signature"), ",")
	h.Set("ZITADEL-Signature", h.Get("ZITADEL-Signature")+","+newer)
	if err := (zitadel{}).Verify(h, []byte(body), []string{"new"}, now); err != nil {
		t.Errorf("zitadel: %v", err)
	}
	for _, between := range []string{" ", ", "} {
		h := signWebhook("v1,"+whsec, body, now)
		h.Set("webhook-signature", "v1,AAAA"+between+h.Get("webhook-signature")+between+"v1a,AAAA")
		if err := (supabase{}).Verify(h, []byte(body), []string{whsec}, now); err != nil {
			t.Errorf("Standard Webhooks with %q between: %v", between, err)
		}
	}
}

func TestASecretThatCannotBeUsedIsNamedAsTheCause(t *testing.T) {
	now := time.Now()
	err := (supabase{}).Verify(signWebhook("v1,"+whsec, "{}", now), []byte("{}"), []string{"mistyped " + whsec}, now)
	if !errors.Is(err, ErrSignature) || !strings.Contains(err.Error(), "does not begin with whsec_") || strings.Contains(err.Error(), whsec) {
		t.Errorf("told %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	for name, s := range signers {
		for field, values := range s.sign(s.key, "{}", time.Unix(1_795_000_000, 0)) {
			f.Add(name, field, values[0])
		}
	}
	f.Add("zitadel", "ZITADEL-Signature", "t=,v1=,,=,t=99999999999999999999")
	f.Fuzz(func(t *testing.T, name, field, value string) {
		s, ok := signers[name]
		if !ok {
			return
		}
		h := http.Header{"Webhook-Id": {"1"}, "Webhook-Timestamp": {"1795000000"}}
		h.Set(field, value)
		if err := s.adapter.Verify(h, []byte(`{"not":"signed"}`), []string{s.key}, time.Unix(1_795_000_000, 0)); err == nil {
			t.Fatalf("%s: %q passed for a signature", name, value)
		}
	})
}
