package upstream_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	netmail "net/mail"
	"os"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

const postmarkToken = "1b2c3d-secret"

// postmarkHost answers as Postmark does, to requests that it would take.
func postmarkHost(r upstreamtest.Request) upstreamtest.Reply {
	switch token := r.Header.Get("X-Postmark-Server-Token"); {
	case token == "POSTMARK_API_TEST" && r.Method == "POST":
		return upstreamtest.Reply{Body: `{"ErrorCode":0,"Message":"Test job accepted","MessageID":"0a-test"}`}
	case token != postmarkToken:
		return postmarkSays(401, 10, "The Server Token you provided in the X-Postmark-Server-Token request header was invalid.")
	case r.Method == "GET" && r.Path == "/server":
		return upstreamtest.Reply{Body: `{"ID":1,"Name":"auth","DeliveryType":"Live","TrackOpens":false,"TrackLinks":"None"}`}
	case r.Method == "GET" && r.Path == "/message-streams/outbound":
		return upstreamtest.Reply{Body: `{"ID":"outbound","ServerID":1,"Name":"auth","MessageStreamType":"Transactional","ArchivedAt":null}`}
	case r.Method != "POST" || r.Path != "/email":
		return upstreamtest.Reply{Status: 404}
	}
	if words := postmarkWrong(r.Body); words != "" {
		return postmarkSays(422, 300, words)
	}
	return upstreamtest.Reply{Body: `{"To":"ann@example.org","SubmittedAt":"2026-01-05T10:00:00Z","MessageID":"0a-uuid","ErrorCode":0,"Message":"OK"}`}
}

func postmarkSays(status, code int, words string) upstreamtest.Reply {
	return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"ErrorCode":%d,"Message":%q}`, code, words)}
}

// postmarkBody is what the service reads of a request.
type postmarkBody struct {
	From, To, Cc, Bcc, ReplyTo, Subject, TextBody, HtmlBody, MessageStream, Tag, TrackLinks string
	TrackOpens                                                                              *bool
	Metadata                                                                                map[string]string
	Headers                                                                                 []struct{ Name, Value string }
	Attachments                                                                             []postmarkAttachment
}

type postmarkAttachment struct {
	Name        string
	Content     []byte
	ContentType string
	ContentID   string
}

// postmarkWrong says what of a request the service would not take.
func postmarkWrong(body []byte) string {
	var b postmarkBody
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return err.Error()
	}
	for name, list := range map[string]string{"From": b.From, "To": b.To, "Cc": b.Cc, "Bcc": b.Bcc, "Reply-To": b.ReplyTo} {
		if _, err := netmail.ParseAddressList(list); err != nil && list != "" {
			return "Error parsing '" + name + "': " + err.Error()
		}
	}
	for _, h := range b.Headers {
		for _, own := range []string{"Date", "Reply-To", "From", "To", "Cc", "Bcc", "Subject", "Content-Type", "MIME-Version"} {
			if strings.EqualFold(h.Name, own) {
				return "Header '" + h.Name + "' not allowed."
			}
		}
	}
	for _, a := range b.Attachments {
		if a.Name == "" || a.ContentType == "" || a.ContentID != "" && !strings.HasPrefix(a.ContentID, "cid:") {
			return "Invalid attachment."
		}
	}
	if b.TextBody == "" && b.HtmlBody == "" || b.From == "" || b.To == "" {
		return "Provide either email TextBody or HtmlBody or both."
	}
	return ""
}

func postmarkConfig(t *testing.T, s *upstreamtest.Service) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "pm", Type: "postmark", Endpoint: s.URL(), TLSCAFile: s.CAFile(), ServerToken: secretFile(t, postmarkToken),
		MessageStream: "outbound", KeepID: true, Connections: 4, DKIM: "none"}
}

func postmarkRead(t *testing.T, r upstreamtest.Request) postmarkBody {
	t.Helper()
	var b postmarkBody
	if err := json.Unmarshal(r.Body, &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func postmarkMails(t *testing.T, s *upstreamtest.Service) (mails []upstreamtest.Mail) {
	t.Helper()
	for _, r := range s.Requests() {
		b := postmarkRead(t, r)
		mails = append(mails, upstreamtest.Mail{Peer: r.Peer, To: strings.Split(b.To, ", "), Data: []byte(b.TextBody), At: r.At})
	}
	return mails
}

var postmarkMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     postmarkSays(422, 9999, "something new"),
	{message.Temporary, message.ScopeUpstream}:    postmarkSays(503, 100, "The Postmark API is offline for maintenance."),
	{message.Permanent, message.ScopeRecipient}:   postmarkSays(422, 300, "Error parsing 'To': Illegal email domain 'example' in address 'one@example.net'."),
	{message.Permanent, message.ScopeMessage}:     postmarkSays(422, 411, "Forbidden attachment type."),
	{message.Unauthorised, message.ScopeDomain}:   postmarkSays(422, 400, "The 'From' address you supplied is not a Sender Signature on your account."),
	{message.Throttled, message.ScopeUpstream}:    postmarkSays(429, 429, "Rate limit exceeded."),
	{message.Unauthorised, message.ScopeUpstream}: postmarkSays(401, 10, "The Server Token you provided was invalid."),
	{message.Unknown, message.ScopeUpstream}:      {How: upstreamtest.Drop},
}

func TestPostmarkKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.ServiceOptions{"over HTTP/2": {}, "over HTTP/1.1": {HTTP1: true}} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, o, postmarkHost)
				c := postmarkConfig(t, s)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: func() []upstreamtest.Mail { return postmarkMails(t, s) }, Answer: serviceAnswers(s, postmarkMeanings), Alone: true, TextOnly: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					MaxSize: 10 << 20, Peers: s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}

func TestPostmarkRequestsStayAsTheyAre(t *testing.T) {
	for name, tt := range map[string]struct {
		kind   message.Kind
		mail   string
		to     []string
		change func(c *config.Upstream)
	}{
		"postmark-text": {message.Auth, signInMail, []string{"ann@example.org"}, func(*config.Upstream) {}},
		"postmark-picture": {message.Auth, picture, []string{"bob@example.org"}, func(c *config.Upstream) {
			c.Tag, c.Metadata, c.Tracking = "sign-in", []string{"app=sign-in"}, "on"
		}},
		"postmark-news": {message.Marketing, picture, []string{"bob@example.org", "ann@example.org", "blind@example.org"}, func(c *config.Upstream) {
			c.MessageStream, c.Tracking, c.KeepID = "broadcast", "on", false
		}},
		"postmark-invitation": {message.Marketing, crlf("From: a@example.com", "To: ann@example.org", "Subject: meet", "Content-Type: multipart/alternative; boundary=b", "",
			"--b", "", "at noon", "--b", "Content-Type: text/calendar; charset=utf-8; method=REQUEST", "", "BEGIN:VCALENDAR", "--b--"), []string{"ann@example.org"}, func(*config.Upstream) {}},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
			c := postmarkConfig(t, s)
			tt.change(c)
			e := signIn(tt.to...)
			e.Kind = tt.kind
			for _, v := range handOver(t, open(t, c), e, tt.mail) {
				if v.Class != message.Accepted || v.ProviderID != "0a-uuid" || v.Alarm != "" {
					t.Fatalf("verdict %+v, want accepted with the service's id", v)
				}
			}
			upstreamtest.CheckRequest(t, name, "https://api.postmarkapp.com", s.Wait(1)[0])
		})
	}
}

func TestAuthMailThroughPostmarkIsNeverTracked(t *testing.T) {
	for _, kind := range []message.Kind{message.Auth, message.Marketing} {
		for tracking, want := range map[string]struct{ opens, links any }{"": {nil, nil}, "on": {true, "HtmlAndText"}, "off": {false, "None"}} {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
			c := postmarkConfig(t, s)
			c.Tracking = tracking
			e := signIn("ann@example.org")
			if e.Kind = kind; kind == message.Auth {
				want.opens, want.links = false, "None"
			}
			handOver(t, open(t, c), e, signInMail)
			body := s.Wait(1)[0].Body
			wantField(t, body, want.opens, "TrackOpens")
			wantField(t, body, want.links, "TrackLinks")
		}
	}
}

func TestWhatPostmarkAnswersMeans(t *testing.T) {
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  meaning
		least time.Duration // of RetryAfter
		alarm bool
	}{
		"accepted, later":                    {upstreamtest.Reply{Body: `{"Message":"Message accepted, but delivery may be delayed.","MessageID":"x"}`}, meaning{message.Accepted, ""}, 0, false},
		"accepted without a word":            {upstreamtest.Reply{}, meaning{message.Accepted, ""}, 0, true},
		"accepted by a web page":             {upstreamtest.Reply{Body: "<html>", Header: map[string]string{"Content-Type": "text/html"}}, meaning{message.Unknown, message.ScopeUpstream}, 0, false},
		"an inactive recipient":              {postmarkSays(422, 406, "You tried to send to a recipient that has been marked as inactive."), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"a sender that is not confirmed":     {postmarkSays(422, 401, "The sender is not confirmed."), meaning{message.Unauthorised, message.ScopeDomain}, 0, false},
		"out of credits":                     {postmarkSays(422, 405, "Not allowed to send: you've run out of credits."), meaning{message.Throttled, message.ScopeUpstream}, 15 * time.Minute, true},
		"an account that waits for approval": {postmarkSays(422, 412, "While your account is pending approval …"), meaning{message.Permanent, message.ScopeMessage}, 0, true},
		"an account that may not send":       {postmarkSays(422, 413, "This account may not send."), meaning{message.Unauthorised, message.ScopeUpstream}, 0, false},
		"a stream that does not exist":       {postmarkSays(422, 1235, "The 'MessageStream' provided does not exist on this server."), meaning{message.Unauthorised, message.ScopeUpstream}, 0, false},
		"a bad From":                         {postmarkSays(422, 300, "Invalid 'From' address: 'x'."), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"a bad recipient":                    {postmarkSays(422, 300, "Invalid 'To' address: 'x'."), meaning{message.Permanent, message.ScopeRecipient}, 0, false},
		"a header that is not allowed":       {postmarkSays(422, 300, "Header 'X' not allowed."), meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"a wrong endpoint bounces nothing":   {upstreamtest.Reply{Status: 404}, meaning{message.Temporary, message.ScopeMessage}, 0, true},
		"too big":                            {upstreamtest.Reply{Status: 413}, meaning{message.Permanent, message.ScopeMessage}, 0, false},
		"down":                               {upstreamtest.Reply{Status: 500, Body: "{"}, meaning{message.Temporary, message.ScopeUpstream}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
			s.Reply(tt.reply)
			v := handOver(t, open(t, postmarkConfig(t, s)), signIn("ann@example.org"), signInMail)[0]
			if v.Class != tt.want.Class || v.Class != message.Accepted && v.Scope != tt.want.Scope || (v.Alarm != "") != tt.alarm || v.RetryAfter < tt.least || v.RetryAfter > time.Hour {
				t.Errorf("verdict %+v, want %+v, alarm %v, %v or more", v, tt.want, tt.alarm, tt.least)
			}
		})
	}
}

func TestPostmarkNamesWhoOfManyGetsNothing(t *testing.T) {
	const bounces = " Inactive recipients are ones that have generated a hard bounce or a spam complaint."
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
	u := open(t, postmarkConfig(t, s))
	e := signIn("blind@example.org", "ann@example.org", "bob@example.org")
	e.Kind = message.Marketing
	recipient := func(c message.Class) meaning { return meaning{c, message.ScopeRecipient} }
	accepted, refused, put := meaning{message.Accepted, ""}, recipient(message.Permanent), recipient(message.Temporary)
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  [3]meaning
	}{
		"some are inactive":        {postmarkSays(200, 0, "Message OK, but will not deliver to these inactive addresses: bob@example.org, BLIND@example.org."+bounces), [3]meaning{refused, accepted, refused}},
		"all are":                  {postmarkSays(422, 406, "You tried to send to a recipient that has been marked as inactive.\nFound inactive addresses: ann@example.org."+bounces), [3]meaning{refused, refused, refused}},
		"one cannot be":            {postmarkSays(422, 300, "Error parsing 'Cc': Illegal email domain 'example.org' in address 'bob@example.org'."), [3]meaning{put, put, refused}},
		"one that nobody can tell": {postmarkSays(422, 300, "Error parsing 'Cc': it is odd."), [3]meaning{{message.Permanent, message.ScopeMessage}, {message.Permanent, message.ScopeMessage}, {message.Permanent, message.ScopeMessage}}},
		"somebody much like one":   {postmarkSays(200, 0, "will not deliver to these inactive addresses: bob@example.org.uk, xbob@example.org."+bounces), [3]meaning{accepted, accepted, accepted}},
	} {
		t.Run(name, func(t *testing.T) {
			s.Reply(tt.reply)
			for i, v := range handOver(t, u, e, picture) {
				if v.Class != tt.want[i].Class || v.Class != message.Accepted && v.Scope != tt.want[i].Scope {
					t.Errorf("%s has %+v, want %+v", e.To[i], v, tt.want[i])
				}
			}
		})
	}
}

func TestPostmarkKeepsOurMessageIDWhereItIsTold(t *testing.T) {
	const mail = "From: a@auth.example.com\r\nSubject: x\r\nMessage-Id: <1@auth.example.com>\r\nX-PM-KeepID: false\r\n\r\nx\r\n"
	for keep, want := range map[bool]string{true: "[{Message-Id <1@auth.example.com>} {X-PM-KeepID true}]", false: "[]"} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
		c := postmarkConfig(t, s)
		c.KeepID = keep
		handOver(t, open(t, c), signIn("ann@example.org"), mail)
		if got := fmt.Sprint(postmarkRead(t, s.Wait(1)[0]).Headers); got != want {
			t.Errorf("keep_id = %v: headers %s, want %s", keep, got, want)
		}
	}
}

func TestWhatPostmarkCannotExpressIsRefusedBeforeItIsAsked(t *testing.T) {
	const head = "From: a@auth.example.com\r\nSubject: x\r\n"
	alternative := func(kind string) string {
		return head + "Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\nContent-Type: " + kind + "\r\n\r\nx\r\n--b--\r\n"
	}
	for name, tt := range map[string]struct{ mail, enhanced string }{
		"no text":                      {head + "\r\n \r\n", "5.6.3"},
		"only a picture":               {head + "Content-Type: image/png\r\n\r\nx\r\n", "5.6.3"},
		"another alternative":          {alternative("text/x-amp-html"), "5.6.3"},
		"text over 5 MB":               {head + "\r\n" + strings.Repeat("x\r\n", 5<<20/3+1), "5.3.4"},
		"a request over the limit":     {head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nx\r\n--b\r\nContent-Type: image/png\r\n\r\n" + strings.Repeat("x\r\n", 8<<20/3) + "--b--\r\n", "5.3.4"},
		"an unknown transfer":          {head + "Content-Transfer-Encoding: x\r\n\r\nx\r\n", "5.6.1"},
		"what it takes is not refused": {head + "\r\nx\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
			u := open(t, postmarkConfig(t, s))
			v := handOver(t, u, signIn("ann@example.org"), tt.mail)[0]
			if err := u.(upstream.Carrier).Carries(&message.Message{Raw: message.Raw(tt.mail)}); isRefusal(err) != (tt.enhanced != "") {
				t.Errorf("Carries: %v", err)
			}
			if refused := v.Class == message.Permanent && v.Scope == message.ScopeMessage && len(s.Requests()) == 0; refused != (tt.enhanced != "") || v.Enhanced != tt.enhanced {
				t.Errorf("verdict %+v after %d requests, want %q about the message after none", v, len(s.Requests()), tt.enhanced)
			}
		})
	}
}

func TestTheTestTokenOfPostmarkCaptures(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, postmarkHost)
	c := postmarkConfig(t, s)
	u := open(t, c)
	if u.Traits().Captures {
		t.Error("mail is captured with a real token")
	}
	if err := os.WriteFile(c.ServerToken.File, []byte("POSTMARK_API_TEST\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]; v.Class != message.Accepted || !u.Traits().Captures {
		t.Errorf("verdict %+v, captured: %v", v, u.Traits().Captures)
	}
	if !open(t, c).Traits().Captures {
		t.Error("an upstream that starts with the test token does not know it")
	}
	a, err := u.(upstream.Checker).Check(t.Context())
	if err != nil || len(a.Traps) != 1 {
		t.Errorf("Check: %+v, %v, want a warning", a, err)
	}
}

func TestCheckOfPostmark(t *testing.T) {
	m := mappedTypes[1]
	server := func(delivery string, opens bool, archived string) upstreamtest.Reply { // and its stream
		return upstreamtest.Reply{Body: fmt.Sprintf(`{"Name":"auth","DeliveryType":%q,"TrackOpens":%v,"MessageStreamType":"Transactional","ArchivedAt":%s}`, delivery, opens, archived)}
	}
	a, err := checkAccount(t, m, server("Live", false, "null"), nil)
	if err != nil || len(a.Traps) != 0 || len(a.Facts) != 2 || a.Local != pin.String() {
		t.Errorf("%+v, %v", a, err)
	}
	for _, s := range []upstreamtest.Reply{server("Sandbox", false, "null"), server("Live", true, "null"), server("Live", false, `"2026-01-05"`)} {
		if a, err := checkAccount(t, m, s, nil); err != nil || len(a.Traps) != 1 {
			t.Errorf("%s: %+v, %v, want a trap", s.Body, a, err)
		}
	}
	missing := m
	missing.host = func(r upstreamtest.Request) upstreamtest.Reply {
		if r.Path == "/server" {
			return server("Live", false, "null")
		}
		return postmarkSays(404, 1226, "The message stream for the provided 'ID' was not found.")
	}
	_, err = accountOf(t, missing, nil)
	wantClass(t, err, message.Unauthorised)
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  message.Class
	}{
		"a wrong token":          {postmarkSays(401, 10, "invalid"), message.Unauthorised},
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

func TestASandboxServerOfPostmarkCapturesFromTheFirstMail(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
		if r.Method == "GET" {
			return upstreamtest.Reply{Body: `{"Name":"auth","DeliveryType":"Sandbox"}`}
		}
		return postmarkHost(r)
	})
	u := open(t, postmarkConfig(t, s))
	if v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]; v.Class != message.Accepted || !u.Traits().Captures {
		t.Errorf("verdict %+v, captured: %v", v, u.Traits().Captures)
	}
	n := len(s.All())
	if handOver(t, u, signIn("ann@example.org"), signInMail); len(s.All()) != n+1 {
		t.Errorf("it was asked again: %d requests for the second mail", len(s.All())-n)
	}
}

func TestAPostmarkServerThatDoesNotTellOfItselfGetsItsMailAllTheSame(t *testing.T) {
	for _, silence := range []upstreamtest.Reply{{How: upstreamtest.Hang}, {How: upstreamtest.Drop}, {Status: 500}, {Status: 401, Body: `{"ErrorCode":10}`}} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
			if r.Method == "GET" {
				return silence
			}
			return postmarkHost(r)
		})
		began := time.Now()
		wantClasses(t, handOver(t, open(t, postmarkConfig(t, s)), signIn("ann@example.org"), signInMail), message.Accepted)
		if took := time.Since(began); took > time.Second {
			t.Errorf("%+v: the mail took %v", silence, took)
		}
	}
}
