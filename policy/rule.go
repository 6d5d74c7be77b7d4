package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"mime"
	"strings"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// maxMatched bounds what a rule's regular expression sees of a field, in octets.
const maxMatched = 8 << 10

// ruleFor returns the first rule of stream that the header fits; one that changes nothing for none.
func ruleFor(stream *config.Stream, h *header) config.Match {
	for _, m := range stream.Match {
		if fitsSubject(m, h) && fitsHeader(m, h) {
			return m
		}
	}
	return config.Match{}
}

// ordered returns what holds for mail that an HTTP request orders: what the request says, else what the rules of the
// stream do. Mail of another stream than the hook's gets 550 5.7.1.
func ordered(o *message.Order, stream *config.Stream, rule config.Match) (config.Match, error) {
	if o.Stream != stream.Name {
		return rule, reply.New(550, "5.7.1", "The sender belongs to stream %q, and this hook sends mail of stream %q", stream.Name, o.Stream)
	}
	return config.Match{TTL: cmp.Or(o.TTL, rule.TTL), Purpose: cmp.Or(o.Purpose, rule.Purpose), Verdict: rule.Verdict}, nil
}

func fitsSubject(m config.Match, h *header) bool {
	return m.Subject == nil || h.subject != nil && m.Subject.MatchString(decoded(h.subject))
}

// fitsHeader reports whether one of the fields of that name has a value that fits.
func fitsHeader(m config.Match, h *header) bool {
	if m.Header == "" {
		return true
	}
	for f := range message.Fields(h.block) {
		if f.Is(m.Header) && (m.Value == nil || m.Value.MatchString(decoded(f))) {
			return true
		}
	}
	return false
}

// decoded returns the value of a field as people see it (RFC 2047). What cannot be decoded stays as it is.
func decoded(f message.Field) string {
	v := f.Value()
	return decodeWords(v[:min(len(v), maxMatched)])
}

// words decodes encoded-words. Octets of a charset that is not known stand for themselves: an @ and a domain are ASCII in
// all that mail programs know.
var words = mime.WordDecoder{CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil }}

func decodeWords(s string) string {
	if !strings.Contains(s, "=?") {
		return s
	}
	if d, err := words.DecodeHeader(s); err == nil {
		return d
	}
	return s
}

// supersedeKey returns what a newer code and the older one it replaces have in common: stream, client, application or
// else purpose, and the one recipient. nil where m neither replaces nor is replaced.
func supersedeKey(stream *config.Stream, m *message.Message, application string) []byte {
	if !stream.Supersede || m.Purpose != "code" || len(m.Recipients) != 1 {
		return nil
	}
	if application == "" {
		application = m.Purpose
	}
	h := sha256.New()
	for _, part := range []string{m.Stream, m.Client, application, m.Recipients[0].Address} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	return h.Sum(nil)
}
