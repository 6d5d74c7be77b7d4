package upstream

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	netmail "net/mail"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
	"gatepost/reply"
)

const (
	aliyunVersion   = "2015-11-23"
	aliyunSize      = 8 << 20 // octets of a request's body
	aliyunRecipient = 1 << 10 // octets of it that are kept for the recipient
	aliyunSubject   = 256     // characters
	aliyunName      = 14      // characters of a display name
	aliyunFields    = 10      // header fields that a request may set
	aliyunTries     = 3       // of a mail that the spam filter refuses, before it is believed
)

// aliyun is Alibaba Cloud DirectMail, SingleSendMail: simple mail from one sender address, whose pieces the service puts
// together itself.
type aliyun struct {
	cfg *config.Upstream

	mu      sync.Mutex
	refused []aliyunRefusal // by the spam filter, oldest first
}

// aliyunRefusal counts how often the spam filter has refused a mail to a recipient.
type aliyunRefusal struct {
	id    message.ID
	to    string
	times int
}

func newAliyun(c *config.Upstream) *aliyun { return &aliyun{cfg: c} }

// aliyunEndpoints are the regions that sender addresses belong to.
var aliyunEndpoints = map[string]string{
	"cn-hangzhou":    "https://dm.aliyuncs.com",
	"ap-southeast-1": "https://dm.ap-southeast-1.aliyuncs.com",
	"us-east-1":      "https://dm.us-east-1.aliyuncs.com",
	"eu-central-1":   "https://dm.eu-central-1.aliyuncs.com",
}

func (s *aliyun) endpoint() string {
	if s.cfg.Endpoint != "" {
		return s.cfg.Endpoint
	}
	return aliyunEndpoints[s.cfg.Region]
}

func (s *aliyun) traits() Traits { return Traits{MaxSize: aliyunSize} }

func (s *aliyun) caps() Caps { return Caps{Size: aliyunSize} }

// carries implements selective.
func (s *aliyun) carries(m *message.Message) error {
	f, err := s.form(m.Raw)
	if err == nil {
		_, err = f.encode(message.Envelope{Kind: m.Kind}, s.cfg)
	}
	return err
}

// calls makes one request for each recipient: those of one request would see each other.
func (s *aliyun) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	m, err := s.form(wholeMail(wire))
	if err != nil {
		return nil, err
	}
	shared, err := m.encode(e, s.cfg)
	if err != nil {
		return nil, err
	}
	said := strings.Join(append([]string{"accepted"}, m.notes...), "; ")
	var calls []call
	for i, to := range e.To {
		calls = append(calls, call{
			to:      []int{i},
			meaning: func(a answer) []message.Verdict { return []message.Verdict{s.meaning(a, e, to, said)} },
			ask: func(ctx context.Context, x *exchange) error {
				req, err := s.send(ctx, key, to, shared)
				if err != nil {
					return err
				}
				_, err = x.Do(req)
				return err
			},
		})
	}
	return calls, nil
}

// aliyunKey is an access key.
type aliyunKey struct{ id, secret string }

func (s *aliyun) key() (k aliyunKey, err error) {
	if k.id, err = s.cfg.AccessKeyID.Read(); err == nil {
		k.secret, err = s.cfg.AccessKeySecret.Read()
	}
	return k, err
}

// sign makes req a signed call of the API, with a nonce of its own.
func (k aliyunKey) sign(req *http.Request, action string, body []byte) *http.Request {
	aliyunCall{action: action, version: aliyunVersion, at: time.Now(), nonce: rand.Text()}.sign(req, body, k.id, k.secret)
	return req
}

// send makes the request that hands a mail to one recipient; the rest of its form is shared.
func (s *aliyun) send(ctx context.Context, key aliyunKey, to, shared string) (*http.Request, error) {
	body := []byte(shared + "&ToAddress=" + url.QueryEscape(to))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint()+"/", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return key.sign(req, "SingleSendMail", body), nil
}

// aliyunMail is a mail in the service's words.
type aliyunMail struct {
	form   url.Values
	header map[string]string
	notes  []string // what had to be left out
}

// aliyunLost lists header fields that the service has no place for, beside those that no letter has: they describe the
// program that wrote the mail, or tell others how to treat it.
var aliyunLost = []string{"auto-submitted", "precedence", "x-mailer", "user-agent", "x-priority", "x-msmail-priority", "priority",
	"importance", "x-auto-response-suppress", "x-entity-ref-id", "feedback-id"}

// aliyunCarried reports whether a request can set the header field.
func aliyunCarried(name string) bool {
	name = strings.ToLower(name)
	return slices.Contains([]string{"message-id", "list-unsubscribe", "list-unsubscribe-post"}, name) || strings.HasPrefix(name, "x-user-")
}

// form puts a mail in the service's words. Its error is a *reply.Error that says what has no place there.
func (s *aliyun) form(raw message.Raw) (*aliyunMail, error) {
	l, err := letter.Read(raw)
	if err != nil {
		return nil, err
	}
	if err := s.fits(l); err != nil {
		return nil, err
	}
	m := &aliyunMail{form: url.Values{}, header: map[string]string{}}
	m.form.Set("AccountName", s.cfg.AccountName)
	m.form.Set("AddressType", "1") // this account, not any of them
	m.form.Set("Subject", l.Subject)
	if l.Text != "" {
		m.form.Set("TextBody", l.Text)
	}
	if l.HTML != "" {
		m.form.Set("HtmlBody", l.HTML)
	}
	m.name("FromAlias", l.From, s.cfg.FromAlias, "the sender's")
	m.form.Set("ReplyToAddress", "false") // not the one set in the console
	if len(l.ReplyTo) == 1 {
		m.form.Set("ReplyAddress", l.ReplyTo[0].Address)
		m.name("ReplyAddressAlias", l.ReplyTo[0], "", "the Reply-To's")
	}
	for _, f := range l.Header {
		if aliyunCarried(f.Name) {
			m.header[f.Name] = f.Value
		}
	}
	return m, nil
}

// fits says what the service cannot express.
func (s *aliyun) fits(l *letter.Letter) error {
	unfit := func(format string, a ...any) error {
		return reply.New(554, "5.6.3", "DirectMail takes no mail "+format, a...)
	}
	switch {
	case !strings.EqualFold(l.From.Address, s.cfg.AccountName):
		return reply.New(554, "5.7.1", "DirectMail sends mail from its account name only")
	case len(l.Cc) > 0:
		return unfit("with a Cc field")
	case len(l.Files) > 0 || len(l.Alternatives) > 0:
		return unfit("with attachments or inline images")
	case !l.HasText():
		return unfit("without text")
	case l.Subject == "":
		return unfit("without a subject")
	case utf8.RuneCountInString(l.Subject) > aliyunSubject:
		return unfit("whose subject has more than %d characters", aliyunSubject)
	case len(l.ReplyTo) > 1:
		return unfit("with more than one address in Reply-To")
	}
	carried := map[string]bool{"x-user-notify-gid": true} // our own
	for _, f := range l.Header {
		name := strings.ToLower(f.Name)
		switch {
		case aliyunCarried(name) && carried[name]:
			return unfit("with the header field %s twice, or set by itself", name)
		case aliyunCarried(name):
			carried[name] = true
		case !slices.Contains(aliyunLost, name) && !(name == "sender" && sameMailbox(f.Value, l.From.Address)):
			return unfit("with the header field %s", name)
		}
	}
	if len(carried) > aliyunFields {
		return unfit("with more than %d header fields of its own", aliyunFields-1)
	}
	return nil
}

// sameMailbox reports whether the value of an address field is that address.
func sameMailbox(value, address string) bool {
	box, err := netmail.ParseAddress(value)
	return err == nil && strings.EqualFold(box.Address, address)
}

// name sets a display name; the service takes short ones only. Another one takes the place of one that is too long, or
// none, which is noted.
func (m *aliyunMail) name(field string, box netmail.Address, other, whose string) {
	name := box.Name
	if utf8.RuneCountInString(name) > aliyunName {
		if name = other; name == "" {
			m.notes = append(m.notes, fmt.Sprintf("%s display name was left out, for it has more than %d characters", whose, aliyunName))
		}
	}
	if name != "" {
		m.form.Set(field, name)
	}
}

// encode adds what the stream and the config say, and returns the form without its recipient. Auth mail is never tracked,
// nor is anybody told how to unsubscribe from sign-in codes. Text beyond ASCII has three times its size in a form.
func (m *aliyunMail) encode(e message.Envelope, c *config.Upstream) (string, error) {
	switch {
	case e.Kind == message.Auth:
		m.form.Set("UnSubscribeLinkType", "disabled")
		m.form.Set("UnSubscribeFilterLevel", "disabled")
		fallthrough
	case c.Tracking == "off":
		m.form.Set("ClickTrace", "0")
	case c.Tracking == "on":
		m.form.Set("ClickTrace", "1")
	}
	if c.Tag != "" {
		m.form.Set("TagName", c.Tag)
	}
	m.header["X-User-Notify-gid"] = e.ID.String()
	fields, err := json.Marshal(m.header)
	if err != nil {
		return "", err
	}
	m.form.Set("Headers", string(fields))
	shared := m.form.Encode()
	if len(shared) > aliyunSize-aliyunRecipient {
		return "", reply.New(552, "5.3.4", "The message is too big for DirectMail: %d octets of a request, %d are taken", len(shared), aliyunSize-aliyunRecipient)
	}
	return shared, nil
}

// aliyunSaid is what the service says of a call.
type aliyunSaid struct {
	EnvID   string `json:"EnvId"`
	Code    string
	Message string
}

// meaning follows the service's codes; the statuses that come with them vary. The first row that fits counts.
//
//	code                                          class         scope
//	Throttling, Throttling.*                      throttled     upstream
//	InvalidSendMail.Spam                          temporary     message    twice, then permanent: also a used-up quota
//	InvalidToAddress.Spam                         permanent     recipient  its list of bad addresses; auth: message
//	InvalidToAddress                              permanent     recipient
//	InvalidMailAddress*, InvalidTagName.*         unauthorised  upstream   the account name, frozen or of the wrong kind
//	InvalidTimeStamp.Expired                      temporary     upstream   our clock
//	SignatureNonceUsed                            temporary     message
//	InvalidAccessKeyId.*, SignatureDoesNotMatch,
//	IncompleteSignature, Forbidden*, NoPermission unauthorised  upstream
//	InvalidBody, InvalidSubject.*,
//	InvalidFromAlias.*, Missing*, InvalidParameter*
//	                                              permanent     message
//	ServiceUnavailable*, InternalError*           temporary     upstream
func (s *aliyun) meaning(a answer, e message.Envelope, to, accepted string) message.Verdict {
	var said aliyunSaid
	a.decode(&said)
	if a.ok() && said.Code == "" {
		v := a.accepted(said.EnvID)
		if v.Class == message.Accepted {
			v.Text = accepted
		}
		return v
	}
	is := func(codes ...string) bool {
		return slices.ContainsFunc(codes, func(c string) bool {
			prefix, open := strings.CutSuffix(c, "*")
			return said.Code == c || open && strings.HasPrefix(said.Code, prefix)
		})
	}
	as := func(class message.Class, scope message.Scope, enhanced string) message.Verdict {
		return a.as(class, scope, enhanced, strings.TrimSpace(said.Code+" "+said.Message))
	}
	switch {
	case is("Throttling", "Throttling.*"):
		return as(message.Throttled, message.ScopeUpstream, "")
	case is("InvalidSendMail.Spam"):
		if s.refuse(e.ID, to) < aliyunTries {
			return as(message.Temporary, message.ScopeMessage, "")
		}
		return as(message.Permanent, message.ScopeMessage, "5.7.1")
	case is("InvalidToAddress.Spam") && e.Kind == message.Auth:
		return as(message.Permanent, message.ScopeMessage, "5.1.1") // on the service's own list: another one may deliver
	case is("InvalidToAddress", "InvalidToAddress.*"):
		return as(message.Permanent, message.ScopeRecipient, "5.1.1")
	case is("InvalidMailAddress*", "InvalidTagName*", "InvalidAccessKeyId*", "SignatureDoesNotMatch", "IncompleteSignature", "Forbidden*", "NoPermission"):
		return as(message.Unauthorised, message.ScopeUpstream, "")
	case is("InvalidTimeStamp*"):
		v := as(message.Temporary, message.ScopeUpstream, "")
		v.Alarm = "DirectMail says that our time is wrong: look at the clock of this host"
		return v
	case is("SignatureNonceUsed"):
		return as(message.Temporary, message.ScopeMessage, "")
	case is("InvalidBody*", "InvalidSubject*", "InvalidFromAlias*", "Missing*", "InvalidParameter*"):
		return as(message.Permanent, message.ScopeMessage, "5.6.0")
	case is("ServiceUnavailable*", "InternalError*"):
		return as(message.Temporary, message.ScopeUpstream, "")
	}
	return a.verdict(strings.TrimSpace(said.Code + " " + said.Message))
}

// maxAliyunRefusals bounds what is remembered of the spam filter's refusals.
const maxAliyunRefusals = 1000

// refuse counts a refusal by the spam filter and returns how many there were of that mail to that recipient.
func (s *aliyun) refuse(id message.ID, to string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.refused {
		if r := &s.refused[i]; r.id == id && r.to == to {
			r.times++
			return r.times
		}
	}
	if len(s.refused) == maxAliyunRefusals {
		s.refused = slices.Delete(s.refused, 0, 1)
	}
	s.refused = append(s.refused, aliyunRefusal{id, to, 1})
	return 1
}

// aliyunAddresses is what the service tells of sender addresses. The states come as numbers or as text.
type aliyunAddresses struct {
	TotalCount *int // nil where the answer was no list
	Data       struct {
		MailAddress []struct {
			AccountName   string
			AccountStatus any
			DomainStatus  any
			Sendtype      string
		} `json:"mailAddress"`
	} `json:"data"`
}

// check reads the sender addresses, ours among them.
func (s *aliyun) check(ctx context.Context, do doer) (Account, error) {
	key, err := s.key()
	if err != nil {
		return Account{}, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.endpoint()+"/?PageNo=1&PageSize=50", nil)
	if err != nil {
		return Account{}, err
	}
	a, err := do(key.sign(req, "QueryMailAddressByParam", nil))
	if err != nil {
		return Account{}, err
	}
	var said aliyunSaid
	a.decode(&said)
	switch {
	case strings.HasPrefix(said.Code, "Forbidden"), said.Code == "NoPermission":
		return Account{}, ErrUnproven
	case !a.ok() || said.Code != "":
		return Account{}, unreadable(s.meaning(a, message.Envelope{}, "", ""))
	}
	var found aliyunAddresses
	a.decode(&found)
	return s.account(found), nil
}

// unreadable returns the error of a check call that was answered with v, which is about no mail. One that the service
// does not understand says nothing of those that it does.
func unreadable(v message.Verdict) error {
	switch v.Class {
	case message.Permanent:
		return ErrUnproven
	case message.Unknown:
		v.Class = message.Temporary
	}
	v.Scope = message.ScopeUpstream
	return &Paused{Verdict: v, RetryAfter: v.RetryAfter}
}

// account tells what keeps mail from being sent from our sender address.
func (s *aliyun) account(found aliyunAddresses) (acc Account) {
	for _, m := range found.Data.MailAddress {
		if !strings.EqualFold(m.AccountName, s.cfg.AccountName) {
			continue
		}
		acc.Facts = append(acc.Facts, "sender type "+m.Sendtype)
		if fmt.Sprint(m.AccountStatus) == "1" {
			acc.Traps = append(acc.Traps, "account_name is frozen: DirectMail sends nothing from it")
		}
		if fmt.Sprint(m.DomainStatus) == "1" {
			acc.Traps = append(acc.Traps, "the domain of account_name is not verified: look at its DNS records in the DirectMail console")
		}
		return acc
	}
	if found.TotalCount != nil && *found.TotalCount <= len(found.Data.MailAddress) {
		acc.Traps = append(acc.Traps, "account_name is not a sender address in region "+s.cfg.Region)
	}
	return acc
}
