package upstream

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"gatepost/message"
)

// maxRetryAfter caps what a service may ask for in Retry-After: beyond it we look for ourselves.
const maxRetryAfter = longestPause

// verdict says what the status alone means of an answer that is no success; a type's own table comes before it.
//
//	status             class         scope
//	3xx                unauthorised  upstream   a service does not move: somebody else answers, or endpoint is wrong
//	401, 403           unauthorised  upstream
//	408, 425, 5xx      temporary     upstream
//	504                unknown       upstream   the part that answers does not know what the one behind it did
//	413                permanent     message    5.3.4
//	429                throttled     upstream
//	any other          temporary     message    with an alarm: nobody has told us what it means
func (a answer) verdict(text string) message.Verdict {
	v := message.Verdict{Scope: message.ScopeUpstream, Code: a.status, Text: a.words(text), RetryAfter: a.retryAfter(time.Now())}
	switch {
	case a.status >= 300 && a.status < 400:
		v.Class, v.Alarm = message.Unauthorised, "the service sends us elsewhere: look at endpoint"
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		v.Class = message.Unauthorised
	case a.status == http.StatusGatewayTimeout:
		v.Class = message.Unknown
	case a.status == http.StatusRequestTimeout, a.status == http.StatusTooEarly, a.status >= 500:
		v.Class = message.Temporary
	case a.status == http.StatusRequestEntityTooLarge:
		v.Class, v.Scope, v.Enhanced = message.Permanent, message.ScopeMessage, "5.3.4"
	case a.status == http.StatusTooManyRequests:
		v.Class = message.Throttled
	default:
		v.Class, v.Scope = message.Temporary, message.ScopeMessage
		v.Alarm = fmt.Sprintf("the service answered %d, which gatepost does not know in this place", a.status)
	}
	return v
}

// pausedFor says what a refused check call means: whatever the reason, nothing can be sent for now.
func pausedFor(v message.Verdict) *Paused {
	v.Scope = message.ScopeUpstream
	if v.Class == message.Permanent || v.Class == message.Unknown {
		v.Class = message.Temporary
	}
	return &Paused{Verdict: v, RetryAfter: v.RetryAfter}
}

// as returns a verdict on what the type's table has for the answer.
func (a answer) as(class message.Class, scope message.Scope, enhanced, text string) message.Verdict {
	return message.Verdict{Class: class, Scope: scope, Code: a.status, Enhanced: enhanced, Text: a.words(text), RetryAfter: a.retryAfter(time.Now())}
}

// accepted is the verdict on the status that the service documents for success. The mail is taken even where the id
// that should come with it is missing. A web page is no answer of a service: then nobody knows.
func (a answer) accepted(id string) message.Verdict {
	if a.isPage() {
		return upstreamDown(message.Unknown, fmt.Sprintf("%d with a web page instead of an answer", a.status))
	}
	v := message.Verdict{Class: message.Accepted, Code: a.status, Text: "accepted", ProviderID: cleanID(redact(id, a.hidden))}
	if v.ProviderID == "" {
		v.Alarm = "the service took the mail, but its answer was cut or has no id"
	}
	return v
}

// ok reports whether the status says that the service has taken the request.
func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

// words returns the service's words for a verdict, without what is hidden. Of a web page, or where there are none, the
// name of the status does.
func (a answer) words(text string) string {
	if text == "" || a.isPage() {
		text = http.StatusText(a.status)
	}
	text = redact(text, a.hidden)
	if len(text) > maxReplyText {
		text = text[:maxReplyText]
	}
	return strings.ToValidUTF8(text, "?")
}

// isPage reports whether the body is made for a browser.
func (a answer) isPage() bool {
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	return err == nil && kind == "text/html"
}

// decode reads the body as JSON into to; where it cannot, to keeps what could be read.
func (a answer) decode(to any) {
	if json.Unmarshal(a.body, to) != nil {
		return // cut, or no JSON: its status has to do
	}
}

// retryAfter reads Retry-After (RFC 9110 §10.2.3): seconds or a date. What makes no sense counts as absent, and too much
// as maxRetryAfter.
func (a answer) retryAfter(now time.Time) time.Duration {
	return parseRetryAfter(a.header.Get("Retry-After"), now)
}

func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if s != "" && strings.Trim(s, "0123456789") == "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n > int64(maxRetryAfter/time.Second) {
			return maxRetryAfter
		}
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}
