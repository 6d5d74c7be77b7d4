package upstream

import (
	"strings"

	"gatepost/message"
)

// stage is what a reply of a mail transaction answers.
type stage int

const (
	stageMail stage = iota // MAIL
	stageRcpt              // RCPT
	stageData              // DATA
	stageDot               // the end of the data
)

// classify says what a refusal (4xx or 5xx) at stage at means. It looks at the code and the enhanced code, never at
// the words. The first row that fits counts; x is any digit, and a subject and detail stands for 4 and 5 alike.
//
//	at             code and enhanced code           class         scope
//	any            421, 454                         throttled     upstream    RFC 5321 §3.8, RFC 4954 §6
//	any            530, 534, 535, 538               unauthorised  upstream    RFC 4954 §6
//	MAIL           5xx with .7.0                    unauthorised  upstream    "authentication required" of some hosts
//	MAIL           4xx with .7.0, .7.1              throttled     upstream
//	any            5xx with .1.7, .1.8              permanent     domain      the sender's mailbox or domain
//	any            5xx with .7.20 to .7.27          permanent     domain      RFC 7372, RFC 7505: sender authentication
//	MAIL           550, 553, 554 with .7.x          permanent     domain      not (yet) allowed to send
//	any            500, 502, 503                    temporary     *           our dialogue, not proven to be the mail
//	RCPT           552 without .2.x, .3.x           temporary     recipient   RFC 5321 §4.5.3.1.10: too many recipients
//	RCPT           5xx with .3.4                    permanent     message     too big
//	RCPT           5xx with .7.x                    permanent     message     policy: another upstream may take it
//	any            5xx                              permanent     *
//	any            4xx                              temporary     *
//
// The scope * is the recipient at RCPT, and the message elsewhere.
func classify(at stage, r smtpReply) message.Verdict {
	v := r.verdict()
	v.Class, v.Scope = meaning(at, r)
	return v
}

// verdict returns the reply's codes and words as a verdict that has neither class nor scope yet.
func (r smtpReply) verdict() message.Verdict {
	return message.Verdict{Code: r.code, Enhanced: r.enhanced, Text: r.text()}
}

func meaning(at stage, r smtpReply) (message.Class, message.Scope) {
	natural := message.ScopeMessage
	if at == stageRcpt {
		natural = message.ScopeRecipient
	}
	detail := r.detail()
	switch {
	case r.code == 421 || r.code == 454:
		return message.Throttled, message.ScopeUpstream
	case unauthorised(r):
		return message.Unauthorised, message.ScopeUpstream
	case at == stageMail && r.class() == 5 && detail == "7.0":
		return message.Unauthorised, message.ScopeUpstream
	case at == stageMail && r.class() == 4 && (detail == "7.0" || detail == "7.1"):
		return message.Throttled, message.ScopeUpstream
	case r.class() == 4, r.code == 500, r.code == 502, r.code == 503:
		return message.Temporary, natural
	case badSender(at, r):
		return message.Permanent, message.ScopeDomain
	case at != stageRcpt:
		return message.Permanent, natural
	case r.code == 552 && !strings.HasPrefix(detail, "2.") && !strings.HasPrefix(detail, "3."):
		return message.Temporary, natural
	case detail == "3.4", strings.HasPrefix(detail, "7."):
		return message.Permanent, message.ScopeMessage
	}
	return message.Permanent, natural
}

// detail returns subject and detail of the enhanced code, "7.1" of "5.7.1".
func (r smtpReply) detail() string {
	_, detail, _ := strings.Cut(r.enhanced, ".")
	return detail
}

// unauthorised reports whether r says that our login is missing, wrong or too weak (RFC 4954 §6).
func unauthorised(r smtpReply) bool {
	switch r.code {
	case 530, 534, 535, 538:
		return true
	}
	return false
}

// badSender reports whether a 5xx refuses the sending domain rather than this mail.
func badSender(at stage, r smtpReply) bool {
	detail := r.detail()
	switch detail {
	case "1.7", "1.8", "7.20", "7.21", "7.22", "7.23", "7.24", "7.25", "7.26", "7.27":
		return true
	}
	switch r.code {
	case 550, 553, 554:
		return at == stageMail && strings.HasPrefix(detail, "7.")
	}
	return false
}

// pausedBy says what a refusal before any mail (banner, EHLO, STARTTLS, AUTH) means for the pair (lane, upstream). A
// 5xx at the banner is temporary too: a host that is being set up says 554 as well.
func pausedBy(step string, r smtpReply) *Paused {
	v := r.verdict()
	v.Scope = message.ScopeUpstream
	v.Text = step + ": " + v.Text
	switch {
	case r.code == 421:
		v.Class = message.Throttled
	case unauthorised(r), step == "AUTH" && r.class() == 5:
		v.Class = message.Unauthorised
	default:
		v.Class = message.Temporary
	}
	return &Paused{Verdict: v}
}

// upstreamDown is the verdict on the account, its host or the way there where no reply tells more.
func upstreamDown(class message.Class, text string) message.Verdict {
	return message.Verdict{Class: class, Scope: message.ScopeUpstream, Text: text}
}
