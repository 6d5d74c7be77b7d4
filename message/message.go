// Package message holds the words for one piece of mail on its way through gatepost: ids, kinds, envelopes, bytes,
// verdicts, attempts, settlements and outcomes. It knows nothing of sockets, disks or policy; every other package
// speaks to its neighbours in these types.
package message

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Kind is the class a stream belongs to. It sets the stream's defaults, and decides who goes first.
type Kind string

// The two kinds of mail that gatepost keeps apart.
const (
	Auth      Kind = "auth"      // sign-in codes, links, invitations: short-lived, first in every queue, sealed at rest
	Marketing Kind = "marketing" // everything that may wait
)

// Raw is one message as RFC 5322 bytes: header, blank line, body, with CRLF line ends throughout.
// A Raw is shared by the spool and by attempts and must not be changed once it has been handed on.
type Raw []byte

// split returns where the header ends (behind the CRLF of its last field) and where the body starts.
func (r Raw) split() (header, body int) {
	if bytes.HasPrefix(r, []byte("\r\n")) {
		return 0, 2
	}
	if i := bytes.Index(r, []byte("\r\n\r\n")); i >= 0 {
		return i + 2, i + 4
	}
	return len(r), len(r)
}

// Header returns the header fields including the CRLF of the last one, without the blank line.
func (r Raw) Header() []byte { h, _ := r.split(); return r[:h:h] }

// Body returns what follows the blank line.
func (r Raw) Body() []byte { _, b := r.split(); return r[b:] }

// Peer is who is at the other end of a connection, as far as the connection itself tells.
type Peer struct {
	Addr  netip.Addr // unmapped, without zone; invalid on a unix socket
	UID   int        // of the process at the other end of a unix socket; -1 elsewhere
	Names []string   // subject alternative DNS names of a verified client certificate; nil without one
}

// Submission is one message as a door took it in: nothing has been decided about it yet.
type Submission struct {
	Client    string              // config name of the client that the door identified
	Listener  string              // config name of the listener
	Remote    netip.AddrPort      // where the client connected from
	Helo      string              // what the client called itself; untrusted
	With      string              // protocol for the Received field: ESMTP, ESMTPS, HTTP …
	MailFrom  string              // envelope sender; "" for the null sender
	To        []Address           // envelope recipients, parsed, at least one
	SMTPUTF8  bool                // declared at MAIL
	Raw       Raw                 // as received: CRLF line ends, no bare CR or LF, no NUL
	Room      []byte              // Raw's own buffer: Raw is the end of it, and what comes before is free; nil for none
	StartedAt time.Time           // end of data, or first octet of an HTTP request; verdict_timeout counts from here
	Order     *Order              // what came with it over HTTP; nil for mail that came by SMTP
	Provided  map[string]Provided // by upstream; nil for none. Mail with any has one recipient
}

// Provided is a template that an upstream keeps, which takes the place of a mail's own words there. Which of them it is
// was decided when the mail was accepted: what is queued stays as it is when the templates change.
type Provided struct {
	Template  string          `json:"template"`  // its name, alias or id, as the service has it
	Variables json.RawMessage `json:"variables"` // an object, and as secret as the mail
}

// Order is what an HTTP request says about the mail that it orders, beside the mail itself.
type Order struct {
	Hook        string        // config name of the hook
	Type        string        // what is sent: one of a short list of words, fit for statistics
	Stream      string        // config name of the only stream that it may be of
	Purpose     string        // "code", "invitation", "notice" or ""
	Application string        // whose code it is; "" where that was not said
	TTL         time.Duration // how long it is worth sending
	Wait        time.Duration // for the upstream's word, in place of the stream's verdict_timeout
	Key         []byte        // the same for each repetition of a request; nil where repetitions are orders of their own
	Fingerprint int32         // what else a repetition has in common with its first, above 1<<30; 0 for nothing
}

// Receipt says what became of a Submission that was accepted.
type Receipt struct {
	ID       ID   // of the message; the client's log should hold it
	Repeated bool // nothing was queued: a submission with this Order.Key was accepted before, as ID
}

// Message is a piece of mail that policy has let through: what the spool stores once, however many recipients it has.
type Message struct {
	ID         ID
	Stream     string
	Kind       Kind // of the stream at accept; bodies of Auth are sealed at rest
	Client     string
	MailFrom   string // envelope sender to use upstream; "" for the null sender
	HeaderFrom string // domain of the header From, lower case: chooses d= and the stream
	Size       int    // octets of Raw
	SMTPUTF8   bool   // an address or header field needs SMTPUTF8 at the next hop
	BodyHash   []byte // SHA-256 of Raw, to tell copies apart; nil for sealed mail, in which it would give away a code
	AcceptedAt time.Time
	ExpiresAt  time.Time // no attempt starts that cannot commit before it
	Attrs      map[string]string
	Purpose    string              // "code", "invitation", "notice" or "": from a match rule
	Verdict    string              // "queued" or "upstream" where a match rule sets it; else ""
	Supersede  []byte              // key under which a newer message takes the place of this one while it waits; nil for never
	Key        []byte              // of its submission: no second message is put under it while this one could live; nil for none
	Print      int32               // the Fingerprint of its submission
	Raw        Raw                 // as repaired, unsigned
	Provided   map[string]Provided // as Submission has it
	Recipients []Recipient
}

// attrNotify is the attribute that holds a message's NotifyTo.
const attrNotify = "notify_to"

// NotifyTo returns the original envelope sender, who is to be told of recipients that fail (RFC 3461 §4); "" where
// nobody is.
func (m *Message) NotifyTo() string { return m.Attrs[attrNotify] }

// SetNotifyTo has failures of m reported to sender.
func (m *Message) SetNotifyTo(sender string) {
	if m.Attrs == nil {
		m.Attrs = map[string]string{}
	}
	m.Attrs[attrNotify] = sender
}

// The attributes that say how a message was ordered over HTTP.
const (
	attrHook = "hook"
	attrType = "type"
)

// Ordered returns the hook that a message came through and its type, as Order has them; "" where it came by SMTP.
func (m *Message) Ordered() (hook, kind string) { return m.Attrs[attrHook], m.Attrs[attrType] }

// SetOrdered notes what Ordered returns.
func (m *Message) SetOrdered(hook, kind string) {
	if m.Attrs == nil {
		m.Attrs = map[string]string{}
	}
	m.Attrs[attrHook], m.Attrs[attrType] = hook, kind
}

// attrKeyOf is the attribute that holds the id of the message which has the key of its order.
const attrKeyOf = "key_of"

// SetKeyOf notes that m was ordered together with the message first, whose Key is that of them all.
func (m *Message) SetKeyOf(first ID) {
	if m.Attrs == nil {
		m.Attrs = map[string]string{}
	}
	m.Attrs[attrKeyOf] = first.String()
}

// KeyOf returns the id of the message that has the key of the order which m is of: its own, but for SetKeyOf.
func (m *Message) KeyOf() ID {
	if id, err := ParseID(m.Attrs[attrKeyOf]); err == nil {
		return id
	}
	return m.ID
}

// State says what may be done with a queued recipient.
type State int

// The states of a queued recipient. The numbers are stored.
const (
	Queued          State = 0 // to be sent when due
	Held            State = 1 // by an operator
	HeldUnconfirmed State = 2 // handed over, answer lost; kept until it expires or an operator releases it
)

func (s State) String() string {
	switch s {
	case Queued:
		return "queued"
	case Held:
		return "held"
	case HeldUnconfirmed:
		return "held-unconfirmed"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

// Recipient is one row of the queue: one address of one message and how far it got.
type Recipient struct {
	N            int    // position in the message, from 0; with the message's id the row's key
	Address      string // the mailbox in its canonical form (Address.String)
	Lane         string // the stream's name: lanes belong to streams
	Need         string // distinct egress names of the route at accept, sorted, comma-joined; "" for any
	State        State  //
	DueAt        time.Time
	Attempts     int      // tries that ended with a verdict about the message or the recipient, or that made a working upstream give up
	MaybeSent    bool     // the process died between commit and settlement: a copy may be out
	Copies       int      // hand-overs that may have reached somebody (unknown, maybe_sent, hedge)
	Refused      []string // upstreams that refused it with message scope
	LastUpstream string
	LastReply    string // masked: no codes, no URLs
}

// RecipientID is the key of a queued recipient.
type RecipientID struct {
	Message ID
	N       int
}

// Delivery is what Claim hands to a lane: a message with those of its recipients that are now ours.
type Delivery struct {
	Message *Message // with Raw; its Recipients are those claimed
	Epoch   int64    // under which they were claimed; Settle is conditional on it
	Held    string   // why the body cannot be opened, as an alarm: the message is to be held with it; "" where it can

	Signature *Signature // of an earlier try; nil where none was kept
}

// Signature is what was made to sign a message as it is stored.
type Signature struct {
	Profile [32]byte // of what it was made with: it serves as long as that is the same
	Fields  []byte   // the DKIM-Signature fields, CRLF-terminated
}

// PutResult tells what a durable Put did.
type PutResult struct {
	Epoch      int64 // under which born-owned rows were written; 0 when they were not
	Superseded []ID  // of older messages whose place the new ones took
}

// Duplicate is why a Put did nothing: a message with the same Key is there, or was and could still live.
type Duplicate struct {
	Of          ID    // the message that came first
	Fingerprint int32 // of its submission; 0 where it had none
}

// ErrReused says that a submission has the key of another, and is not that one.
var ErrReused = errors.New("the key of the submission was used for another one")

func (d *Duplicate) Error() string {
	return "its submission was accepted before, as message " + d.Of.String()
}

// Envelope is what one hand-over names beside the bytes.
type Envelope struct {
	ID       ID
	Stream   string
	Kind     Kind
	From     string    // "" for the null sender
	To       []string  // one verdict each comes back, in this order
	SMTPUTF8 bool      // ask for it at MAIL
	EightBit bool      // BODY=8BITMIME is needed
	Size     int       // octets of the rendered bytes
	Provided *Provided // what the upstream makes the mail of; with it To is one, and the bytes are for where that fails; nil for none
}
