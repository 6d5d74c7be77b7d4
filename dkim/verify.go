package dkim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"strings"

	"github.com/emersion/go-msgauth/dkim"
	"golang.org/x/net/publicsuffix"

	"gatepost/message"
)

const (
	maxVerified   = 20        // signatures of one message that are looked at
	maxVerifySize = 128 << 20 // octets of one message
)

// Result is what became of one DKIM-Signature field.
type Result struct {
	Domain    string   // d=
	Selector  string   // s=
	Algorithm string   // a=, "rsa-sha256"
	Headers   []string // h=, as written
	Aligned   bool     // d= and the domain of the one From share their organisational domain (RFC 7489 §3.1.1)
	Err       error    // nil where the signature is valid
}

// Verify checks the signatures of the message in r, topmost first, at most 20 of them. Line ends may be CRLF or, as
// in a file, LF. lookup returns the TXT records of a name (net.LookupTXT does); Published makes one that needs no DNS.
// No signature is no error: the result is empty. The error means that r could not be read as a message.
func Verify(r io.Reader, lookup func(domain string) ([]string, error)) ([]Result, error) {
	raw, err := readMessage(r)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	checked, err := dkim.VerifyWithOptions(bytes.NewReader(raw), &dkim.VerifyOptions{LookupTXT: lookup, MaxVerifications: maxVerified})
	if err != nil && !errors.Is(err, dkim.ErrTooManySignatures) {
		return nil, fmt.Errorf("verify: %w", err)
	}
	var results []Result
	from := fromDomain(raw.Header())
	for f := range message.Fields(raw.Header()) {
		if !f.Is("DKIM-Signature") || len(results) == len(checked) {
			continue
		}
		c, tags := checked[len(results)], tagsOf(f)
		results = append(results, Result{Domain: c.Domain, Selector: tags["s"], Algorithm: tags["a"], Headers: c.HeaderKeys,
			Aligned: aligned(c.Domain, from), Err: c.Err})
	}
	return results, nil
}

// readMessage reads a whole message and gives it CRLF line ends and a blank line behind its header.
func readMessage(r io.Reader) (message.Raw, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxVerifySize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxVerifySize {
		return nil, fmt.Errorf("the message is larger than %d octets", maxVerifySize)
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	if !bytes.Contains(b, []byte("\r\n\r\n")) {
		b = append(bytes.TrimSuffix(b, []byte("\r\n")), "\r\n\r\n"...)
	}
	return b, nil
}

// fromDomain returns the domain that DMARC looks at, "" where there is not exactly one.
func fromDomain(header []byte) string {
	var values []string
	for f := range message.Fields(header) {
		if f.Is("From") {
			values = append(values, f.Value())
		}
	}
	if len(values) != 1 {
		return ""
	}
	list, err := mail.ParseAddressList(values[0])
	if err != nil {
		return ""
	}
	domain := ""
	for _, a := range list {
		d, err := message.ParseDomain(a.Address[strings.LastIndexByte(a.Address, '@')+1:])
		if err != nil || domain != "" && d != domain {
			return ""
		}
		domain = d
	}
	return domain
}

// aligned is the relaxed identifier alignment of RFC 7489 §3.1.1.
func aligned(d, from string) bool {
	d = strings.ToLower(d)
	return from != "" && (d == from || organisation(d) == organisation(from) && organisation(d) != "")
}

// organisation returns the organisational domain, "" for a name that is a public suffix itself.
func organisation(domain string) string {
	o, err := publicsuffix.EffectiveTLDPlusOne(domain)
	if err != nil {
		return ""
	}
	return o
}

// tagsOf returns the tag list of a DKIM-Signature field without its white space (RFC 6376 §3.2).
func tagsOf(f message.Field) map[string]string {
	tags := map[string]string{}
	for tag := range strings.SplitSeq(f.Value(), ";") {
		name, value, _ := strings.Cut(tag, "=")
		tags[strings.TrimSpace(name)] = strings.Join(strings.Fields(value), "")
	}
	return tags
}
