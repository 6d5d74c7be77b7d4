package upstream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/letter/lettertest"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

const (
	aliyunKeyID  = "LTAI-test"
	aliyunSecret = "test-secret"
)

// directMail answers as DirectMail does: it takes what is signed by our key, has what a mail needs, and is new.
func directMail() func(r upstreamtest.Request) upstreamtest.Reply {
	seen := make(chan map[string]bool, 1)
	seen <- map[string]bool{}
	return func(r upstreamtest.Request) upstreamtest.Reply {
		nonces := <-seen
		defer func() { seen <- nonces }()
		nonce := r.Header.Get("x-acs-signature-nonce")
		if err := upstreamtest.VerifyAliyun(r, aliyunKeyID, aliyunSecret, time.Now()); err != nil {
			return aliyunSays(400, "SignatureDoesNotMatch", err.Error())
		}
		if nonces[nonce] {
			return aliyunSays(400, "SignatureNonceUsed", "Specified signature nonce was used already.")
		}
		nonces[nonce] = true
		if r.Method == "GET" {
			return upstreamtest.Reply{Body: `{"TotalCount":1,"data":{"mailAddress":[{"AccountName":"a@auth.example.com","AccountStatus":"0","DomainStatus":0,"Sendtype":"trigger"}]}}`}
		}
		form, err := url.ParseQuery(string(r.Body))
		if err != nil {
			return aliyunSays(400, "InvalidParameter", err.Error())
		}
		for _, name := range []string{"AccountName", "AddressType", "ReplyToAddress", "ToAddress", "Subject"} {
			if form.Get(name) == "" {
				return aliyunSays(400, "Missing"+name, name+" is mandatory for this action.")
			}
		}
		return upstreamtest.Reply{Body: `{"EnvId":"600000012345","RequestId":"95A7D497"}`}
	}
}

func aliyunSays(status int, code, words string) upstreamtest.Reply {
	return upstreamtest.Reply{Status: status, Body: fmt.Sprintf(`{"RequestId":"95A7D497","HostId":"dm.aliyuncs.com","Code":%q,"Message":%q}`, code, words)}
}

func aliyunConfig(t *testing.T, s *upstreamtest.Service) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "dm", Type: "aliyun", Endpoint: s.URL(), TLSCAFile: s.CAFile(), AccountName: "a@auth.example.com", Region: "cn-hangzhou",
		AccessKeyID: secretFile(t, aliyunKeyID), AccessKeySecret: secretFile(t, aliyunSecret), Connections: 4, DKIM: "none"}
}

func newAliyun(t *testing.T, c *config.Upstream) upstream.Upstream {
	t.Helper()
	u, err := upstream.New(c, "gw.example.com", egress(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(t.Context()) })
	return u
}

func aliyunForm(t *testing.T, r upstreamtest.Request) url.Values {
	t.Helper()
	form, err := url.ParseQuery(string(r.Body))
	if err != nil {
		t.Fatal(err)
	}
	return form
}

var aliyunMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     aliyunSays(400, "SignatureNonceUsed", "Specified signature nonce was used already."),
	{message.Temporary, message.ScopeUpstream}:    aliyunSays(500, "InternalError", "The request processing has failed due to some unknown error."),
	{message.Permanent, message.ScopeRecipient}:   aliyunSays(400, "InvalidToAddress", "The specified toAddress is wrongly formed."),
	{message.Permanent, message.ScopeMessage}:     aliyunSays(400, "InvalidBody", "The specified textBody or htmlBody is wrongly formed."),
	{message.Throttled, message.ScopeUpstream}:    aliyunSays(400, "Throttling.User", "Request was denied due to user flow control."),
	{message.Unauthorised, message.ScopeUpstream}: aliyunSays(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found."),
	{message.Unknown, message.ScopeUpstream}:      {How: upstreamtest.Drop},
}

func TestAliyunKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.ServiceOptions{"over HTTP/2": {}, "over HTTP/1.1": {HTTP1: true}} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, o, directMail())
				c := aliyunConfig(t, s)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				received := func() (mails []upstreamtest.Mail) {
					for _, r := range s.Requests() {
						form := aliyunForm(t, r)
						mails = append(mails, upstreamtest.Mail{Peer: r.Peer, To: form["ToAddress"], Data: []byte(form.Get("TextBody")), At: r.At})
					}
					return mails
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: received, Answer: serviceAnswers(s, aliyunMeanings), Alone: true, TextOnly: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					MaxSize: 8 << 20, Peers: s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}

// aliyunMail is a mail that DirectMail takes; fields come behind its own, and body instead of a plain text.
func aliyunMail(fields, body string) string {
	if body == "" {
		body = "Content-Type: text/plain; charset=utf-8\r\n\r\nIt is 482913.\r\n"
	}
	return "From: Example <a@auth.example.com>\r\nTo: ann@example.org\r\nSubject: Your code\r\nMIME-Version: 1.0\r\n" + fields + body
}

const aliyunBoth = "Content-Type: multipart/alternative; boundary=b\r\n\r\n" +
	"--b\r\nContent-Type: text/plain; charset=iso-2022-jp\r\n\r\n\x1b$B%3!<%I\x1b(B 482913\r\n" +
	"--b\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>=E3=82=B3=E3=83=BC=E3=83=89 482913</p>\r\n--b--\r\n"

func TestAliyunRequestsStayAsTheyAre(t *testing.T) {
	fields := "Message-ID: <1@auth.example.com>\r\nReply-To: Help <help@auth.example.com>\r\nList-Unsubscribe: <https://auth.example.com/u>\r\n" +
		"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nX-User-Plan: free\r\nAuto-Submitted: auto-generated\r\nDate: Mon, 05 Jan 2026 10:00:00 +0000\r\n"
	for name, tt := range map[string]struct {
		region string
		kind   message.Kind
		mail   string
		change func(c *config.Upstream)
	}{
		"aliyun-text": {"cn-hangzhou", message.Auth, aliyunMail("", ""), func(c *config.Upstream) { c.Tag = "sign-in" }},
		"aliyun-html": {"ap-southeast-1", message.Auth, aliyunMail(fields, aliyunBoth), func(c *config.Upstream) { c.Tracking = "on" }},
		"aliyun-news": {"ap-southeast-1", message.Marketing, aliyunMail(fields, aliyunBoth), func(c *config.Upstream) { c.Tracking = "on" }},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
			c := aliyunConfig(t, s)
			c.Region = tt.region
			tt.change(c)
			e := signIn("ann@example.org")
			e.Kind = tt.kind
			if v := handOver(t, newAliyun(t, c), e, tt.mail)[0]; v.Class != message.Accepted || v.ProviderID != "600000012345" || v.Alarm != "" {
				t.Fatalf("verdict %+v, want accepted with the service's id", v)
			}
			upstreamtest.CheckRequest(t, name, upstream.AliyunEndpoint(tt.region), s.Wait(1)[0])
		})
	}
}

func TestWhatDirectMailCannotExpressIsRefusedBeforeItIsAsked(t *testing.T) {
	multipart := func(part string) string {
		return "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n" + part + "\r\n\r\nx\r\n--b--\r\n"
	}
	for name, tt := range map[string]struct{ mail, enhanced string }{
		"another sender":                     {strings.Replace(aliyunMail("", ""), "a@auth", "b@auth", 1), "5.7.1"},
		"a Cc field":                         {aliyunMail("Cc: bob@example.org\r\n", ""), "5.6.3"},
		"an attachment":                      {aliyunMail("", multipart("Content-Type: image/png\r\nContent-Disposition: attachment; filename=a.png")), "5.6.3"},
		"an inline image":                    {aliyunMail("", strings.Replace(multipart("Content-Type: image/png\r\nContent-ID: <a>"), "mixed", "related", 1)), "5.6.3"},
		"an invitation":                      {aliyunMail("", strings.Replace(multipart("Content-Type: text/calendar; method=REQUEST"), "mixed", "alternative", 1)), "5.6.3"},
		"a signature that would break":       {aliyunMail("", strings.Replace(multipart("Content-Type: application/pgp-signature"), "mixed", "signed", 1)), "5.6.3"},
		"no text":                            {aliyunMail("", "\r\n \r\n"), "5.6.3"},
		"no subject":                         {strings.Replace(aliyunMail("", ""), "Subject: Your code\r\n", "", 1), "5.6.3"},
		"a subject of 257 characters":        {strings.Replace(aliyunMail("", ""), "Your code", strings.Repeat("x", 257), 1), "5.6.3"},
		"two addresses for replies":          {aliyunMail("Reply-To: a@example.com, b@example.com\r\n", ""), "5.6.3"},
		"a field without a place":            {aliyunMail("List-Id: <news.example.com>\r\n", ""), "5.6.3"},
		"a field twice":                      {aliyunMail("X-User-A: 1\r\nX-User-A: 2\r\n", ""), "5.6.3"},
		"the field that holds our id":        {aliyunMail("X-User-Notify-Gid: 1\r\n", ""), "5.6.3"},
		"another Sender":                     {aliyunMail("Sender: b@auth.example.com\r\n", ""), "5.6.3"},
		"ten fields beside ours":             {aliyunMail(tenFields(10), ""), "5.6.3"},
		"more than a request may have":       {aliyunMail("", "Content-Type: text/plain; charset=utf-8\r\n\r\n"+strings.Repeat("\u30b3", 1<<20)), "5.3.4"},
		"a character set that is not known":  {aliyunMail("", "Content-Type: text/plain; charset=klingon\r\n\r\nx\r\n"), "5.6.3"},
		"a recipient beyond ASCII":           {strings.Replace(aliyunMail("", ""), "ann@", "\u30b3@", 1), "5.6.7"},
		"control fields of the service only": {aliyunMail("X-AliDM-Trace: e30=\r\n", ""), ""},
		"the Sender that From names":         {aliyunMail("Sender: A <A@Auth.example.com>\r\n", ""), ""},
		"nine fields beside ours":            {aliyunMail(tenFields(9), ""), ""},
		"a subject of 256 characters":        {strings.Replace(aliyunMail("", ""), "Your code", strings.Repeat("x", 256), 1), ""},
		"what describes its writer":          {aliyunMail("X-Mailer: x\r\nAuto-Submitted: auto-generated\r\nPrecedence: bulk\r\n", ""), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
			u := newAliyun(t, aliyunConfig(t, s))
			to := "ann@example.org"
			if tt.enhanced == "5.6.7" {
				to = "\u30b3@example.org"
			}
			v := handOver(t, u, signIn(to), tt.mail)[0]
			if tt.enhanced == "" {
				if v.Class != message.Accepted {
					t.Errorf("verdict %+v, want accepted", v)
				}
			} else if v.Class != message.Permanent || v.Scope != message.ScopeMessage || v.Enhanced != tt.enhanced || len(s.Requests()) != 0 {
				t.Errorf("verdict %+v after %d requests, want %s about the message after none", v, len(s.Requests()), tt.enhanced)
			}
			if tt.enhanced == "5.6.7" {
				return // the envelope's matter
			}
			err := u.(upstream.Carrier).Carries(&message.Message{Raw: message.Raw(tt.mail)})
			if e, ok := errors.AsType[*reply.Error](err); ok != (tt.enhanced != "") || ok && (e.Enhanced != tt.enhanced || e.Temporary()) {
				t.Errorf("Carries: %v, want %q", err, tt.enhanced)
			}
		})
	}
}

// tenFields makes n header fields that a request can set.
func tenFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "X-User-%d: x\r\n", i)
	}
	return b.String()
}

func TestADisplayNameThatIsTooLongIsReplacedOrLeftOutWithAWord(t *testing.T) {
	for name, tt := range map[string]struct {
		from, alias string
		want        string
		told        bool
	}{
		"fourteen characters":                {"\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3", "", "\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3\u30d7\u30eb\u30b5\u30f3", false},
		"fifteen characters":                 {"Example Example", "", "", true},
		"fifteen characters with an alias":   {"Example Example", "Example", "Example", false},
		"none":                               {"", "Example", "", false},
		"a name that is short enough itself": {"Short", "Example", "Short", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
			c := aliyunConfig(t, s)
			c.FromAlias = tt.alias
			mail := strings.Replace(aliyunMail("", ""), "From: Example <", "From: "+tt.from+" <", 1)
			v := handOver(t, newAliyun(t, c), signIn("ann@example.org"), mail)[0]
			if v.Class != message.Accepted || strings.Contains(v.Reply(), "display name") != tt.told {
				t.Errorf("verdict %+v; the loss was to be told: %v", v, tt.told)
			}
			if got := aliyunForm(t, s.Wait(1)[0]).Get("FromAlias"); got != tt.want {
				t.Errorf("FromAlias %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWhatDirectMailLosesIsDocumented(t *testing.T) {
	b, err := os.ReadFile("../docs/upstreams.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(b), "## Aliyun DirectMail")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, name := range upstream.AliyunLost {
		if !strings.Contains(strings.ToLower(section), name) {
			t.Errorf("docs/upstreams.md does not say that DirectMail loses the field %s", name)
		}
	}
}

func TestAliyunCodesDecideAndNotTheirStatuses(t *testing.T) {
	for _, tt := range []struct {
		status int
		code   string
		class  message.Class
		scope  message.Scope
	}{
		{400, "Throttling", message.Throttled, message.ScopeUpstream},
		{503, "Throttling.Api", message.Throttled, message.ScopeUpstream},
		{429, "Throttling.User", message.Throttled, message.ScopeUpstream},
		{400, "InvalidSendMail.Spam", message.Temporary, message.ScopeMessage},
		{400, "InvalidToAddress", message.Permanent, message.ScopeRecipient},
		{400, "InvalidToAddress.Spam", message.Permanent, message.ScopeMessage},
		{400, "InvalidSubject.Malformed", message.Permanent, message.ScopeMessage},
		{400, "InvalidFromAlias.Malformed", message.Permanent, message.ScopeMessage},
		{400, "MissingSubject", message.Permanent, message.ScopeMessage},
		{400, "InvalidParameter", message.Permanent, message.ScopeMessage},
		{404, "InvalidMailAddress.NotFound", message.Unauthorised, message.ScopeUpstream},
		{400, "InvalidMailAddressStatus.Malformed", message.Unauthorised, message.ScopeUpstream},
		{400, "InvalidMailAddressDomain.Malformed", message.Unauthorised, message.ScopeUpstream},
		{400, "InvalidMailAddressSendType.Malformed", message.Unauthorised, message.ScopeUpstream},
		{400, "InvalidTagName.Malformed", message.Unauthorised, message.ScopeUpstream},
		{404, "InvalidAccessKeyId.NotFound", message.Unauthorised, message.ScopeUpstream},
		{400, "SignatureDoesNotMatch", message.Unauthorised, message.ScopeUpstream},
		{403, "Forbidden", message.Unauthorised, message.ScopeUpstream},
		{403, "Forbidden.RAM", message.Unauthorised, message.ScopeUpstream},
		{400, "SignatureNonceUsed", message.Temporary, message.ScopeMessage},
		{400, "InvalidTimeStamp.Expired", message.Temporary, message.ScopeUpstream},
		{503, "ServiceUnavailable", message.Temporary, message.ScopeUpstream},
		{500, "InternalError", message.Temporary, message.ScopeUpstream},
		{400, "SomethingNew", message.Temporary, message.ScopeMessage},
		{200, "InvalidBody", message.Permanent, message.ScopeMessage},
	} {
		t.Run(tt.code, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
			s.Reply(aliyunSays(tt.status, tt.code, "words"))
			v := handOver(t, newAliyun(t, aliyunConfig(t, s)), signIn("ann@example.org"), aliyunMail("", ""))[0]
			if v.Class != tt.class || v.Scope != tt.scope || !strings.Contains(v.Text, tt.code) {
				t.Errorf("verdict %+v, want %s about the %s with the code", v, tt.class, tt.scope)
			}
			if alarm := tt.code == "SomethingNew" || tt.code == "InvalidTimeStamp.Expired"; alarm != (v.Alarm != "") {
				t.Errorf("alarm %q", v.Alarm)
			}
		})
	}
}

func TestAListedAddressEndsAMarketingMailAndLetsASignInCodeGoElsewhere(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
	u := newAliyun(t, aliyunConfig(t, s))
	for kind, want := range map[message.Kind]message.Scope{message.Auth: message.ScopeMessage, message.Marketing: message.ScopeRecipient} {
		s.Reply(aliyunSays(400, "InvalidToAddress.Spam", "Sendmail rejected by invalid address."))
		e := signIn("ann@example.org")
		e.Kind = kind
		if v := handOver(t, u, e, aliyunMail("", ""))[0]; v.Class != message.Permanent || v.Scope != want {
			t.Errorf("%s: verdict %+v, want permanent about the %s", kind, v, want)
		}
	}
}

func TestASpamFilterIsBelievedTheThirdTime(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
	u := newAliyun(t, aliyunConfig(t, s))
	for i, want := range []message.Class{message.Temporary, message.Temporary, message.Permanent} {
		s.Reply(aliyunSays(400, "InvalidSendMail.Spam", "Sendmail rejected by spam filter."))
		if v := handOver(t, u, signIn("ann@example.org"), aliyunMail("", ""))[0]; v.Class != want || v.Scope != message.ScopeMessage {
			t.Errorf("refusal %d: verdict %+v, want %s about the message", i+1, v, want)
		}
	}
	s.Reply(aliyunSays(400, "InvalidSendMail.Spam", "Sendmail rejected by spam filter."))
	if v := handOver(t, u, signIn("bob@example.org"), aliyunMail("", ""))[0]; v.Class != message.Temporary {
		t.Errorf("another recipient: verdict %+v, want temporary", v)
	}
}

func TestBrokenAnswersOfDirectMailLoseAndDoubleNothing(t *testing.T) {
	page := map[string]string{"Content-Type": "text/html; charset=utf-8"}
	const taken = `{"EnvId":"600000012345","RequestId":"95A7D497"}`
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		class message.Class
		alarm bool
	}{
		"an empty 200":             {upstreamtest.Reply{}, message.Accepted, true},
		"a cut 200":                {upstreamtest.Reply{Body: taken, How: upstreamtest.Cut}, message.Accepted, true},
		"a 200 that never ends":    {upstreamtest.Reply{Body: taken, How: upstreamtest.Slow}, message.Accepted, false},
		"a 200 without end":        {upstreamtest.Reply{Body: taken, How: upstreamtest.Endless}, message.Accepted, true},
		"somebody else's page":     {upstreamtest.Reply{Body: "<h1>Welcome", Header: page}, message.Unknown, false},
		"an error page":            {upstreamtest.Reply{Status: 502, Body: "<h1>Bad Gateway", Header: page}, message.Temporary, false},
		"a gateway that gave up":   {upstreamtest.Reply{Status: 504, Body: "<h1>Timeout", Header: page}, message.Unknown, false},
		"an answer that is lost":   {upstreamtest.Reply{How: upstreamtest.Drop}, message.Unknown, false},
		"an error without a code":  {upstreamtest.Reply{Status: 400, Body: "{}"}, message.Temporary, true},
		"a code of the wrong type": {upstreamtest.Reply{Status: 400, Body: `{"Code":7}`}, message.Temporary, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
			s.Reply(tt.reply)
			v := handOver(t, newAliyun(t, aliyunConfig(t, s)), signIn("ann@example.org"), aliyunMail("", ""))[0]
			if v.Class != tt.class || (v.Alarm != "") != tt.alarm || len(s.Requests()) != 1 {
				t.Errorf("verdict %+v after %d requests, want %s, alarm %v, after one", v, len(s.Requests()), tt.class, tt.alarm)
			}
		})
	}
}

func TestTheCheckOfAliyunTellsKeysAndSenderAddresses(t *testing.T) {
	address := func(account, status, domain string) string {
		b, err := json.Marshal(map[string]any{"TotalCount": 1, "data": map[string]any{"mailAddress": []any{
			map[string]any{"AccountName": account, "AccountStatus": status, "DomainStatus": domain, "Sendtype": "trigger"}}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, tt := range map[string]struct {
		reply  upstreamtest.Reply
		trap   string
		class  message.Class // of Paused; "" for none
		unsure bool
	}{
		"all is well":           {upstreamtest.Reply{Body: address("A@auth.example.com", "0", "0")}, "", "", false},
		"a frozen address":      {upstreamtest.Reply{Body: address("a@auth.example.com", "1", "0")}, "frozen", "", false},
		"a domain not verified": {upstreamtest.Reply{Body: address("a@auth.example.com", "0", "1")}, "not verified", "", false},
		"another address":       {upstreamtest.Reply{Body: address("b@auth.example.com", "0", "0")}, "not a sender address in region cn-hangzhou", "", false},
		"a key that may not":    {aliyunSays(403, "Forbidden.RAM", "User not authorized to operate on the specified resource."), "", "", true},
		"no such key":           {aliyunSays(404, "InvalidAccessKeyId.NotFound", "x"), "", message.Unauthorised, false},
		"a wrong secret":        {aliyunSays(400, "SignatureDoesNotMatch", "x"), "", message.Unauthorised, false},
		"a wrong clock":         {aliyunSays(400, "InvalidTimeStamp.Expired", "x"), "", message.Temporary, false},
		"too fast":              {aliyunSays(400, "Throttling.User", "x"), "", message.Throttled, false},
		"a service in trouble":  {upstreamtest.Reply{Status: 502, Body: "<h1>", Header: map[string]string{"Content-Type": "text/html"}}, "", message.Temporary, false},
		"an answer that is cut": {upstreamtest.Reply{Body: address("a@auth.example.com", "0", "0"), How: upstreamtest.Cut}, "", "", false},
		"a call it knows not":   {aliyunSays(400, "InvalidParameter", "x"), "", "", true},
		"a gateway that waited": {upstreamtest.Reply{Status: 504}, "", message.Temporary, false},
		"something new":         {aliyunSays(400, "SomethingNew", "x"), "", message.Temporary, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
				if err := upstreamtest.VerifyAliyun(r, aliyunKeyID, aliyunSecret, time.Now()); err != nil {
					t.Errorf("the call is not signed: %v", err)
				}
				return tt.reply
			})
			a, err := newAliyun(t, aliyunConfig(t, s)).(upstream.Checker).Check(t.Context())
			p, paused := errors.AsType[*upstream.Paused](err)
			if paused != (tt.class != "") || paused && (p.Verdict.Class != tt.class || p.Verdict.Scope != message.ScopeUpstream) || errors.Is(err, upstream.ErrUnproven) != tt.unsure {
				t.Errorf("err = %v, want class %q, unproven %v", err, tt.class, tt.unsure)
			}
			if traps := strings.Join(a.Traps, "; "); tt.trap == "" && traps != "" || !strings.Contains(traps, tt.trap) {
				t.Errorf("traps %q, want %q", traps, tt.trap)
			}
			if err == nil && a.Local != pin.String() {
				t.Errorf("reached from %q, want %s", a.Local, pin)
			}
		})
	}
}

func TestAliyunKeysAreReadAnewForEveryMail(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, directMail())
	c := aliyunConfig(t, s)
	u := newAliyun(t, c)
	write := func(secret string) {
		if err := os.WriteFile(c.AccessKeySecret.File, []byte(secret), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("another\n")
	if v := handOver(t, u, signIn("ann@example.org"), aliyunMail("", ""))[0]; v.Class != message.Unauthorised || strings.Contains(v.Text, "another") {
		t.Errorf("with a wrong secret: verdict %+v, want unauthorised", v)
	}
	write(aliyunSecret + "\n")
	if v := handOver(t, u, signIn("ann@example.org"), aliyunMail("", ""))[0]; v.Class != message.Accepted {
		t.Errorf("with the right one again: verdict %+v, want accepted", v)
	}
	if err := os.Remove(c.AccessKeySecret.File); err != nil {
		t.Fatal(err)
	}
	if v := handOver(t, u, signIn("ann@example.org"), aliyunMail("", ""))[0]; v.Class != message.Unauthorised || len(s.Requests()) != 2 {
		t.Errorf("without one: verdict %+v after %d requests, want unauthorised after two", v, len(s.Requests()))
	}
}

func TestEveryPieceOfAMailIsInItsFormOrOnTheListOrTheMailIsRefused(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 4))
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{Plain: true}, directMail())
	c := aliyunConfig(t, s)
	u := newAliyun(t, c)
	taken := 0
	for n := range 1000 {
		mail := lettertest.Random(r)
		from := slices.IndexFunc(mail.Pieces, func(p lettertest.Piece) bool { return p.What == "address" && p.Name == "From" })
		c.AccountName = mail.Pieces[from].Text
		e := signIn(mail.To[0])
		e.ID = message.ID(n)
		before := len(s.Requests())
		v := handOver(t, u, e, string(mail.Raw))[0]
		requests := s.Requests()[before:]
		carried := u.(upstream.Carrier).Carries(&message.Message{Raw: mail.Raw, Kind: e.Kind})
		if v.Class == message.Permanent && v.Scope == message.ScopeMessage && len(requests) == 0 && isRefusal(carried) {
			continue
		}
		if v.Class != message.Accepted || len(requests) != 1 || carried != nil || mail.Unfit != "" {
			t.Fatalf("seed %d: %+v after %d requests, Carries %v, %s\n%q", seed, v, len(requests), carried, mail.Unfit, mail.Raw)
		}
		taken++
		var all []string
		for _, values := range aliyunForm(t, requests[0]) {
			all = append(all, values...)
		}
		for _, p := range mail.Pieces {
			lost := p.What == "field" && (letter.Lost(p.Name) || slices.Contains(upstream.AliyunLost, strings.ToLower(p.Name)))
			if p.In(all) == lost && !p.Over {
				t.Fatalf("seed %d: the %s is lost: %v\n%q\n%q", seed, p, !lost, all, mail.Raw)
			}
		}
	}
	if taken < 5 {
		t.Errorf("only %d of 1000 mails were taken", taken)
	}
}
