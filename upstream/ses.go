package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awscredentials "github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sesv2"
	"github.com/aws/aws-sdk-go-v2/service/sesv2/types"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
)

const (
	sesSize       = 40 << 20 / 4 * 3 // octets of a message: 40 MB once it is in base64
	sesRecipients = 50               // of a call
	sesQuotaPause = 15 * time.Minute
	sesClockSkew  = 5 * time.Minute // beyond which a signature is refused
)

// sesRewritten are the header fields that SES replaces or refuses: signed, they would break the signature.
var sesRewritten = []string{"Message-ID", "Date", "Return-Path", "Bounces-To"}

// ses is Amazon SES v2: SendEmail with the raw message, signed by the AWS SDK, which makes no second try.
type ses struct {
	cfg    *config.Upstream
	client *sesv2.Client
	chain  aws.CredentialsProvider // where the config names no key
}

func newSES(c *config.Upstream, egress *Egress) (*ses, error) {
	s := &ses{cfg: c}
	if !c.AccessKeyID.Set() {
		var err error
		if s.chain, err = credentialChain(c.Region, egress); err != nil {
			return nil, fmt.Errorf("upstream %s: find the credentials of this machine: %w", c.Name, err)
		}
	}
	s.client = sesv2.New(sesv2.Options{Region: c.Region, BaseEndpoint: aws.String(s.endpoint()), Retryer: aws.NopRetryer{}})
	return s, nil
}

func (s *ses) endpoint() string {
	switch {
	case s.cfg.Endpoint != "":
		return s.cfg.Endpoint
	case strings.HasPrefix(s.cfg.Region, "cn-"):
		return "https://email." + s.cfg.Region + ".amazonaws.com.cn"
	}
	return "https://email." + s.cfg.Region + ".amazonaws.com"
}

func (s *ses) traits() Traits {
	return Traits{MaxSize: sesSize, MaxRecipients: sesRecipients, OneSignature: true, NeverSign: sesRewritten}
}

// caps: 8-bit text would be encoded anew, and the signature over it broken.
func (s *ses) caps() Caps { return Caps{Size: sesSize, MaxRecipients: sesRecipients} }

// credentials returns what requests are signed with: the files' contents as they are now, or what the chain finds.
func (s *ses) credentials() (aws.CredentialsProvider, error) {
	if s.chain != nil {
		return s.chain, nil
	}
	id, err := s.cfg.AccessKeyID.Read()
	if err != nil {
		return nil, err
	}
	secret, err := s.cfg.SecretAccessKey.Read()
	if err != nil {
		return nil, err
	}
	token := ""
	if s.cfg.SessionToken.Set() {
		if token, err = s.cfg.SessionToken.Read(); err != nil {
			return nil, err
		}
	}
	return awscredentials.NewStaticCredentialsProvider(id, secret, token), nil
}

// calls makes one request for each recipient of auth mail: one malformed address makes SES refuse a whole request.
func (s *ses) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	creds, err := s.credentials()
	if err != nil {
		return nil, err
	}
	content := &types.EmailContent{Raw: &types.RawMessage{Data: slices.Concat(wire...)}}
	return splittable(e, sesRecipients, func(to []int) call { return s.call(s.input(e, to, content), to, creds) }), nil
}

// call makes the request in for some recipients.
func (s *ses) call(in *sesv2.SendEmailInput, to []int, creds aws.CredentialsProvider) call {
	return call{
		to: to,
		ask: func(ctx context.Context, x *exchange) error {
			_, err := s.client.SendEmail(ctx, in, func(o *sesv2.Options) { o.HTTPClient, o.Credentials = x, creds })
			return err
		},
		meaning: func(a answer) []message.Verdict {
			return []message.Verdict{sesVerdict(a, in.Destination.ToAddresses, time.Now())}
		},
	}
}

// provided implements keeper. SES makes Message-ID and Date itself. That a template is not there it says as it does of a
// configuration set, and templates need a permission of their own (ses:SendTemplatedEmail): in doubt it is the template, and
// the mail goes without.
func (s *ses) provided(e message.Envelope, wire net.Buffers) (call, error) {
	creds, err := s.credentials()
	if err != nil {
		return call{}, err
	}
	l, err := letter.Read(wholeMail(wire))
	if err != nil {
		return call{}, err
	}
	template := &types.Template{TemplateName: &e.Provided.Template, TemplateData: new(string(e.Provided.Variables))}
	for _, f := range l.Header {
		if !slices.ContainsFunc(sesRewritten, func(name string) bool { return strings.EqualFold(name, f.Name) }) {
			template.Headers = append(template.Headers, types.MessageHeader{Name: &f.Name, Value: &f.Value})
		}
	}
	in := s.input(e, []int{0}, &types.EmailContent{Template: template})
	in.FromEmailAddress = new(l.From.String()) // in ASCII: RFC 2047
	for _, b := range uniqueBoxes(l.ReplyTo) {
		in.ReplyToAddresses = append(in.ReplyToAddresses, b.String())
	}
	c := s.call(in, []int{0}, creds)
	c.meaning = func(a answer) []message.Verdict {
		var said sesSaid
		a.decode(&said)
		switch sesError(a, said) {
		case "NotFoundException", "AccessDenied", "AccessDeniedException":
			return []message.Verdict{a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.Message)}
		}
		return []message.Verdict{sesVerdict(a, e.To, time.Now())}
	}
	return c, nil
}

// input makes the request for some of e's recipients. Without Destination SES would read them from the header.
func (s *ses) input(e message.Envelope, to []int, content *types.EmailContent) *sesv2.SendEmailInput {
	in := &sesv2.SendEmailInput{
		Content:     content,
		Destination: &types.Destination{},
		EmailTags:   []types.MessageTag{{Name: aws.String("gid"), Value: aws.String(e.ID.String())}},
	}
	for _, i := range to {
		in.Destination.ToAddresses = append(in.Destination.ToAddresses, e.To[i])
	}
	for _, tag := range s.cfg.Tags {
		name, value, _ := strings.Cut(tag, "=")
		in.EmailTags = append(in.EmailTags, types.MessageTag{Name: &name, Value: &value})
	}
	in.ConfigurationSetName = given(s.cfg.ConfigurationSet)
	in.TenantName = given(s.cfg.Tenant)
	in.FromEmailAddressIdentityArn = given(s.cfg.IdentityARN)
	in.FeedbackForwardingEmailAddress = given(s.cfg.FeedbackAddress)
	in.FeedbackForwardingEmailAddressIdentityArn = given(s.cfg.FeedbackIdentityARN)
	return in
}

// given returns nil for what is not set.
func given(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// sesSaid is what SES says of a request.
type sesSaid struct {
	MessageID string `json:"MessageId"`
	Message   string `json:"message"`
	Type      string `json:"__type"`
}

// sesError returns the name of the error: "MessageRejected" of "MessageRejected:http://…".
func sesError(a answer, said sesSaid) string {
	name, _, _ := strings.Cut(a.header.Get("X-Amzn-Errortype"), ":")
	if name == "" {
		name = said.Type[strings.LastIndexByte(said.Type, '#')+1:]
	}
	return name
}

// sesVerdict goes by the name of the error; words decide only where one name stands for two things.
//
//	TooManyRequestsException, Throttling(Exception), LimitExceededException   throttled     upstream
//	MessageRejected "not verified", of recipients alone                       permanent     message   in the sandbox; with an alarm
//	MessageRejected "not verified"                                            unauthorised  domain
//	MessageRejected                                                           permanent     message
//	MailFromDomainNotVerifiedException, NotFoundException                     unauthorised  domain    configuration set, tenant
//	AccountSuspendedException, SendingPausedException                         unauthorised  upstream
//	BadRequestException                                                       permanent     message   recipient of a call for several
//	of signature, key and permission                                          unauthorised  upstream
func sesVerdict(a answer, to []string, now time.Time) message.Verdict {
	var said sesSaid
	a.decode(&said)
	if a.ok() {
		return a.accepted(said.MessageID)
	}
	switch name := sesError(a, said); name {
	case "TooManyRequestsException", "Throttling", "ThrottlingException", "LimitExceededException":
		v := a.as(message.Throttled, message.ScopeUpstream, "", said.Message)
		if strings.Contains(strings.ToLower(said.Message), "quota exceeded") {
			v.RetryAfter, v.Alarm = max(v.RetryAfter, sesQuotaPause), "the quota of the SES account is used up"
		}
		return v
	case "MessageRejected":
		return sesRejected(a, said, to)
	case "MailFromDomainNotVerifiedException", "NotFoundException":
		return a.as(message.Unauthorised, message.ScopeDomain, "", said.Message)
	case "AccountSuspendedException", "SendingPausedException":
		return a.as(message.Unauthorised, message.ScopeUpstream, "", said.Message)
	case "BadRequestException":
		if len(to) > 1 { // it may be about one of them
			return a.as(message.Permanent, message.ScopeRecipient, "5.6.0", said.Message)
		}
		return a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.Message)
	default:
		if sesDenied(name) {
			return sesUnauthorised(a, said, now)
		}
	}
	return a.verdict(said.Message)
}

// sesRejected tells a message that SES does not like from identities that it does not know. In the sandbox recipients
// have to be verified too; another upstream has no such rule.
func sesRejected(a answer, said sesSaid, to []string) message.Verdict {
	if !strings.Contains(strings.ToLower(said.Message), "not verified") {
		return a.as(message.Permanent, message.ScopeMessage, "5.7.1", said.Message)
	}
	if sesNamesOnly(to, said.Message) {
		v := a.as(message.Permanent, message.ScopeMessage, "5.7.1", "the account is in the sandbox, and the recipient is not verified")
		v.Alarm = "the SES account is in the sandbox: only verified recipients get mail"
		return v
	}
	return a.as(message.Unauthorised, message.ScopeDomain, "5.7.1", said.Message)
}

// sesNamesOnly reports whether the addresses in words, one at least, are recipients all: a sender among them is not verified
// either, and that has to be mended first.
func sesNamesOnly(to []string, words string) bool {
	named := strings.FieldsFunc(words, func(r rune) bool { return strings.ContainsRune(" ,;:<>\"", r) })
	named = slices.DeleteFunc(named, func(s string) bool { return !strings.Contains(s, "@") })
	return len(named) > 0 && !slices.ContainsFunc(named, func(n string) bool {
		return !slices.ContainsFunc(to, func(r string) bool { return strings.EqualFold(n, r) })
	})
}

// sesDenied reports whether an error is about who asks.
func sesDenied(name string) bool {
	switch name {
	case "UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "IncompleteSignatureException",
		"ExpiredTokenException", "ExpiredToken", "InvalidClientTokenId", "AccessDenied", "AccessDeniedException", "NotAuthorized",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException", "OptInRequired":
		return true
	}
	return false
}

// sesUnauthorised is the verdict on a request whose signature or key is not taken. The clock is the likelier culprit
// where it differs from the service's. Of the words the first line will do: what should have been signed follows.
func sesUnauthorised(a answer, said sesSaid, now time.Time) message.Verdict {
	words, _, _ := strings.Cut(said.Message, "\n")
	v := a.as(message.Unauthorised, message.ScopeUpstream, "", words)
	if theirs, err := http.ParseTime(a.header.Get("Date")); err == nil && now.Sub(theirs).Abs() >= sesClockSkew {
		v.Alarm = fmt.Sprintf("the clock of this machine is off by %v: SES refuses signatures until it is set", now.Sub(theirs).Round(time.Second))
		v.Text = v.Alarm + " (" + v.Text + ")"
	}
	return v
}

// check reads the account. The permission for that, ses:GetAccount, is not needed to send.
func (s *ses) check(ctx context.Context, do doer) (acc Account, err error) {
	_, err = s.read(ctx, do, func(options func(*sesv2.Options)) error {
		out, err := s.client.GetAccount(ctx, &sesv2.GetAccountInput{}, options)
		if err == nil {
			acc = sesAccount(out)
		}
		return err
	})
	return acc, err
}

// keeps implements keeper. The permission for that, ses:GetEmailTemplate, is not needed to send.
func (s *ses) keeps(ctx context.Context, do doer, template string) (bool, error) {
	name, err := s.read(ctx, do, func(options func(*sesv2.Options)) error {
		_, err := s.client.GetEmailTemplate(ctx, &sesv2.GetEmailTemplateInput{TemplateName: &template}, options)
		return err
	})
	if name == "NotFoundException" {
		return false, nil
	}
	return err == nil, err
}

// read makes a request that sends nothing, and returns the name of SES's error with what that means for the account:
// ErrUnproven where the credentials may not read, or *Paused.
func (s *ses) read(ctx context.Context, do doer, request func(options func(*sesv2.Options)) error) (name string, err error) {
	creds, err := s.credentials()
	if err != nil {
		return "", &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	r := &reader{do: do}
	err = request(func(o *sesv2.Options) { o.HTTPClient, o.Credentials = r, creds })
	switch {
	case err == nil:
		return "", nil
	case r.answer == nil:
		return "", unread(ctx, err)
	}
	var said sesSaid
	r.answer.decode(&said)
	name = sesError(*r.answer, said)
	if name == "AccessDenied" || name == "AccessDeniedException" {
		return name, ErrUnproven
	}
	return name, pausedFor(sesVerdict(*r.answer, nil, time.Now()))
}

// unread is the error of a check call that was not answered.
func unread(ctx context.Context, err error) error {
	if p, ok := errors.AsType[*Paused](err); ok {
		return p
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return &Paused{Verdict: upstreamDown(message.Temporary, err.Error())}
}

// reader makes a doer the HTTP client of the SDK, and keeps the answer.
type reader struct {
	do     doer
	answer *answer
}

// Do implements the SDK's HTTPClient.
func (r *reader) Do(req *http.Request) (*http.Response, error) {
	a, err := r.do(req)
	if err != nil {
		return nil, err
	}
	r.answer = &a
	return &http.Response{StatusCode: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), Request: req}, nil
}

// sesAccount says what an operator should know of the account.
func sesAccount(out *sesv2.GetAccountOutput) (acc Account) {
	if q := out.SendQuota; q != nil {
		acc.Facts = append(acc.Facts, fmt.Sprintf("%.0f mails a day, %.0f a second; %.0f sent in the last 24 hours", q.Max24HourSend, q.MaxSendRate, q.SentLast24Hours))
	}
	if !out.ProductionAccessEnabled {
		acc.Traps = append(acc.Traps, "the account is in the sandbox: only verified recipients get mail; ask AWS for production access in this region")
	}
	if !out.SendingEnabled {
		acc.Traps = append(acc.Traps, "sending is switched off for the account in this region")
	}
	if status := aws.ToString(out.EnforcementStatus); status != "" && status != "HEALTHY" {
		acc.Traps = append(acc.Traps, "AWS has put the account on "+status)
	}
	return acc
}
