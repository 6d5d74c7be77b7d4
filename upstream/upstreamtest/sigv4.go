package upstreamtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AWSKey is what a service of AWS knows about who may call it.
type AWSKey struct {
	ID, Secret string
	Token      string // of temporary credentials; "" for none
	Region     string
	Service    string // as signed: "ses" for SES v2
}

// VerifySigV4 recomputes AWS Signature Version 4 over r as it arrived, as the service does at the time now. It follows
// the vendor's text and shares nothing with the SDK.
func VerifySigV4(r Request, key AWSKey, now time.Time) error {
	algorithm, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	told := pairs(rest, ",")
	stamp := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", stamp)
	scope := fmt.Sprintf("%.8s/%s/%s/aws4_request", stamp, key.Region, key.Service)
	switch {
	case algorithm != "AWS4-HMAC-SHA256":
		return fmt.Errorf("signed by %q", algorithm)
	case err != nil || now.Sub(at).Abs() > 5*time.Minute:
		return fmt.Errorf("dated %q, and it is %v", stamp, now.UTC())
	case told["Credential"] != key.ID+"/"+scope:
		return fmt.Errorf("signed with %q, want %q", told["Credential"], key.ID+"/"+scope)
	case r.Header.Get("X-Amz-Security-Token") != key.Token:
		return errors.New("the session token is not the one of this key")
	}
	signed := strings.Split(told["SignedHeaders"], ";")
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return fmt.Errorf("header field %s is not signed", name)
		}
	}
	if !slices.Contains(signed, "host") {
		return errors.New("the host is not signed")
	}
	want := sigV4(r, key, signed, stamp, scope)
	if told["Signature"] != want {
		return fmt.Errorf("the signature is %s, want %s", told["Signature"], want)
	}
	return nil
}

// sigV4 computes the signature over the header fields named.
func sigV4(r Request, key AWSKey, signed []string, stamp, scope string) string {
	path, query, _ := strings.Cut(r.Path, "?")
	var request strings.Builder
	request.WriteString(r.Method + "\n" + sigV4Path(path, key.Service) + "\n" + canonicalQuery(query) + "\n")
	for _, name := range signed {
		request.WriteString(name + ":" + received(r, name) + "\n")
	}
	request.WriteString("\n" + strings.Join(signed, ";") + "\n" + fmt.Sprintf("%x", sha256.Sum256(r.Body)))
	text := fmt.Sprintf("AWS4-HMAC-SHA256\n%s\n%s\n%x", stamp, scope, sha256.Sum256([]byte(request.String())))
	k := []byte("AWS4" + key.Secret)
	for part := range strings.SplitSeq(scope, "/") {
		k = hmacSHA256(k, part)
	}
	return fmt.Sprintf("%x", hmacSHA256(k, text))
}

// sigV4Path encodes a path that is encoded already once more, as every service but S3 does.
func sigV4Path(path, service string) string {
	if service == "s3" {
		return path
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		segments[i] = percent(s)
	}
	return strings.Join(segments, "/")
}

func hmacSHA256(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}
