package ingress

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/hook"
	"gatepost/message"
	"gatepost/reply"
)

const token = "0123456789abcdef"

// fakeCaller is a Caller that remembers. Its functions, where set, decide.
type fakeCaller struct {
	accept func(ctx context.Context, s []*message.Submission) error
	repeat bool // whatever comes has come before
	known  func(p message.Peer) bool

	mu      sync.Mutex
	got     []*message.Submission
	limited []string
	names   []string // in the certificate of the last caller
}

func (f *fakeCaller) AdmitsAny(_ string, p message.Peer) bool { return f.known == nil || f.known(p) }

func (f *fakeCaller) Admits(_, _ string, p message.Peer) error {
	f.mu.Lock()
	f.names = p.Names
	f.mu.Unlock()
	if f.AdmitsAny("", p) {
		return nil
	}
	return reply.New(550, "5.7.1", "no")
}

func (f *fakeCaller) Token(_, client, got string) error {
	switch {
	case client == "broken":
		return reply.New(454, "4.7.0", "cannot tell")
	case got == token:
		return nil
	}
	return reply.New(535, "5.7.8", "no")
}

func (f *fakeCaller) Limited(_ *message.Submission, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limited = append(f.limited, text)
}

func (f *fakeCaller) Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error) {
	f.mu.Lock()
	f.got = append(f.got, s...)
	f.mu.Unlock()
	if f.accept != nil {
		if err := f.accept(ctx, s); err != nil {
			return nil, err
		}
	}
	receipts := make([]message.Receipt, len(s))
	for i := range receipts {
		receipts[i] = message.Receipt{ID: message.ID(i + 1), Repeated: f.repeat}
	}
	return receipts, nil
}

func (f *fakeCaller) submissions() []*message.Submission {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.got)
}

// fakeTemplates know SignIn alone.
type fakeTemplates struct{}

func (fakeTemplates) Knows(kind string) bool { return kind == "SignIn" }

func (fakeTemplates) Fill(m *hook.Mail, from string, _ []string) (*Filled, error) {
	code, _ := m.Variables["code"].(string)
	if code == "" {
		return nil, &hook.Invalid{Field: "code", Text: "is missing"}
	}
	a, err := addressOf(from)
	raw := "From: " + from + "\r\nTo: " + m.To.String() + "\r\nSubject: " + code + "\r\n\r\n" + code + "\r\n"
	return &Filled{Type: "SignIn", Unknown: m.Type != "SignIn", Purpose: "code", Lifetime: 10 * time.Minute, From: a, Raw: message.Raw(raw)}, err
}

func (fakeTemplates) Compose(m *hook.Mail, from string) (*Filled, error) {
	a, err := addressOf(from)
	return &Filled{From: a, Raw: message.Raw("From: " + from + "\r\nSubject: " + m.Rendered.Subject + "\r\n\r\n" + m.Rendered.Text + "\r\n")}, err
}

// httpDoor is an HTTP door under test.
type httpDoor struct {
	*HTTP
	caller *fakeCaller
	ln     net.Listener
	stop   context.CancelFunc
	ended  chan error
	log    *logBuffer
}

// httpConfig is a config with a hook of each kind.
func httpConfig(t testing.TB) *config.Config {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("a signing secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := &config.Config{
		Listen: map[string]*config.Listen{"http": {Name: "http", Protocol: "http", Address: "127.0.0.1:0", Clients: []string{"logto", "broken"}, TLS: "none",
			MaxSize: 4 << 20, MaxConnections: 1000, MaxPerSource: 1000}},
		Client: map[string]*config.Client{"logto": {Name: "logto", Streams: []string{"auth"}}, "broken": {Name: "broken"}, "elsewhere": {Name: "elsewhere"}},
		Stream: map[string]*config.Stream{"auth": {Name: "auth", Kind: message.Auth, Domains: []string{"auth.example.com"}}},
		Hook:   map[string]*config.Hook{},
	}
	for _, adapter := range []string{"logto", "zitadel", "supabase", "kratos", "novu", "native"} {
		cfg.Hook[adapter] = &config.Hook{Name: adapter, Adapter: adapter, Client: "logto", Stream: "auth", VerdictTimeout: 3 * time.Second,
			SigningSecrets: []config.Secret{{File: secret}}, LinkBaseURL: "https://x.example.com"}
	}
	cfg.Hook["broken"] = &config.Hook{Name: "broken", Adapter: "logto", Client: "broken", Stream: "auth"}
	cfg.Hook["elsewhere"] = &config.Hook{Name: "elsewhere", Adapter: "logto", Client: "elsewhere", Stream: "auth"}
	return cfg
}

// openHTTP starts a door on ln, nil for a free port of loopback, and stops it when the test ends.
func openHTTP(t testing.TB, ln net.Listener, change func(o *HTTPOptions, f *fakeCaller)) *httpDoor {
	t.Helper()
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	f, log := &fakeCaller{}, &logBuffer{}
	o := HTTPOptions{Config: httpConfig(t), Listen: "http", Caller: f, Templates: fakeTemplates{}, Budget: NewBudget(64 << 20), Limits: NewLimits(),
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if change != nil {
		change(&o, f)
	}
	door, err := NewHTTP(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	d := &httpDoor{HTTP: door, caller: f, ln: ln, stop: stop, ended: make(chan error, 1), log: log}
	go func() { d.ended <- d.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := d.wait(t); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := d.Budget.InUse(); n != 0 {
			t.Errorf("%d octets of the budget were not given back", n)
		}
		if n := d.places.count(); n != 0 || len(d.places.sources) != 0 {
			t.Errorf("%d places and %d sources were not given back", n, len(d.places.sources))
		}
	})
	return d
}

func (d *httpDoor) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-d.ended:
		d.ended <- nil
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("Serve does not return")
		return nil
	}
}

func (d *httpDoor) addr() string { return d.ln.Addr().String() }

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
}

// client makes requests, each on a connection of its own.
func (d *httpDoor) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
}

// send makes a request with a good token and content type, which fields may replace ("" takes one away).
func (d *httpDoor) send(t testing.TB, c *http.Client, method, path, body string, fields ...string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://"+d.addr()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(fields); i += 2 {
		r.Header.Del(fields[i])
		if fields[i+1] != "" {
			r.Header.Set(fields[i], fields[i+1])
		}
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatalf("%s %s: no answer: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: the answer broke off: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, strings.TrimSpace(string(b))}
}

func (d *httpDoor) post(t testing.TB, path, body string, fields ...string) answer {
	t.Helper()
	return d.send(t, d.client(), "POST", path, body, fields...)
}

const (
	logtoBody  = `{"to":"kim@example.net","type":"SignIn","payload":{"code":"123456","application":{"id":"app"}},"ip":"203.0.113.7"}`
	nativeBody = `{"to":"kim@example.net","subject":"Hello","text":"Use 123456"}`
	kratosBody = `{"recipient":"kim@example.net","template_type":"login_code_valid","subject":"s","body":"b"}`
)

func TestAnOrderOverHTTPBecomesASubmission(t *testing.T) {
	before := time.Now()
	d := openHTTP(t, nil, nil)
	got := d.post(t, "/hooks/logto", logtoBody)
	if got.status != 200 || got.body != `{"id":"`+message.ID(1).String()+`"}` || got.header.Get("Content-Type") != "application/json" {
		t.Errorf("answered %+v", got)
	}
	s := d.caller.submissions()[0]
	if s.Client != "logto" || s.Listener != "http" || s.With != "HTTP" || s.MailFrom != "no-reply@auth.example.com" || len(s.To) != 1 || s.To[0].String() != "kim@example.net" ||
		s.StartedAt.Before(before) || !strings.Contains(string(s.Raw), "Subject: 123456\r\n") || s.Remote.Addr().String() != "127.0.0.1" {
		t.Errorf("submitted %+v", s)
	}
	if o := s.Order; o.Hook != "logto" || o.Type != "SignIn" || o.Stream != "auth" || o.Purpose != "code" || o.Application != "app" || o.TTL != 10*time.Minute ||
		o.Wait != 3*time.Second || o.Key != nil {
		t.Errorf("ordered %+v", o)
	}
	if got := d.post(t, "/v1/send", nativeBody); got.status != 200 {
		t.Errorf("the native form is answered %+v", got)
	}
	if s := d.caller.submissions()[1]; s.Order.Hook != "native" || s.Order.Type != "Notice" || s.Order.TTL != 24*time.Hour || !strings.Contains(string(s.Raw), "Subject: Hello\r\n") {
		t.Errorf("submitted %+v", s)
	}
	for _, secret := range []string{"123456", token, "kim@"} {
		if strings.Contains(d.log.String(), secret) {
			t.Errorf("the log tells %q:\n%s", secret, d.log)
		}
	}
}

func TestNothingButPOSTToAHookIsEverASuccess(t *testing.T) {
	d := openHTTP(t, nil, nil)
	for _, path := range []string{"/hooks/logto", "/v1/send"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post", "QUERY"} {
			if got := d.send(t, d.client(), method, path, ""); got.status != 405 || got.header.Get("Allow") != "POST" {
				t.Errorf("%s %s is answered %+v", method, path, got)
			}
		}
	}
	for _, path := range []string{"/", "/hooks", "/hooks/", "/hooks/nobody", "/hooks/elsewhere", "/hooks/../hooks/logto", "/hooks/logto/", "/v1", "/v1/send/", "/hooks/logto%00", "//hooks/logto"} {
		for _, method := range []string{"GET", "POST"} {
			if got := d.send(t, d.client(), method, path, logtoBody); got.status != 404 {
				t.Errorf("%s %s is answered %+v", method, path, got)
			}
		}
	}
	if !strings.Contains(d.log.String(), errNoHook.Error()) {
		t.Error("the log does not tell that there is no such hook")
	}
	if n := len(d.caller.submissions()); n != 0 {
		t.Errorf("%d mails were made", n)
	}
}

func TestAClientThatIsRedirectedHereNeverSucceedsByGET(t *testing.T) {
	d := openHTTP(t, nil, nil)
	for _, code := range []int{301, 302, 303, 307, 308} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: http.RedirectHandler("http://"+d.addr()+"/hooks/logto", code)}
		go s.Serve(ln)
		r, err := http.NewRequest("POST", "http://"+ln.Addr().String(), strings.NewReader(logtoBody))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", token)
		r.Header.Set("Content-Type", "application/json")
		resp, err := d.client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		s.Close()
		posted := code >= 307
		if (resp.StatusCode == 200) != posted || !posted && resp.StatusCode != 405 {
			t.Errorf("after a %d it got %d", code, resp.StatusCode)
		}
	}
}

func TestATokenIsTakenInEachOfItsForms(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		o.Config.Client["key"] = &config.Client{Name: "key", TokenHeader: "X-Api-Key"}
		o.Config.Listen["http"].Clients = append(o.Config.Listen["http"].Clients, "key")
		o.Config.Hook["key"] = &config.Hook{Name: "key", Adapter: "logto", Client: "key", Stream: "auth"}
	})
	for name, tt := range map[string]struct {
		path, field, value string
		want               int
	}{
		"Bearer":                        {"/hooks/logto", "Authorization", "Bearer " + token, 200},
		"bearer":                        {"/hooks/logto", "Authorization", "bearer  " + token + " ", 200},
		"bare":                          {"/hooks/logto", "Authorization", token, 200},
		"Basic, any user":               {"/hooks/logto", "Authorization", "Basic " + "a3JhdG9zOjAxMjM0NTY3ODlhYmNkZWY=", 200},
		"Basic, wrong password":         {"/hooks/logto", "Authorization", "Basic a3JhdG9zOng=", 401},
		"Basic that is no base64":       {"/hooks/logto", "Authorization", "Basic %", 401},
		"a named header":                {"/hooks/key", "X-Api-Key", token, 200},
		"another header than the named": {"/hooks/key", "Authorization", token, 401},
		"a longer one":                  {"/hooks/logto", "Authorization", token + "0", 401},
		"a shorter one":                 {"/hooks/logto", "Authorization", token[1:], 401},
		"none":                          {"/hooks/logto", "Authorization", "", 401},
		"an empty Bearer":               {"/hooks/logto", "Authorization", "Bearer", 401},
		"one that cannot be checked":    {"/hooks/broken", "Authorization", token, 503},
		"for the native form":           {"/v1/send", "Authorization", "Bearer x", 401},
	} {
		before := len(d.caller.submissions())
		body := logtoBody
		if tt.path == "/v1/send" {
			body = nativeBody
		}
		got := d.post(t, tt.path, body, "Authorization", "", tt.field, tt.value)
		if got.status != tt.want || (len(d.caller.submissions()) > before) != (tt.want == 200) {
			t.Errorf("%s: answered %+v, want %d", name, got, tt.want)
		}
		if tt.want == 401 && !strings.Contains(got.body, hook.Unauthorised.Text) {
			t.Errorf("%s: the text is %q", name, got.body)
		}
	}
	if strings.Contains(d.log.String(), token) {
		t.Errorf("the log has the token:\n%s", d.log)
	}
}

func TestAFloodOfStrangersDoesNotHideACallerWithAWrongToken(t *testing.T) {
	d := openHTTP(t, nil, nil)
	for range 20 {
		d.post(t, "/hooks/nobody", logtoBody)
		d.post(t, "/hooks/logto", logtoBody, "Authorization", "Bearer x")
		d.post(t, "/hooks/kratos", logtoBody, "Authorization", "Bearer x")
	}
	told := 0
	for line := range strings.Lines(d.log.String()) {
		if strings.Contains(line, "level=WARN") {
			told++
		}
	}
	if told != 3 {
		t.Errorf("%d lines at level WARN, want one of each path:\n%s", told, d.log)
	}
	for _, name := range []string{"logto", "kratos"} {
		if !regexp.MustCompile("level=WARN .*hook=" + name + " .*code=401").MatchString(d.log.String()) {
			t.Errorf("the wrong token for hook %s is not told of", name)
		}
	}
}

// raw writes octets on a connection of its own and returns all that comes back.
func (d *httpDoor) raw(t testing.TB, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	conn.(*net.TCPConn).CloseWrite()
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("the connection broke: %v\nafter %s", err, b)
	}
	return string(b)
}

func head(lines ...string) string {
	return "POST /hooks/logto HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + strings.Join(lines, "") + "\r\n"
}

const authorised = "Authorization: " + token + "\r\n"

func TestTheTokenIsCheckedBeforeTheBodyIsRead(t *testing.T) {
	d := openHTTP(t, nil, nil)
	got := d.raw(t, head("Expect: 100-continue\r\n", "Content-Length: 100\r\n"))
	if !strings.HasPrefix(got, "HTTP/1.1 401 ") || strings.Contains(got, "100 Continue") {
		t.Errorf("answered %q", got)
	}
	if got := d.raw(t, head(authorised, "Expect: 100-continue\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)))+logtoBody); !strings.Contains(got, "HTTP/1.1 200 ") {
		t.Errorf("with the token it is answered %q", got)
	}
}

func TestTwoRequestsInOneAreNeverTwo(t *testing.T) {
	smuggled := "POST /hooks/logto HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + authorised + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(logtoBody)) + logtoBody
	for name, text := range map[string]string{
		"a length beside chunks":       head("Transfer-Encoding: chunked\r\n", "Content-Length: 5\r\n") + "0\r\n\r\n" + smuggled,
		"chunks beside a length":       head(fmt.Sprintf("Content-Length: %d\r\n", len(smuggled)), "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n" + smuggled,
		"two lengths":                  head("Content-Length: 0\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(smuggled))) + smuggled,
		"lengths in a list":            head(fmt.Sprintf("Content-Length: 0, %d\r\n", len(smuggled))) + smuggled,
		"a length with a sign":         head("Content-Length: +0\r\n") + smuggled,
		"chunks by another name":       head("Transfer-Encoding: xchunked\r\n") + smuggled,
		"chunks that are hidden":       head("Transfer-Encoding : chunked\r\n") + smuggled,
		"a folded field":               head("Transfer-Encoding:\r\n chunked\r\n") + "0\r\n\r\n" + smuggled,
		"a chunk with a strange size":  head(authorised, "Transfer-Encoding: chunked\r\n") + "0x0\r\n\r\n" + smuggled,
		"a chunk with a negative size": head(authorised, "Transfer-Encoding: chunked\r\n") + "-1\r\n\r\n" + smuggled,
	} {
		d := openHTTP(t, nil, nil)
		got := d.raw(t, text)
		if n := len(d.caller.submissions()); n != 0 {
			t.Errorf("%s: %d mails were made; answered %q", name, n, got)
		}
		if !strings.HasPrefix(got, "HTTP/1.1 4") && !strings.HasPrefix(got, "HTTP/1.1 501") {
			t.Errorf("%s: answered %q", name, got)
		}
	}
	d := openHTTP(t, nil, nil)
	if got := d.raw(t, smuggled+smuggled); strings.Count(got, "HTTP/1.1 200 ") != 2 {
		t.Errorf("two good requests one after the other are answered %q", got)
	}
}

func TestWhatIsWrongWithARequestHasItsStatus(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) { o.Config.Client["logto"].MaxSize = 2 << 20 })
	big := `{"to":"kim@example.net","subject":"s","text":"` + strings.Repeat("x", 1<<20) + `"}`
	for name, tt := range map[string]struct {
		path, body string
		fields     []string
		want       int
		says       string
	}{
		"no type":                     {"/hooks/logto", logtoBody, []string{"Content-Type", ""}, 415, "application/json"},
		"a form":                      {"/hooks/logto", logtoBody, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, ""},
		"text":                        {"/hooks/logto", logtoBody, []string{"Content-Type", "text/plain"}, 415, ""},
		"a charset":                   {"/hooks/logto", logtoBody, []string{"Content-Type", "application/json; charset=UTF-8"}, 200, ""},
		"another charset":             {"/hooks/logto", logtoBody, []string{"Content-Type", "application/json; charset=utf-16"}, 415, ""},
		"a suffix":                    {"/hooks/logto", logtoBody, []string{"Content-Type", "application/cloudevents+json"}, 200, ""},
		"compressed":                  {"/hooks/logto", logtoBody, []string{"Content-Encoding", "gzip"}, 415, ""},
		"no JSON":                     {"/hooks/logto", "x", nil, 400, "JSON"},
		"a field that is missing":     {"/hooks/logto", `{"to":"kim@example.net","type":"SignIn","payload":{}}`, nil, 400, "code is missing"},
		"several recipients":          {"/hooks/logto", `{"to":"a@example.net,b@example.net","type":"SignIn","payload":{"code":"1"}}`, nil, 400, "to is not one address"},
		"a type that is not known":    {"/hooks/logto", `{"to":"kim@example.net","type":"Later","payload":{"code":"1"}}`, nil, 200, ""},
		"1 MB for a hook":             {"/hooks/kratos", big, nil, 413, ""},
		"1 MB in the native form":     {"/v1/send", big, nil, 200, ""},
		"more than the client may":    {"/v1/send", big + big, nil, 413, ""},
		"a sender that is no address": {"/v1/send", `{"to":"kim@example.net","subject":"s","text":"t","from":"nobody"}`, nil, 400, "from"},
		"a reply-to that is none":     {"/v1/send", `{"to":"kim@example.net","subject":"s","text":"t","reply_to":"a@b\r\nBcc: c@d"}`, nil, 400, "reply_to"},
		"a signature that is missing": {"/hooks/zitadel", "{}", nil, 401, "authorised"},
		"an empty idempotency key":    {"/v1/send", nativeBody, []string{"Idempotency-Key", strings.Repeat("k", 256)}, 400, "Idempotency-Key"},
	} {
		got := d.post(t, tt.path, tt.body, tt.fields...)
		if got.status != tt.want || !strings.Contains(got.body, tt.says) || len(got.body) > 200 {
			t.Errorf("%s: answered %+v, want %d with %q", name, got, tt.want, tt.says)
		}
	}
	if !strings.Contains(d.log.String(), "type of mail is not known") {
		t.Error("the log says nothing of the type that is not known")
	}
}

func TestWhatTheEngineSaysHasItsStatus(t *testing.T) {
	var say atomic.Pointer[error]
	d := openHTTP(t, nil, func(_ *HTTPOptions, f *fakeCaller) {
		f.accept = func(context.Context, []*message.Submission) error { return *say.Load() }
	})
	for name, tt := range map[string]struct {
		err             error
		status          int
		kratos, retried string
	}{
		"down":             {reply.New(451, "4.4.1", "secret host"), 503, "503", "5"},
		"full":             {reply.New(452, "4.3.1", "secret disk"), 503, "503", "5"},
		"ours":             {errors.New("secret path"), 503, "503", "5"},
		"no such mailbox":  {reply.New(550, "5.1.1", "secret upstream"), 422, "200", ""},
		"refused":          {fmt.Errorf("x: %w", reply.New(554, "5.7.1", "secret rule")), 422, "200", ""},
		"too big upstream": {reply.New(552, "5.3.4", "secret size"), 422, "200", ""},
	} {
		say.Store(&tt.err)
		got := d.post(t, "/hooks/logto", logtoBody)
		if got.status != tt.status || got.header.Get("Retry-After") != tt.retried || strings.Contains(got.body, "secret") || len(got.body) < 10 {
			t.Errorf("%s: answered %+v", name, got)
		}
		if got := d.post(t, "/hooks/kratos", kratosBody); fmt.Sprint(got.status) != tt.kratos {
			t.Errorf("%s: Kratos is answered %+v", name, got)
		}
		if !strings.Contains(d.log.String(), reply.Of(tt.err).Text) && !strings.Contains(d.log.String(), tt.err.Error()) {
			t.Errorf("%s: the log does not tell the cause", name)
		}
	}
}

func TestAPanicIsA503(t *testing.T) {
	d := openHTTP(t, nil, func(_ *HTTPOptions, f *fakeCaller) {
		f.accept = func(context.Context, []*message.Submission) error { panic("oops") }
	})
	if got := d.post(t, "/hooks/logto", logtoBody); got.status != 503 || strings.Contains(got.body, "oops") {
		t.Errorf("answered %+v", got)
	}
	if !strings.Contains(d.log.String(), "level=ERROR") {
		t.Error("the log does not tell")
	}
}

func TestAnAnswerArrivesAlsoBeforeABigBodyIsRead(t *testing.T) {
	d := openHTTP(t, nil, nil)
	body := strings.Repeat("x", 6<<20)
	for _, length := range []string{fmt.Sprintf("Content-Length: %d\r\n", len(body)), "Transfer-Encoding: chunked\r\n"} {
		text := head(length)
		if strings.HasPrefix(length, "T") {
			text += fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
		} else {
			text += body
		}
		if got := d.raw(t, text); !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.Contains(got, "Connection: close") {
			t.Errorf("answered %.200q", got)
		}
	}
	if got := d.raw(t, head(authorised, "Transfer-Encoding: chunked\r\n")+fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)); !strings.HasPrefix(got, "HTTP/1.1 413 ") {
		t.Errorf("answered %.200q", got)
	}
}

func TestABodyThatComesTooSlowlyIsToldSo(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) { o.Timeouts.Body = 50 * time.Millisecond })
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, head(authorised, "Content-Length: 100\r\n")+"{")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || resp.StatusCode != 408 || !resp.Close {
		t.Errorf("answered %+v, %v", resp, err)
	}
}

func TestACallerThatLeavesInsideItsRequestMakesNoMail(t *testing.T) {
	d := openHTTP(t, nil, nil)
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(conn, head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)+1))+logtoBody)
	conn.Close()
	eventuallyHTTP(t, func() bool { return strings.Contains(d.log.String(), "caller left") })
	if got := d.raw(t, head(authorised, "Content-Length: 500\r\n")+logtoBody); !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "Connection: close") {
		t.Errorf("one that waits for the answer gets %q", got)
	}
	if got := d.raw(t, head(authorised, "Transfer-Encoding: chunked\r\n")+"5\r\n{\"to\""); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
		t.Errorf("one that breaks off inside a chunk gets %q", got)
	}
	if n := len(d.caller.submissions()); n != 0 {
		t.Errorf("%d mails were made", n)
	}
}

func TestASilentConnectionDoesNotHoldUpTheStop(t *testing.T) {
	d := openHTTP(t, nil, nil)
	conn := dialHTTP(t, d)
	defer conn.Close()
	eventuallyHTTP(t, func() bool { return d.places.count() == 1 })
	begun := time.Now()
	d.stop()
	if err := d.wait(t); err != nil || time.Since(begun) > 1500*time.Millisecond {
		t.Errorf("the stop took %v and returned %v", time.Since(begun), err)
	}
}

func TestAStopEndsAlsoWhileCallersKeepComing(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	d := openHTTP(t, ln, nil)
	end := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				if conn, err := net.Dial("unix", ln.Addr().String()); err == nil {
					conn.Close()
				}
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	begun := time.Now()
	d.stop()
	if err := d.wait(t); err != nil || time.Since(begun) > 3*time.Second {
		t.Errorf("the stop took %v and returned %v", time.Since(begun), err)
	}
	close(end)
	wg.Wait()
}

func eventuallyHTTP(t testing.TB, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come so within 5 s")
		}
	}
}

func TestStrangersAreToldSoAndCostNoPlace(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		f.known = func(p message.Peer) bool { return p.Addr == netip.MustParseAddr("127.0.0.1") }
		o.Config.Listen["http"].MaxConnections = 4
	})
	stranger := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).DialContext}}
	for range 6 { // silent ones
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}).Dial("tcp", d.addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if got := d.send(t, stranger, "POST", "/hooks/logto", logtoBody); got.status != 403 {
		t.Errorf("a stranger is answered %+v", got)
	}
	if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
		t.Errorf("beside them a client is answered %+v", got)
	}
}

func TestWhereItIsFullThatIsTheAnswer(t *testing.T) {
	for name, limit := range map[string]func(*config.Listen){
		"in all":     func(l *config.Listen) { l.MaxConnections = 2 },
		"per source": func(l *config.Listen) { l.MaxPerSource = 2 },
	} {
		d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) { limit(o.Config.Listen["http"]) })
		var open []net.Conn
		for range 2 {
			conn, err := net.Dial("tcp", d.addr())
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, conn)
		}
		eventuallyHTTP(t, func() bool { return d.places.count() == 2 })
		for range 5 {
			if got := d.post(t, "/hooks/logto", logtoBody); got.status != 503 || got.header.Get("Retry-After") == "" {
				t.Errorf("%s: answered %+v", name, got)
			}
		}
		for _, conn := range open {
			conn.Close()
		}
		eventuallyHTTP(t, func() bool { return d.places.count() == 0 })
		if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
			t.Errorf("%s: with room again it is answered %+v", name, got)
		}
	}
}

func TestWithoutMemoryThatIsTheAnswer(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) { o.Budget = NewBudget(64 << 10) })
	if got := d.post(t, "/v1/send", `{"to":"kim@example.net","subject":"s","text":"`+strings.Repeat("x", 60<<10)+`"}`); got.status != 503 {
		t.Errorf("answered %+v", got)
	}
	if got := d.post(t, "/v1/send", nativeBody); got.status != 200 {
		t.Errorf("a small one is answered %+v", got)
	}
}

// pipes is a listener whose connections are made in memory, for a fake clock.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

func TestAConnectionIsKeptForAWhileWithoutRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		openHTTP(t, p, nil)
		conn := p.dial()
		defer conn.Close()
		r := bufio.NewReader(conn)
		for _, pause := range []time.Duration{0, 60 * time.Second, 75 * time.Second, 118 * time.Second} {
			time.Sleep(pause)
			go fmt.Fprint(conn, head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)))+logtoBody)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 200 || resp.Close {
				t.Fatalf("after %v without a request: %+v, %v", pause, resp, err)
			}
			io.Copy(io.Discard, resp.Body)
		}
		time.Sleep(121 * time.Second)
		if _, err := r.ReadByte(); err != io.EOF {
			t.Errorf("a connection without requests is never closed: %v", err)
		}
	})
}

func TestTheWaitForAVerdictBeginsWithTheRequestsFirstOctet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		d := openHTTP(t, p, nil)
		conn := p.dial()
		defer conn.Close()
		text := head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))) + logtoBody
		r := bufio.NewReader(conn)
		for n := range 2 {
			time.Sleep(time.Duration(n) * 30 * time.Second)
			begun := time.Now()
			go func() {
				for part := range slices.Chunk([]byte(text), len(text)/4+1) {
					conn.Write(part)
					time.Sleep(time.Second)
				}
			}()
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("answered %+v, %v", resp, err)
			}
			io.Copy(io.Discard, resp.Body)
			time.Sleep(5 * time.Second)
			if at := d.caller.submissions()[n].StartedAt; !at.Equal(begun) {
				t.Errorf("request %d is counted from %v, %v after its first octet", n, at, at.Sub(begun))
			}
		}
	})
}

func TestADoorThatStopsAnswersWhoeverHasConnected(t *testing.T) {
	release := make(chan struct{})
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		f.accept = func(context.Context, []*message.Submission) error { <-release; return nil }
	})
	text := head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))) + logtoBody
	idle, err := net.Dial("tcp", d.addr()) // silent until after the stop
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	eventuallyHTTP(t, func() bool { return d.places.count() == 1 })
	var wg sync.WaitGroup
	ask := func(conn net.Conn) {
		wg.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprint(conn, text)
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("answered %+v, %v", resp, err)
			}
		})
	}
	ask(dialHTTP(t, d))
	eventuallyHTTP(t, func() bool { return len(d.caller.submissions()) == 1 })
	for range 200 { // more than are accepted when the door stops
		ask(dialHTTP(t, d))
	}
	d.stop()
	ask(idle)
	time.Sleep(100 * time.Millisecond)
	close(release)
	wg.Wait()
	if err := d.wait(t); err != nil {
		t.Error(err)
	}
	if conn, err := net.DialTimeout("tcp", d.addr(), time.Second); err == nil {
		conn.Close()
		t.Error("the port is still open")
	}
}

func dialHTTP(t testing.TB, d *httpDoor) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestWhatDoesNotEndIsCutOff(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		o.Timeouts.Linger, o.Timeouts.Drain = 10*time.Millisecond, 50*time.Millisecond
		f.accept = func(ctx context.Context, _ []*message.Submission) error { <-ctx.Done(); return ctx.Err() }
	})
	conn := dialHTTP(t, d)
	defer conn.Close()
	fmt.Fprint(conn, head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)))+logtoBody)
	eventuallyHTTP(t, func() bool { return len(d.caller.submissions()) == 1 })
	d.stop()
	if err := d.wait(t); err == nil || !strings.Contains(err.Error(), "1 connections were cut off") {
		t.Errorf("Serve returned %v", err)
	}
}

func TestARepetitionHasTheKeyOfItsFirst(t *testing.T) {
	d := openHTTP(t, nil, nil)
	key := func(path, body string, fields ...string) string {
		t.Helper()
		if got := d.post(t, path, body, fields...); got.status != 200 {
			t.Fatalf("answered %+v", got)
		}
		all := d.caller.submissions()
		return string(all[len(all)-1].Order.Key)
	}
	other := strings.Replace(kratosBody, "kim", "kam", 1)
	switch a, b := key("/hooks/kratos", kratosBody), key("/hooks/kratos", kratosBody); {
	case a == "" || a != b:
		t.Error("the same request has another key")
	case a == key("/hooks/kratos", other):
		t.Error("another request has the same key")
	}
	if key("/hooks/logto", logtoBody) != "" {
		t.Error("Logto's requests have a key: its test button would work once")
	}
	if key("/v1/send", nativeBody) != "" {
		t.Error("a native request without a key has one")
	}
	a := key("/v1/send", nativeBody, "Idempotency-Key", "1")
	if a == "" || a != key("/v1/send", nativeBody, "Idempotency-Key", "1") || a == key("/v1/send", nativeBody, "Idempotency-Key", "2") {
		t.Error("Idempotency-Key does not decide")
	}
	all := d.caller.submissions()
	prints := []int32{}
	for _, s := range all[len(all)-3:] {
		prints = append(prints, s.Order.Fingerprint)
	}
	if prints[0] < 1<<30 || prints[1] != prints[0] || prints[2] == prints[0] {
		t.Errorf("its body has the fingerprints %d, want two alike and one of another key: a code in it could be found by trying all", prints)
	}
	d.caller.accept = func(context.Context, []*message.Submission) error { return message.ErrReused }
	if got := d.post(t, "/v1/send", nativeBody, "Idempotency-Key", "1"); got.status != 422 || !strings.Contains(got.body, "Idempotency-Key") {
		t.Errorf("a key that was another's is answered %+v", got)
	}
}

func TestTheMailsOfOneRequestAreSubmittedTogetherUnderOneKey(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, []byte("v1,whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n"))
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		o.Config.Hook["supabase"].SigningSecrets = []config.Secret{{File: secret}}
	})
	body := `{"user":{"email":"a@example.net","new_email":"b@example.net"},
		"email_data":{"email_action_type":"email_change","token":"1","token_hash":"h1","token_new":"2","token_hash_new":"h2"}}`
	at := fmt.Sprint(time.Now().Unix())
	h := hmac.New(sha256.New, []byte("0123456789abcdef01234567"))
	h.Write([]byte("id." + at + "." + body))
	if got := d.post(t, "/hooks/supabase", body, "Authorization", "", "webhook-id", "id", "webhook-timestamp", at,
		"webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(h.Sum(nil))); got.status != 200 || got.body != "{}" {
		t.Errorf("answered %+v", got)
	}
	got := d.caller.submissions()
	if len(got) != 2 || got[0].To[0].Local != "a" || got[1].To[0].Local != "b" || got[0].Order.Key == nil || got[1].Order.Key != nil {
		t.Errorf("submitted %+v", got)
	}
}

func TestMoreThanALimitIs429WithATimeAndOneEvent(t *testing.T) {
	for name, tt := range map[string]struct {
		set   func(*config.Hook, config.Rate)
		other func(n int) string // a request that the limit does not touch, "" where there is none
	}{
		"recipient": {func(h *config.Hook, r config.Rate) { h.RecipientLimit = r }, func(int) string { return strings.Replace(logtoBody, "kim", "kam", 1) }},
		"client":    {func(h *config.Hook, r config.Rate) { h.ClientLimit = r }, nil},
		"network":   {func(h *config.Hook, r config.Rate) { h.NetworkLimit = r }, nil},
		"ip":        {func(h *config.Hook, r config.Rate) { h.IPLimit = r }, func(int) string { return strings.Replace(logtoBody, "203.0.113.7", "10.0.0.7", 1) }},
	} {
		d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
			tt.set(o.Config.Hook["logto"], config.Rate{Count: 3, Per: time.Hour})
		})
		for range 3 {
			if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
				t.Errorf("%s: below the limit it is answered %+v", name, got)
			}
		}
		for range 3 {
			if got := d.post(t, "/hooks/logto", logtoBody); got.status != 429 || got.header.Get("Retry-After") == "" || strings.Contains(got.body, "limit") {
				t.Errorf("%s: above the limit it is answered %+v", name, got)
			}
		}
		if n := len(d.caller.limited); n != 1 || !strings.Contains(d.caller.limited[0], name+`_limit = "3/1h"`) {
			t.Errorf("%s: the events are %q", name, d.caller.limited)
		}
		if tt.other != nil {
			if got := d.post(t, "/hooks/logto", tt.other(0)); got.status != 200 {
				t.Errorf("%s: what it does not touch is answered %+v", name, got)
			}
		}
	}
}

func TestWhatWasNotSentDoesNotCountAgainstALimit(t *testing.T) {
	var fails atomic.Bool
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		o.Config.Hook["kratos"].RecipientLimit = config.Rate{Count: 2, Per: time.Hour}
		f.accept = func(context.Context, []*message.Submission) error {
			if fails.Load() {
				return reply.New(451, "4.4.1", "down")
			}
			return nil
		}
	})
	fails.Store(true)
	for range 5 {
		if got := d.post(t, "/hooks/kratos", kratosBody); got.status != 503 {
			t.Fatalf("answered %+v", got)
		}
	}
	fails.Store(false)
	d.caller.repeat = true
	for range 5 {
		if got := d.post(t, "/hooks/kratos", kratosBody); got.status != 200 {
			t.Fatalf("a repetition is answered %+v", got)
		}
	}
}

func TestABucketFillsUpAgainAndTheirNumberIsBounded(t *testing.T) {
	l, now, r := NewLimits(), time.Now(), config.Rate{Count: 10, Per: 10 * time.Minute}
	key := keyOf("h", "recipient_limit", "a")
	for range 10 {
		if _, _, ok := l.take(key, r, now); !ok {
			t.Fatal("refused below the limit")
		}
	}
	wait, first, ok := l.take(key, r, now)
	if ok || !first || wait != time.Minute {
		t.Errorf("above the limit: %v, %v, %v", wait, first, ok)
	}
	if _, _, ok := l.take(key, r, now.Add(time.Minute+time.Millisecond)); !ok {
		t.Error("a token has not come back")
	}
	if _, first, _ := l.take(key, r, now.Add(time.Minute+2*time.Millisecond)); !first {
		t.Error("that it is empty again is not told again")
	}
	for n := range 3 * maxBuckets {
		l.take(keyOf("h", "recipient_limit", fmt.Sprint(n)), r, now)
	}
	if n := len(l.recent) + len(l.older); n > 2*maxBuckets {
		t.Errorf("%d buckets are kept", n)
	}
}

func TestHTTP2AndTLSAreSpoken(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		l := o.Config.Listen["http"]
		l.TLS, l.TLSCertFile, l.TLSKeyFile = "implicit", cert, key
	})
	for _, two := range []bool{true, false} {
		tr := &http.Transport{TLSClientConfig: a.trust(t), ForceAttemptHTTP2: two}
		c := &http.Client{Transport: tr}
		for range 3 {
			r, err := http.NewRequest("POST", "https://"+d.addr()+"/hooks/logto", strings.NewReader(logtoBody))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", token)
			r.Header.Set("Content-Type", "application/json")
			resp, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 200 || (resp.ProtoMajor == 2) != two {
				t.Errorf("answered %s %s", resp.Proto, resp.Status)
			}
		}
		tr.CloseIdleConnections()
	}
	if s := d.caller.submissions()[0]; s.With != "HTTPS" {
		t.Errorf("with %s", s.With)
	}
}

func TestAnHTTP2ConnectionThatIsIdleDoesNotFailTheStop(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		l := o.Config.Listen["http"]
		l.TLS, l.TLSCertFile, l.TLSKeyFile = "implicit", cert, key
		o.Timeouts.Linger = 50 * time.Millisecond
	})
	tr := &http.Transport{TLSClientConfig: a.trust(t), ForceAttemptHTTP2: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("https://" + d.addr() + "/hooks/logto")
	if err != nil || resp.StatusCode != 405 || resp.ProtoMajor != 2 {
		t.Fatalf("answered %+v, %v", resp, err)
	}
	resp.Body.Close()
	d.stop()
	if err := d.wait(t); err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestTheNamesInACallersCertificateCount(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		l := o.Config.Listen["http"]
		l.TLS, l.TLSCertFile, l.TLSKeyFile, l.TLSClientCAFile = "implicit", cert, key, a.file
	})
	call := func(config *tls.Config) error {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
		resp, err := c.Get("https://" + d.addr() + "/hooks/logto")
		if err == nil {
			resp.Body.Close()
			resp, err = c.Post("https://"+d.addr()+"/hooks/logto", "application/json", strings.NewReader("{}"))
		}
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	callerCert, callerKey := a.issue(t, t.TempDir(), "web.internal", "web2.internal")
	if err := call(a.trust(t, callerCert, callerKey)); err != nil || !slices.Equal(d.caller.names, []string{"web.internal", "web2.internal"}) {
		t.Errorf("with a certificate: %q, %v", d.caller.names, err)
	}
	if err := call(a.trust(t)); err != nil || d.caller.names != nil {
		t.Errorf("without one: %q, %v", d.caller.names, err)
	}
	strangerCert, strangerKey := other.issue(t, t.TempDir(), "web.internal")
	if err := call(a.trust(t, strangerCert, strangerKey)); err == nil {
		t.Error("a certificate of somebody else was taken")
	}
}

func TestWhoCalledIsWhomATrustedProxyNames(t *testing.T) {
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		o.Config.Listen["http"].TrustedProxies = []netip.Prefix{loopback, netip.MustParsePrefix("10.0.0.0/8")}
	})
	plain := openHTTP(t, nil, nil)
	for value, want := range map[string]string{
		"203.0.113.5":                         "203.0.113.5",
		"198.51.100.1, 203.0.113.5":           "203.0.113.5",
		"198.51.100.1, 203.0.113.5, 10.1.2.3": "203.0.113.5",
		"::ffff:203.0.113.5":                  "203.0.113.5",
		"2001:db8::1":                         "2001:db8::1",
		"unknown":                             "127.0.0.1",
		"203.0.113.5, evil\x09":               "127.0.0.1",
		"203.0.113.5, ":                       "127.0.0.1",
		"":                                    "127.0.0.1",
		strings.Repeat("203.0.113.9, ", 100) + "10.0.0.1": "203.0.113.9",
	} {
		for door, want := range map[*httpDoor]string{d: want, plain: "127.0.0.1"} {
			if got := door.post(t, "/hooks/logto", logtoBody, "X-Forwarded-For", value); got.status != 200 {
				t.Fatalf("answered %+v", got)
			}
			all := door.caller.submissions()
			if got := all[len(all)-1].Remote.Addr().String(); got != want {
				t.Errorf("%.60q: called from %s, want %s", value, got, want)
			}
		}
	}
}

func TestWhoCalledIsWhomABalancerNames(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		o.Config.Listen["http"].ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		f.known = func(p message.Peer) bool { return p.Addr == netip.MustParseAddr("203.0.113.5") }
	})
	text := head(authorised, "Connection: close\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))) + logtoBody
	if got := d.raw(t, "PROXY TCP4 203.0.113.5 192.0.2.1 5555 8025\r\n"+text); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("answered %q", got)
	}
	if s := d.caller.submissions()[0]; s.Remote.String() != "203.0.113.5:5555" {
		t.Errorf("called from %s", s.Remote)
	}
	if got := d.raw(t, "PROXY TCP4 203.0.113.6 192.0.2.1 5555 8025\r\n"+text); !strings.HasPrefix(got, "HTTP/1.1 403 ") {
		t.Errorf("another caller is answered %q", got)
	}
	if got := d.raw(t, text); strings.Contains(got, "200 OK") || len(d.caller.submissions()) != 1 {
		t.Errorf("without its header it is answered %q", got)
	}
}

func TestAReloadChangesHooksAndKeepsConnections(t *testing.T) {
	d := openHTTP(t, nil, nil)
	c := &http.Client{Transport: &http.Transport{}}
	defer c.CloseIdleConnections()
	if got := d.send(t, c, "POST", "/hooks/logto", logtoBody); got.status != 200 {
		t.Fatalf("answered %+v", got)
	}
	cfg := httpConfig(t)
	delete(cfg.Hook, "logto")
	apply, err := d.Reconfigure(cfg, cfg.Listen["http"], fakeTemplates{})
	if err != nil {
		t.Fatal(err)
	}
	if got := d.send(t, c, "POST", "/hooks/logto", logtoBody); got.status != 200 {
		t.Errorf("before it is applied: %+v", got)
	}
	apply()
	if got := d.send(t, c, "POST", "/v1/send", nativeBody); got.status != 200 {
		t.Errorf("what stayed: %+v", got)
	}
	if n := d.places.count(); n != 1 {
		t.Errorf("%d connections were used", n)
	}
	if got := d.send(t, c, "POST", "/hooks/logto", logtoBody); got.status != 404 {
		t.Errorf("after it is applied: %+v", got)
	}
}

func TestASigningSecretThatCannotBeReadIsOurTrouble(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		o.Config.Hook["novu"].SigningSecrets = []config.Secret{{File: filepath.Join(t.TempDir(), "gone")}}
	})
	if got := d.post(t, "/hooks/novu", "{}"); got.status != 503 {
		t.Errorf("answered %+v", got)
	}
	if !strings.Contains(d.log.String(), "level=ERROR") {
		t.Error("the log does not tell")
	}
}

// FuzzHTTP holds that no octets make mail without the token, and that every answer is HTTP.
func FuzzHTTP(f *testing.F) {
	d := openHTTP(f, nil, func(o *HTTPOptions, _ *fakeCaller) {
		o.Timeouts.Header, o.Timeouts.Body, o.Timeouts.Idle = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
	})
	f.Add([]byte(head("Content-Length: 2\r\n") + "{}"))
	f.Add([]byte(head("Transfer-Encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n\r\n"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Add([]byte("POST http://x/v1/send HTTP/1.0\r\nAuthorization: Basic Og==\r\n\r\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if strings.Contains(string(text), token) {
			return
		}
		conn := dialHTTP(t, d)
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		conn.Write(text)
		conn.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(conn)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			t.Fatal("the connection stays open")
		}
		if len(b) > 0 && !strings.HasPrefix(string(b), "HTTP/1.") || strings.Contains(string(b), " 200 OK") {
			t.Fatalf("answered %q", b)
		}
		if len(d.caller.submissions()) > 0 {
			t.Fatal("a mail was made")
		}
	})
}
