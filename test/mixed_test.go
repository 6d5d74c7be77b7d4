package test

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/upstream/upstreamtest"
)

// What an upstream of a type needs beside its endpoint, and what its service says of mail that it takes.
var (
	typeLines = map[string]string{
		"ses":      viaSES,
		"mailgun":  "type = \"mailgun\"\ndomain = \"auth.example.com\"\napi_key_file = \"key\"",
		"sendgrid": "type = \"sendgrid\"\napi_key_file = \"key\"",
		"postmark": "type = \"postmark\"\nserver_token_file = \"key\"",
		"aliyun":   "type = \"aliyun\"\naccount_name = \"no-reply@auth.example.com\"\naccess_key_id_file = \"key\"\naccess_key_secret_file = \"secret\"",
	}
	typeTakes = map[string]upstreamtest.Reply{
		"ses":      {Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0000"}`},
		"postmark": {Body: `{"ErrorCode":0,"Message":"OK","MessageID":"b7bc2f4a-e38e-4336-af7d-e6c392c2f817"}`},
	}
)

// begins makes a site whose auth mail begins at an upstream called first, whose section has lines, and goes to those
// called next where that fails.
func begins(t *testing.T, lines string, next ...string) *site {
	t.Helper()
	s := newSite(t)
	s.program = plain // seconds are measured
	s.write("key", "AKIDEXAMPLE\n")
	s.write("secret", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n")
	s.configure(`route   = ["sink"]`, `route   = ["`+strings.Join(append([]string{"first"}, next...), `", "`)+`"]`)
	s.addUpstream("first", lines)
	return s
}

func (s *site) addUpstream(name, lines string) {
	s.t.Helper()
	s.write("gatepost.toml", s.read("gatepost.toml")+"[upstream."+name+"]\n"+lines+"\n")
}

// typeAt returns the section of an upstream of a type at url, whose certificate ca vouches for; "" for none.
func typeAt(kind, url, ca string) string {
	lines := typeLines[kind] + "\nendpoint = \"" + url + "\"\n"
	if ca != "" {
		lines += "tls_ca_file = \"" + ca + "\"\n"
	}
	return lines
}

// newTypeService starts a service of a type that answers all mail so.
func newTypeService(t *testing.T, kind string, reply upstreamtest.Reply) (s *upstreamtest.Service, lines string) {
	t.Helper()
	s = upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return reply })
	return s, typeAt(kind, s.URL(), s.CAFile())
}

// silentAddress returns an address where connections are taken and nothing is ever said.
func silentAddress(t *testing.T) string {
	t.Helper()
	l := listen(t, freeAddress(t))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	return l.Addr().String()
}

func TestACodeLeavesInTimeAndOnceWhateverTypeItBeginsAtAndWhateverIsWrongThere(t *testing.T) {
	t.Parallel()
	const answered, silent = time.Second, 2 * time.Second
	page := map[string]string{"Content-Type": "text/html"}
	unreachable := func(kind, addr string) func(*testing.T) string {
		return func(*testing.T) string { return typeAt(kind, "https://"+addr, "") }
	}
	replying := func(kind string, reply upstreamtest.Reply) func(*testing.T) string {
		return func(t *testing.T) string { _, lines := newTypeService(t, kind, reply); return lines }
	}
	for name, tt := range map[string]struct {
		first  func(*testing.T) string
		within time.Duration
	}{
		"ses refuses connections":     {unreachable("ses", freeAddress(t)), answered},
		"mailgun drops SYN":           {unreachable("mailgun", deafAddress(t)), silent},
		"sendgrid never does TLS":     {unreachable("sendgrid", silentAddress(t)), silent},
		"ses refuses the key":         {replying("ses", upstreamtest.Reply{Status: 403, Header: map[string]string{"X-Amzn-Errortype": "UnrecognizedClientException"}, Body: `{"message":"x"}`}), answered},
		"ses throttles":               {replying("ses", upstreamtest.Reply{Status: 429, Header: map[string]string{"X-Amzn-Errortype": "TooManyRequestsException", "Retry-After": "999999999"}, Body: `{"message":"Maximum sending rate exceeded."}`}), answered},
		"ses is in trouble":           {replying("ses", upstreamtest.Reply{Status: 500}), answered},
		"ses has not verified us":     {replying("ses", upstreamtest.Reply{Status: 400, Header: map[string]string{"X-Amzn-Errortype": "MessageRejected"}, Body: `{"message":"Email address is not verified. The following identities failed the check in region EU-CENTRAL-1: no-reply@auth.example.com"}`}), answered},
		"ses has suspended us":        {replying("ses", upstreamtest.Reply{Status: 400, Header: map[string]string{"X-Amzn-Errortype": "AccountSuspendedException"}, Body: `{"message":"x"}`}), answered},
		"sendgrid refuses the key":    {replying("sendgrid", upstreamtest.Reply{Status: 401, Body: `{"errors":[{"message":"authorization required"}]}`}), answered},
		"sendgrid has no credits":     {replying("sendgrid", upstreamtest.Reply{Status: 401, Body: `{"errors":[{"message":"Maximum credits exceeded"}]}`}), answered},
		"postmark refuses the token":  {replying("postmark", upstreamtest.Reply{Status: 401, Body: `{"ErrorCode":10,"Message":"Bad or missing Server API token."}`}), answered},
		"postmark thinks he is gone":  {replying("postmark", upstreamtest.Reply{Status: 422, Body: `{"ErrorCode":406,"Message":"inactive"}`}), answered},
		"aliyun does not know us":     {replying("aliyun", upstreamtest.Reply{Status: 404, Body: `{"Code":"InvalidMailAddress.NotFound","Message":"x"}`}), answered},
		"aliyun throttles":            {replying("aliyun", upstreamtest.Reply{Status: 400, Body: `{"Code":"Throttling.User","Message":"x"}`}), answered},
		"somebody between has a page": {replying("mailgun", upstreamtest.Reply{Status: 503, Body: "<html>", Header: page}), answered},
		"a portal wants a login":      {replying("postmark", upstreamtest.Reply{Status: 302, Header: map[string]string{"Location": "http://192.0.2.1/login"}}), answered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begins(t, tt.first(t), "sink")
			s.start()
			began := time.Now()
			authStream.mustPost(t, s.listen, "a", "111111")
			if took := time.Since(began); took > tt.within {
				t.Errorf("the client was answered after %v", took)
			}
			if took := s.auth.wait(1, 10*time.Second)[0].at.Sub(began); took > tt.within {
				t.Errorf("the code arrived after %v, want %v at most", took, tt.within)
			}
			s.waitEmpty(5 * time.Second)
			wantSigned(t, s.records, authDomain, s.auth.all()[0])
			s.daemon.says(time.Second, "level=ERROR", "upstream=first")
			s.daemon.stop()
			if n := len(s.auth.all()); n != 1 {
				t.Errorf("%d copies arrived", n)
			}
		})
	}
}

func TestACodeWhoseAnswerAnAPINeverGivesGoesToTheNextServiceOnce(t *testing.T) {
	t.Parallel()
	for _, http1 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/1.1 only: %v", http1), func(t *testing.T) {
			t.Parallel()
			hangs := upstreamtest.NewService(t, upstreamtest.ServiceOptions{HTTP1: http1}, func(upstreamtest.Request) upstreamtest.Reply {
				return upstreamtest.Reply{How: upstreamtest.Hang}
			})
			next, lines := newTypeService(t, "postmark", typeTakes["postmark"])
			s := begins(t, typeAt("mailgun", hangs.URL(), hangs.CAFile()), "next")
			s.addUpstream("next", lines)
			s.start()
			began := time.Now()
			id := authStream.mustPost(t, s.listen, "a", "111111")
			if took := time.Since(began); took < 4*time.Second || took > 4500*time.Millisecond {
				t.Errorf("the client was answered after %v, want 4s", took)
			}
			s.waitEmpty(15 * time.Second)
			first, second := hangs.Requests(), next.Requests()
			if len(first) != 1 || len(second) != 1 {
				t.Fatalf("%d copies went to the first and %d to the second, want one each", len(first), len(second))
			}
			if gap := second[0].At.Sub(first[0].At); gap < 9900*time.Millisecond || gap > 11*time.Second {
				t.Errorf("the second copy arrived %v after the first, want 10 to 11 s", gap)
			}
			for _, r := range []upstreamtest.Request{first[0], second[0]} {
				if !bytes.Contains(r.Body, []byte("<a@auth.example.com>")) {
					t.Errorf("a copy has another Message-ID: %s", r.Body)
				}
			}
			var tries []string
			for _, e := range s.trace(id).Events {
				tries = append(tries, e.Kind.String()+" "+e.Upstream+" "+string(e.Data.Class))
			}
			if got := strings.Join(tries, ", "); got != "deferred first unknown, delivered next accepted" {
				t.Errorf("the trace is %q, want both attempts", got)
			}
		})
	}
}

func TestAfterTwoAPIsHaveLostTheirAnswersThereIsAnAlarmAndNoThirdCopy(t *testing.T) {
	t.Parallel()
	first, lines := newTypeService(t, "ses", upstreamtest.Reply{How: upstreamtest.Hang})
	second, more := newTypeService(t, "sendgrid", upstreamtest.Reply{How: upstreamtest.Drop})
	s := begins(t, lines, "next", "sink")
	s.addUpstream("next", more)
	s.configure(`kind    = "auth"`, "kind    = \"auth\"\nanswer_timeout = \"3s\"")
	s.start()
	id := authStream.mustPost(t, s.listen, "a", "111111")
	s.daemon.says(15*time.Second, "message unconfirmed", "level=ERROR", id)
	s.waitEmpty(5 * time.Second)
	time.Sleep(3 * time.Second) // the ladder's first steps
	if a, b, c := len(first.Requests()), len(second.Requests()), len(s.auth.all()); a != 1 || b != 1 || c != 0 {
		t.Errorf("%d, %d and %d copies went out, want one through each of the first two", a, b, c)
	}
}

// TestACodeThatAPageTookGoesOutOnceMore: a portal says 200 to everything, so the code may be lost.
func TestACodeThatAPageTookGoesOutOnceMore(t *testing.T) {
	t.Parallel()
	portal, lines := newTypeService(t, "mailgun", upstreamtest.Reply{Body: "<html>Log in", Header: map[string]string{"Content-Type": "text/html"}})
	s := begins(t, lines, "sink")
	s.start()
	began := time.Now()
	id := authStream.mustPost(t, s.listen, "a", "111111")
	if took := s.auth.wait(1, 5*time.Second)[0].at.Sub(began); took > time.Second {
		t.Errorf("the code arrived after %v", took)
	}
	s.waitEmpty(5 * time.Second)
	if len(portal.Requests()) != 1 || len(s.auth.all()) != 1 || !s.hasEvent(id, event.Delivered) {
		t.Errorf("%d copies went to the portal and %d to the second; %+v", len(portal.Requests()), len(s.auth.all()), s.trace(id).Events)
	}
}

func TestTrafficReturnsToAServiceByItself(t *testing.T) {
	t.Parallel()
	first, lines := newTypeService(t, "ses", typeTakes["ses"])
	s := begins(t, lines, "sink")
	s.start()
	authStream.mustPost(t, s.listen, "before", "111111")
	first.Wait(1)
	first.Stop()
	authStream.mustPost(t, s.listen, "meanwhile", "111111")
	s.auth.wait(1, 5*time.Second)
	first.Start()
	eventually(t, 10*time.Second, "the first upstream works again", func() bool { return !s.status().Lanes[0].Pairs[0].Paused })
	authStream.mustPost(t, s.listen, "after", "111111")
	if first.Wait(2); len(s.auth.all()) != 1 {
		t.Errorf("the second upstream still gets mail: %d", len(s.auth.all()))
	}
	for _, p := range first.Peers() {
		if host, _, _ := net.SplitHostPort(p.String()); host != authEgress {
			t.Errorf("a connection came from %s, want %s", host, authEgress)
		}
	}
}
