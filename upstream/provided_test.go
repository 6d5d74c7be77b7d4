package upstream_test

import (
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// keeperType is a type of upstream that keeps templates.
type keeperType struct {
	host     func(upstreamtest.Request) upstreamtest.Reply
	config   func(t *testing.T, s *upstreamtest.Service) *config.Upstream
	url      string             // without an endpoint of its own
	taken    upstreamtest.Reply // to a request with a template
	template string
	local    string // what only a request without a template has
	refusals map[string]upstreamtest.Reply
}

var keeperTypes = map[string]keeperType{
	"ses": {sesHost, sesConfig, "https://email.eu-central-1.amazonaws.com", upstreamtest.Reply{Body: `{"MessageId":"0107-template"}`}, "sign-in", `"Raw"`, map[string]upstreamtest.Reply{
		"no such template":          sesSays(404, "NotFoundException", "Template sign-in does not exist."),
		"a key for raw mail only":   sesSays(403, "AccessDeniedException", "User is not authorized to perform ses:SendTemplatedEmail on resource"),
		"no such template, in v1":   sesSays(400, "TemplateDoesNotExistException", "Template sign-in does not exist."),
		"a variable that is wanted": sesSays(400, "BadRequestException", "Template rendering data is missing: name"),
	}},
	"mailgun": {mailgunHost, mailgunConfig, "https://api.mailgun.net", upstreamtest.Reply{Body: `{"id":"<1@auth.example.com>","message":"Queued. Thank you."}`}, "sign-in", "message.eml", map[string]upstreamtest.Reply{
		"no such template":        mailgunSays(400, "template sign-in not found"),
		"no such template, a 404": mailgunSays(404, "template not found"),
		"too many variables":      mailgunSays(413, "Request Entity Too Large"),
	}},
	"sendgrid": {sendgridHost, sendgridConfig, "https://api.sendgrid.com", upstreamtest.Reply{Status: 202, Header: map[string]string{"X-Message-Id": "14c5d75ce93"}}, "d-0123456789abcdef0123456789abcdef", `"content"`, map[string]upstreamtest.Reply{
		"no such template":       sendgridSays(400, "template_id", "The template_id must be a valid GUID, you provided 'd-x'."),
		"somebody's template":    sendgridSays(403, "template_id", "You do not have permission to use this template"),
		"an old template":        sendgridSays(400, "personalizations.0.dynamic_template_data", "Cannot use dynamic template data with a legacy template ID"),
		"a template unpublished": sendgridSays(404, "", "not found"),
	}},
	"postmark": {postmarkHost, postmarkConfig, "https://api.postmarkapp.com", upstreamtest.Reply{Body: `{"MessageID":"0b-uuid","ErrorCode":0,"Message":"OK"}`}, "sign-in", `"TextBody"`, map[string]upstreamtest.Reply{
		"no such template":      postmarkSays(422, 1101, "The Template's 'Alias' associated with this request is not valid or was not found."),
		"a model that is wrong": postmarkSays(422, 403, "Received valid, but incompatible JSON input."),
		"a model that is none":  postmarkSays(422, 1120, "A 'TemplateModel' is required when using a template to send an email."),
	}},
}

// open opens an upstream of the type at a service of its own.
func (k keeperType) open(t *testing.T, change func(*config.Upstream)) (upstream.Upstream, *upstreamtest.Service) {
	t.Helper()
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, k.host)
	c := k.config(t, s)
	c.DKIM = "none"
	if change != nil {
		change(c)
	}
	return open(t, c), s
}

// signInWith is a mail to Ann for which the upstream has a template.
func signInWith(template string) message.Envelope {
	e := signIn("ann@example.org")
	e.Provided = &message.Provided{Template: template, Variables: json.RawMessage(`{"code":"482913","user":{"name":"Ånn \"A\""}}`)}
	return e
}

// templated is the local rendering of such a mail.
var templated = crlf("From: =?utf-8?q?Ex=C3=A4mple=2C_Ltd?= <no-reply@auth.example.com>", "To: ann@example.org", "Reply-To: Help <help@auth.example.com>, =?utf-8?q?H=C3=A9?= <he@auth.example.com>",
	"Subject: =?utf-8?b?56K66KqN?=", "Message-ID: <1@auth.example.com>", "Date: Mon, 05 Jan 2026 10:00:00 +0000", "Auto-Submitted: auto-generated", "Content-Language: ja",
	"MIME-Version: 1.0", "Content-Type: text/plain", "", "It is 482913.")

func TestRequestsWithATemplateStayAsTheyAre(t *testing.T) {
	for name, k := range keeperTypes {
		t.Run(name, func(t *testing.T) {
			u, s := k.open(t, nil)
			s.Reply(k.taken)
			v := handOver(t, u, signInWith(k.template), templated)[0]
			if v.Class != message.Accepted || v.ProviderID == "" || v.Alarm != "" || !u.Traits().Templates {
				t.Errorf("verdict %+v, want accepted with the service's id", v)
			}
			upstreamtest.CheckRequest(t, name+"-template", k.url, s.Wait(1)[0])
		})
	}
}

func TestANumberIsTheIDOfATemplateAtPostmark(t *testing.T) {
	u, s := keeperTypes["postmark"].open(t, nil)
	s.Reply(keeperTypes["postmark"].taken)
	handOver(t, u, signInWith("4711"), templated)
	body := s.Wait(1)[0].Body
	wantField(t, body, 4711.0, "TemplateId")
	wantField(t, body, nil, "TemplateAlias")
}

func TestWhereATemplateIsRefusedTheCodeGoesInOurWordsAtOnce(t *testing.T) {
	for name, k := range keeperTypes {
		for what, refusal := range k.refusals {
			t.Run(name+", "+what, func(t *testing.T) {
				u, s := k.open(t, nil)
				s.Reply(refusal)
				v := handOver(t, u, signInWith(k.template), templated)[0]
				requests := s.Requests()
				if v.Class != message.Accepted || !strings.Contains(v.Alarm, k.template) || len(requests) != 2 {
					t.Fatalf("verdict %+v after %d requests, want it accepted with an alarm after two", v, len(requests))
				}
				if strings.Contains(string(requests[0].Body), k.local) || !strings.Contains(string(requests[1].Body), k.local) || strings.Contains(string(requests[1].Body), k.template) {
					t.Errorf("the requests are\n%s\n%s\nwant the template first, then our words", requests[0].Body, requests[1].Body)
				}
				if strings.Contains(v.Alarm, "482913") {
					t.Errorf("the code is in the alarm: %s", v.Alarm)
				}
			})
		}
	}
}

func TestWhatSaysNothingOfTheTemplateIsNotAnsweredWithAnotherCopy(t *testing.T) {
	for name, k := range keeperTypes {
		for what, tt := range map[string]struct {
			reply upstreamtest.Reply
			class message.Class
		}{
			"an answer that is lost": {upstreamtest.Reply{How: upstreamtest.Drop}, message.Unknown},
			"trouble at the service": {upstreamtest.Reply{Status: 500, Body: "{}"}, message.Temporary},
			"too much":               {upstreamtest.Reply{Status: 429, Body: "{}"}, message.Throttled},
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				u, s := k.open(t, nil)
				s.Reply(tt.reply)
				if v := handOver(t, u, signInWith(k.template), templated)[0]; v.Class != tt.class || v.Scope != message.ScopeUpstream || len(s.Requests()) != 1 {
					t.Errorf("verdict %+v after %d requests, want %s after one", v, len(s.Requests()), tt.class)
				}
			})
		}
	}
}

func TestOurWordsInPlaceOfATemplateWaitForTheCommitAsWell(t *testing.T) {
	for name, k := range keeperTypes {
		t.Run(name, func(t *testing.T) {
			u, s := k.open(t, nil)
			s.Reply(k.refusals["no such template"])
			slot, err := u.Reserve(t.Context(), "auth")
			if err != nil {
				t.Fatal(err)
			}
			defer slot.Release()
			commits := 0
			vs := slot.Send(t.Context(), signInWith(k.template), net.Buffers{[]byte(templated)}, func() error {
				if commits++; commits > 1 {
					return errors.New("the code is good for nothing any more")
				}
				return nil
			})
			if vs != nil || commits != 2 || len(s.Requests()) != 1 {
				t.Errorf("verdicts %+v after %d commits and %d requests, want none after two and one", vs, commits, len(s.Requests()))
			}
		})
	}
}

func TestWhatMailgunTakesOfVariablesIsNotExceeded(t *testing.T) {
	u, s := keeperTypes["mailgun"].open(t, nil)
	e := signInWith("sign-in")
	e.Provided.Variables = json.RawMessage(`{"x":"` + strings.Repeat("y", 16<<10) + `"}`)
	v := handOver(t, u, e, templated)[0]
	if requests := s.Requests(); v.Class != message.Accepted || !strings.Contains(v.Alarm, "sign-in") || len(requests) != 1 || requests[0].Path != "/v3/mg.example.com/messages.mime" {
		t.Errorf("verdict %+v after %d requests, want our words alone with an alarm", v, len(requests))
	}
}

func TestUpstreamsThatKeepNoTemplatesAreSentOurWords(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	u := newWebhook(t, webhookConfig(t, s, "raw"))
	if v := handOver(t, u, signInWith("sign-in"), templated)[0]; v.Class != message.Accepted || v.Alarm != "" || u.Traits().Templates || string(s.Wait(1)[0].Body) != templated {
		t.Errorf("verdict %+v", v)
	}
}

func TestAServiceIsAskedWhetherItKeepsATemplateAndNothingIsSent(t *testing.T) {
	words := map[string]map[string]upstreamtest.Reply{
		"ses": {"there": {Body: `{"TemplateName":"a b","TemplateContent":{"Subject":"x"}}`}, "gone": sesSays(404, "NotFoundException", "x"),
			"closed": sesSays(403, "AccessDeniedException", "x"), "down": sesSays(500, "InternalFailure", "x")},
		"mailgun":  {"there": {Body: `{"template":{"name":"a b"}}`}, "gone": mailgunSays(404, "template not found"), "closed": {Status: 401, Body: "Forbidden"}, "down": mailgunSays(500, "x")},
		"sendgrid": {"there": {Body: `{"id":"a b","generation":"dynamic"}`}, "gone": sendgridSays(404, "", "not found"), "closed": sendgridSays(403, "", "access forbidden"), "down": sendgridSays(500, "", "x")},
		"postmark": {"there": {Body: `{"TemplateId":1,"Alias":"a b","Active":true}`}, "gone": postmarkSays(422, 1101, "x"), "closed": {}, "down": postmarkSays(500, 0, "x")},
	}
	for name, k := range keeperTypes {
		for how, reply := range words[name] {
			t.Run(name+", "+how, func(t *testing.T) {
				k.host = func(upstreamtest.Request) upstreamtest.Reply { return reply }
				u, s := k.open(t, func(c *config.Upstream) {
					if name == "postmark" && how == "closed" {
						c.ServerToken = secretFile(t, config.PostmarkTestToken)
					}
				})
				there, err := u.(upstream.TemplateKeeper).Keeps(t.Context(), "a b")
				if there != (how == "there") || (err != nil) != (how == "closed" || how == "down") || errors.Is(err, upstream.ErrUnproven) != (how == "closed") {
					t.Errorf("Keeps: %v, %v", there, err)
				}
				if how == "down" {
					wantClass(t, err, message.Temporary)
				}
				for _, r := range s.All() {
					if r.Method != "GET" || !strings.HasSuffix(r.Path, "/templates/a%20b") || strings.Contains(r.Path, "secret") {
						t.Errorf("it was asked %s %s", r.Method, r.Path)
					}
				}
			})
		}
	}
}

func TestTheTypesThatTheConfigSaysKeepTemplatesDo(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	for name, c := range map[string]*config.Upstream{"ses": sesConfig(t, s), "mailgun": mailgunConfig(t, s), "sendgrid": sendgridConfig(t, s), "postmark": postmarkConfig(t, s),
		"aliyun": aliyunConfig(t, s), "webhook": webhookConfig(t, s, "raw"), "capture": {Name: "c", Type: "capture"}, "smtp": {Name: "h", Type: "smtp", Address: "127.0.0.1:1", TLS: "none", Connections: 1}} {
		if keeps := open(t, c).Traits().Templates; keeps != c.KeepsTemplates() {
			t.Errorf("%s keeps templates: %v, and the config says %v", name, keeps, c.KeepsTemplates())
		}
	}
}
