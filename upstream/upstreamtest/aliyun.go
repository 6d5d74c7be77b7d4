package upstreamtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"
)

// aliyunSigned lists what the signature of a call has to cover.
var aliyunSigned = []string{"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version"}

// VerifyAliyun recomputes signature V3 of Alibaba Cloud (ACS3-HMAC-SHA256) over r as it arrived, as the service does at
// the time now. It follows the vendor's text and shares nothing with the sender.
func VerifyAliyun(r Request, keyID, secret string, now time.Time) error {
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	told := pairs(rest, ",")
	switch {
	case algorithm != "ACS3-HMAC-SHA256":
		return fmt.Errorf("signed by %q", algorithm)
	case told["Credential"] != keyID:
		return fmt.Errorf("signed by key %q, want %q", told["Credential"], keyID)
	}
	signed := strings.Split(told["SignedHeaders"], ";")
	if !sort.StringsAreSorted(signed) {
		return fmt.Errorf("signed header fields %q are not in order", signed)
	}
	for _, name := range aliyunSigned {
		if !slices.Contains(signed, name) {
			return fmt.Errorf("header field %s is not signed", name)
		}
	}
	for name := range r.Header {
		name = strings.ToLower(name)
		if (strings.HasPrefix(name, "x-acs-") || name == "content-type") && !slices.Contains(signed, name) {
			return fmt.Errorf("header field %s is not signed", name)
		}
	}
	at, err := time.Parse("2006-01-02T15:04:05Z", r.Header.Get("x-acs-date"))
	if err != nil || now.Sub(at).Abs() > 15*time.Minute {
		return fmt.Errorf("dated %q, and it is %v", r.Header.Get("x-acs-date"), now.UTC())
	}
	payload := fmt.Sprintf("%x", sha256.Sum256(r.Body))
	if got := r.Header.Get("x-acs-content-sha256"); got != payload {
		return fmt.Errorf("the body's hash is %s, told was %s", payload, got)
	}
	path, query, _ := strings.Cut(r.Path, "?")
	var request strings.Builder
	request.WriteString(r.Method + "\n" + path + "\n" + canonicalQuery(query) + "\n")
	for _, name := range signed {
		request.WriteString(name + ":" + received(r, name) + "\n")
	}
	request.WriteString("\n" + told["SignedHeaders"] + "\n" + payload)
	mac := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(mac, "%s\n%x", algorithm, sha256.Sum256([]byte(request.String())))
	if want := fmt.Sprintf("%x", mac.Sum(nil)); told["Signature"] != want {
		return errors.New("the signature does not match " + request.String())
	}
	return nil
}

// pairs reads "a=b,c=d".
func pairs(s, separator string) map[string]string {
	m := map[string]string{}
	for part := range strings.SplitSeq(s, separator) {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		m[name] = value
	}
	return m
}

// received returns the value of a header field of r, by its name in lower case, as it stood on the wire. net/http keeps
// some apart.
func received(r Request, name string) string {
	switch name {
	case "host":
		return r.Host
	case "content-length":
		return fmt.Sprint(len(r.Body))
	}
	var values []string
	for _, v := range r.Header.Values(name) {
		values = append(values, strings.Join(strings.Fields(v), " "))
	}
	return strings.Join(values, ",")
}

// canonicalQuery sorts a raw query by name and then value, and encodes both octet by octet (RFC 3986 §2.3).
func canonicalQuery(raw string) string {
	if raw == "" {
		return ""
	}
	var all []string
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		n, err1 := url.QueryUnescape(name)
		v, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			return "malformed"
		}
		all = append(all, percent(n)+"="+percent(v))
	}
	sort.Strings(all)
	return strings.Join(all, "&")
}

// percent encodes all octets but those that RFC 3986 calls unreserved.
func percent(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
