// Package dkim signs mail (RFC 6376, RFC 8463), makes and reads the keys for it, prints the DNS records that publish
// them, and verifies signatures.
//
// It promises that a signature covers the fields a reader sees, each as often as it stands there and the important
// ones once more, so that none can be added later; that it covers the whole body (never l=); and that Sign returns
// every signature that was asked for or an error: unsigned mail never passes for signed. It refuses keys that
// receivers would not accept and key files that others can read.
package dkim

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// oversigned are the fields whose addition to a signed message would change what its reader sees, or whom a click
// unsubscribes; they are signed once more than they occur, also where they are absent (RFC 6376 §5.4.2).
var oversigned = []string{
	"From", "To", "Cc", "Subject", "Date", "Reply-To", "Message-ID", "MIME-Version", "Content-Type",
	"Content-Transfer-Encoding", "List-Unsubscribe", "List-Unsubscribe-Post",
}

// signed are further fields that are signed where they occur. Received, Return-Path and Bcc are never: relays add
// and drop them.
var signed = []string{
	"Sender", "In-Reply-To", "References", "Auto-Submitted", "List-Id", "Resent-From", "Resent-To", "Resent-Cc",
	"Resent-Date", "Resent-Message-ID",
}

// maxNames bounds the names in one h= tag, which stands on one line.
const maxNames = 60

// Signer holds the keys of one stream. It is immutable and safe for concurrent use.
type Signer struct {
	keys     []key
	warnings []string
}

type key struct {
	selector string
	domain   string // d=; "" for the domain of the header From
	signer   crypto.Signer
}

// NewSigner reads the key files that keys name. The error joins a *config.Problem for every file that cannot be used.
func NewSigner(keys []config.DKIM) (*Signer, error) {
	s := &Signer{}
	var errs []error
	for _, k := range keys {
		private, err := ReadKey(k.KeyFile)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.keys = append(s.keys, key{k.Selector, k.Domain, private})
		if text := weakness(private); text != "" {
			s.warnings = append(s.warnings, k.KeyFile+": "+text)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// Warnings tells what works, but somebody should know: keys shorter than they should be, one text each.
func (s *Signer) Warnings() []string { return slices.Clone(s.warnings) }

// Records returns what must be published in DNS for mail from fromDomain, in the order of the keys.
func (s *Signer) Records(fromDomain string) ([]Record, error) {
	var rs []Record
	for _, k := range s.keys {
		d, err := k.signingDomain(fromDomain)
		if err != nil {
			return nil, err
		}
		r, err := NewRecord(k.selector, d, k.signer.Public())
		if err != nil {
			return nil, err
		}
		rs = append(rs, r)
	}
	return rs, nil
}

// Sign returns a DKIM-Signature field over raw for each key, CRLF-terminated, to be put in front of it. fromDomain is
// the domain of raw's header From; never names fields to leave out, since the next hop rewrites them; one asks for
// the first key's signature alone. It fails where a key's domain does not cover fromDomain: such a signature would
// not be aligned (RFC 7489 §3.1.1).
func (s *Signer) Sign(raw message.Raw, fromDomain string, never []string, one bool) ([]byte, error) {
	keys := s.keys
	if one {
		keys = keys[:min(len(keys), 1)]
	}
	if len(keys) == 0 {
		return nil, errors.New("sign: no DKIM key is configured")
	}
	names := headerNames(raw.Header(), never)
	if len(names) > maxNames {
		return nil, fmt.Errorf("sign: %d header fields to sign, at most %d fit a signature", len(names), maxNames)
	}
	if !slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, "From") }) {
		return nil, errors.New("sign: the From field must be signed (RFC 6376 section 5.4)")
	}
	header := raw.Header()
	if len(header) == len(raw) {
		return nil, errors.New("sign: the message has no blank line that ends its header")
	}
	unsigned := unsignedField{bodyHash: bodyHash(raw.Body()), names: names, at: time.Now()}
	input := headerInput(header, names)
	var fields []byte
	for _, k := range keys {
		d, err := k.signingDomain(fromDomain)
		if err != nil {
			return nil, err
		}
		if fields, err = k.sign(fields, d, unsigned, input); err != nil {
			return nil, fmt.Errorf("sign with selector %s of %s: %w", k.selector, d, err)
		}
	}
	return fields, nil
}

// unsignedField is what the signatures of one message have in common.
type unsignedField struct {
	bodyHash []byte
	names    []string // h=
	at       time.Time
}

// sign appends the DKIM-Signature field of k (RFC 6376 §3.5, §3.7) to fields. input is the canonical header.
func (k key) sign(fields []byte, domain string, u unsignedField, input []byte) ([]byte, error) {
	algorithm, option := "rsa-sha256", crypto.SHA256
	if _, ok := k.signer.Public().(ed25519.PublicKey); ok {
		algorithm, option = "ed25519-sha256", crypto.Hash(0) // what is signed is the hash itself (RFC 8463 §3)
	}
	start := len(fields)
	fields = appendTags(fields, []string{"a=" + algorithm, "bh=" + base64.StdEncoding.EncodeToString(u.bodyHash), "c=relaxed/relaxed",
		"d=" + domain, "h=" + strings.Join(u.names, ":"), "s=" + k.selector, "t=" + strconv.FormatInt(u.at.Unix(), 10), "v=1"})
	fields = append(fields, "\r\n b="...)

	_, value, _ := bytes.Cut(fields[start:], []byte(":"))
	h := sha256.New()
	h.Write(input)
	h.Write(relaxField(nil, fieldName, value))
	signature, err := k.signer.Sign(rand.Reader, h.Sum(nil), option)
	if err != nil {
		return nil, err
	}
	return appendFolded(fields, base64.StdEncoding.EncodeToString(signature)), nil
}

const (
	fieldName = "DKIM-Signature"
	foldAt    = 75 // octets of a line of the field, but where one tag alone is longer
)

// appendTags appends the field's name and tags.
func appendTags(to []byte, tags []string) []byte {
	to = append(to, fieldName+":"...)
	line := 0
	for _, tag := range tags {
		if line > 0 && line+len(" ;")+len(tag) > foldAt {
			to = append(to, "\r\n"...)
			line = 0
		}
		to = append(append(append(to, ' '), tag...), ';')
		line += len(" ;") + len(tag)
	}
	return to
}

// appendFolded appends a signature behind its " b=", and the field's line end.
func appendFolded(to []byte, signature string) []byte {
	for room := foldAt - len(" b="); len(signature) > room; room = foldAt {
		to = append(append(to, signature[:room]...), "\r\n "...)
		signature = signature[room:]
	}
	return append(append(to, signature...), "\r\n"...)
}

// signingDomain returns d= for mail from domain: the key's domain, which must be domain or a parent of it.
func (k key) signingDomain(domain string) (string, error) {
	if domain == "" {
		return "", errors.New("sign: the message has no From domain")
	}
	if k.domain == "" || k.domain == domain || strings.HasSuffix(domain, "."+k.domain) {
		return cmp.Or(k.domain, domain), nil
	}
	return "", fmt.Errorf("sign: the key of selector %s signs for %s, which does not cover the From domain %s", k.selector, k.domain, domain)
}

// headerNames returns the names for h=: those of never aside, each as often as it occurs in header, the oversigned
// once more.
func headerNames(header []byte, never []string) []string {
	count := map[string]int{}
	for f := range message.Fields(header) {
		count[strings.ToLower(f.Name())]++
	}
	var names []string
	add := func(name string, extra int) {
		if !slices.ContainsFunc(never, func(n string) bool { return strings.EqualFold(n, name) }) {
			for range count[strings.ToLower(name)] + extra {
				names = append(names, name)
			}
		}
	}
	for _, name := range oversigned {
		add(name, 1)
	}
	for _, name := range signed {
		add(name, 0)
	}
	return names
}
