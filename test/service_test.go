package test

import (
	"bytes"
	"encoding/json"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/upstream/upstreamtest"
)

// viaService makes a site whose auth mail goes to a service with an API, which usual speaks for. lines are the rest of the
// upstream's section.
func viaService(t *testing.T, usual func(upstreamtest.Request) upstreamtest.Reply, lines string) (*site, *upstreamtest.Service) {
	t.Helper()
	service := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, usual)
	s := newSite(t)
	s.write("key", "AKIDEXAMPLE\n")
	s.write("secret", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY\n")
	s.configure("type    = \"smtp\"\naddress = \""+s.auth.addr+"\"\ntls     = \"none\"\n",
		lines+"\nendpoint = \""+service.URL()+"\"\ntls_ca_file = \""+service.CAFile()+"\"\n")
	return s, service
}

const viaSES = "type = \"ses\"\nregion = \"eu-central-1\"\naccess_key_id_file = \"key\"\nsecret_access_key_file = \"secret\""

// sesService takes mail from whoever has the key.
func sesService(r upstreamtest.Request) upstreamtest.Reply {
	key := upstreamtest.AWSKey{ID: "AKIDEXAMPLE", Secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Region: "eu-central-1", Service: "ses"}
	if err := upstreamtest.VerifySigV4(r, key, time.Now()); err != nil {
		return upstreamtest.Reply{Status: 403, Header: map[string]string{"X-Amzn-Errortype": "InvalidSignatureException"}, Body: `{"message":"?"}`}
	}
	return upstreamtest.Reply{Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0000"}`}
}

// rewritten is what SES makes of a mail: other ids and dates, and the fields of its own.
func rewritten(t *testing.T, r upstreamtest.Request) message.Raw {
	t.Helper()
	var sent struct {
		Content struct{ Raw struct{ Data []byte } }
	}
	if err := json.Unmarshal(r.Body, &sent); err != nil {
		t.Fatal(err)
	}
	raw := string(sent.Content.Raw.Data)
	for field, value := range map[string]string{"Message-ID": "<0107018fe5b7c2d4-aa11bb22-0000@eu-central-1.amazonses.com>", "Date": "Mon, 5 Jan 2026 10:00:00 +0000"} {
		changed := regexp.MustCompile(`(?m)^`+field+`: .*\r$`).ReplaceAllString(raw, field+": "+value+"\r")
		if changed == raw {
			t.Errorf("the mail has no %s to replace", field)
		}
		raw = changed
	}
	return message.Raw("Feedback-ID: 1.eu-central-1.x:AmazonSES\r\nReturn-Path: <0107@eu-central-1.amazonses.com>\r\n" + raw)
}

func TestASignatureSurvivesWhatSESRewritesAndTraceKnowsItsID(t *testing.T) {
	t.Parallel()
	s, service := viaService(t, sesService, viaSES)
	s.start()
	id := authStream.mustPost(t, s.listen, "code", "135790", "DKIM-Signature: v=1; a=rsa-sha256; d=other.example; s=x; h=from; bh=x; b=x")
	mail := rewritten(t, service.Wait(1)[0])
	if n := count(fields(mail), "DKIM-Signature"); n != 1 {
		t.Errorf("the mail has %d signatures, and SES takes one", n)
	}
	wantSigned(t, s.records, authDomain, arrival{raw: mail})
	s.waitEmpty(5 * time.Second)
	delivered := s.event(id, event.Delivered)
	if delivered == nil || delivered.Data.ProviderID != "0107018fe5b7c2d4-aa11bb22-0000" || delivered.Data.Local != authEgress {
		t.Errorf("trace has %+v, want the id that SES gave and the egress", delivered)
	}
	if out := s.run("trace", id).stdout; !strings.Contains(out, "0107018fe5b7c2d4-aa11bb22-0000") {
		t.Errorf("trace does not show the id that SES gave:\n%s", out)
	}
	for _, p := range service.Peers() {
		if p.Addr().String() != authEgress {
			t.Errorf("a connection came from %s, want %s", p.Addr(), authEgress)
		}
	}
}

// event returns the event of a kind that a message has, or nil.
func (s *site) event(id string, kind event.Kind) *event.Event {
	s.t.Helper()
	events := s.trace(id).Events
	i := slices.IndexFunc(events, func(e event.Event) bool { return e.Kind == kind })
	if i < 0 {
		return nil
	}
	return &events[i]
}

func TestARevokedKeyStopsAServiceUntilItsFileIsMendedAndNothingIsLostOrDoubled(t *testing.T) {
	t.Parallel()
	s, service := viaService(t, func(r upstreamtest.Request) upstreamtest.Reply {
		if _, key, _ := (&http.Request{Header: r.Header}).BasicAuth(); key != "key-new" {
			return upstreamtest.Reply{Status: 401, Body: "Forbidden", Header: map[string]string{"Content-Type": "text/plain"}}
		}
		return upstreamtest.Reply{Body: `{"id":"<20260105.1@auth.example.com>","message":"Queued. Thank you."}`}
	}, "type = \"mailgun\"\ndomain = \"auth.example.com\"\napi_key_file = \"key\"")
	s.start()
	authStream.mustPost(t, s.listen, "waits", "135790")
	s.daemon.says(5*time.Second, "paused", "unauthorised")
	if strings.Contains(s.daemon.log.String(), "AKIDEXAMPLE") {
		t.Error("the key is in the log")
	}
	if err := os.WriteFile(s.path("key"), []byte("key-new\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.waitEmpty(5 * time.Second)
	ids := map[string]int{}
	for _, r := range service.Requests() {
		if _, key, _ := (&http.Request{Header: r.Header}).BasicAuth(); key == "key-new" && len(r.Body) > 0 {
			ids[formMail(t, r)]++
		}
	}
	if len(ids) != 1 || ids["<waits@auth.example.com>"] != 1 {
		t.Errorf("Mailgun took %v, want the mail that waited, once", ids)
	}
}

// formMail returns the Message-ID of the mail in a request to Mailgun.
func formMail(t *testing.T, r upstreamtest.Request) string {
	t.Helper()
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
	defer f.Close()
	var raw bytes.Buffer
	if _, err := raw.ReadFrom(f); err != nil {
		t.Fatal(err)
	}
	for field := range message.Fields(message.Raw(raw.Bytes()).Header()) {
		if field.Is("Message-ID") {
			return field.Value()
		}
	}
	return ""
}

func TestAServiceWhoseKeyMayNotReadIsTriedWithOneMailUntilItWorks(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	s, service := viaService(t, func(r upstreamtest.Request) upstreamtest.Reply {
		switch {
		case r.Method == http.MethodGet:
			return upstreamtest.Reply{Status: 403, Header: map[string]string{"X-Amzn-Errortype": "AccessDeniedException"}, Body: `{"message":"not authorized to perform: ses:GetAccount"}`}
		case !well.Load():
			return upstreamtest.Reply{Status: 500, Header: map[string]string{"X-Amzn-Errortype": "InternalFailure"}, Body: `{"message":"?"}`}
		}
		return sesService(r)
	}, viaSES)
	s.start()
	for _, id := range []string{"one", "two", "three"} {
		authStream.mustPost(t, s.listen, id, "135790")
	}
	time.Sleep(3 * time.Second)
	tried := len(service.Requests())
	well.Store(true)
	s.waitEmpty(15 * time.Second)
	if tried > 5 {
		t.Errorf("a service in trouble was sent %d requests in three seconds", tried)
	}
	if all := len(service.Requests()); all != tried+3 {
		t.Errorf("%d requests after it was well again, want one for each mail", all-tried)
	}
}

func TestMailInTestModeIsCapturedAndNeverCalledDelivered(t *testing.T) {
	t.Parallel()
	s, service := viaService(t, func(upstreamtest.Request) upstreamtest.Reply {
		return upstreamtest.Reply{Body: `{"id":"<20260105.1@auth.example.com>","message":"Queued. Thank you."}`}
	}, "type = \"mailgun\"\ndomain = \"auth.example.com\"\napi_key_file = \"key\"\ntest_mode = true")
	s.start()
	s.daemon.says(5*time.Second, "test_mode", "delivers none of it")
	id := authStream.mustPost(t, s.listen, "code", "135790")
	service.Wait(1)
	s.waitEmpty(5 * time.Second)
	if s.event(id, event.Captured) == nil || s.event(id, event.Delivered) != nil {
		t.Errorf("trace has %+v, want captured", s.trace(id).Events)
	}
}

func TestWhenAServiceFailsTheCodeLeavesByTheNextWithinASecondAndOnce(t *testing.T) {
	for name, reply := range map[string]upstreamtest.Reply{
		"the key is revoked":    {Status: 401, Body: "Forbidden"},
		"it throttles":          {Status: 429, Body: `{"message":"limit exceeded, try again after 60 seconds"}`},
		"it is in trouble":      {Status: 500},
		"its gateway is":        {Status: 502, Body: "<html>Bad Gateway</html>", Header: map[string]string{"Content-Type": "text/html"}},
		"it moved":              {Status: 307, Header: map[string]string{"Location": "https://elsewhere.example.com/"}},
		"the domain is unknown": {Status: 404, Body: `{"message":"Domain not found: auth.example.com"}`},
		"it dislikes the mail":  {Status: 400, Body: `{"message":"'message' parameter is not a file"}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return reply })
			s := newSite(t)
			s.write("key", "key-1234\n")
			s.configure(`route   = ["sink"]`, `route   = ["first", "sink"]`)
			s.write("gatepost.toml", s.read("gatepost.toml")+"[upstream.first]\ntype = \"mailgun\"\ndomain = \"auth.example.com\"\napi_key_file = \"key\"\nendpoint = \""+
				service.URL()+"\"\ntls_ca_file = \""+service.CAFile()+"\"\n")
			s.start()
			for _, id := range []string{"one", "two", "three"} {
				began := time.Now()
				authStream.mustPost(t, s.listen, id, "135790")
				if took := time.Since(began); took > time.Second {
					t.Errorf("mail %s took %v", id, took)
				}
			}
			s.auth.wait(3, 5*time.Second)
			for id, copies := range s.auth.copies() {
				if len(copies) != 1 {
					t.Errorf("%s arrived %d times", id, len(copies))
				}
			}
		})
	}
}
