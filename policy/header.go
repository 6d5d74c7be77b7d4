package policy

import (
	"bytes"
	"strings"

	"gatepost/message"
	"gatepost/reply"
)

// maxFields bounds the header fields of one message; doors bound their octets.
const maxFields = 1000

// maxResent bounds the Resent- fields, all of which are signed: more would not fit a signature, and unsigned mail
// never leaves.
const maxResent = 25

// once holds the fields that a header may have only one of, with who says so. Where two readers pick different ones,
// the message that was checked and signed is not the one that is shown.
var once = map[string]string{
	"from": rfc5322, "sender": rfc5322, "reply-to": rfc5322, "to": rfc5322, "cc": rfc5322, "date": rfc5322,
	"message-id": rfc5322, "in-reply-to": rfc5322, "references": rfc5322, "subject": rfc5322,
	"mime-version": rfc2045, "content-type": rfc2045, "content-transfer-encoding": rfc2045,
	"list-unsubscribe": rfc2369, "list-unsubscribe-post": "RFC 8058", "list-id": "RFC 2919", "auto-submitted": "RFC 3834",
	"x-gatepost-ttl": "gatepost", "x-gatepost-application": "gatepost",
}

const (
	rfc5322 = "RFC 5322 section 3.6"
	rfc2045 = "RFC 2045"
	rfc2369 = "RFC 2369"
)

// dropped holds the fields that never leave: blind copies, what only final delivery may write, and what would let a
// client steer an upstream (pool, configuration set, tracking) behind the configuration's back. A name that ends in a
// hyphen stands for all that start with it.
var dropped = []string{
	"bcc", "resent-bcc", "return-path",
	"x-ses-", "x-mailgun-", "x-pm-", "x-smtpapi", "x-msys-", "x-alidm-", "x-gatepost-",
}

// header is what policy needs to know of a message's header, and which bytes of it stay.
type header struct {
	block       []byte          // the whole of it, as it came
	from        message.Field   // nil where there is none
	added       message.Field   // a From that we put there; nil for none
	senders     []message.Field // Sender, Resent-From, Resent-Sender
	subject     message.Field   // nil where there is none
	ttl         string          // value of X-Gatepost-TTL
	hasTTL      bool
	contentType string
	application string   // value of X-Gatepost-Application: whose codes they are
	date        bool     // has a Date
	messageID   bool     // has a Message-ID
	eightBit    bool     // a field that stays has octets over 127
	kept        [][]byte // the fields that stay, neighbours in one piece
	body        []byte
}

// readHeader walks over the header once. It refuses what is malformed or repeated against the RFCs.
func readHeader(raw message.Raw) (*header, error) {
	h := &header{block: raw.Header(), body: raw.Body()}
	seen := map[string]bool{}
	block := h.block
	n, resent := 0, 0
	start, end := 0, 0 // of the piece that is being kept
	for f := range message.Fields(block) {
		if n++; n > maxFields {
			return nil, reply.New(550, "5.6.0", "The message has more than %d header fields", maxFields)
		}
		if err := wellFormed(f); err != nil {
			return nil, err
		}
		name := strings.ToLower(f.Name())
		if seen[name] && once[name] != "" {
			return nil, reply.New(550, "5.6.0", "The message has more than one %s field; %s allows one", f.Name(), once[name])
		}
		if strings.HasPrefix(name, "resent-") {
			if resent++; resent > maxResent {
				return nil, reply.New(550, "5.6.0", "The message has more than %d Resent- fields", maxResent)
			}
		}
		seen[name] = true
		h.note(name, f)
		end += len(f)
		if isDropped(name, f) {
			h.keep(block[start : end-len(f)])
			start = end
		} else {
			h.eightBit = h.eightBit || !isASCII(f)
		}
	}
	h.keep(block[start:end])
	h.date, h.messageID = seen["date"], seen["message-id"]
	return h, nil
}

func (h *header) note(name string, f message.Field) {
	switch name {
	case "from":
		h.from = f
	case "sender", "resent-from", "resent-sender":
		h.senders = append(h.senders, f)
	case "subject":
		h.subject = f
	case "content-type":
		h.contentType = f.Value()
	case "x-gatepost-ttl":
		h.ttl, h.hasTTL = f.Value(), true
	case "x-gatepost-application":
		h.application = f.Value()
	}
}

func (h *header) keep(piece []byte) {
	if len(piece) == 0 {
		return
	}
	h.kept = append(h.kept, piece)
	if !bytes.HasSuffix(piece, []byte("\r\n")) { // the message ends with its header
		h.kept = append(h.kept, []byte("\r\n"))
	}
}

// isDropped reports whether a field never leaves. An empty Cc is dropped too: some clients write one, and RFC 5322
// allows none.
func isDropped(name string, f message.Field) bool {
	for _, d := range dropped {
		if name == d || strings.HasSuffix(d, "-") && strings.HasPrefix(name, d) {
			return true
		}
	}
	return name == "cc" && f.Value() == ""
}

// wellFormed checks a field against RFC 5322 §2.2: a name of printable ASCII right before the colon. NUL and stray
// line ends are the door's to refuse, and looked for here once more, since a header must read the same to everybody.
func wellFormed(f message.Field) error {
	name, value, ok := bytes.Cut(f, []byte(":"))
	switch {
	case f[0] == ' ' || f[0] == '\t':
		return reply.New(550, "5.6.0", "The header starts with a continuation line (RFC 5322 section 2.2)")
	case !ok || len(name) == 0:
		return reply.New(550, "5.6.0", "The header has a line without a field name and colon (RFC 5322 section 2.2)")
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return reply.New(550, "5.6.0", "A header field name has a character that is not allowed (RFC 5322 section 2.2)")
		}
	}
	if ends := bytes.Count(value, []byte("\r\n")); bytes.IndexByte(value, 0) >= 0 ||
		bytes.Count(value, []byte("\r")) != ends || bytes.Count(value, []byte("\n")) != ends {
		return reply.New(550, "5.6.0", "A header field has a NUL, or a CR or LF on its own")
	}
	return nil
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}
