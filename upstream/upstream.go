// Package upstream hands one message to one service, from the pinned source address or not at all. An Upstream is one
// configured account; a Slot is the right to hand over one message through it. Upstreams keep no queue and make no
// second try: what an answer means for the message is the relay's business, which gets it as verdicts.
package upstream

import (
	"context"
	"fmt"
	"net"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// Traits is what is known of an upstream without asking it.
type Traits struct {
	MaxSize       int64    // octets of one message; 0 for no known limit
	MaxRecipients int      // per hand-over; 0 for no known limit
	DKIM          string   // "sign", "strip" or "none"
	OneSignature  bool     // foreign signatures must go before ours is added
	NeverSign     []string // header fields the service rewrites
	Captures      bool     // an accepted message reaches nobody: the outcome is captured
	Templates     bool     // the service keeps templates: Envelope.Provided has a meaning here
}

// Caps is what this connection's host offered: decides what may be sent, before it is signed.
type Caps struct {
	EightBitMIME  bool
	SMTPUTF8      bool
	Size          int64  // octets; 0 for no limit told
	MaxRecipients int    // 0 for no limit told
	Auth          string // the mechanisms it offers to log in by; "" for none
}

// Upstream is one account at a service.
type Upstream interface {
	Traits() Traits
	// Reserve waits for the right to hand over one message for lane, logged in and ready. Where the account cannot be
	// used (connect, TLS, login, banner, throttled, egress not on this host) it returns *Paused, which concerns the
	// pair (lane, upstream) and never a message. ctx ends the waiting with its own error.
	// To probe a paused upstream, Reserve a slot and Release it unused.
	Reserve(ctx context.Context, lane string) (Slot, error)
	// Close refuses further Reserves, waits for slots in use until ctx ends, and closes all connections.
	Close(ctx context.Context) error
}

// Carrier is an Upstream that cannot carry every message: a service that takes no raw MIME, or few kinds of address. It is
// asked before anything is handed over, also while a client waits for the answer to its mail, so it must be quick.
type Carrier interface {
	// Carries returns nil where m can be handed over without loss, else a permanent *reply.Error that says why not, in
	// words fit for the client (552 5.3.4 too big, 550 5.6.7 an address beyond ASCII, 554 5.6.x its structure …). Any
	// other error counts as nil: only what is proven is refused. m is not changed.
	Carries(m *message.Message) error
}

// Slot is the right to hand over one message. It is used by one goroutine.
type Slot interface {
	Caps() Caps
	// Local returns the local IP address of the connection, "" where there is none.
	Local() string
	// Send hands over wire to e.To and returns one verdict for each. It calls commit just before bytes that cannot be
	// taken back (SMTP: the final dot; an API: the last byte of the request's body), and once per call where there are
	// several. commit returns nil once the message is durable and may still go. The caller owns the timers and cancels
	// ctx: before a commit that means temporary, after it unknown. If commit errs, Send resets or closes the
	// connection and returns nil. wire is consumed: a slice of its own, its bytes shared and not to be changed.
	// With e.Provided the service's template takes the place of wire's words; where it is refused for the message's sake,
	// wire is handed over after all, with an alarm: a mail in other words is better than none.
	Send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict
	// Release gives the slot back. It must be called once, also after Send.
	Release()
}

// Paused is the error of Reserve that stops a pair (lane, upstream).
type Paused struct {
	Verdict    message.Verdict // scope upstream
	RetryAfter time.Duration   // what the upstream asked for; 0 for nothing
}

func (p *Paused) Error() string {
	return fmt.Sprintf("upstream paused: %s: %s", p.Verdict.Class, p.Verdict.Reply())
}

// LaneKind tells an upstream which lanes share it, so that it can keep a reserve for auth.
type LaneKind struct {
	Lane string
	Kind message.Kind
}

// New makes the upstream that c describes. Its connections leave by egress; lanes are those whose route names it.
func New(c *config.Upstream, hostname string, egress *Egress, lanes []LaneKind) (Upstream, error) {
	switch c.Type {
	case "smtp":
		return newSMTP(c, hostname, egress, lanes)
	case "capture":
		return newCapture(c), nil
	case "ses":
		s, err := newSES(c, egress)
		if err != nil {
			return nil, err
		}
		return newAPI(c, s, egress, lanes)
	case "mailgun":
		return newAPI(c, newMailgun(c), egress, lanes)
	case "sendgrid":
		return newAPI(c, newSendgrid(c), egress, lanes)
	case "postmark":
		return newAPI(c, newPostmark(c), egress, lanes)
	case "aliyun":
		return newAPI(c, newAliyun(c), egress, lanes)
	case "webhook":
		w, err := newWebhook(c)
		if err != nil {
			return nil, err
		}
		return newAPI(c, w, egress, lanes)
	}
	return nil, fmt.Errorf("upstream %s: type %q is not known", c.Name, c.Type)
}
