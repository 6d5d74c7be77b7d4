package upstream_test

import (
	"bytes"
	"fmt"
	"mime"
	"mime/multipart"
	"testing"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// mailgunHost answers as Mailgun does, and takes what it is sent.
func mailgunHost(r upstreamtest.Request) upstreamtest.Reply {
	if r.Method == "GET" {
		return upstreamtest.Reply{Body: `{"domain":{"name":"mg.example.com","state":"active","type":"custom"}}`}
	}
	return upstreamtest.Reply{Body: `{"id":"<20260105.1@mg.example.com>","message":"Queued. Thank you."}`}
}

func mailgunConfig(t *testing.T, s *upstreamtest.Service) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "mg", Type: "mailgun", Endpoint: s.URL(), TLSCAFile: s.CAFile(), Domain: "mg.example.com", Region: "us",
		APIKey: secretFile(t, "key-1234"), Connections: 4, DKIM: "sign"}
}

// mailgunMails reads the forms that a service had.
func mailgunMails(t *testing.T, s *upstreamtest.Service) (mails []upstreamtest.Mail) {
	t.Helper()
	for _, r := range s.Requests() {
		_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		form, err := multipart.NewReader(bytes.NewReader(r.Body), params["boundary"]).ReadForm(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		f, err := form.File["message"][0].Open()
		if err != nil {
			t.Fatal(err)
		}
		var data bytes.Buffer
		if _, err := data.ReadFrom(f); err != nil {
			t.Fatal(err)
		}
		mails = append(mails, upstreamtest.Mail{Peer: r.Peer, To: form.Value["to"], Data: data.Bytes(), At: r.At})
	}
	return mails
}

type meaning struct {
	message.Class
	message.Scope
}

// serviceAnswers makes s answer the next request so that it means a class and scope.
func serviceAnswers(s *upstreamtest.Service, table map[meaning]upstreamtest.Reply) func(message.Class, message.Scope) bool {
	return func(c message.Class, scope message.Scope) bool {
		reply, ok := table[meaning{c, scope}]
		if ok {
			s.Reply(reply)
		}
		return ok
	}
}

func mailgunSays(status int, words string) upstreamtest.Reply {
	return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"message":%q}`, words)}
}

var mailgunMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     mailgunSays(418, "a teapot"),
	{message.Temporary, message.ScopeUpstream}:    mailgunSays(500, "Internal Server Error"),
	{message.Permanent, message.ScopeRecipient}:   mailgunSays(400, "'to' parameter is not a valid address. please check documentation"),
	{message.Permanent, message.ScopeMessage}:     mailgunSays(400, "'message' parameter is not a file"),
	{message.Unauthorised, message.ScopeDomain}:   mailgunSays(403, "Domain mg.example.com is not allowed to send: Please verify it"),
	{message.Throttled, message.ScopeUpstream}:    mailgunSays(429, "Domain mg.example.com limit exceeded, try again after 0 seconds"),
	{message.Unauthorised, message.ScopeUpstream}: {Status: 401, Body: "Forbidden", Header: map[string]string{"Content-Type": "text/plain"}},
	{message.Unknown, message.ScopeUpstream}:      {How: upstreamtest.Drop},
}

func TestMailgunKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.ServiceOptions{"over HTTP/2": {}, "over HTTP/1.1": {HTTP1: true}, "in clear text": {Plain: true}} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, o, mailgunHost)
				c := mailgunConfig(t, s)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: func() []upstreamtest.Mail { return mailgunMails(t, s) }, Answer: serviceAnswers(s, mailgunMeanings), Alone: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					MaxSize: 25 << 20, Peers: s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}
