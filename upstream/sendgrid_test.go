package upstream_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

const sendgridKey = "SG.secret"

// sendgridHost answers as SendGrid does, to requests that it would take.
func sendgridHost(r upstreamtest.Request) upstreamtest.Reply {
	if r.Header.Get("Authorization") != "Bearer "+sendgridKey {
		return sendgridSays(401, "", "The provided authorization grant is invalid, expired, or revoked")
	}
	if r.Method == "GET" && r.Path == "/v3/scopes" {
		return upstreamtest.Reply{Body: `{"scopes":["mail.send","sender_verification_eligible"]}`}
	}
	if r.Method != "POST" || r.Path != "/v3/mail/send" {
		return sendgridSays(404, "", "not found")
	}
	if field, words := sendgridWrong(r.Body); words != "" {
		return sendgridSays(400, field, words)
	}
	return upstreamtest.Reply{Status: 202, Header: map[string]string{"X-Message-Id": "nOJMEpIuLB"}}
}

func sendgridSays(status int, field, words string) upstreamtest.Reply {
	if field == "" {
		return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"errors":[{"field":null,"message":%q}]}`, words)}
	}
	return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"errors":[{"field":%q,"message":%q,"help":null}]}`, field, words)}
}

// sendgridBody is what the service reads of a request.
type sendgridBody struct {
	Personalizations []struct {
		To, Cc, Bcc []struct{ Email, Name string }
		CustomArgs  map[string]string `json:"custom_args"`
	}
	From         struct{ Email, Name string }
	ReplyTo      *struct{ Email, Name string }  `json:"reply_to"`
	ReplyToList  []struct{ Email, Name string } `json:"reply_to_list"`
	Subject      string
	Content      []struct{ Type, Value string }
	Attachments  []sendgridAttachment
	Headers      map[string]string
	Categories   []string
	IPPoolName   string                      `json:"ip_pool_name"`
	MailSettings map[string]map[string]bool  `json:"mail_settings"`
	Tracking     *map[string]map[string]bool `json:"tracking_settings"`
}

type sendgridAttachment struct {
	Content                     []byte
	Type, Filename, Disposition string
	ContentID                   string `json:"content_id"`
}

// sendgridWrong says what of a request the service would not take.
func sendgridWrong(body []byte) (field, words string) {
	var b sendgridBody
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return "body", err.Error()
	}
	seen := map[string]bool{}
	for _, p := range b.Personalizations {
		for _, to := range slices.Concat(p.To, p.Cc, p.Bcc) {
			if seen[strings.ToLower(to.Email)] {
				return "personalizations", "Each unique email address in the personalizations array should only be included once."
			}
			seen[strings.ToLower(to.Email)] = true
		}
		if len(p.To) == 0 {
			return "personalizations.0.to", "The to array is required."
		}
	}
	order := map[string]int{"text/plain": 1, "text/html": 2}
	last := 0
	for i, c := range b.Content {
		rank := order[c.Type]
		if rank == 0 {
			rank = 3
		}
		if c.Value == "" || rank < last {
			return fmt.Sprintf("content.%d", i), "The content value must be a string at least one character in length."
		}
		last = rank
	}
	for name := range b.Headers {
		if slices.Contains([]string{"x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "content-transfer-encoding", "to", "from", "subject", "reply-to", "cc", "bcc"}, strings.ToLower(name)) {
			return "headers." + name, "is a reserved header"
		}
	}
	for i, a := range b.Attachments {
		if len(a.Content) == 0 || a.Filename == "" || strings.ContainsAny(a.Filename+a.Type, ";\r\n") || a.Disposition == "inline" && a.ContentID == "" {
			return fmt.Sprintf("attachments.%d", i), "The attachment is not valid."
		}
	}
	if len(b.Content) == 0 || b.Subject == "" || b.From.Email == "" || b.ReplyTo != nil && b.ReplyToList != nil || len(b.Personalizations) == 0 {
		return "subject", "something is missing"
	}
	return "", ""
}

func sendgridConfig(t *testing.T, s *upstreamtest.Service) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "sg", Type: "sendgrid", Endpoint: s.URL(), TLSCAFile: s.CAFile(), Region: "global",
		APIKey: secretFile(t, sendgridKey), Connections: 4, DKIM: "none"}
}

func sendgridMails(t *testing.T, s *upstreamtest.Service) (mails []upstreamtest.Mail) {
	t.Helper()
	for _, r := range s.Requests() {
		var b sendgridBody
		if err := json.Unmarshal(r.Body, &b); err != nil {
			t.Fatal(err)
		}
		m := upstreamtest.Mail{Peer: r.Peer, Data: []byte(b.Content[0].Value), At: r.At}
		for _, to := range b.Personalizations[0].To {
			m.To = append(m.To, to.Email)
		}
		mails = append(mails, m)
	}
	return mails
}

var sendgridMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     sendgridSays(418, "", "a teapot"),
	{message.Temporary, message.ScopeUpstream}:    sendgridSays(500, "", "internal server error"),
	{message.Permanent, message.ScopeRecipient}:   sendgridSays(400, "personalizations.0.to.0.email", "Does not contain a valid address."),
	{message.Permanent, message.ScopeMessage}:     sendgridSays(400, "content.0.value", "The content value must be a string at least one character in length."),
	{message.Unauthorised, message.ScopeDomain}:   sendgridSays(403, "from", "The from address does not match a verified Sender Identity."),
	{message.Throttled, message.ScopeUpstream}:    sendgridSays(429, "", "too many requests"),
	{message.Unauthorised, message.ScopeUpstream}: sendgridSays(401, "", "The provided authorization grant is invalid, expired, or revoked"),
	{message.Unknown, message.ScopeUpstream}:      {How: upstreamtest.Drop},
}

func TestSendGridKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.ServiceOptions{"over HTTP/2": {}, "over HTTP/1.1": {HTTP1: true}} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, o, sendgridHost)
				c := sendgridConfig(t, s)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: func() []upstreamtest.Mail { return sendgridMails(t, s) }, Answer: serviceAnswers(s, sendgridMeanings), Alone: true, TextOnly: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					MaxSize: 30 << 20, Peers: s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}

func TestSendGridRequestsStayAsTheyAre(t *testing.T) {
	for name, tt := range map[string]struct {
		kind   message.Kind
		mail   string
		to     []string
		change func(c *config.Upstream)
	}{
		"sendgrid-text": {message.Auth, signInMail, []string{"ann@example.org"}, func(*config.Upstream) {}},
		"sendgrid-picture": {message.Auth, picture, []string{"bob@example.org"}, func(c *config.Upstream) {
			c.Region, c.IPPool, c.Categories, c.Tracking = "eu", "auth", []string{"sign-in"}, "on"
		}},
		"sendgrid-news": {message.Marketing, strings.Replace(picture, "Reply-To: ", "Reply-To: =?utf-8?q?H=C3=A9?= <a@example.com>, ", 1),
			[]string{"bob@example.org", "ann@example.org", "blind@example.org"}, func(c *config.Upstream) { c.Tracking = "on" }},
		"sendgrid-invitation": {message.Marketing, crlf("From: a@example.com", "To: ann@example.org", "Subject: meet", "Content-Type: multipart/alternative; boundary=b", "",
			"--b", "", "at noon", "--b", "Content-Type: text/calendar; charset=utf-8; method=REQUEST", "", "BEGIN:VCALENDAR", "--b--"), []string{"ann@example.org"}, func(c *config.Upstream) {
			c.Sandbox, c.Tracking = true, "off"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
			c := sendgridConfig(t, s)
			tt.change(c)
			e := signIn(tt.to...)
			e.Kind = tt.kind
			for _, v := range handOver(t, open(t, c), e, tt.mail) {
				if v.Class != message.Accepted || v.ProviderID != "nOJMEpIuLB" || v.Alarm != "" {
					t.Fatalf("verdict %+v, want accepted with the service's id", v)
				}
			}
			upstreamtest.CheckRequest(t, name, upstream.SendgridEndpoint(c.Region), s.Wait(1)[0])
		})
	}
}

func TestAuthMailThroughSendGridIsNeverTrackedNorHeldBackByAnUnsubscribe(t *testing.T) {
	off := map[string]any{"enable": false}
	for _, tracking := range []string{"", "on", "off"} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
		c := sendgridConfig(t, s)
		c.Tracking = tracking
		handOver(t, open(t, c), signIn("ann@example.org"), signInMail)
		body := s.Wait(1)[0].Body
		wantField(t, body, map[string]any{"click_tracking": map[string]any{"enable": false, "enable_text": false}, "open_tracking": off, "subscription_tracking": off, "ganalytics": off}, "tracking_settings")
		wantField(t, body, map[string]any{"bypass_unsubscribe_management": map[string]any{"enable": true}}, "mail_settings")
	}
	for tracking, want := range map[string]any{"": nil, "on": true, "off": false} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
		c := sendgridConfig(t, s)
		c.Tracking = tracking
		e := signIn("ann@example.org")
		e.Kind = message.Marketing
		handOver(t, open(t, c), e, signInMail)
		body := s.Wait(1)[0].Body
		wantField(t, body, want, "tracking_settings", "click_tracking", "enable")
		wantField(t, body, nil, "mail_settings", "bypass_unsubscribe_management")
	}
}

func TestWhatSendGridAnswersMeans(t *testing.T) {
	reset := fmt.Sprint(time.Now().Add(20 * time.Second).Unix())
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  meaning
		least time.Duration // of RetryAfter
		alarm bool
	}{
		"accepted":                               {upstreamtest.Reply{Status: 202, Header: map[string]string{"X-Message-Id": "x"}}, meaning{message.Accepted, ""}, 0, false},
		"accepted without an id":                 {upstreamtest.Reply{Status: 202}, meaning{message.Accepted, ""}, 0, true},
		"accepted by a web page":                 {upstreamtest.Reply{Status: 202, Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, meaning{message.Unknown, message.ScopeUpstream}, 0, false},
		"looked at, and sandbox is off":          {upstreamtest.Reply{Status: 200}, meaning{message.Unknown, message.ScopeUpstream}, 0, true},
		"credits used up is no wrong key":        {sendgridSays(401, "", "Maximum credits exceeded"), meaning{message.Throttled, message.ScopeUpstream}, 15 * time.Minute, true},
		"no permission":                          {sendgridSays(403, "", "access forbidden"), meaning{message.Unauthorised, message.ScopeUpstream}, 0, false},
		"a field of the From":                    {sendgridSays(403, "from.email", "does not match"), meaning{message.Unauthorised, message.ScopeDomain}, 0, false},
		"an address of somebody else":            {sendgridSays(400, "personalizations.0.cc.0.email", "invalid"), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"a field that cannot be read":            {sendgridSays(400, "personalizations.0.to.x", "invalid"), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"a 400 without words":                    {upstreamtest.Reply{Status: 400, Body: "{}"}, meaning{message.Temporary, message.ScopeMessage}, 0, true},
		"a typing error in ip_pool":              {sendgridSays(400, "ip_pool_name", "does not exist"), meaning{message.Unauthorised, message.ScopeUpstream}, 0, true},
		"a category that is not taken":           {sendgridSays(400, "categories.0", "is not valid"), meaning{message.Unauthorised, message.ScopeUpstream}, 0, true},
		"a wrong endpoint bounces nothing":       {sendgridSays(404, "", "not found"), meaning{message.Temporary, message.ScopeMessage}, 0, true},
		"invalid UTF-8":                          {sendgridSays(415, "", "Invalid UTF8 in request"), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"too big":                                {sendgridSays(413, "", "content too large"), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"throttled until a time":                 {upstreamtest.Reply{Status: 429, Body: "{}", Header: map[string]string{"X-RateLimit-Reset": reset}}, meaning{message.Throttled, message.ScopeUpstream}, 15 * time.Second, false},
		"throttled for a time":                   {upstreamtest.Reply{Status: 429, Header: map[string]string{"Retry-After": "7", "X-RateLimit-Reset": "soon"}}, meaning{message.Throttled, message.ScopeUpstream}, 7 * time.Second, false},
		"a web page from a proxy is no bad mail": {upstreamtest.Reply{Status: 502, Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, meaning{message.Temporary, message.ScopeUpstream}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
			s.Reply(tt.reply)
			v := handOver(t, open(t, sendgridConfig(t, s)), signIn("ann@example.org"), signInMail)[0]
			if v.Class != tt.want.Class || v.Class != message.Accepted && v.Scope != tt.want.Scope || (v.Alarm != "") != tt.alarm || v.RetryAfter < tt.least || v.RetryAfter > time.Hour {
				t.Errorf("verdict %+v, want %+v, alarm %v, %v or more", v, tt.want, tt.alarm, tt.least)
			}
		})
	}
}

func TestARefusedRecipientOfManyAtSendGridLeavesTheOthersTheirTurn(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
	u := open(t, sendgridConfig(t, s))
	e := signIn("blind@example.org", "eve@example.org", "ann@example.org", "bob@example.org")
	e.Kind = message.Marketing
	for at, want := range map[string]int{"to.0": 2, "cc.1": 3, "cc.0": 1, "bcc.0": 0} {
		s.Reply(sendgridSays(400, "personalizations.0."+at+".email", "Does not contain a valid address."))
		for i, v := range handOver(t, u, e, picture) {
			class := message.Temporary
			if i == want {
				class = message.Permanent
			}
			if v.Class != class || v.Scope != message.ScopeRecipient {
				t.Errorf("%s refused: recipient %d has %+v, want %s", at, i, v, class)
			}
		}
	}
}

func TestWhatSendGridCannotExpressIsRefusedBeforeItIsAsked(t *testing.T) {
	const head = "From: a@auth.example.com\r\nSubject: x\r\n"
	for name, mail := range map[string]string{
		"no text":        head + "\r\n \r\n",
		"no subject":     "From: a@auth.example.com\r\n\r\nx\r\n",
		"a field twice":  head + "X-A: 1\r\nx-a: 2\r\n\r\nx\r\n",
		"an empty file":  head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\nContent-Type: image/png\r\n\r\n\r\n--b--\r\n",
		"a signed mail":  head + "Content-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n",
		"only a picture": head + "Content-Type: image/png\r\n\r\nx\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
			u := open(t, sendgridConfig(t, s))
			v := handOver(t, u, signIn("ann@example.org"), mail)[0]
			if v.Class != message.Permanent || v.Scope != message.ScopeMessage || v.Enhanced != "5.6.3" || len(s.Requests()) != 0 {
				t.Errorf("verdict %+v after %d requests, want 5.6.3 about the message after none", v, len(s.Requests()))
			}
			if err := u.(upstream.Carrier).Carries(&message.Message{Raw: message.Raw(mail)}); !isRefusal(err) {
				t.Errorf("Carries: %v, want a refusal", err)
			}
		})
	}
}

func TestSendGridGetsNamesAndFilesItCanRead(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
	mail := crlf(`From: "A, B" <a@auth.example.com>`, `To: "C, \"D\"" <ann@example.org>`, "Subject: x", "Reply-To: r@example.com, R@example.com",
		"Content-Type: multipart/mixed; boundary=b", "", "--b", "", "x",
		"--b", "Content-Type: image/png", "Content-Disposition: attachment; filename=\"a;b.png\"", "", "PNG", "--b--")
	handOver(t, open(t, sendgridConfig(t, s)), signIn("ann@example.org"), mail)
	var b sendgridBody
	if err := json.Unmarshal(s.Wait(1)[0].Body, &b); err != nil {
		t.Fatal(err)
	}
	if b.From.Name != "A, B" || b.Personalizations[0].To[0].Name != `"C, \"D\""` || b.Attachments[0].Filename != "a_b.png" || b.ReplyTo == nil || b.ReplyToList != nil {
		t.Errorf("got %+v", b)
	}
}

func TestASandboxAtSendGridCaptures(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sendgridHost)
	c := sendgridConfig(t, s)
	if open(t, c).Traits().Captures {
		t.Error("mail is captured without a sandbox")
	}
	c.Sandbox = true
	u := open(t, c)
	s.Reply(upstreamtest.Reply{Status: 200, Body: ""})
	v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]
	if v.Class != message.Accepted || v.Alarm != "" || !u.Traits().Captures {
		t.Errorf("verdict %+v, captured: %v", v, u.Traits().Captures)
	}
	wantField(t, s.Wait(1)[0].Body, true, "mail_settings", "sandbox_mode", "enable")
}

func TestCheckOfSendGrid(t *testing.T) {
	m := mappedTypes[0]
	a, err := checkAccount(t, m, upstreamtest.Reply{Body: `{"scopes":["mail.send"]}`}, nil)
	if err != nil || len(a.Traps) != 0 || a.Local != pin.String() {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err = checkAccount(t, m, upstreamtest.Reply{Body: `{"scopes":["mail.send"]}`}, func(c *config.Upstream) { c.Sandbox = true }); err != nil || len(a.Traps) != 1 {
		t.Errorf("in the sandbox: %+v, %v", a, err)
	}
	if _, err = checkAccount(t, m, sendgridSays(403, "", "access forbidden"), nil); !errors.Is(err, upstream.ErrUnproven) {
		t.Errorf("a key that may not read: %v", err)
	}
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  message.Class
	}{
		"a wrong key":            {sendgridSays(401, "", "authorization required"), message.Unauthorised},
		"a key that only reads":  {upstreamtest.Reply{Body: `{"scopes":["stats.read"]}`}, message.Unauthorised},
		"a web page":             {upstreamtest.Reply{Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, message.Temporary},
		"an empty answer":        {upstreamtest.Reply{}, message.Temporary},
		"a service that is down": {upstreamtest.Reply{Status: 503}, message.Temporary},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := checkAccount(t, m, tt.reply, nil)
			wantClass(t, err, tt.want)
		})
	}
}
