package message

import (
	"fmt"
	"strings"
	"time"
)

// Class is what an upstream's answer means for us.
type Class string

// The classes of verdict.
const (
	Accepted     Class = "accepted"     // the upstream has taken responsibility
	Temporary    Class = "temporary"    // try again later
	Permanent    Class = "permanent"    // will not get better
	Throttled    Class = "throttled"    // too fast, or a quota is used up
	Unauthorised Class = "unauthorised" // our credentials or permissions; an operator must act
	Unknown      Class = "unknown"      // no answer after the commit: a copy may be out
)

// Scope is what a verdict is about. Only recipient scope ends a recipient.
type Scope string

// The scopes of a verdict.
const (
	ScopeRecipient Scope = "recipient" // this address
	ScopeMessage   Scope = "message"   // this message, as this upstream sees it: another may take it
	ScopeDomain    Scope = "domain"    // the sending domain is not (yet) allowed here
	ScopeUpstream  Scope = "upstream"  // the account, the host or the way there: says nothing about the message
)

// Verdict is what an upstream said about one recipient.
type Verdict struct {
	Class      Class
	Scope      Scope         // meaningless for Accepted
	Code       int           // SMTP reply code or HTTP status; 0 where there was none
	Enhanced   string        // RFC 3463 code such as "5.1.1"; "" where there was none
	Text       string        // the upstream's words or the cause, unmasked: use Masked before storing or logging it
	RetryAfter time.Duration // what the upstream asked for; 0 for nothing
	ProviderID string        // the upstream's own id of the message, if it told one
	Alarm      string        // what an operator should look at; "" for nothing
}

// Verdicts repeats v for n recipients.
func (v Verdict) Verdicts(n int) []Verdict {
	vs := make([]Verdict, n)
	for i := range vs {
		vs[i] = v
	}
	return vs
}

// Reply returns code, enhanced code and masked text as one line.
func (v Verdict) Reply() string {
	var parts []string
	if v.Code != 0 {
		parts = append(parts, fmt.Sprint(v.Code))
	}
	if v.Enhanced != "" {
		parts = append(parts, v.Enhanced)
	}
	if t := Mask(v.Text); t != "" {
		parts = append(parts, t)
	}
	return strings.Join(parts, " ")
}

// Outcome is how a recipient ended.
type Outcome string

// The outcomes. None ("") means that the recipient is still queued.
const (
	None        Outcome = ""
	Delivered   Outcome = "delivered"   // to the upstream
	Captured    Outcome = "captured"    // kept by a capture upstream or a provider's test mode: nobody got it
	Bounced     Outcome = "bounced"     // refused for good
	Unconfirmed Outcome = "unconfirmed" // handed over, answer lost, no further copy
	Expired     Outcome = "expired"     // its lifetime ended first
	Superseded  Outcome = "superseded"  // a newer code took its place
	Suppressed  Outcome = "suppressed"  // the address is on the stream's list
	Dropped     Outcome = "dropped"     // by an operator
)

// Attempt is one try to hand one message to one upstream.
type Attempt struct {
	Upstream string
	Egress   string // config name of the egress
	Local    string // local IP address that was used, as connected; "" where no connection was had
	Verdict  Verdict
	At       time.Time     // check-out
	Took     time.Duration // check-out to verdict
}

// Settlement is what an attempt (or a decision without one) does to one recipient. The store applies it only while the
// row is owned by this node under Epoch.
type Settlement struct {
	Message      *Message  // with its id, stream, client and accept time; Raw is not used
	Recipient    Recipient // the row as it is to be from now on (state, due time, attempts …); its Address as stored
	Epoch        int64
	Attempt      *Attempt // nil where none was made
	Outcome      Outcome  // None: the row stays, unowned, as Recipient says
	Paused       bool     // the row goes back unchanged because its upstream is paused: no event of its own
	Alarm        string   // "" or why an operator should look
	Notification *Message // queued in the same transaction to tell the sender of failures; settlements may share one; nil for none
	Forget       bool     // whoever submitted the message is told no: the Key of its order is free again

	Signature *Signature // to be kept with the message for its next try; nil for none, or the one that is kept already
}

// ID returns the key of the row that s is about.
func (s *Settlement) ID() RecipientID { return RecipientID{s.Message.ID, s.Recipient.N} }
