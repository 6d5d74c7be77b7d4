package test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/mail"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/emersion/go-smtp"

	"gatepost/event"
)

const hooksText = `
[listen.http]
address = "HTTP"
clients = ["web", "key", "signed"]
[client.web]
networks    = ["127.0.0.0/24"]
token_files = ["web.token", "web.next"]
streams     = ["auth"]
[client.key]
networks     = ["127.0.0.0/24"]
token_files  = ["key.token"]
token_header = "X-Api-Key"
streams      = ["auth"]
[client.signed]
networks = ["127.0.0.0/24"]
streams  = ["auth"]
[hook.logto]
adapter = "logto"
client  = "web"
stream  = "auth"
from    = "Example <no-reply@auth.example.com>"
[hook.native]
adapter = "native"
client  = "web"
stream  = "auth"
recipient_limit = "none"
client_limit    = "none"
network_limit   = "none"
[hook.kratos]
adapter = "kratos"
client  = "web"
stream  = "auth"
[hook.kratos-key]
adapter = "kratos"
client  = "key"
stream  = "auth"
[hook.zitadel]
adapter = "zitadel"
client  = "signed"
stream  = "auth"
signing_secret_files = ["zitadel.secret"]
[hook.supabase]
adapter = "supabase"
client  = "signed"
stream  = "auth"
signing_secret_files = ["supabase.secret", "supabase.next"]
link_base_url        = "https://project.supabase.co/auth/v1"
[hook.novu]
adapter = "novu"
client  = "signed"
stream  = "auth"
signing_secret_files = ["novu.secret"]
`

// The tokens and secrets of hooksText.
const (
	webToken    = "e3b0c44298fc1c149afbf4c8996fb924"
	nextToken   = "27ae41e4649b934ca495991b7852b855"
	keyToken    = "a-key-of-kratos-itself"
	zitadelKey  = "the signing key of zitadel"
	supabaseKey = "0123456789abcdef01234567"
	nextKey     = "the next key of supabase"
	novuKey     = "the secret of novu"
)

// hooks are the HTTP door of a site.
type hooks struct {
	*site
	http string // its address
}

func newHooks(t *testing.T) *hooks {
	t.Helper()
	return newSite(t).addHooks()
}

// addHooks gives s an HTTP door, for its next start.
func (s *site) addHooks() *hooks {
	s.t.Helper()
	h := &hooks{s, freeAddress(s.t)}
	for name, text := range map[string]string{"web.token": webToken, "web.next": nextToken, "key.token": keyToken, "zitadel.secret": zitadelKey,
		"supabase.secret": "v1,whsec_" + base64.StdEncoding.EncodeToString([]byte(supabaseKey)),
		"supabase.next":   "whsec_" + base64.StdEncoding.EncodeToString([]byte(nextKey)), "novu.secret": novuKey} {
		h.write(name, text+"\n")
	}
	h.addConfig(strings.ReplaceAll(hooksText, "HTTP", h.http))
	return h
}

// httpAnswer is what a request got.
type httpAnswer struct {
	status int
	body   string
}

// id is that of the message in a good answer.
func (a httpAnswer) id() string {
	var v struct{ ID string }
	json.Unmarshal([]byte(a.body), &v)
	return v.ID
}

// post makes a request with header fields, by a client of its own where c is nil.
func (h *hooks) post(c *http.Client, path, body string, fields ...string) (httpAnswer, error) {
	if c == nil {
		c = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	}
	r, err := http.NewRequestWithContext(h.t.Context(), "POST", "http://"+h.http+path, strings.NewReader(body))
	if err != nil {
		return httpAnswer{}, err
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(fields); i += 2 {
		r.Header.Set(fields[i], fields[i+1])
	}
	resp, err := c.Do(r)
	if err != nil {
		return httpAnswer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return httpAnswer{resp.StatusCode, strings.TrimSpace(string(b))}, err
}

func (h *hooks) mustPost(path, body string, fields ...string) httpAnswer {
	h.t.Helper()
	a, err := h.post(nil, path, body, fields...)
	if err != nil {
		h.t.Fatalf("POST %s got no answer: %v", path, err)
	}
	return a
}

// read is a mail taken apart.
type readMail struct {
	subject, from, to, language string
	text, html                  string
}

func readArrival(t *testing.T, a arrival) readMail {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(a.raw))
	if err != nil {
		t.Fatal(err)
	}
	var words mime.WordDecoder
	subject, err := words.DecodeHeader(m.Header.Get("Subject"))
	if err != nil {
		t.Fatal(err)
	}
	got := readMail{subject: subject, from: m.Header.Get("From"), to: m.Header.Get("To"), language: m.Header.Get("Content-Language")}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		t.Fatalf("the mail is %s, %v", kind, err)
	}
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		var r io.Reader = p
		switch p.Header.Get("Content-Transfer-Encoding") {
		case "quoted-printable":
			r = quotedprintable.NewReader(p)
		case "base64":
			r = base64.NewDecoder(base64.StdEncoding, p)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.Header.Get("Content-Type"), "text/html") {
			got.html = string(b)
		} else {
			got.text = string(b)
		}
	}
}

func TestLogtosHTTPConnectorSendsAllItsTypesInTheReadersLanguage(t *testing.T) {
	t.Parallel()
	needsNode(t)
	needsPython(t, "dkim", "python3-dkim")
	h := newHooks(t)
	h.start()
	types := []string{"SignIn", "Register", "ForgotPassword", "OrganizationInvitation", "Generic", "UserPermissionValidation", "BindNewIdentifier",
		"MfaVerification", "BindMfa"}
	locales := []string{"en", "ja", "pt-BR", "zh-CN"}
	var messages []object
	for _, kind := range types {
		for _, locale := range locales {
			messages = append(messages, object{"to": kind + "-" + locale + "@example.net", "type": kind, "ip": "203.0.113.7",
				"payload": object{"code": "607596", "link": "https://login.example.com/?a=1&b=2", "locale": locale, "uiLocales": locale + " en",
					"application": object{"id": "app", "name": "<Demo> & co"}, "organization": object{"id": "o", "name": "Acme"}}})
		}
	}
	out, err := peer(t, "", "node", "peers/logto_http.mjs", jsonArg(t, object{
		"config": object{"endpoint": "http://" + h.http + "/hooks/logto", "authorization": "Bearer " + webToken}, "messages": messages}))
	if err != nil || strings.Count(out, "true") != len(messages) {
		t.Fatalf("the connector says %s, %v", out, err)
	}
	arrivals := h.auth.wait(len(messages), 20*time.Second)
	wantSigned(t, h.records, authDomain, arrivals...)
	subjects := map[string]map[string]bool{}
	for _, a := range arrivals {
		m := readArrival(t, a)
		kind, locale, _ := strings.Cut(strings.TrimSuffix(a.to[0], "@example.net"), "-")
		if m.language != locale || !inLanguage(m.subject, locale) {
			t.Errorf("%s in %s has Content-Language %q and subject %q", kind, locale, m.language, m.subject)
		}
		want := "607596"
		if kind == "OrganizationInvitation" {
			want = "https://login.example.com/?a=1"
		}
		if !strings.Contains(m.text, want) || !strings.Contains(m.html, want) || strings.Contains(m.html, "<Demo>") {
			t.Errorf("%s in %s lacks %s, or something was not escaped:\n%s\n%s", kind, locale, want, m.text, m.html)
		}
		if m.from != `"Example" <no-reply@auth.example.com>` || a.from != "no-reply@auth.example.com" {
			t.Errorf("%s in %s is from %s, by %s", kind, locale, m.from, a.from)
		}
		if subjects[kind] == nil {
			subjects[kind] = map[string]bool{}
		}
		subjects[kind][m.subject] = true
	}
	for kind, all := range subjects {
		if len(all) != len(locales) {
			t.Errorf("%s has the same subject in two languages: %q", kind, slices.Collect(maps.Keys(all)))
		}
	}
	if len(subjects) != len(types) {
		t.Errorf("%d types arrived, want %d", len(subjects), len(types))
	}
}

// inLanguage reports whether the letters of s are those of a language.
func inLanguage(s, locale string) bool {
	has := func(table *unicode.RangeTable) bool {
		return strings.ContainsFunc(s, func(r rune) bool { return unicode.Is(table, r) })
	}
	kana := has(unicode.Hiragana) || has(unicode.Katakana)
	switch locale {
	case "ja":
		return kana
	case "zh-CN":
		return has(unicode.Han) && !kana
	}
	return !kana && !has(unicode.Han)
}

func TestLogtosHTTPConnectorTellsAShortSentenceOfEachRefusal(t *testing.T) {
	t.Parallel()
	needsNode(t)
	h := newHooks(t)
	h.auth.setAnswer(func(a arrival) error {
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "secret words of upstream"}
	})
	h.start()
	say := func(token, to string, payload object) string {
		t.Helper()
		out, err := peer(t, "", "node", "peers/logto_http.mjs", jsonArg(t, object{
			"config":   object{"endpoint": "http://" + h.http + "/hooks/logto", "authorization": token},
			"messages": []object{{"to": to, "type": "SignIn", "payload": payload}}}))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for want, got := range map[string]string{
		"This request is not authorised.":                          say("Bearer wrong", "a@example.net", object{"code": "1"}),
		"The request cannot be used: code is missing":              say(webToken, "a@example.net", object{}),
		"The mail was refused: this address cannot be written to.": say(nextToken, "a@example.net", object{"code": "1"}),
	} {
		if !strings.Contains(got, want) || strings.Contains(got, "secret") || len(got) > 200 {
			t.Errorf("the connector says %q, want %q", got, want)
		}
	}
}

func hmacOf(key, text string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

// signedCaller signs bodies as one of the callers does.
type signedCaller struct {
	path string
	body func(to string) string
	keys []string // each of which is good
	sign func(key, body string, at time.Time) []string
	old  bool // a signature has a time
}

var signedCallers = map[string]signedCaller{
	"Zitadel": {"/hooks/zitadel", func(to string) string {
		return `{"contextInfo":{"eventType":"user.human.email.code.added","recipientEmailAddress":"` + to + `"},"templateData":{"subject":"Verify","text":"Use 123456","url":"https://login.example.com/"}}`
	}, []string{zitadelKey}, func(key, body string, at time.Time) []string {
		return []string{"ZITADEL-Signature", fmt.Sprintf("t=%d,v1=%x", at.Unix(), hmacOf(key, fmt.Sprintf("%d.%s", at.Unix(), body)))}
	}, true},
	"Supabase": {"/hooks/supabase", func(to string) string {
		return `{"user":{"email":"` + to + `"},"email_data":{"email_action_type":"magiclink","token":"123456","token_hash":"h"}}`
	}, []string{supabaseKey, nextKey}, func(key, body string, at time.Time) []string {
		return []string{"webhook-id", fmt.Sprint(at.UnixNano()), "webhook-timestamp", fmt.Sprint(at.Unix()), "webhook-signature",
			"v1,AAAA, v1," + base64.StdEncoding.EncodeToString(hmacOf(key, fmt.Sprintf("%d.%d.%s", at.UnixNano(), at.Unix(), body)))}
	}, true},
	"Novu": {"/hooks/novu", func(to string) string {
		return `{"to":["` + to + `"],"from":"no-reply@auth.example.com","subject":"Hello","html":"<p>x</p>","text":"x"}`
	}, []string{novuKey}, func(key, body string, _ time.Time) []string {
		return []string{"X-Novu-Signature", hex.EncodeToString(hmacOf(key, body))}
	}, false},
}

func TestSignedRequestsAreTakenOnceAndForgedOnesNever(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.start()
	want := 0
	for name, c := range signedCallers {
		now := time.Now()
		for i, key := range c.keys {
			body := c.body(fmt.Sprintf("%s%d@example.net", strings.ToLower(name), i))
			first := h.mustPost(c.path, body, c.sign(key, body, now)...)
			again := h.mustPost(c.path, body, c.sign(key, body, now.Add(time.Second))...)
			if want++; first.status != 200 || again != first {
				t.Errorf("%s is answered %+v, and the same again %+v", name, first, again)
			}
		}
		body := c.body("forged@example.net")
		signature := c.sign(c.keys[0], body, now)
		forged := map[string]httpAnswer{
			"one bit changed": h.mustPost(c.path, strings.Replace(body, "forged@", "gorged@", 1), signature...),
			"a wrong key":     h.mustPost(c.path, body, c.sign("another key of 24 octets", body, now)...),
			"no signature":    h.mustPost(c.path, body),
			"a token":         h.mustPost(c.path, body, "Authorization", "Bearer "+webToken),
		}
		if c.old {
			forged["a stale one"] = h.mustPost(c.path, body, c.sign(c.keys[0], body, now.Add(-301*time.Second))...)
		}
		for what, a := range forged {
			if a.status != 401 {
				t.Errorf("%s: %s is answered %+v", name, what, a)
			}
		}
	}
	arrivals := h.auth.wait(want, 10*time.Second)
	h.waitEmpty(5 * time.Second)
	if n := len(h.auth.all()); n != want {
		t.Errorf("%d mails arrived, want %d", n, want)
	}
	for _, a := range arrivals { // an application that waits for a click has nowhere to enter a code
		const link = "https://project.supabase.co/auth/v1/verify?token=h&type=magiclink"
		if m := readArrival(t, a); strings.Contains(m.to, "supabase") && (!strings.Contains(m.text, link) || !strings.Contains(m.text, "123456") ||
			!strings.Contains(m.html, `href="`+strings.ReplaceAll(link, "&", "&amp;")+`"`)) {
			t.Errorf("Supabase's mail lacks code or link: %s", m.text)
		}
	}
	wantSigned(t, h.records, authDomain, arrivals...)
}

func kratosMail(to string) string {
	return `{"recipient":"` + to + `","template_type":"login_code_valid","subject":"Sign in","body":"Use 123456","html_body":"<p>123456</p>"}`
}

func TestKratosIsTakenWithItsKeyOrItsPassword(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.start()
	basic := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for name, tt := range map[string]struct {
		path, field, value string
		want               int
	}{
		"api_key":         {"/hooks/kratos-key", "X-Api-Key", keyToken, 200},
		"a wrong api_key": {"/hooks/kratos-key", "X-Api-Key", webToken, 401},
		"basic":           {"/hooks/kratos", "Authorization", basic("kratos", webToken), 200},
		"the next basic":  {"/hooks/kratos", "Authorization", basic("kratos", nextToken), 200},
		"a wrong basic":   {"/hooks/kratos", "Authorization", basic(webToken, "kratos"), 401},
	} {
		if a := h.mustPost(tt.path, kratosMail(strings.ReplaceAll(name, " ", "-")+"@example.net"), tt.field, tt.value); a.status != tt.want {
			t.Errorf("%s is answered %+v", name, a)
		}
	}
	h.auth.wait(3, 10*time.Second)
}

func TestARefusalIsToldAndFreesItsKeyAndKratosIsToldNotToTryAgain(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	var refuses atomic.Bool
	refuses.Store(true)
	h.auth.setAnswer(func(arrival) error {
		if refuses.Load() {
			return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 1, 1}, Message: "no such user"}
		}
		return nil
	})
	h.start()
	send := func() httpAnswer {
		return h.mustPost("/v1/send", `{"to":"kim@example.net","subject":"s","text":"t"}`, "Authorization", webToken, "Idempotency-Key", "1")
	}
	if a := send(); a.status != 422 || !strings.Contains(a.body, "cannot be written to") {
		t.Errorf("answered %+v", a)
	}
	if a := h.mustPost("/hooks/kratos", kratosMail("kam@example.net"), "Authorization", webToken); a.status != 200 || a.id() != "" {
		t.Errorf("Kratos is answered %+v", a)
	}
	bounced := false
	for _, e := range h.trace("kam@example.net").Events {
		bounced = bounced || e.Kind == event.Bounced && e.Data.Hook == "kratos"
	}
	if !bounced {
		t.Error("trace does not tell of the bounce")
	}
	refuses.Store(false)
	first, again := send(), send()
	if first.status != 200 || again != first {
		t.Errorf("answered %+v, then %+v", first, again)
	}
	h.waitEmpty(5 * time.Second)
	if n := len(h.auth.all()); n != 3 {
		t.Errorf("the upstream was asked %d times, want 3", n)
	}
}

func TestTheSameOrderManyTimesAtOnceIsOneMailAndOneAnswer(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.auth.setAnswer(func(arrival) error { time.Sleep(300 * time.Millisecond); return nil })
	h.start()
	ids := make([]string, 8) // below recipient_limit
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			a, err := h.post(nil, "/hooks/kratos", kratosMail("kim@example.net"), "Authorization", webToken)
			if err != nil || a.status != 200 {
				t.Errorf("answered %+v, %v", a, err)
			}
			ids[i] = a.id()
		})
	}
	wg.Wait()
	if slices.Sort(ids); ids[0] == "" || ids[0] != ids[len(ids)-1] {
		t.Errorf("the answers differ: %q", ids)
	}
	h.waitEmpty(5 * time.Second)
	if n := len(h.auth.all()); n != 1 {
		t.Errorf("%d mails arrived", n)
	}
}

func TestAnOrderIsKnownAgainAfterAKill(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.start()
	first := h.mustPost("/hooks/kratos", kratosMail("kim@example.net"), "Authorization", webToken)
	h.waitEmpty(5 * time.Second) // what is in flight may come twice
	h.daemon.kill()
	h.start()
	if again := h.mustPost("/hooks/kratos", kratosMail("kim@example.net"), "Authorization", webToken); again != first || first.status != 200 {
		t.Errorf("answered %+v, after a kill %+v", first, again)
	}
	h.waitEmpty(10 * time.Second)
	if n := len(h.auth.all()); n != 1 {
		t.Errorf("%d mails arrived", n)
	}
}

func TestWhileTheUpstreamIsDownNobodyIsTold200ForLong(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.auth.setAnswer(func(arrival) error { time.Sleep(20 * time.Second); return nil })
	h.start()
	begun := time.Now()
	a := h.mustPost("/hooks/logto", `{"to":"kim@example.net","type":"SignIn","payload":{"code":"1"}}`, "Authorization", webToken)
	if took := time.Since(begun); a.status != 200 || took < 2500*time.Millisecond || took > 3900*time.Millisecond {
		t.Errorf("beside an upstream that hangs it is answered %+v after %v, want 200 after 3 s", a, took)
	}
}

func TestStoppedUnderLoadEveryHTTPRequestGetsAStatusAndWhatWasTakenArrives(t *testing.T) {
	h := newHooks(t)
	h.auth.setAnswer(func(arrival) error { time.Sleep(3 * time.Millisecond); return nil })
	h.start()
	var (
		mu    sync.Mutex
		taken = map[string]bool{}
		lost  []error
		other = map[int]int{}
		last  atomic.Int64
		end   = make(chan struct{})
		wg    sync.WaitGroup
	)
	ask := func(c *http.Client) {
		to := fmt.Sprintf("m%d@example.net", last.Add(1))
		a, err := h.post(c, "/v1/send", `{"to":"`+to+`","subject":"s","text":"t","purpose":"code"}`, "Authorization", webToken)
		mu.Lock()
		defer mu.Unlock()
		var op *net.OpError
		switch {
		case err == nil && a.status == 200:
			taken[to] = true
		case err == nil:
			other[a.status]++
		case errors.As(err, &op) && op.Op == "dial": // nobody was there: no request was made
			time.Sleep(2 * time.Millisecond)
		default:
			lost = append(lost, err)
		}
	}
	for n := range 16 {
		wg.Go(func() {
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: n%2 == 0}, Timeout: 20 * time.Second}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-end:
					return
				default:
					ask(c)
				}
			}
		})
	}
	more := func() {
		t.Helper()
		mu.Lock()
		n := len(taken)
		mu.Unlock()
		eventually(t, 30*time.Second, "more mail is taken", func() bool { mu.Lock(); defer mu.Unlock(); return len(taken) > n+50 })
	}
	for range rounds(3, 20) {
		more()
		if took := h.daemon.stop(); took > 10*time.Second {
			t.Errorf("stopping took %v", took)
		}
		h.start()
	}
	more()
	close(end)
	wg.Wait()
	if len(lost) > 0 {
		t.Errorf("%d requests got no status, the first: %v", len(lost), lost[0])
	}
	for status, n := range other {
		if status != 503 {
			t.Errorf("%d requests got %d", n, status)
		}
	}
	eventually(t, time.Minute, "all that was taken has arrived", func() bool {
		arrived := map[string]bool{}
		for _, a := range h.auth.all() {
			arrived[a.to[0]] = true
		}
		for to := range taken {
			if !arrived[to] {
				return false
			}
		}
		return true
	})
	t.Logf("%d mails taken, %v otherwise", len(taken), other)
}

func TestAConnectionIsUsedAgainAfterAPause(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.start()
	conn, err := connect(h.http, authClient)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &http.Client{Transport: &http.Transport{DialContext: oneConnection(conn)}}
	pause := time.Duration(rounds(1, 61)) * time.Second
	conn.SetDeadline(time.Now().Add(2*pause + time.Minute))
	for n := range 2 {
		if a, err := h.post(c, "/v1/send", fmt.Sprintf(`{"to":"m%d@example.net","subject":"s","text":"t"}`, n), "Authorization", webToken); err != nil || a.status != 200 {
			t.Fatalf("request %d, after %v: %+v, %v", n, pause, a, err)
		}
		time.Sleep(pause)
	}
}

// oneConnection is a dialler that has a connection already, and no other.
func oneConnection(conn net.Conn) func(context.Context, string, string) (net.Conn, error) {
	var used atomic.Bool
	return func(context.Context, string, string) (net.Conn, error) {
		if used.Swap(true) {
			return nil, errors.New("the connection was not used again")
		}
		return conn, nil
	}
}

func TestAReloadTakesUpHooksAndTemplatesWithoutLosingARequest(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	h.start()
	end := make(chan struct{})
	var asked, bad atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}
			defer c.CloseIdleConnections()
			for {
				select {
				case <-end:
					return
				default:
				}
				to := fmt.Sprintf("m%d@example.net", asked.Add(1))
				if a, err := h.post(c, "/v1/send", `{"to":"`+to+`","subject":"s","text":"t"}`, "Authorization", webToken); err != nil || a.status != 200 {
					t.Errorf("beside a reload: %+v, %v", a, err)
					bad.Add(1)
					return
				}
			}
		})
	}
	signIn := `{"to":"kim@example.net","type":"SignIn","payload":{"code":"123456"}}`
	h.mustPost("/hooks/logto", signIn, "Authorization", webToken)
	if err := os.MkdirAll(h.path("templates/SignIn"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("templates/SignIn/en.toml", "subject = \"Ours: {{ code }}\"\n")
	h.addConfig("[templates]\ndir = \"templates\"\n[hook.later]\nadapter = \"logto\"\nclient = \"web\"\nstream = \"auth\"\n")
	if r := h.run("reload"); r.code != 0 {
		t.Fatalf("reload: %s%s", r.stdout, r.stderr)
	}
	if a := h.mustPost("/hooks/later", strings.Replace(signIn, "kim", "kam", 1), "Authorization", webToken); a.status != 200 {
		t.Errorf("the new hook answers %+v", a)
	}
	h.write("templates/SignIn/en.toml", "subject = \n")
	if r := h.run("reload"); r.code != 3 {
		t.Errorf("a broken template was taken: %d, %s%s", r.code, r.stdout, r.stderr)
	}
	close(end)
	wg.Wait()
	subjects := map[string]string{}
	eventually(t, 10*time.Second, "both mails have arrived", func() bool {
		for _, a := range h.auth.all() {
			if m, err := mail.ReadMessage(bytes.NewReader(a.raw)); err == nil {
				subjects[a.to[0]] = m.Header.Get("Subject")
			}
		}
		return subjects["kim@example.net"] != "" && subjects["kam@example.net"] != ""
	})
	if subjects["kam@example.net"] != "Ours: 123456" || strings.HasPrefix(subjects["kim@example.net"], "Ours") {
		t.Errorf("the subjects are %q", subjects)
	}
}
