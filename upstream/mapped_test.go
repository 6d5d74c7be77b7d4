package upstream_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/letter/lettertest"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// mappedType is a type of upstream that gets the pieces of a mail as JSON.
type mappedType struct {
	name   string
	host   func(upstreamtest.Request) upstreamtest.Reply
	config func(t *testing.T, s *upstreamtest.Service) *config.Upstream
	unfit  func(l *letter.Letter) bool // what this service takes no mail with
}

var mappedTypes = []mappedType{
	{"sendgrid", sendgridHost, sendgridConfig, func(l *letter.Letter) bool { return !l.HasText() }},
	{"postmark", postmarkHost, postmarkConfig, func(l *letter.Letter) bool {
		return l.Text == "" && l.HTML == "" || slices.ContainsFunc(l.Alternatives, func(a letter.Alternative) bool { return a.Type != "text/calendar" })
	}},
}

// said returns all strings of a JSON body, and what those that are base64 stand for.
func said(t *testing.T, body []byte) (all []string) {
	t.Helper()
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		t.Fatalf("%v: %q", err, body)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			all = append(all, v)
			if b, err := base64.StdEncoding.DecodeString(v); err == nil {
				all = append(all, string(b))
			}
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for _, e := range v {
				walk(e)
			}
		}
	}
	walk(value)
	return all
}

func TestEveryPieceOfAMailIsInItsRequestOrOnTheList(t *testing.T) {
	for _, m := range mappedTypes {
		t.Run(m.name, func(t *testing.T) {
			seed := rand.Uint64()
			r := rand.New(rand.NewPCG(seed, 3))
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{Plain: true}, m.host)
			u := open(t, m.config(t, s))
			taken := 0
			for n := range 300 {
				mail := lettertest.Random(r)
				e := message.Envelope{ID: message.ID(n), Stream: "s", Kind: []message.Kind{message.Auth, message.Marketing}[n%2], To: mail.To}
				before := len(s.Requests())
				vs := handOver(t, u, e, string(mail.Raw))
				requests := s.Requests()[before:]
				carried := u.(upstream.Carrier).Carries(&message.Message{Raw: mail.Raw, Kind: e.Kind})
				l, err := letter.Read(mail.Raw)
				if mail.Unfit != "" || err == nil && m.unfit(l) {
					if vs[0].Class != message.Permanent || vs[0].Scope != message.ScopeMessage || len(requests) != 0 || !isRefusal(carried) {
						t.Fatalf("seed %d: %+v, %v for a mail with %s\n%q", seed, vs, carried, mail.Unfit, mail.Raw)
					}
					continue
				}
				taken++
				if want := map[message.Kind]int{message.Auth: len(mail.To), message.Marketing: 1}[e.Kind]; carried != nil || len(requests) != want {
					t.Fatalf("seed %d: %d requests, verdicts %+v, Carries %v\n%q", seed, len(requests), vs, carried, mail.Raw)
				}
				for i := range vs {
					if vs[i].Class != message.Accepted {
						t.Fatalf("seed %d: %+v\n%q", seed, vs, mail.Raw)
					}
				}
				for _, r := range requests {
					all := said(t, r.Body)
					for _, p := range mail.Pieces {
						if lost := p.What == "field" && letter.Lost(p.Name); p.In(all) == lost && !p.Over {
							t.Fatalf("seed %d: the %s is lost: %v\n%s\n%q", seed, p, !lost, r.Body, mail.Raw)
						}
					}
				}
			}
			if taken < 100 {
				t.Errorf("only %d of 300 mails were taken", taken)
			}
		})
	}
}

func isRefusal(err error) bool {
	e, ok := errors.AsType[*reply.Error](err)
	return ok && !e.Temporary()
}

// crlf joins the lines of a message.
func crlf(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n" }

// picture is a mail with all that mail usually has: texts in two character sets, an image that the HTML shows, an
// attachment, Japanese names.
var picture = crlf(
	"From: =?utf-8?B?56K66KqN?= <no-reply@auth.example.com>",
	`To: "Ann, A." <ann@example.org>`,
	"Cc: Bob <bob@example.org>, eve@example.org",
	"Reply-To: help@auth.example.com",
	"Subject: =?iso-2022-jp?B?GyRCM05HJxsoQg==?=",
	"Message-ID: <1@auth.example.com>",
	"List-Unsubscribe: <https://example.com/u>",
	"Auto-Submitted: auto-generated",
	"Date: Mon, 05 Jan 2026 10:00:00 +0000",
	"MIME-Version: 1.0",
	"Content-Type: multipart/mixed; boundary=m", "",
	"--m", "Content-Type: multipart/related; boundary=r", "",
	"--r", "Content-Type: multipart/alternative; boundary=a", "",
	"--a", "Content-Type: text/plain; charset=iso-2022-jp", "", "\x1b$B%3!<%I\x1b(B 482913",
	"--a", "Content-Type: text/html; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "", `<p>=E3=82=B3=E3=83=BC=E3=83=89 482913 <img src=3D"cid:logo"></p>`, "--a--",
	"--r", "Content-Type: image/png; name=logo.png", "Content-ID: <logo>", "Content-Transfer-Encoding: base64", "", "iVBORw==", "--r--",
	"--m", "Content-Type: application/pdf", "Content-Disposition: attachment; filename*=iso-2022-jp''%1B%24B3N%1B%28B.pdf", "Content-Transfer-Encoding: base64", "", "JVBERg==",
	"--m--")

func TestAPausedServiceIsAskedWhetherItWorksAgain(t *testing.T) {
	for _, m := range mappedTypes {
		t.Run(m.name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, m.host)
			u := open(t, m.config(t, s))
			s.Reply(upstreamtest.Reply{Status: 401, Body: `{}`})
			if v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]; v.Class != message.Unauthorised || v.Scope != message.ScopeUpstream {
				t.Fatalf("verdict %+v, want unauthorised", v)
			}
			before := len(s.All())
			if v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]; v.Class != message.Accepted {
				t.Fatalf("verdict %+v, want accepted", v)
			}
			if all := s.All()[before:]; len(all) < 2 || all[0].Method != "GET" {
				t.Errorf("%d requests, want a look at the account and the mail: %+v", len(all), all)
			}
		})
	}
}

// checkAccount checks the account at a host that answers everything in one way.
func checkAccount(t *testing.T, m mappedType, answer upstreamtest.Reply, change func(*config.Upstream)) (upstream.Account, error) {
	t.Helper()
	m.host = func(upstreamtest.Request) upstreamtest.Reply { return answer }
	return accountOf(t, m, change)
}

// accountOf checks the account at m's host.
func accountOf(t *testing.T, m mappedType, change func(*config.Upstream)) (upstream.Account, error) {
	t.Helper()
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, m.host)
	c := m.config(t, s)
	if change != nil {
		change(c)
	}
	u := open(t, c)
	a, err := u.(upstream.Checker).Check(t.Context())
	for _, r := range s.All() {
		if r.Method != "GET" {
			t.Errorf("a check made the request %s %s", r.Method, r.Path)
		}
		if strings.Contains(r.Path, "secret") {
			t.Errorf("the secret is in the URL %s", r.Path)
		}
	}
	return a, err
}

// wantClass checks that err is *Paused with a verdict of that class about the account.
func wantClass(t *testing.T, err error, class message.Class) {
	t.Helper()
	p, ok := errors.AsType[*upstream.Paused](err)
	if !ok || p.Verdict.Class != class || p.Verdict.Scope != message.ScopeUpstream {
		t.Errorf("Check: %v, want %s about the upstream", err, class)
	}
}

// field returns what stands at a path of names in a JSON body; nil for nothing.
func field(t *testing.T, body []byte, path ...string) any {
	t.Helper()
	var v any
	if err := json.NewDecoder(bytes.NewReader(body)).Decode(&v); err != nil {
		t.Fatal(err)
	}
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[name]
	}
	return v
}

func wantField(t *testing.T, body []byte, want any, path ...string) {
	t.Helper()
	if got := field(t, body, path...); !reflect.DeepEqual(got, want) {
		t.Errorf("%s is %#v, want %#v", strings.Join(path, "."), got, want)
	}
}
