package upstream_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

var sesKey = upstreamtest.AWSKey{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Region: "eu-central-1", Service: "ses"}

// sesMail is a SendEmail request.
type sesMail struct {
	Content                                                                   struct{ Raw struct{ Data []byte } }
	Destination                                                               struct{ ToAddresses []string }
	ConfigurationSetName, TenantName, FromEmailAddressIdentityArn             string
	FeedbackForwardingEmailAddress, FeedbackForwardingEmailAddressIdentityArn string
	EmailTags                                                                 []struct{ Name, Value string }
}

// sesHost answers as SES does, to those whose signature is right.
func sesHost(r upstreamtest.Request) upstreamtest.Reply {
	if err := upstreamtest.VerifySigV4(r, sesKey, time.Now()); err != nil {
		return sesSays(403, "InvalidSignatureException", err.Error())
	}
	if r.Method == http.MethodGet {
		return upstreamtest.Reply{Body: `{"ProductionAccessEnabled":true,"SendingEnabled":true,"EnforcementStatus":"HEALTHY",
			"SendQuota":{"Max24HourSend":50000,"MaxSendRate":14,"SentLast24Hours":12}}`}
	}
	return upstreamtest.Reply{Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0000"}`}
}

func sesSays(status int, name, words string) upstreamtest.Reply {
	return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"message":%q}`, words), Header: map[string]string{"X-Amzn-Errortype": name + ":http://internal.amazon.com/"}}
}

func sesConfig(t *testing.T, s *upstreamtest.Service) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "ses", Type: "ses", Region: "eu-central-1", Endpoint: s.URL(), TLSCAFile: s.CAFile(), Connections: 4, DKIM: "sign",
		AccessKeyID: secretFile(t, sesKey.ID), SecretAccessKey: secretFile(t, sesKey.Secret)}
}

func sesMails(t *testing.T, s *upstreamtest.Service) (mails []upstreamtest.Mail) {
	t.Helper()
	for _, r := range s.Requests() {
		var m sesMail
		if err := json.Unmarshal(r.Body, &m); err != nil {
			t.Fatal(err)
		}
		mails = append(mails, upstreamtest.Mail{Peer: r.Peer, To: m.Destination.ToAddresses, Data: m.Content.Raw.Data, At: r.At})
	}
	return mails
}

var sesMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     sesSays(409, "ConflictException", "?"),
	{message.Temporary, message.ScopeUpstream}:    sesSays(500, "InternalFailure", "try again"),
	{message.Permanent, message.ScopeMessage}:     sesSays(400, "BadRequestException", "Duplicate header 'DKIM-Signature'."),
	{message.Unauthorised, message.ScopeDomain}:   sesSays(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: a@auth.example.com"),
	{message.Throttled, message.ScopeUpstream}:    sesSays(429, "TooManyRequestsException", "Maximum sending rate exceeded."),
	{message.Unauthorised, message.ScopeUpstream}: sesSays(403, "UnrecognizedClientException", "The security token included in the request is invalid."),
	{message.Unknown, message.ScopeUpstream}:      {Status: 504, Body: "<html>Gateway Time-out</html>", Header: map[string]string{"Content-Type": "text/html"}},
}

func TestSESKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.ServiceOptions{"over HTTP/2": {}, "over HTTP/1.1": {HTTP1: true}} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, o, sesHost)
				c := sesConfig(t, s)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: func() []upstreamtest.Mail { return sesMails(t, s) }, Answer: serviceAnswers(s, sesMeanings), Alone: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					MaxSize: 30 << 20, Peers: s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}

func TestSESAnswersMeanWhatTheirNamesSay(t *testing.T) {
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		class message.Class
		scope message.Scope
		retry time.Duration // at least
		alarm bool
	}{
		"too fast":                        {sesSays(429, "TooManyRequestsException", "Maximum sending rate exceeded."), message.Throttled, message.ScopeUpstream, 0, false},
		"the quota":                       {sesSays(429, "TooManyRequestsException", "Daily message quota exceeded."), message.Throttled, message.ScopeUpstream, 15 * time.Minute, true},
		"the quota, as 400":               {sesSays(400, "LimitExceededException", "Daily message quota exceeded."), message.Throttled, message.ScopeUpstream, 15 * time.Minute, true},
		"the sender is not verified":      {sesSays(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: a@auth.example.com"), message.Unauthorised, message.ScopeDomain, 0, false},
		"the recipient, in the sandbox":   {sesSays(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: User@Example.net"), message.Permanent, message.ScopeMessage, 0, true},
		"sender and recipient":            {sesSays(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: a@auth.example.com, user@example.net"), message.Unauthorised, message.ScopeDomain, 0, false},
		"a sender like the recipient":     {sesSays(400, "MessageRejected", "Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: no-user@example.net"), message.Unauthorised, message.ScopeDomain, 0, false},
		"a virus":                         {sesSays(400, "MessageRejected", "Resource violates policy"), message.Permanent, message.ScopeMessage, 0, false},
		"the MAIL FROM domain":            {sesSays(400, "MailFromDomainNotVerifiedException", "?"), message.Unauthorised, message.ScopeDomain, 0, false},
		"a configuration set":             {sesSays(404, "NotFoundException", "Configuration set <auth> does not exist."), message.Unauthorised, message.ScopeDomain, 0, false},
		"a suspended account":             {sesSays(400, "AccountSuspendedException", "?"), message.Unauthorised, message.ScopeUpstream, 0, false},
		"sending is paused":               {sesSays(400, "SendingPausedException", "?"), message.Unauthorised, message.ScopeUpstream, 0, false},
		"a second signature":              {sesSays(400, "BadRequestException", "Duplicate header 'DKIM-Signature'."), message.Permanent, message.ScopeMessage, 0, false},
		"no permission":                   {sesSays(403, "AccessDeniedException", "User: arn:aws:iam::1:user/x is not authorized to perform: ses:SendRawEmail"), message.Unauthorised, message.ScopeUpstream, 0, false},
		"an old token, as 400":            {sesSays(400, "ExpiredTokenException", "?"), message.Unauthorised, message.ScopeUpstream, 0, false},
		"the clock":                       {clockOff(sesSays(403, "InvalidSignatureException", "Signature expired: 20260105T100000Z is now earlier than …")), message.Unauthorised, message.ScopeUpstream, 0, true},
		"the name in the body alone":      {upstreamtest.Reply{Status: 400, Body: `{"__type":"com.amazonaws.sesv2#SendingPausedException"}`}, message.Unauthorised, message.ScopeUpstream, 0, false},
		"down":                            {sesSays(503, "ServiceUnavailable", "?"), message.Temporary, message.ScopeUpstream, 0, false},
		"down, with a time":               {upstreamtest.Reply{Status: 503, Header: map[string]string{"Retry-After": "7"}}, message.Temporary, message.ScopeUpstream, 7 * time.Second, false},
		"what nobody has heard of before": {sesSays(400, "NewException", "?"), message.Temporary, message.ScopeMessage, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
			s.Reply(tt.reply)
			v := send(t, open(t, sesConfig(t, s)), envelope())[0]
			if v.Class != tt.class || v.Scope != tt.scope || v.RetryAfter < tt.retry || (v.Alarm != "") != tt.alarm || v.Code != tt.reply.Status {
				t.Errorf("%+v, want %s of scope %s, alarm: %v", v, tt.class, tt.scope, tt.alarm)
			}
			if n := len(s.Requests()); n != 1 {
				t.Errorf("the request was made %d times: the SDK tries again by itself", n)
			}
		})
	}
}

// clockOff makes the service's clock differ from ours.
func clockOff(r upstreamtest.Reply) upstreamtest.Reply {
	r.Header["Date"] = time.Now().Add(-6 * time.Minute).UTC().Format(http.TimeFormat)
	return r
}

func TestSESCheckReadsTheAccountWhereItMay(t *testing.T) {
	for name, tt := range map[string]struct {
		reply        upstreamtest.Reply
		facts, traps int
		unproven     bool
		class        message.Class // of the pause
	}{
		"all is well":     {upstreamtest.Reply{Body: `{"ProductionAccessEnabled":true,"SendingEnabled":true,"SendQuota":{"Max24HourSend":200}}`}, 1, 0, false, ""},
		"the sandbox":     {upstreamtest.Reply{Body: `{"SendingEnabled":true,"EnforcementStatus":"PROBATION"}`}, 0, 2, false, ""},
		"least privilege": {sesSays(403, "AccessDeniedException", "not authorized to perform: ses:GetAccount"), 0, 0, true, ""},
		"a wrong key":     {sesSays(403, "UnrecognizedClientException", "?"), 0, 0, false, message.Unauthorised},
		"down":            {sesSays(500, "InternalFailure", "?"), 0, 0, false, message.Temporary},
		"a missing set":   {sesSays(404, "NotFoundException", "?"), 0, 0, false, message.Unauthorised},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return tt.reply })
			a, err := open(t, sesConfig(t, s)).(upstream.Checker).Check(t.Context())
			p, _ := errors.AsType[*upstream.Paused](err)
			if len(a.Facts) != tt.facts || len(a.Traps) != tt.traps || errors.Is(err, upstream.ErrUnproven) != tt.unproven || (p != nil) != (tt.class != "") ||
				p != nil && (p.Verdict.Class != tt.class || p.Verdict.Scope != message.ScopeUpstream) {
				t.Errorf("Check: %+v, %v", a, err)
			}
			if n := len(s.Requests()); n != 0 {
				t.Errorf("the check sent %d requests that bring something", n)
			}
		})
	}
}

func TestAnSESRequestIsWhatAWSDescribes(t *testing.T) {
	for name, change := range map[string]func(c *config.Upstream, e *message.Envelope){
		"ses-auth": func(*config.Upstream, *message.Envelope) {},
		"ses-marketing": func(c *config.Upstream, e *message.Envelope) {
			e.Kind, e.To = message.Marketing, []string{"a@example.net", "b@example.net"}
			c.ConfigurationSet, c.Tenant, c.Tags = "marketing", "news", []string{"app=shop", "list=spring"}
			c.IdentityARN = "arn:aws:ses:eu-central-1:123456789012:identity/example.com"
			c.FeedbackAddress, c.FeedbackIdentityARN = "bounces@example.org", "arn:aws:ses:eu-central-1:123456789012:identity/example.org"
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
			c, e := sesConfig(t, s), envelope()
			e.ID, e.Kind = 42, message.Auth
			change(c, &e)
			for _, v := range send(t, open(t, c), e) {
				if v.Class != message.Accepted || v.ProviderID != "0107018fe5b7c2d4-aa11bb22-0000" {
					t.Fatalf("verdict %+v", v)
				}
			}
			r := s.Wait(1)[0]
			upstreamtest.CheckRequest(t, name, "https://email.eu-central-1.amazonaws.com", r)
		})
	}
}

func TestSESGetsFiftyRecipientsARequestAndAuthMailOne(t *testing.T) {
	var to []string
	for i := range 51 {
		to = append(to, fmt.Sprintf("%d@example.net", i))
	}
	for kind, want := range map[message.Kind][]int{message.Marketing: {50, 1}, message.Auth: {1, 1, 1}} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
		u := open(t, sesConfig(t, s))
		e := envelope(to...)
		if e.Kind = kind; kind == message.Auth {
			e.To = to[:3]
		}
		commits := 0
		slot := reserve(t, u)
		vs := slot.Send(t.Context(), e, net.Buffers{text}, func() error {
			commits++
			return nil
		})
		slot.Release()
		var got []int
		for _, m := range sesMails(t, s) {
			got = append(got, len(m.To))
		}
		if len(vs) != len(e.To) || commits != len(want) || !slices.Equal(got, want) {
			t.Errorf("%s mail: %d verdicts, %d commits, requests for %v recipients; want %d, %d, %v", kind, len(vs), commits, got, len(e.To), len(want), want)
		}
	}
}

func TestWhatIsAcceptedStaysSoThoughTheRestIsPutOff(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
	u := open(t, sesConfig(t, s))
	e := envelope("a@example.net", "b@example.net", "c@example.net")
	e.Kind = message.Auth
	handOver := func(commit func(n int) error) []message.Verdict {
		n := 0
		slot := reserve(t, u)
		defer slot.Release()
		return slot.Send(t.Context(), e, net.Buffers{text}, func() error {
			n++
			return commit(n)
		})
	}
	wantClasses(t, handOver(func(n int) error {
		if n == 2 {
			return errors.New("the lease has ended")
		}
		return nil
	}), message.Accepted, message.Temporary, message.Temporary)

	s.Reply(sesSays(400, "BadRequestException", "Missing final '@domain'"), sesSays(400, "SendingPausedException", "?"))
	vs := handOver(func(int) error { return nil })
	wantClasses(t, vs, message.Permanent, message.Unauthorised, message.Unauthorised)
	if n := len(s.Requests()); n != 3 {
		t.Errorf("%d requests in all, want 3: after a verdict on the account nobody else is tried", n)
	}
}

func TestSESKeepsOutOfWhatItRewrites(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
	traits := open(t, sesConfig(t, s)).Traits()
	if !traits.OneSignature || traits.DKIM != "sign" || traits.MaxRecipients != 50 {
		t.Errorf("%+v", traits)
	}
	for _, field := range []string{"Message-ID", "Date", "Return-Path"} {
		if !slices.Contains(traits.NeverSign, field) {
			t.Errorf("%s may be signed, and SES replaces it", field)
		}
	}
}

func TestOneBadRecipientDoesNotKeepTheOthersFromTheirMail(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
	u := open(t, sesConfig(t, s))
	bad := sesSays(400, "BadRequestException", "Local address contains control or whitespace")
	s.Reply(bad, upstreamtest.Reply{Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0001"}`}, bad)
	e := envelope("a@example.net", "bad@example.net", "c@example.net")
	e.Kind = message.Marketing
	vs := send(t, u, e)
	wantClasses(t, vs, message.Accepted, message.Permanent, message.Accepted)
	if vs[1].Scope != message.ScopeMessage {
		t.Errorf("the refusal is about the %s, want the message: another service may take it", vs[1].Scope)
	}
}

func TestAHandOverThatIsStoppedSaysNothingOfTheAccount(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
	u := open(t, sesConfig(t, s))
	ctx, cancel := context.WithCancel(t.Context())
	slot := reserve(t, u)
	cancel()
	wantClasses(t, slot.Send(ctx, envelope(), net.Buffers{text}, commit), message.Temporary)
	slot.Release()
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if n := len(s.All()); n != 1 {
		t.Errorf("%d requests, want the mail alone: nothing was wrong with the account", n)
	}
}
