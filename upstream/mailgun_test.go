package upstream_test

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
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

func TestMailgunsAnswersMeanWhatItsStatusesSay(t *testing.T) {
	for name, tt := range map[string]struct {
		reply  upstreamtest.Reply
		class  message.Class
		scope  message.Scope
		detail string // of the enhanced code
	}{
		"a key of another region":        {upstreamtest.Reply{Status: 401, Body: `"Forbidden"`}, message.Unauthorised, message.ScopeUpstream, ""},
		"a wrong key, in plain text":     {upstreamtest.Reply{Status: 401, Body: "Forbidden", Header: map[string]string{"Content-Type": "text/plain"}}, message.Unauthorised, message.ScopeUpstream, ""},
		"a domain that is not verified":  {mailgunSays(400, "Domain mg.example.com is not allowed to send: The domain is unverified and requires DNS configuration."), message.Unauthorised, message.ScopeDomain, ""},
		"a sandbox":                      {mailgunSays(403, "Domain sandbox1.mailgun.org is not allowed to send: Free accounts are for test purposes only."), message.Unauthorised, message.ScopeDomain, ""},
		"a domain that is not known yet": {mailgunSays(404, "Domain not found: mg.example.com"), message.Unauthorised, message.ScopeDomain, ""},
		"a wrong path":                   {mailgunSays(404, "page not found"), message.Temporary, message.ScopeMessage, ""},
		"the sender's address":           {mailgunSays(400, "'from' parameter is not a valid address. please check documentation"), message.Permanent, message.ScopeMessage, "5.6.0"},
		"an address":                     {mailgunSays(400, "'to' parameter is not a valid address. please check documentation"), message.Permanent, message.ScopeRecipient, "5.1.3"},
		"a missing parameter":            {mailgunSays(400, "to parameter is missing"), message.Permanent, message.ScopeMessage, "5.6.0"},
		"too large":                      {mailgunSays(413, "Request Entity Too Large"), message.Permanent, message.ScopeMessage, "5.3.4"},
		"large batches":                  {mailgunSays(403, "Domain mg.example.com is not allowed to send large batches yet"), message.Throttled, message.ScopeUpstream, ""},
		"an IP address":                  {mailgunSays(403, "Rejected: IP 192.0.2.1 can't be used to send the message"), message.Unauthorised, message.ScopeUpstream, ""},
		"too fast":                       {mailgunSays(429, "Domain limit exceeded, try again after 120 seconds"), message.Throttled, message.ScopeUpstream, ""},
		"down":                           {mailgunSays(503, "Service Unavailable"), message.Temporary, message.ScopeUpstream, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
			s.Reply(tt.reply)
			v := send(t, open(t, mailgunConfig(t, s)), envelope())[0]
			if v.Class != tt.class || v.Scope != tt.scope || v.Enhanced != tt.detail || v.Code != tt.reply.Status {
				t.Errorf("%+v, want %s of scope %s, %q", v, tt.class, tt.scope, tt.detail)
			}
		})
	}
}

func TestMailgunsCheckKnowsAKeyThatMayOnlySend(t *testing.T) {
	for name, tt := range map[string]struct {
		domain, send upstreamtest.Reply
		facts, traps int
		class        message.Class // of the pause
	}{
		"all is well":          {upstreamtest.Reply{Body: `{"domain":{"state":"active"}}`}, upstreamtest.Reply{}, 1, 0, ""},
		"not verified":         {upstreamtest.Reply{Body: `{"domain":{"state":"unverified"}}`}, upstreamtest.Reply{}, 1, 1, ""},
		"a sandbox":            {upstreamtest.Reply{Body: `{"domain":{"state":"active","type":"sandbox"}}`}, upstreamtest.Reply{}, 1, 1, ""},
		"a sending key":        {upstreamtest.Reply{Status: 401, Body: "Forbidden"}, mailgunSays(400, "to parameter is missing"), 1, 0, ""},
		"a wrong key":          {upstreamtest.Reply{Status: 401, Body: "Forbidden"}, upstreamtest.Reply{Status: 401, Body: "Forbidden"}, 0, 0, message.Unauthorised},
		"an unknown domain":    {mailgunSays(404, "Domain not found: mg.example.com"), upstreamtest.Reply{}, 0, 0, message.Unauthorised},
		"a service in trouble": {upstreamtest.Reply{Status: 500}, upstreamtest.Reply{}, 0, 0, message.Temporary},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
				if r.Method == "GET" {
					return tt.domain
				}
				if len(r.Body) > 0 {
					t.Errorf("the check sent %q", r.Body)
				}
				return tt.send
			})
			a, err := open(t, mailgunConfig(t, s)).(upstream.Checker).Check(t.Context())
			p, _ := errors.AsType[*upstream.Paused](err)
			if len(a.Facts) != tt.facts || len(a.Traps) != tt.traps || (err != nil) != (tt.class != "") || p != nil && p.Verdict.Class != tt.class {
				t.Errorf("Check: %+v, %v", a, err)
			}
			if err == nil && a.Local != pin.String() {
				t.Errorf("reached from %q, want %s", a.Local, pin)
			}
		})
	}
}

func TestAMailgunRequestIsWhatMailgunDescribes(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(c *config.Upstream, e *message.Envelope)
	}{
		"mailgun-auth": {func(*config.Upstream, *message.Envelope) {}},
		"mailgun-marketing": {func(c *config.Upstream, e *message.Envelope) {
			e.Kind, e.To = message.Marketing, []string{"a@example.net", "b@example.net"}
			c.Tracking, c.DKIM = "on", "strip"
			c.Tags, c.ServiceDKIM, c.IPPool, c.TestMode = []string{"news", "spring"}, "yes", "bulk", true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
			c, e := mailgunConfig(t, s), envelope()
			e.ID, e.Kind = 42, message.Auth
			tt.change(c, &e)
			u := open(t, c)
			for _, v := range send(t, u, e) {
				if v.Class != message.Accepted || v.ProviderID != "20260105.1@mg.example.com" {
					t.Fatalf("verdict %+v", v)
				}
			}
			if u.Traits().Captures != c.TestMode {
				t.Errorf("Captures is %v in test mode %v", u.Traits().Captures, c.TestMode)
			}
			r := s.Wait(1)[0]
			if user, key, _ := basicAuth(r); user != "api" || key != "key-1234" {
				t.Errorf("logged in as %q with %q", user, key)
			}
			upstreamtest.CheckRequest(t, name, "https://api.mailgun.net", r)
		})
	}
}

// basicAuth returns who made a request, and with which key.
func basicAuth(r upstreamtest.Request) (user, key string, ok bool) {
	return (&http.Request{Header: r.Header}).BasicAuth()
}

func TestARotatedKeyIsUsedWithTheNextRequest(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
		if _, key, _ := basicAuth(r); key != "key-5678" {
			return upstreamtest.Reply{Status: 401, Body: "Forbidden"}
		}
		return mailgunHost(r)
	})
	c := mailgunConfig(t, s)
	u := open(t, c)
	wantClasses(t, send(t, u, envelope()), message.Unauthorised)
	if _, err := u.Reserve(t.Context(), "auth"); err == nil {
		t.Error("a slot was given though the key is still refused")
	}
	if err := os.WriteFile(c.APIKey.File, []byte("key-5678\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if err := os.Remove(c.APIKey.File); err != nil {
		t.Fatal(err)
	}
	wantClasses(t, send(t, u, envelope()), message.Unauthorised)
}
