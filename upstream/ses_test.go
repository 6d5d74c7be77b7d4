package upstream_test

import (
	"encoding/json"
	"fmt"
	"net/http"
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
