package relay

import (
	"bytes"
	"encoding/binary"
	"strings"

	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

const (
	maxLine  = 998 // octets of a line without its CRLF (RFC 5322 §2.1.1)
	maxDepth = 20  // of nested multiparts and messages
)

// render returns raw as the next hop can take it, and whether MAIL must ask for BODY=8BITMIME. Most mail fits as it
// is; then raw itself comes back. What does not fit is changed as little as that allows: leaves with 8-bit octets or
// lines over 998 octets are encoded, raw 8-bit header fields become RFC 2047, long fields are folded, and foreign
// signatures go where the upstream must see one only, or none. Decoded, the message stays the same.
//
// caps.SMTPUTF8 lets raw UTF-8 header fields pass, so it must be false unless MAIL asks for SMTPUTF8.
//
// A *reply.Error (554 5.6.x) means that the message cannot be put so that this hop takes it: what is signed or
// encrypted would not survive, an address has no ASCII form, or its MIME structure is broken.
func render(raw message.Raw, caps upstream.Caps, traits upstream.Traits) (message.Raw, bool, error) {
	r := renderer{
		eightBit: caps.EightBitMIME,
		utf8:     caps.SMTPUTF8 && caps.EightBitMIME, // RFC 6531 §3.1 wants both
	}
	header, body := look(raw.Header()), look(raw.Body())
	strip := (traits.OneSignature || traits.DKIM == "strip") && hasSignature(raw.Header())
	if !strip && header.fits(r.utf8) && body.fits(r.eightBit) {
		return raw, body.eightBit, nil
	}
	var out bytes.Buffer
	out.Grow(len(raw) + len(raw)/2)
	if err := r.entity(&out, raw, entity{isMessage: true, utf8: r.utf8, strip: strip}); err != nil {
		return nil, false, err
	}
	done := message.Raw(out.Bytes())
	header, body = look(done.Header()), look(done.Body())
	if !header.fits(r.utf8) || !body.fits(r.eightBit) {
		return nil, false, unfit("5.6.3", "The message cannot be encoded for the next hop")
	}
	return done, body.eightBit, nil
}

// renderer knows what the next hop takes.
type renderer struct {
	eightBit bool // 8-bit bodies
	utf8     bool // raw UTF-8 header fields
}

// entity says what is being rendered: a message, or a part of one.
type entity struct {
	isMessage bool // has a header of its own, with MIME-Version
	utf8      bool // its header may stay 8-bit
	strip     bool // its signatures go
	inDigest  bool // without a Content-Type it is a message (RFC 2046 §5.1.5)
	depth     int
}

// unfit makes the permanent verdict about a message that the next hop cannot take.
func unfit(enhanced, format string, a ...any) *reply.Error {
	return reply.New(554, enhanced, format, a...)
}

// octets is what decides whether text can be sent as it is.
type octets struct {
	eightBit bool // an octet over 127
	long     bool // a line over 998 octets
}

func (o octets) fits(eightBit bool) bool { return !o.long && (eightBit || !o.eightBit) }

// look passes over b once.
func look(b []byte) octets {
	var o octets
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		if n > maxLine && len(bytes.TrimSuffix(b[:n], []byte("\r\n"))) > maxLine {
			o.long = true
		}
		o.eightBit = o.eightBit || !isASCII(b[:n])
		b = b[n:]
	}
	return o
}

func isASCII(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if binary.LittleEndian.Uint64(b)&0x8080808080808080 != 0 {
			return false
		}
	}
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func isASCIIString(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= 0x80 }) < 0
}

func hasSignature(header []byte) bool {
	for f := range message.Fields(header) {
		if isSignature(f) {
			return true
		}
	}
	return false
}

// isSignature reports whether f vouches for the message as it came: DKIM (RFC 6376) or one of the ARC set (RFC 8617).
func isSignature(f message.Field) bool {
	return f.Is("DKIM-Signature") || len(f) > 4 && strings.EqualFold(string(f[:4]), "ARC-")
}
