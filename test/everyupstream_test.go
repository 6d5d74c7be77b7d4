package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/text/language"

	"gatepost/compose"
	"gatepost/config"
	"gatepost/upstream/upstreamtest"
)

// ways is one gatepost with a hook, a stream and an upstream for each type of upstream, all of the type's name.
type ways struct {
	*hooks
	services map[string]*upstreamtest.Service // for each type but smtp
}

// way is what a type of upstream wants in its section, and answers.
type way struct {
	section string
	answer  upstreamtest.Reply
}

var wayTypes = map[string]way{
	"smtp":     {"tls = \"none\"", upstreamtest.Reply{}},
	"ses":      {"region = \"eu-central-1\"\naccess_key_id_file = \"key\"\nsecret_access_key_file = \"key\"", upstreamtest.Reply{Body: `{"MessageId":"0107018f"}`}},
	"mailgun":  {"domain = \"mailgun.example.com\"\napi_key_file = \"key\"", upstreamtest.Reply{Body: `{"id":"<1@mailgun.example.com>","message":"Queued. Thank you."}`}},
	"sendgrid": {"api_key_file = \"key\"", upstreamtest.Reply{Status: 202, Header: map[string]string{"X-Message-Id": "14c5d75ce93"}}},
	"postmark": {"server_token_file = \"key\"", upstreamtest.Reply{Body: `{"MessageID":"0a-uuid","ErrorCode":0,"Message":"OK"}`}},
	"aliyun":   {"region = \"cn-hangzhou\"\naccount_name = \"no-reply@aliyun.example.com\"\naccess_key_id_file = \"key\"\naccess_key_secret_file = \"key\"", upstreamtest.Reply{Body: `{"EnvId":"600000000","RequestId":"1"}`}},
	"webhook":  {"format = \"raw\"\nsecret_file = \"webhook\"", upstreamtest.Reply{}},
}

// keepers are the types whose services keep templates.
var keepers = []string{"mailgun", "postmark", "sendgrid", "ses"}

// newWays makes the ways of some types; dkim is a line for the sections of keepers.
func newWays(t *testing.T, dkim string, types ...string) *ways {
	t.Helper()
	w := &ways{newHooks(t), map[string]*upstreamtest.Service{}}
	w.write("key", "AKIDEXAMPLE\n")
	w.write("webhook", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n")
	for _, name := range types {
		section := wayTypes[name].section
		switch name {
		case "smtp":
			section += "\naddress = \"" + w.auth.addr + "\""
		default:
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return wayTypes[name].answer })
			w.services[name] = s
			section += "\ntls_ca_file = \"" + s.CAFile() + "\"\n" + map[bool]string{true: "url", false: "endpoint"}[name == "webhook"] + " = \"" + s.URL() + "\""
		}
		if slices.Contains(keepers, name) {
			section += "\n" + dkim
		}
		w.addConfig(strings.NewReplacer("NAME", name, "SECTION", section).Replace(`
[upstream.NAME]
type = "NAME"
SECTION
[stream.NAME]
kind    = "auth"
domains = ["NAME.example.com"]
route   = ["NAME"]
egress  = "auth"
dkim    = { selector = "gp1", key_file = "auth.pem" }
[hook.NAME]
adapter = "native"
client  = "ways"
stream  = "NAME"
from    = "no-reply@NAME.example.com"
recipient_limit = "none"
client_limit    = "none"
network_limit   = "none"
`))
	}
	w.write("ways.token", "a-token-for-every-way-there-is\n")
	w.configure("clients = [\"web\", ", "clients = [\"ways\", \"web\", ")
	w.addConfig("[client.ways]\nnetworks = [\"127.0.0.0/24\"]\ntoken_files = [\"ways.token\"]\nstreams = [\"" + strings.Join(types, "\", \"") + "\"]\n")
	return w
}

// order orders a mail through a type of upstream.
func (w *ways) order(through, kind, locale, to string) httpAnswer {
	w.t.Helper()
	return w.mustPost("/hooks/"+through, jsonArg(w.t, object{"to": to, "type": kind, "locale": locale, "variables": sampleVariables}), "Authorization", "Bearer a-token-for-every-way-there-is")
}

var sampleVariables = map[string]any{"code": "607596", "link": "https://login.example.com/?a=1&b=2", "organization": map[string]any{"name": "Ácme <& co>"}}

// form reads a multipart form.
func form(t *testing.T, r upstreamtest.Request) *multipart.Form {
	t.Helper()
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := multipart.NewReader(bytes.NewReader(r.Body), params["boundary"]).ReadForm(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// readRequest reads what a service of some type is asked to deliver.
func readRequest(t *testing.T, through string, r upstreamtest.Request) readMail {
	t.Helper()
	var b struct {
		Content          json.RawMessage // of SES and SendGrid
		Destination      struct{ ToAddresses []string }
		Personalizations []struct{ To []struct{ Email string } }
		Subject          string // of SendGrid and Postmark
		To               string
		TextBody         string
		HTMLBody         string `json:"HtmlBody"`
	}
	switch through {
	case "webhook":
		m := readArrival(t, arrival{raw: r.Body})
		m.to = r.Header.Get("X-Gatepost-To")
		return m
	case "mailgun":
		f := form(t, r)
		file, err := f.File["message"][0].Open()
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		raw, err := io.ReadAll(file)
		if err != nil {
			t.Fatal(err)
		}
		m := readArrival(t, arrival{raw: raw})
		m.to = f.Value["to"][0]
		return m
	case "aliyun":
		v, err := url.ParseQuery(string(r.Body))
		if err != nil {
			t.Fatal(err)
		}
		return readMail{subject: v.Get("Subject"), to: v.Get("ToAddress"), text: v.Get("TextBody"), html: v.Get("HtmlBody")}
	}
	if err := json.Unmarshal(r.Body, &b); err != nil {
		t.Fatal(err)
	}
	switch through {
	case "ses":
		var content struct{ Raw struct{ Data []byte } }
		if err := json.Unmarshal(b.Content, &content); err != nil {
			t.Fatal(err)
		}
		m := readArrival(t, arrival{raw: content.Raw.Data})
		m.to = b.Destination.ToAddresses[0]
		return m
	case "sendgrid":
		m := readMail{subject: b.Subject, to: b.Personalizations[0].To[0].Email}
		var content []struct{ Type, Value string }
		if err := json.Unmarshal(b.Content, &content); err != nil {
			t.Fatal(err)
		}
		for _, c := range content {
			if c.Type == "text/html" {
				m.html = c.Value
			} else {
				m.text = c.Value
			}
		}
		return m
	}
	return readMail{subject: b.Subject, to: b.To, text: b.TextBody, html: b.HTMLBody}
}

// arrived returns what came through a type of upstream, by recipient.
func (w *ways) arrived(through string, n int) map[string]readMail {
	w.t.Helper()
	mails := map[string]readMail{}
	if through == "smtp" {
		for _, a := range w.auth.wait(n, 20*time.Second) {
			mails[a.to[0]] = readArrival(w.t, a)
		}
		return mails
	}
	for _, r := range w.services[through].Wait(n) {
		if r.Method == http.MethodPost {
			m := readRequest(w.t, through, r)
			mails[m.to] = m
		}
	}
	return mails
}

// lines is text without what an encoding may do to the ends of lines.
func lines(text string) string {
	return strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
}

// Every type of mail in every language that is built in, through every type of upstream: the service is asked to deliver the
// subject and both parts, word for word. None of this is refused by a rule of docs/upstreams.md.
func TestEveryTemplateGoesThroughEveryTypeOfUpstream(t *testing.T) {
	t.Parallel()
	w := newWays(t, "", slices.Collect(maps.Keys(wayTypes))...)
	w.start()
	templates, err := compose.Load(config.DefaultTemplates(), nil)
	if err != nil {
		t.Fatal(err)
	}
	all := templates.List()
	if len(all) != 9*8 {
		t.Fatalf("there are %d templates, want 9 types in 8 languages", len(all))
	}
	to := func(l compose.Listed) string { return l.Type + "-" + l.Locale + "@example.net" }
	var through sync.WaitGroup
	for name := range wayTypes {
		through.Go(func() {
			for _, l := range all {
				if a := w.order(name, l.Type, l.Locale, to(l)); a.status != 200 {
					t.Errorf("%s in %s through %s: %d %s", l.Type, l.Locale, name, a.status, a.body)
				}
			}
		})
	}
	through.Wait()
	if t.Failed() {
		return
	}
	arrived := map[string]map[string]readMail{}
	for name := range wayTypes {
		arrived[name] = w.arrived(name, len(all))
	}
	for _, l := range all {
		want, err := templates.Render(compose.Request{Type: l.Type, Locales: []language.Tag{language.Make(l.Locale)}, Variables: sampleVariables,
			From: "no-reply@example.com", To: "ann@example.net", MessageID: "1@example.com"})
		if err != nil {
			t.Fatal(err)
		}
		for name := range wayTypes {
			got, ok := arrived[name][to(l)]
			if !ok || got.subject != want.Subject || lines(got.text) != lines(want.Text) || lines(got.html) != lines(want.HTML) {
				t.Errorf("%s in %s through %s came as %q\n%s\n%.200s\nwant %q\n%s\n%.200s", l.Type, l.Locale, name, got.subject, got.text, got.html, want.Subject, want.Text, want.HTML)
			}
		}
	}
}

// providedRequest is what a service that keeps templates was asked to make.
type providedRequest struct {
	template  string
	variables map[string]any
}

func readProvided(t *testing.T, through string, r upstreamtest.Request) (p providedRequest) {
	t.Helper()
	variables := []byte(nil)
	if through == "mailgun" {
		f := form(t, r)
		if len(f.Value["template"]) != 1 {
			return p
		}
		p.template, variables = f.Value["template"][0], []byte(f.Value["t:variables"][0])
	} else {
		var b struct {
			TemplateAlias    string
			TemplateModel    json.RawMessage
			TemplateID       string `json:"template_id"`
			Personalizations []struct {
				Data json.RawMessage `json:"dynamic_template_data"`
			}
			Content json.RawMessage
		}
		if err := json.Unmarshal(r.Body, &b); err != nil {
			t.Fatal(err)
		}
		switch {
		case b.TemplateAlias != "":
			p.template, variables = b.TemplateAlias, b.TemplateModel
		case b.TemplateID != "":
			p.template, variables = b.TemplateID, b.Personalizations[0].Data
		case through == "ses":
			var c struct {
				Template struct{ TemplateName, TemplateData string }
			}
			if err := json.Unmarshal(b.Content, &c); err != nil {
				t.Fatal(err)
			}
			p.template, variables = c.Template.TemplateName, []byte(c.Template.TemplateData)
		}
	}
	if p.template == "" {
		return p
	}
	if err := json.Unmarshal(variables, &p.variables); err != nil {
		t.Fatalf("%v: %s", err, variables)
	}
	return p
}

// newKeepers makes ways through all types whose services keep templates, and has sign-in mail in English made of them.
func newKeepers(t *testing.T) *ways {
	t.Helper()
	w := newWays(t, "dkim = \"none\"", keepers...)
	var about strings.Builder
	for _, name := range keepers {
		fmt.Fprintf(&about, "[upstream.%s]\ntemplate = \"d-sign-in\"\nvariables = { greeting = \"Hi {{ organization.name }}\" }\n", name)
	}
	if err := os.MkdirAll(filepath.Join(w.dir, "templates", "SignIn"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.write("templates/SignIn/en.toml", about.String())
	w.addConfig("[templates]\ndir = \"templates\"\n")
	return w
}

func TestServicesThatKeepATemplateAreAskedForItAndOthersSendTheLocalOne(t *testing.T) {
	t.Parallel()
	w := newKeepers(t)
	w.start()
	for _, name := range keepers {
		for _, locale := range []string{"en", "ja"} {
			if a := w.order(name, "SignIn", locale, locale+"@example.net"); a.status != 200 {
				t.Fatalf("through %s: %d %s", name, a.status, a.body)
			}
		}
		requests := w.services[name].Wait(2)
		requests = slices.DeleteFunc(requests, func(r upstreamtest.Request) bool { return r.Method != http.MethodPost })
		p := readProvided(t, name, requests[0])
		if p.template != "d-sign-in" || p.variables["code"] != "607596" || p.variables["locale"] != "en" || p.variables["greeting"] != "Hi Ácme <& co>" {
			t.Errorf("%s is asked for %+v", name, p)
		}
		if p := readProvided(t, name, requests[1]); p.template != "" {
			t.Errorf("%s is asked for %+v in Japanese, of which it keeps no template", name, p)
		} else if m := readRequest(t, name, requests[1]); !strings.Contains(m.text, "607596") || !inLanguage(m.subject, "ja") {
			t.Errorf("%s is asked for %+v in Japanese", name, m)
		}
	}
	w.waitEmpty(5 * time.Second)
}

func TestATemplateThatAServiceHasLostCostsNoCodeAndIsAnAlarm(t *testing.T) {
	t.Parallel()
	w := newKeepers(t)
	w.start()
	for _, name := range keepers {
		w.services[name].Reply(map[string]upstreamtest.Reply{
			"mailgun":  {Status: 400, Body: `{"message":"template d-sign-in not found"}`},
			"postmark": {Status: 422, Body: `{"ErrorCode":1101,"Message":"The Template's 'Alias' associated with this request is not valid or was not found."}`},
			"sendgrid": {Status: 400, Body: `{"errors":[{"message":"The template_id must be a valid GUID","field":"template_id"}]}`},
			"ses":      {Status: 404, Body: `{"message":"Template d-sign-in does not exist"}`, Header: map[string]string{"X-Amzn-Errortype": "NotFoundException"}},
		}[name])
		a := w.order(name, "SignIn", "en", "ann@example.net")
		requests := slices.DeleteFunc(w.services[name].Wait(2), func(r upstreamtest.Request) bool { return r.Method != http.MethodPost })
		if m := readRequest(t, name, requests[len(requests)-1]); a.status != 200 || !strings.Contains(m.text, "607596") || !strings.Contains(m.html, "607596") {
			t.Errorf("%s: %d, and was sent %+v", name, a.status, m)
		}
		w.daemon.says(5*time.Second, "level=ERROR", a.id(), "upstream="+name, "d-sign-in")
	}
	if strings.Contains(w.daemon.log.String(), "607596") {
		t.Error("the code is in the log")
	}
}

func TestAQueuedMailWithATemplateOutlivesAKillAndShowsNobodyItsVariables(t *testing.T) {
	t.Parallel()
	w := newKeepers(t)
	for _, name := range keepers {
		w.services[name].Stop()
	}
	w.start()
	ids := map[string]string{}
	for _, name := range keepers {
		ids[name] = w.order(name, "SignIn", "en", "ann@example.net").id()
	}
	for _, args := range [][]string{{"queue", "list", "--json"}, {"queue", "show", ids["ses"]}, {"trace", ids["ses"], "--json"}} {
		if out := w.run(args...).stdout; !strings.Contains(out, ids["ses"]) || strings.Contains(out, "607596") || strings.Contains(out, "cme") {
			t.Errorf("%q shows variables, or nothing: %s", args, out)
		}
	}
	w.write("templates/SignIn/en.toml", "") // what is queued keeps the template that it was accepted with
	w.daemon.kill()
	w.start()
	for _, name := range keepers {
		w.services[name].Start()
	}
	for _, name := range keepers {
		requests := slices.DeleteFunc(w.services[name].Wait(1), func(r upstreamtest.Request) bool { return r.Method != http.MethodPost })
		if p := readProvided(t, name, requests[0]); p.template != "d-sign-in" || p.variables["code"] != "607596" {
			t.Errorf("%s is asked for %+v", name, p)
		}
	}
	w.waitEmpty(15 * time.Second)
	if strings.Contains(w.daemon.log.String(), "607596") {
		t.Error("the code is in the log")
	}
}
