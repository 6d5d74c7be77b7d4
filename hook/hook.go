// Package hook understands the requests by which auth servers and notification services order mail over HTTP: whose
// they are, what mail they ask for, and what answer their sender expects. It promises that a request which is malformed,
// not signed, stale, or names what no mail may hold makes no mail, and that everything in it is bounded and untrusted
// until then. It opens no sockets and queues nothing: package ingress does, with what it finds here.
package hook

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// Mail is one mail that a request orders. One of Variables, Rendered and Raw is set; with both of the first two, Rendered
// is for where templates do not know the type.
type Mail struct {
	To          message.Address
	From        string // as the request has it, with or without a name; "" leaves it to the hook
	ReplyTo     string
	Type        string        // as the request has it where Variables is set, else one of ours
	Purpose     string        // "code", "invitation", "notice", or "" to leave it to the template
	TTL         time.Duration // how long it is worth sending at most; 0 leaves it to the template
	Locales     []string      // language tags, best first; untrusted
	Variables   map[string]any
	Rendered    *Rendered
	Raw         message.Raw // CRLF line ends, no NUL
	Application string      // whose code it is; "" where that was not said
	IP          netip.Addr  // the person's, as the request says; untrusted
}

// Rendered is a mail whose words the request brings along. Text or HTML may be "", not both.
type Rendered struct {
	Language string // tag of what the words are in; "" where nobody says; untrusted
	Subject  string
	Text     string
	HTML     string
}

// Invalid is a request that makes no sense.
type Invalid struct {
	Field string // that is wrong, as "payload.code"; "" for the whole
	Text  string // what is wrong, without what stands there
}

func (e *Invalid) Error() string {
	if e.Field == "" {
		return "The request cannot be used: " + e.Text
	}
	return fmt.Sprintf("The request cannot be used: %s %s", e.Field, e.Text)
}

func invalid(field, format string, a ...any) error {
	return &Invalid{field, fmt.Sprintf(format, a...)}
}

// Adapter is one kind of caller.
type Adapter interface {
	// Verify returns nil if the body was signed, with one of the keys and in time; an error that wraps
	// ErrSignature if not. It is not called where requests are not signed.
	Verify(h http.Header, body []byte, keys []string, now time.Time) error
	// Parse reads the mails that a body orders, one at least. Its errors are *Invalid.
	Parse(body []byte) ([]Mail, error)
	// Answer returns what the caller is to get.
	Answer(a Answer) Response
	// Retries reports whether the caller repeats requests without a key that would tell so.
	Retries() bool
}

// New returns the adapter of h.
func New(h *config.Hook) Adapter {
	links := links{schemes: h.LinkSchemes}
	switch h.Adapter {
	case "zitadel":
		return zitadel{links: links}
	case "supabase":
		return supabase{links: links, base: h.LinkBaseURL}
	case "kratos":
		return kratos{links: links}
	case "novu":
		return novu{}
	case "native":
		return native{}
	}
	return logto{}
}

// Answer is what became of a request.
type Answer struct {
	Status     int           // 200, or 400 and above
	ID         message.ID    // of the first mail, with 200
	Text       string        // one sentence without internals; "" with 200
	RetryAfter time.Duration // with 429 and 503
	Refused    bool          // a mail was refused for good
}

// Response is an Answer as a caller wants it.
type Response struct {
	Status int
	JSON   any    // nil for Text
	Text   string // text/plain
}

// plainly is the answer that most callers want: the id as JSON, or a sentence.
func plainly(a Answer) Response {
	if a.Status == http.StatusOK {
		return Response{Status: a.Status, JSON: struct {
			ID message.ID `json:"id"`
		}{a.ID}}
	}
	return Response{Status: a.Status, Text: a.Text}
}

// unsigned is the part of adapters whose callers show a token.
type unsigned struct{}

func (unsigned) Verify(http.Header, []byte, []string, time.Time) error { return nil }

// OfRefusal returns the answer that a refusal of the engine is. What a person may see names no cause.
func OfRefusal(e *reply.Error) Answer {
	switch {
	case e.Code == 535:
		return Unauthorised
	case e.Code == 552:
		return Answer{Status: http.StatusUnprocessableEntity, Text: "The mail is too big.", Refused: true}
	case !e.Temporary() && strings.HasPrefix(e.Enhanced, "5.1."):
		return Answer{Status: http.StatusUnprocessableEntity, Text: "The mail was refused: this address cannot be written to.", Refused: true}
	case !e.Temporary():
		return Answer{Status: http.StatusUnprocessableEntity, Text: "The mail was refused.", Refused: true}
	}
	return Answer{Status: http.StatusServiceUnavailable, Text: "The mail cannot be sent right now, please try again in a moment.", RetryAfter: 5 * time.Second}
}

// Unauthorised is the answer to a token or signature that is missing or wrong, whatever was wrong with it.
var Unauthorised = Answer{Status: http.StatusUnauthorized, Text: "This request is not authorised."}
