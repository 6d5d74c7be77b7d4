package ingress

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// withNews adds a client that sends no auth mail, with a hook of its own.
func withNews(o *HTTPOptions) {
	cfg := o.Config
	cfg.Client["news"] = &config.Client{Name: "news", Streams: []string{"auth"}}
	cfg.Listen["http"].Clients = append(cfg.Listen["http"].Clients, "news")
	cfg.Hook["news"] = &config.Hook{Name: "news", Adapter: "logto", Client: "news", Stream: "auth"}
	o.Reserve = func(client string) bool { return client == "logto" }
}

func TestAuthMailIsOrderedAlsoWhereOthersHaveTakenAllConnections(t *testing.T) {
	for name, tt := range map[string]struct {
		limit   func(*config.Listen)
		sent    string // on each of the connections that are in the way
		waiters int
	}{
		"silent ones":                  {func(l *config.Listen) { l.MaxConnections = 4 }, "", 8},
		"slow ones":                    {func(l *config.Listen) { l.MaxConnections = 4 }, "POST /hooks/logto HT", 8},
		"a flood of slow ones":         {func(l *config.Listen) { l.MaxConnections = 4 }, "POST /hooks/logto HT", 4 + 3*128},
		"those of the same address":    {func(l *config.Listen) { l.MaxPerSource = 4 }, "", 8},
		"slow bodies without a token":  {func(l *config.Listen) { l.MaxConnections = 4 }, head("Content-Length: 100\r\n"), 8},
		"slow bodies to a signed hook": {func(l *config.Listen) { l.MaxConnections = 4 }, strings.Replace(head("Content-Length: 100\r\n"), "logto", "novu", 1), 8},
		"slow bodies of another":       {func(l *config.Listen) { l.MaxConnections = 4 }, strings.Replace(head(authorised, "Content-Length: 100\r\n"), "logto", "news", 1), 8},
	} {
		t.Run(name, func(t *testing.T) {
			d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
				withNews(o)
				tt.limit(o.Config.Listen["http"])
				f.accept = func(context.Context, []*message.Submission) error { time.Sleep(50 * time.Millisecond); return nil }
				o.Timeouts.Refused = 500 * time.Millisecond
				o.Timeouts.Header, o.Timeouts.Body = time.Minute, time.Minute
			})
			for range tt.waiters {
				conn := dialHTTP(t, d)
				defer conn.Close()
				io.WriteString(conn, tt.sent)
			}
			eventuallyHTTP(t, func() bool { return d.places.count() >= 4 })
			for range 3 {
				if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
					t.Errorf("auth mail is answered %+v", got)
				}
			}
			if got := d.post(t, "/hooks/news", logtoBody); got.status != 503 || got.header.Get("Retry-After") == "" {
				t.Errorf("other mail is answered %+v", got)
			}
			if got := d.post(t, "/hooks/logto", logtoBody, "Authorization", "wrong"); got.status != 401 {
				t.Errorf("a wrong token is answered %+v", got)
			}
			if n := d.places.count(); n > 4+4*64 {
				t.Errorf("%d connections are open", n)
			}
		})
	}
}

func TestTheReserveGoesOnWhereThereIsTimeForTheAnswerOnly(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		withNews(o)
		o.Config.Listen["http"].MaxConnections = 1
		o.Timeouts.Refused = 100 * time.Millisecond
		f.accept = func(context.Context, []*message.Submission) error { time.Sleep(300 * time.Millisecond); return nil }
	})
	conn := dialHTTP(t, d)
	defer conn.Close()
	eventuallyHTTP(t, func() bool { return d.places.count() == 1 })
	if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
		t.Errorf("a request whose verdict takes longer than a refusal is answered %+v", got)
	}
}

func TestAClientHasAsManyRequestsUnderWayAsItMayHaveConnections(t *testing.T) {
	release := make(chan struct{})
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		withNews(o)
		o.Connections = NewConnections(func(client string) int { return map[string]int{"news": 2}[client] })
		f.accept = func(_ context.Context, s []*message.Submission) error {
			if s[0].Client == "news" {
				<-release
			}
			return nil
		}
	})
	answers := make(chan answer)
	for range 2 {
		go func() { answers <- d.post(t, "/hooks/news", logtoBody) }()
	}
	eventuallyHTTP(t, func() bool { return len(d.caller.submissions()) == 2 })
	if got := d.post(t, "/hooks/news", logtoBody); got.status != 503 || got.header.Get("Retry-After") == "" {
		t.Errorf("one more is answered %+v", got)
	}
	if got := d.post(t, "/hooks/news", logtoBody, "Authorization", "wrong"); got.status != 401 {
		t.Errorf("one that is not the client's is answered %+v", got)
	}
	if got := d.post(t, "/hooks/logto", logtoBody); got.status != 200 {
		t.Errorf("another client is answered %+v", got)
	}
	close(release)
	for range 2 {
		if got := <-answers; got.status != 200 {
			t.Errorf("one of those under way is answered %+v", got)
		}
	}
	if got := d.post(t, "/hooks/news", logtoBody); got.status != 200 {
		t.Errorf("with room again it is answered %+v", got)
	}
	if n := len(d.HTTP.Connections.open); n != 0 {
		t.Errorf("%d clients still count", n)
	}
}

func TestAHeaderThatComesTooSlowlyIsToldSo(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) { o.Timeouts.Header = 200 * time.Millisecond })
	good := head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))) + logtoBody
	for _, sent := range []string{"POST ", "POST /hooks/logto HTTP/1.1\r\n", "POST /hooks/logto HTTP/1.1\r\nHost: x\r\nAuthor"} {
		for before := range 3 {
			conn := dialHTTP(t, d)
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			r := bufio.NewReader(conn)
			for range before {
				io.WriteString(conn, good)
				if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
					t.Fatalf("a good request is answered %+v, %v", resp, err)
				} else {
					io.Copy(io.Discard, resp.Body)
				}
			}
			io.WriteString(conn, sent)
			b, err := io.ReadAll(r)
			conn.Close()
			if got := string(b); err != nil || !strings.HasPrefix(got, "HTTP/1.1 408 ") || !strings.Contains(got, "\r\nConnection: close\r\n") || strings.Count(got, "HTTP/1.1") != 1 {
				t.Errorf("%q after %d requests is answered %q, %v", sent, before, got, err)
			}
		}
	}
}

func TestAHeaderThatComesTooSlowlyOverTLSIsToldSo(t *testing.T) {
	a := newAuthority(t)
	cert, key := a.issue(t, t.TempDir(), "gw.example.com")
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		l := o.Config.Listen["http"]
		l.TLS, l.TLSCertFile, l.TLSKeyFile = "implicit", cert, key
		o.Timeouts.Header = 300 * time.Millisecond
	})
	conn, err := tls.Dial("tcp", d.addr(), a.trust(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, "POST /hooks/lo")
	if got, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 408 ") || strings.Count(string(got), "HTTP/1.1") != 1 {
		t.Errorf("answered %q, %v", got, err)
	}
	plain, err := net.Dial("tcp", d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	io.WriteString(plain, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if got, err := io.ReadAll(plain); err != nil || !strings.HasPrefix(string(got), "HTTP/1.0 400 ") {
		t.Errorf("without TLS it is answered %q, %v", got, err)
	}
}

func TestWhatIsNoRequestIsAnsweredAndEndsTheConnection(t *testing.T) {
	d := openHTTP(t, nil, nil)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))
	for name, tt := range map[string]struct {
		sent string
		want string // the statuses that come back
	}{
		"a header of 1 MB":                     {"POST /hooks/logto HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n", "431"},
		"a header of 100,000 fields":           {"POST /hooks/logto HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 100000) + "\r\n", "431"},
		"a path of 1 MB":                       {"POST /hooks/" + strings.Repeat("x", 1<<20) + " HTTP/1.1\r\nHost: x\r\n\r\n", "431"},
		"HTTP/0.9":                             {"GET /hooks/logto\r\n", "400"},
		"noise":                                {"\x00\x01\x02\r\n\r\n\r\n", "400"},
		"TLS":                                  {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a ClientHello\r\n\r\n", "400"},
		"the preface of HTTP/2":                {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "4 or 5"},
		"a version that is not there yet":      {"POST /hooks/logto HTTP/3.0\r\nHost: x\r\n\r\n", "505"},
		"no Host":                              {"POST /hooks/logto HTTP/1.1\r\n" + authorised + length + "\r\n" + logtoBody, "400"},
		"two Hosts":                            {"POST /hooks/logto HTTP/1.1\r\nHost: x\r\nHost: y\r\n" + authorised + length + "\r\n" + logtoBody, "400"},
		"a length that is absurd":              {head(authorised, "Content-Length: 9223372036854775807\r\n"), "413"},
		"a length that does not fit":           {head(authorised, "Content-Length: 92233720368547758070\r\n"), "400"},
		"a length that is negative":            {head(authorised, "Content-Length: -1\r\n"), "400"},
		"two lengths that differ":              {head(authorised, length, "Content-Length: 1\r\n") + logtoBody, "400"},
		"chunks that are none":                 {head(authorised, "Transfer-Encoding: chunked\r\n") + "hello\r\n\r\n", "400"},
		"a chunk that is too long to be":       {head(authorised, "Transfer-Encoding: chunked\r\n") + "ffffffffffffffffff\r\n", "400"},
		"a chunk extension without end":        {head(authorised, "Transfer-Encoding: chunked\r\n") + "1;" + strings.Repeat("x", 1<<20), "400"},
		"an expectation that nobody knows":     {head(authorised, "Expect: 200-ok\r\n", length) + logtoBody, "417"},
		"a field name with a blank":            {"POST /hooks/logto HTTP/1.1\r\nHost: x\r\nA b: c\r\n\r\n", "400"},
		"a bare LF before a second field":      {"POST /hooks/logto HTTP/1.1\nHost: x\nContent-Length : 3\n\n", "400"},
		"a method that is no token":            {"PO(ST /hooks/logto HTTP/1.1\r\nHost: x\r\n\r\n", "400"},
		"a CONNECT":                            {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", "404"},
		"a length and a body of a GET":         {"GET /hooks/logto HTTP/1.1\r\nHost: x\r\n" + length + "\r\n" + logtoBody, "405"},
		"chunks in HTTP/1.0":                   {strings.Replace(head(authorised, "Transfer-Encoding: chunked\r\n"), "HTTP/1.1", "HTTP/1.0", 1) + "0\r\n\r\n", "400"},
		"an upgrade to HTTP/2 is not followed": {"GET /hooks/logto HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", "405"},
	} {
		conn := dialHTTP(t, d)
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		go io.WriteString(conn, tt.sent) // may be cut short
		b, err := io.ReadAll(conn)
		conn.Close()
		got, _, _ := strings.Cut(strings.TrimPrefix(strings.Replace(string(b), "HTTP/1.0", "HTTP/1.1", 1), "HTTP/1.1 "), " ")
		if err != nil || strings.Count(string(b), "HTTP/1.") != 1 || got != tt.want && !(tt.want == "4 or 5" && strings.Trim(got[:1], "45") == "") {
			t.Errorf("%s: want one answer %s and the end, got %.200q, %v", name, tt.want, b, err)
		}
	}
	if n := len(d.caller.submissions()); n != 0 {
		t.Errorf("%d mails were made", n)
	}
}

func TestHTTP10IsServed(t *testing.T) {
	d := openHTTP(t, nil, nil)
	text := "POST /hooks/logto HTTP/1.0\r\nContent-Type: application/json\r\n" + authorised + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(logtoBody)) + logtoBody
	if got := d.raw(t, text); !strings.HasPrefix(got, "HTTP/1.0 200 ") && !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("answered %q", got)
	}
}

func TestAPathHasOneSpelling(t *testing.T) {
	d := openHTTP(t, nil, nil)
	for _, path := range []string{"/hooks//logto", "/hooks/./logto", "/hooks/x/../logto", "/hooks/%2e%2e/hooks/logto", "/hooks/logto/", "/hooks/logto//", "/hooks/LOGTO", "/HOOKS/logto",
		"//x/hooks/logto", "/hooks%2flogto", "/hooks/logto%2f", "/hooks/logto;a", "/v1/send/", "/v1//send", "/hooks/logto%00", "/hooks/logto%0d%0aX:%20y", "*"} {
		got := d.raw(t, strings.Replace(head(authorised, "Connection: close\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)))+logtoBody, "/hooks/logto", path, 1))
		if !strings.HasPrefix(got, "HTTP/1.1 404 ") && !strings.HasPrefix(got, "HTTP/1.1 400 ") || strings.Contains(got, "Location") {
			t.Errorf("%s is answered %q", path, got)
		}
	}
	if n := len(d.caller.submissions()); n != 0 {
		t.Errorf("%d mails were made", n)
	}
	if got := d.post(t, "/hooks/logto?x=y", logtoBody); got.status != 200 {
		t.Errorf("with a query it is answered %+v", got)
	}
}

func TestAQueueThatStallsIsA503BeforeCallersGiveUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		d := openHTTP(t, p, func(o *HTTPOptions, f *fakeCaller) {
			o.Config.Hook["kratos"].RecipientLimit = config.Rate{Count: 1, Per: time.Hour}
			f.accept = func(context.Context, []*message.Submission) error { time.Sleep(20 * time.Second); return nil }
		})
		conn := p.dial()
		defer conn.Close()
		r := bufio.NewReader(conn)
		ask := func() *http.Response {
			go io.WriteString(conn, strings.Replace(head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(kratosBody)))+kratosBody, "logto", "kratos", 1))
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			return resp
		}
		begun := time.Now()
		if resp := ask(); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || time.Since(begun) != 4*time.Second {
			t.Errorf("answered %+v after %v", resp, time.Since(begun))
		}
		if d.Budget.InUse() == 0 {
			t.Error("what the queue still holds is not counted")
		}
		if resp := ask(); resp.StatusCode != 429 {
			t.Errorf("what may be sent yet does not count against the limit: %+v", resp)
		}
		time.Sleep(time.Minute)
		if n := d.Budget.InUse(); n != 0 {
			t.Errorf("%d octets are still counted", n)
		}
	})
}

func TestABodyThatTookItsTimeStillHasTimeToBeQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		openHTTP(t, p, func(_ *HTTPOptions, f *fakeCaller) {
			f.accept = func(context.Context, []*message.Submission) error { time.Sleep(500 * time.Millisecond); return nil }
		})
		conn := p.dial()
		defer conn.Close()
		go func() {
			io.WriteString(conn, head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))))
			time.Sleep(8 * time.Second)
			io.WriteString(conn, logtoBody)
		}()
		if resp, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || resp.StatusCode != 200 {
			t.Errorf("answered %+v, %v", resp, err)
		}
	})
}

func TestClientsOfAListenerThatGoesAreToTryAgain(t *testing.T) {
	var gone atomic.Bool
	d := openHTTP(t, nil, func(o *HTTPOptions, f *fakeCaller) {
		f.known = func(message.Peer) bool { return !gone.Load() }
		o.Timeouts.Linger = 200 * time.Millisecond
	})
	conn := dialHTTP(t, d)
	defer conn.Close()
	eventuallyHTTP(t, func() bool { return d.places.count() == 1 })
	gone.Store(true) // by a reload
	if got := d.post(t, "/hooks/logto", logtoBody); got.status != 403 {
		t.Errorf("a stranger is answered %+v", got)
	}
	d.stop()
	time.Sleep(50 * time.Millisecond)
	io.WriteString(conn, head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody)))+logtoBody)
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 503 ") || !strings.Contains(string(b), "Retry-After") {
		t.Errorf("a client of before is answered %q, %v", b, err)
	}
}

func TestADoorThatStopsAnswersAlsoRequestsOfWhichAPartIsMissing(t *testing.T) {
	d := openHTTP(t, nil, func(o *HTTPOptions, _ *fakeCaller) {
		o.Timeouts.Linger, o.Timeouts.Drain = 300*time.Millisecond, 1500*time.Millisecond
	})
	good := head(authorised, fmt.Sprintf("Content-Length: %d\r\n", len(logtoBody))) + logtoBody
	type half struct {
		net.Conn
		rest, want string
	}
	var halves []half
	for _, at := range []int{5, 60, len(good) - len(logtoBody), len(good) - 10} {
		for rest, want := range map[string]string{good[at:]: "HTTP/1.1 200 ", "": "HTTP/1.1 503 "} {
			conn := dialHTTP(t, d)
			defer conn.Close()
			io.WriteString(conn, good[:at])
			halves = append(halves, half{conn, rest, want})
		}
	}
	eventuallyHTTP(t, func() bool { return d.places.count() == len(halves) })
	time.Sleep(50 * time.Millisecond)
	d.stop()
	time.Sleep(100 * time.Millisecond)
	for _, h := range halves {
		io.WriteString(h, h.rest)
	}
	for _, h := range halves {
		h.SetDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(h); err != nil || !strings.HasPrefix(string(b), h.want) || strings.Count(string(b), "HTTP/1.1 ") != 1 {
			t.Errorf("%d octets after its beginning a request is answered %q, %v; want %s", len(good)-len(h.rest), b, err, h.want)
		}
	}
	if err := d.wait(t); err != nil {
		t.Errorf("Serve returned %v", err)
	}
}
