package upstream

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"time"
)

// aliyunAlgorithm is version 3 of Alibaba Cloud's signature, the one its documentation recommends.
const aliyunAlgorithm = "ACS3-HMAC-SHA256"

// aliyunCall is what one call of an Alibaba Cloud API says of itself, all of it signed.
type aliyunCall struct {
	action, version string
	at              time.Time // the service takes 15 minutes more or less
	nonce           string    // used once
}

// sign adds the call's header fields to r, whose body is body, and signs them with the access key: everything named
// x-acs-*, the host, and the type of the body. r's path must be as it goes on the wire.
func (c aliyunCall) sign(r *http.Request, body []byte, keyID, secret string) {
	hash := sha256.Sum256(body)
	r.Header.Set("x-acs-action", c.action)
	r.Header.Set("x-acs-version", c.version)
	r.Header.Set("x-acs-date", c.at.UTC().Format("2006-01-02T15:04:05Z"))
	r.Header.Set("x-acs-signature-nonce", c.nonce)
	r.Header.Set("x-acs-content-sha256", hex.EncodeToString(hash[:]))
	text, names := aliyunCanonical(r)
	digest := sha256.Sum256([]byte(text))
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(aliyunAlgorithm + "\n" + hex.EncodeToString(digest[:])))
	r.Header.Set("Authorization", aliyunAlgorithm+" Credential="+keyID+",SignedHeaders="+names+",Signature="+hex.EncodeToString(mac.Sum(nil)))
}

// aliyunCanonical returns r in the form that is signed, and the names of the header fields in it.
func aliyunCanonical(r *http.Request) (text, names string) {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	fields := map[string]string{"host": host}
	for name, values := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-acs-") || name == "content-type" {
			fields[name] = strings.TrimSpace(values[0])
		}
	}
	var sorted []string
	for name := range fields {
		sorted = append(sorted, name)
	}
	slices.Sort(sorted)
	names = strings.Join(sorted, ";")

	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	// A query is encoded by RFC 3986, which has no plus for a space.
	query := strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20")
	var b strings.Builder
	b.WriteString(r.Method + "\n" + path + "\n" + query + "\n")
	for _, name := range sorted {
		b.WriteString(name + ":" + fields[name] + "\n")
	}
	b.WriteString("\n" + names + "\n" + r.Header.Get("x-acs-content-sha256"))
	return b.String(), names
}
