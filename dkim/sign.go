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
	"crypto/x509"
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

// signed are the fields that are signed, as often as they occur, in the order of h=. Those with one more are signed once
// more than that, also where they are absent (RFC 6376 §5.4.2): their addition to a signed message would change what its
// reader sees, or whom a click unsubscribes. Received, Return-Path and Bcc are never signed: relays add and drop them.
var signed = []struct {
	name  string
	lower string
	more  int
}{
	{"From", "from", 1}, {"To", "to", 1}, {"Cc", "cc", 1}, {"Subject", "subject", 1}, {"Date", "date", 1},
	{"Reply-To", "reply-to", 1}, {"Message-ID", "message-id", 1}, {"MIME-Version", "mime-version", 1},
	{"Content-Type", "content-type", 1}, {"Content-Transfer-Encoding", "content-transfer-encoding", 1},
	{"List-Unsubscribe", "list-unsubscribe", 1}, {"List-Unsubscribe-Post", "list-unsubscribe-post", 1},
	{"Sender", "sender", 0}, {"In-Reply-To", "in-reply-to", 0}, {"References", "references", 0},
	{"Auto-Submitted", "auto-submitted", 0}, {"List-Id", "list-id", 0}, {"Resent-From", "resent-from", 0},
	{"Resent-To", "resent-to", 0}, {"Resent-Cc", "resent-cc", 0}, {"Resent-Date", "resent-date", 0},
	{"Resent-Message-ID", "resent-message-id", 0},
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
	id       [sha256.Size]byte // of the public key and the selector
}

// newKey returns the key for k whose file holds private.
func newKey(k config.DKIM, private crypto.Signer) (key, error) {
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		return key{}, fmt.Errorf("encode the public key: %w", err)
	}
	signer, err := accelerated(private)
	if err != nil {
		return key{}, err
	}
	return key{k.Selector, k.Domain, signer, sha256.Sum256(append(der, k.Selector...))}, nil
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
		ready, err := newKey(k, private)
		if err != nil {
			errs = append(errs, &config.Problem{File: k.KeyFile, Text: err.Error()})
			continue
		}
		s.keys = append(s.keys, ready)
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

// Unsigned is what the signatures of one message will cover, all but the body.
type Unsigned struct {
	keys    []key
	domains []string // d= of each key
	names   []byte   // h=
	input   []byte   // the canonical header (RFC 6376 §3.7)
}

// Prepare returns what is signed of raw, whose header From is of fromDomain: never names fields to leave out, since the
// next hop rewrites them; one asks for the first key's signature alone. It fails where there is nothing to sign with, or
// to sign, and where a key's domain does not cover fromDomain: such a signature would not be aligned (RFC 7489 §3.1.1).
func (s *Signer) Prepare(raw message.Raw, fromDomain string, never []string, one bool) (*Unsigned, error) {
	u := &Unsigned{keys: s.keys}
	if one {
		u.keys = s.keys[:min(len(s.keys), 1)]
	}
	if len(u.keys) == 0 {
		return nil, errors.New("sign: no DKIM key is configured")
	}
	u.domains = make([]string, len(u.keys))
	for i, k := range u.keys {
		d, err := k.signingDomain(fromDomain)
		if err != nil {
			return nil, err
		}
		u.domains[i] = d
	}
	header := raw.Header()
	if len(header) == len(raw) {
		return nil, errors.New("sign: the message has no blank line that ends its header")
	}
	if err := u.readHeader(header, never); err != nil {
		return nil, err
	}
	return u, nil
}

// Profile identifies what the signatures are made with: the keys, the domains they sign for, their selectors, and the
// fields they cover. Signatures of one message that share it, and the bytes of the message, are as good as each other.
func (u *Unsigned) Profile() [sha256.Size]byte {
	var all []byte
	for i, k := range u.keys {
		all = append(all, k.id[:]...)
		all = append(append(all, u.domains[i]...), 0)
	}
	return sha256.Sum256(append(all, u.names...))
}

// Sign returns a DKIM-Signature field for each key, CRLF-terminated, to be put in front of the message. bodyHash is the
// BodyHash of its body.
func (u *Unsigned) Sign(bodyHash [sha256.Size]byte) ([]byte, error) {
	now := time.Now().Unix()
	fields := make([]byte, 0, len(u.keys)*fieldSize)
	for i, k := range u.keys {
		var err error
		if fields, err = k.sign(fields, u, u.domains[i], bodyHash, now); err != nil {
			return nil, fmt.Errorf("sign with selector %s of %s: %w", k.selector, u.domains[i], err)
		}
	}
	return fields, nil
}

// Sign prepares and signs a whole message.
func (s *Signer) Sign(raw message.Raw, fromDomain string, never []string, one bool) ([]byte, error) {
	u, err := s.Prepare(raw, fromDomain, never, one)
	if err != nil {
		return nil, err
	}
	return u.Sign(BodyHash(raw.Body()))
}

// sign appends the DKIM-Signature field of k (RFC 6376 §3.5, §3.7) to fields.
func (k key) sign(fields []byte, u *Unsigned, domain string, bodyHash [sha256.Size]byte, now int64) ([]byte, error) {
	algorithm, option := "rsa-sha256", crypto.SHA256
	if _, ok := k.signer.Public().(ed25519.PublicKey); ok {
		algorithm, option = "ed25519-sha256", crypto.Hash(0) // what is signed is the hash itself (RFC 8463 §3)
	}
	start := len(fields)
	w := tagWriter{append(fields, fieldName+":"...), 0}
	w.add("a=", algorithm)
	w.add("bh=", base64.StdEncoding.EncodeToString(bodyHash[:]))
	w.add("c=", "relaxed/relaxed")
	w.add("d=", domain)
	w.add("h=", string(u.names))
	w.add("s=", k.selector)
	w.add("t=", strconv.FormatInt(now, 10))
	w.add("v=", "1")
	fields = append(w.to, "\r\n b="...)

	value := fields[start+len(fieldName+":"):]
	covered := slices.Grow(u.input, len(value)+len(fieldName)) // of its own where it does not fit
	digest := sha256.Sum256(relaxField(covered, lowerFieldName, value))
	signature, err := k.signer.Sign(rand.Reader, digest[:], option)
	if err != nil {
		return nil, err
	}
	return appendFolded(fields, base64.StdEncoding.EncodeToString(signature)), nil
}

const (
	fieldName      = "DKIM-Signature"
	lowerFieldName = "dkim-signature"
	foldAt         = 75  // octets of a line of the field, but where one tag alone is longer
	fieldSize      = 900 // octets of a field with a signature of RSA-2048, about
)

// tagWriter appends tags to a field, folded.
type tagWriter struct {
	to   []byte
	line int // octets on the last line
}

func (w *tagWriter) add(tag, value string) {
	n := len(" ;") + len(tag) + len(value)
	if w.line > 0 && w.line+n > foldAt {
		w.to = append(w.to, "\r\n"...)
		w.line = 0
	}
	w.to = append(append(append(append(w.to, ' '), tag...), value...), ';')
	w.line += n
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

// readHeader chooses the fields to sign, each as often as it occurs, those of never aside: their names for h=, and their
// relaxed forms, of fields that occur more than once the last first (RFC 6376 §5.4.2). A name beyond those that occur adds
// nothing, so that nobody can add one later.
func (u *Unsigned) readHeader(header []byte, never []string) error {
	var of [24]message.Field // most headers have no more fields
	fields := of[:0]
	for f := range message.Fields(header) {
		fields = append(fields, f)
	}
	u.names = make([]byte, 0, 256)
	u.input = make([]byte, 0, len(header)+fieldSize)
	n, from := 0, false
	add := func(name string) {
		if n++; n > 1 {
			u.names = append(u.names, ':')
		}
		u.names = append(u.names, name...)
	}
	for _, s := range signed {
		if slices.ContainsFunc(never, func(n string) bool { return strings.EqualFold(n, s.name) }) {
			continue
		}
		for _, f := range slices.Backward(fields) {
			if value, ok := valueOf(f, s.lower); ok {
				add(s.name)
				u.input = append(relaxField(u.input, s.lower, value), "\r\n"...)
			}
		}
		for range s.more {
			add(s.name)
		}
		from = from || s.lower == "from"
	}
	switch {
	case n > maxNames:
		return fmt.Errorf("sign: %d header fields to sign, at most %d fit a signature", n, maxNames)
	case !from:
		return errors.New("sign: the From field must be signed (RFC 6376 section 5.4)")
	}
	return nil
}

// valueOf returns what follows the colon of f, if its name is lower in any case of ASCII letters.
func valueOf(f message.Field, lower string) (value []byte, ok bool) {
	if len(f) <= len(lower) {
		return nil, false
	}
	for i := range len(lower) {
		c := f[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return nil, false
		}
	}
	rest := bytes.TrimLeft(f[len(lower):], " \t")
	if len(rest) == 0 || rest[0] != ':' {
		return nil, false
	}
	return rest[1:], true
}
