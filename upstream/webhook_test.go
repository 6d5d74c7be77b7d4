package upstream_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

const (
	webhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw" // of the vector that Standard Webhooks publishes
	nextSecret    = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
)

// verifyWebhook computes the signatures of r anew, as the text of Standard Webhooks 1.0.0 has it, and not as its library.
func verifyWebhook(r upstreamtest.Request, now time.Time, secrets ...string) error {
	id, stamp := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	at, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || math.Abs(float64(now.Unix()-at)) > 300 {
		return fmt.Errorf("timestamp %q, and it is %d", stamp, now.Unix())
	}
	var want []string
	for _, s := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
		if err != nil {
			return err
		}
		mac := hmac.New(sha256.New, key)
		fmt.Fprintf(mac, "%s.%s.%s", id, stamp, r.Body)
		want = append(want, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	if got := r.Header.Get("webhook-signature"); got != strings.Join(want, " ") {
		return fmt.Errorf("signature %q, want %q", got, want)
	}
	return nil
}

func TestTheCheckOfWebhooksIsTheOnePublished(t *testing.T) {
	r := upstreamtest.Request{Header: map[string][]string{"Webhook-Id": {"msg_p5jXN8AQM9LWM0D4loKWxJek"}, "Webhook-Timestamp": {"1614265330"},
		"Webhook-Signature": {"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="}}, Body: []byte(`{"test": 2432232314}`)}
	if err := verifyWebhook(r, time.Unix(1614265330, 0), webhookSecret); err != nil {
		t.Error(err)
	}
	r.Body[2]++
	if verifyWebhook(r, time.Unix(1614265330, 0), webhookSecret) == nil {
		t.Error("it took another body")
	}
}

func webhookConfig(t *testing.T, s *upstreamtest.Service, format string) *config.Upstream {
	t.Helper()
	return &config.Upstream{Name: "own", Type: "webhook", URL: s.URL() + "/deliver?tenant=1", TLSCAFile: s.CAFile(), Format: format,
		Secret: secretFile(t, webhookSecret), Connections: 4, DKIM: "sign"}
}

func newWebhook(t *testing.T, c *config.Upstream) upstream.Upstream {
	t.Helper()
	u, err := upstream.New(c, "gw.example.com", egress(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close(t.Context()) })
	return u
}

// webhookMails reads what a service had, and checks who signed it.
func webhookMails(t *testing.T, s *upstreamtest.Service) (mails []upstreamtest.Mail) {
	t.Helper()
	for _, r := range s.Requests() {
		if err := verifyWebhook(r, time.Now(), webhookSecret); err != nil {
			t.Errorf("a receiver would refuse the request: %v", err)
		}
		m := upstreamtest.Mail{Peer: r.Peer, From: r.Header.Get("X-Gatepost-From"), To: strings.Split(r.Header.Get("X-Gatepost-To"), ","), Data: r.Body, At: r.At}
		if r.Header.Get("Content-Type") == "application/json" {
			var said struct {
				From string
				To   []string
				Raw  []byte
			}
			if err := json.Unmarshal(r.Body, &said); err != nil {
				t.Fatal(err)
			}
			m.From, m.To, m.Data = said.From, said.To, said.Raw
		}
		mails = append(mails, m)
	}
	return mails
}

var webhookMeanings = map[meaning]upstreamtest.Reply{
	{message.Temporary, message.ScopeMessage}:     {Status: 400},
	{message.Temporary, message.ScopeUpstream}:    {Status: 503},
	{message.Permanent, message.ScopeMessage}:     {Status: 422, Body: `{"error":"no such template"}`},
	{message.Throttled, message.ScopeUpstream}:    {Status: 429, Header: map[string]string{"Retry-After": "0"}},
	{message.Unauthorised, message.ScopeUpstream}: {Status: 410},
	{message.Unknown, message.ScopeUpstream}:      {How: upstreamtest.Drop},
}

func TestAWebhookKeepsThePromisesOfAnUpstream(t *testing.T) {
	accepts := func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{Status: 204} }
	for name, tt := range map[string]struct {
		format string
		upstreamtest.ServiceOptions
	}{
		"raw over HTTP/2":    {"raw", upstreamtest.ServiceOptions{}},
		"raw in clear text":  {"raw", upstreamtest.ServiceOptions{Plain: true}},
		"json over HTTP/1.1": {"json", upstreamtest.ServiceOptions{HTTP1: true}},
	} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				s := upstreamtest.NewService(t, tt.ServiceOptions, accepts)
				c := webhookConfig(t, s, tt.format)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: func() []upstreamtest.Mail { return webhookMails(t, s) }, Answer: serviceAnswers(s, webhookMeanings), Alone: true,
					Silence: func() { s.Reply(upstreamtest.Reply{How: upstreamtest.Hang}) },
					Peers:   s.Peers, Egress: pin, Open: s.Connections,
				}
			}})
		})
	}
}

// handOver makes one hand-over of mail to u.
func handOver(t *testing.T, u upstream.Upstream, e message.Envelope, mail string) []message.Verdict {
	t.Helper()
	slot, err := u.Reserve(t.Context(), e.Stream)
	if err != nil {
		t.Fatal(err)
	}
	defer slot.Release()
	return slot.Send(t.Context(), e, net.Buffers{[]byte(mail)}, func() error { return nil })
}

const signInMail = "From: Example <no-reply@auth.example.com>\r\nTo: ann@example.org\r\nSubject: Your code\r\n\r\nIt is 482913.\r\n"

func signIn(to ...string) message.Envelope {
	return message.Envelope{ID: 0x1234567890, Stream: "auth", Kind: message.Auth, From: "no-reply@auth.example.com", To: to}
}

func TestWebhookRequestsStayAsTheyAre(t *testing.T) {
	for _, format := range []string{"raw", "json"} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
		handOver(t, newWebhook(t, webhookConfig(t, s, format)), signIn("ann@example.org"), signInMail)
		upstreamtest.CheckRequest(t, "webhook-"+format, "https://mail.example.com", s.Wait(1)[0])
	}
}

func TestAWebhookIsKnownAgainOnEveryTryAndForEachRecipient(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	u := newWebhook(t, webhookConfig(t, s, "raw"))
	s.Reply(upstreamtest.Reply{Status: 400})
	handOver(t, u, signIn("ann@example.org", "bob@example.org"), signInMail)
	handOver(t, u, signIn("ann@example.org"), signInMail)
	marketing := signIn("ann@example.org", "bob@example.org")
	marketing.Kind = message.Marketing
	handOver(t, u, marketing, signInMail)
	var ids []string
	for _, r := range s.Requests() {
		ids = append(ids, r.Header.Get("webhook-id"))
	}
	if len(ids) != 4 || ids[0] != ids[2] || ids[1] == ids[0] || ids[3] == ids[0] || ids[3] == ids[1] {
		t.Fatalf("ids %q, want one for ann twice, one for bob and one for both", ids)
	}
	for i := range 43 {
		marketing.To = append(marketing.To, fmt.Sprintf("user%d@example.net", i))
	}
	handOver(t, u, marketing, signInMail)
	if got := len(s.Requests()) - 4; got != 3 {
		t.Errorf("45 recipients of marketing mail make %d requests, want 3", got)
	}
	// What docs/upstreams.md tells receivers to compute.
	hash := sha256.Sum256([]byte("no-reply@auth.example.com\nann@example.org\n"))
	if want := fmt.Sprintf("%s.%x", message.ID(0x1234567890), hash[:8]); ids[0] != want {
		t.Errorf("id %q, want %q", ids[0], want)
	}
}

func TestAWebhookIsSignedTwiceWhileItsSecretChanges(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	c := webhookConfig(t, s, "json")
	u := newWebhook(t, c)
	if err := os.WriteFile(c.Secret.File, []byte(nextSecret+"\n"+webhookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	handOver(t, u, signIn("ann@example.org"), signInMail)
	if err := verifyWebhook(s.Wait(1)[0], time.Now(), nextSecret, webhookSecret); err != nil {
		t.Errorf("neither old nor new receivers would take it: %v", err)
	}
}

func TestASecretThatCannotSignIsToldBeforeAnyMail(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	for name, secret := range map[string]string{
		"no prefix":  strings.TrimPrefix(webhookSecret, "whsec_"),
		"no base64":  "whsec_!",
		"too short":  "whsec_AAECAwQFBgcICQoLDA0ODw==",
		"too long":   "whsec_" + base64.StdEncoding.EncodeToString(make([]byte, 65)),
		"a third":    strings.Repeat(webhookSecret+"\n", 3),
		"empty file": "\n",
	} {
		c := webhookConfig(t, s, "raw")
		c.Secret = secretFile(t, secret)
		_, err := upstream.New(c, "gw.example.com", egress(), nil)
		if err == nil || !strings.Contains(err.Error(), c.Secret.File) || strings.Contains(err.Error(), secret) && secret != "\n" {
			t.Errorf("%s: err = %v, want one that names the file and not the secret", name, err)
		}
	}
}

func TestAReceiversAnswerDecidesAboutMailAndUpstream(t *testing.T) {
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		class message.Class
		scope message.Scope
		alarm bool
		after time.Duration
	}{
		"taken, said in HTML":        {upstreamtest.Reply{Body: "<p>ok", Header: map[string]string{"Content-Type": "text/html"}}, message.Accepted, "", false, 0},
		"taken without a word":       {upstreamtest.Reply{Status: 204}, message.Accepted, "", false, 0},
		"taken, in a cut answer":     {upstreamtest.Reply{Body: "a long answer", How: upstreamtest.Cut}, message.Accepted, "", false, 0},
		"gone":                       {upstreamtest.Reply{Status: 410}, message.Unauthorised, message.ScopeUpstream, true, 0},
		"a wrong signature":          {upstreamtest.Reply{Status: 401}, message.Unauthorised, message.ScopeUpstream, false, 0},
		"sent elsewhere":             {upstreamtest.Reply{Status: 307, Header: map[string]string{"Location": "https://127.0.0.1:1/"}}, message.Unauthorised, message.ScopeUpstream, true, 0},
		"a mail it will never take":  {upstreamtest.Reply{Status: 422}, message.Permanent, message.ScopeMessage, false, 0},
		"a mail too big for it":      {upstreamtest.Reply{Status: 413}, message.Permanent, message.ScopeMessage, false, 0},
		"a path that it lacks":       {upstreamtest.Reply{Status: 404}, message.Temporary, message.ScopeMessage, true, 0},
		"not now":                    {upstreamtest.Reply{Status: 503, Header: map[string]string{"Retry-After": "7"}}, message.Temporary, message.ScopeUpstream, false, 7 * time.Second},
		"too fast":                   {upstreamtest.Reply{Status: 429, Header: map[string]string{"Retry-After": "9"}}, message.Throttled, message.ScopeUpstream, false, 9 * time.Second},
		"a gateway that gave up":     {upstreamtest.Reply{Status: 504}, message.Unknown, message.ScopeUpstream, false, 0},
		"an answer that is lost":     {upstreamtest.Reply{How: upstreamtest.Drop}, message.Unknown, message.ScopeUpstream, false, 0},
		"a refusal ahead of the end": {upstreamtest.Reply{Status: 422, How: upstreamtest.Early}, message.Permanent, message.ScopeMessage, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
			u := newWebhook(t, webhookConfig(t, s, "raw"))
			s.Reply(tt.reply)
			v := handOver(t, u, signIn("ann@example.org"), signInMail)[0]
			if v.Class != tt.class || v.Class != message.Accepted && v.Scope != tt.scope || (v.Alarm != "") != tt.alarm || v.RetryAfter != tt.after {
				t.Errorf("verdict %+v, want %s about the %s, alarm %v, after %v", v, tt.class, tt.scope, tt.alarm, tt.after)
			}
		})
	}
}

func TestOnlyAMailCanProveAWebhook(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} })
	c, ok := newWebhook(t, webhookConfig(t, s, "raw")).(upstream.Checker)
	if !ok {
		t.Fatal("it is no Checker")
	}
	if _, err := c.Check(t.Context()); !errors.Is(err, upstream.ErrUnproven) || len(s.All()) != 0 {
		t.Errorf("Check: %v, and %d requests were made, want ErrUnproven and none", err, len(s.All()))
	}
	if !slices.ContainsFunc(s.Peers(), func(p netip.AddrPort) bool { return p.Addr() == pin }) {
		t.Error("it did not try to connect")
	}
}
