// Package event is the one typed record of something that happened to a message or to gatepost itself. The store
// appends it in the same transaction as the change it tells of and hands it on once that is durable; the log,
// metrics, webhooks and history are all made from it, where they live.
package event

import (
	"math"
	"strconv"
	"time"

	"gatepost/message"
)

// Kind says what happened. The numbers are stored: only append.
type Kind int

// The kinds of event.
const (
	Accepted    Kind = 1  // queued without a first attempt beside it; a clean first delivery has only Delivered
	Deferred    Kind = 2  // an attempt ended temporarily; due again later
	Delivered   Kind = 3  // outcome
	Captured    Kind = 4  // outcome
	Bounced     Kind = 5  // outcome
	Unconfirmed Kind = 6  // outcome
	Expired     Kind = 7  // outcome
	Superseded  Kind = 8  // outcome
	Suppressed  Kind = 9  // outcome
	Dropped     Kind = 10 // outcome
	Held        Kind = 11 // by an operator, or held-unconfirmed after an unknown verdict
	Released    Kind = 12 // by an operator
	Recovered   Kind = 13 // owned by an incarnation that died: due at once, maybe sent
	Paused      Kind = 20 // a pair (lane, upstream) was paused by an upstream-scope verdict
	Resumed     Kind = 21 // the pair works again
	ClockJump   Kind = 22 // the wall clock, or a shared database's, moved by over 60 s against the monotonic one
	Alarm       Kind = 23 // anything else an operator should look at; Data.Text says what
	FailedOver  Kind = 25 // mail that begins at an upstream goes through another: the first since it was well
	CameBack    Kind = 26 // the upstream has taken its own mail again
	Hedged      Kind = 27 // a second copy was sent on purpose: the first hand-over was slow to answer
	Answered    Kind = 28 // the answer to a copy came after another had settled the matter
	Limited     Kind = 24 // mail was refused at the HTTP door because of a limit; Data.Text says which
)

var names = map[Kind]string{
	Accepted: "accepted", Deferred: "deferred", Delivered: "delivered", Captured: "captured", Bounced: "bounced",
	Unconfirmed: "unconfirmed", Expired: "expired", Superseded: "superseded", Suppressed: "suppressed", Dropped: "dropped",
	Held: "held", Released: "released", Recovered: "recovered",
	Paused: "paused", Resumed: "resumed", ClockJump: "clock_jump", Alarm: "alarm", Limited: "limited",
	FailedOver: "failed_over", CameBack: "came_back", Hedged: "hedged", Answered: "answered",
}

func (k Kind) String() string { return names[k] }

// MarshalText makes a Kind its name in JSON.
func (k Kind) MarshalText() ([]byte, error) { return []byte(names[k]), nil }

// UnmarshalText is the inverse of MarshalText; an unknown name becomes 0.
func (k *Kind) UnmarshalText(b []byte) error {
	*k = 0
	for kind, name := range names {
		if name == string(b) {
			*k = kind
		}
	}
	return nil
}

// OfOutcome returns the kind that records how a recipient ended.
func OfOutcome(o message.Outcome) Kind {
	for kind, name := range names {
		if name == string(o) {
			return kind
		}
	}
	return 0
}

// Event is one record. Message is 0 for what concerns no single message.
type Event struct {
	Node     int          `json:"node"`
	Seq      int64        `json:"seq"` // grows by one per node; (node, seq) never skips
	At       time.Time    `json:"at"`
	Kind     Kind         `json:"kind"`
	Message  message.ID   `json:"msg_id,omitzero"`
	N        int          `json:"n,omitempty"`
	Stream   string       `json:"stream,omitempty"`
	MailKind message.Kind `json:"-"` // of the stream, for masking; not stored
	Upstream string       `json:"upstream,omitempty"`
	Address  string       `json:"address,omitempty"` // recipient; in history only where history.addresses is "clear"
	Data     Data         `json:"data,omitzero"`
}

// Data is what depends on the kind; stored as JSON. It never holds codes, subjects, bodies, secrets or variables.
type Data struct {
	Client     string        `json:"client,omitempty"`
	Hook       string        `json:"hook,omitempty"` // of mail that was ordered over HTTP, with Type
	Type       string        `json:"type,omitempty"`
	HeaderFrom string        `json:"header_from,omitempty"` // domain
	Size       int           `json:"size,omitempty"`
	AcceptedAt time.Time     `json:"accepted_at,omitzero"`
	ExpiresAt  time.Time     `json:"expires_at,omitzero"`
	DueAt      time.Time     `json:"due_at,omitzero"`
	Attempt    int           `json:"attempt,omitempty"` // count, this one included
	Egress     string        `json:"egress,omitempty"`  // config name
	Local      string        `json:"local_ip,omitempty"`
	Class      message.Class `json:"verdict,omitempty"`
	Scope      message.Scope `json:"scope,omitempty"`
	Code       int           `json:"code,omitempty"`
	Reply      string        `json:"reply,omitempty"` // masked
	ProviderID string        `json:"provider_id,omitempty"`
	Took       Millis        `json:"took_ms,omitempty"`  // check-out to verdict
	Total      Millis        `json:"total_ms,omitempty"` // accept to this event, or the trouble's length
	MaybeSent  bool          `json:"maybe_sent,omitempty"`
	Copies     int           `json:"copies,omitempty"`
	Alarm      bool          `json:"alarm,omitempty"` // an operator should look
	Text       string        `json:"text,omitempty"`
}

// Millis is a duration that JSON shows in milliseconds, to the microsecond.
type Millis time.Duration

// MarshalJSON writes milliseconds.
func (m Millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(time.Duration(m).Microseconds())/1000, 'f', -1, 64), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (m *Millis) UnmarshalJSON(b []byte) error {
	ms, err := strconv.ParseFloat(string(b), 64)
	*m = Millis(math.Round(ms*1000) * float64(time.Microsecond))
	return err
}

// Sink takes events once they are durable. Emit must not block for long and must not keep the slice.
type Sink interface {
	Emit(events []Event)
}

// Fanout gives every event to every sink, in order.
type Fanout []Sink

// Emit implements Sink.
func (f Fanout) Emit(events []Event) {
	for _, s := range f {
		s.Emit(events)
	}
}
