package upstream_test

import (
	"bufio"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

func TestEveryMechanismLogsIn(t *testing.T) {
	for name, tt := range map[string]struct{ auth, token string }{
		"plain":                              {"plain", ""},
		"login":                              {"login", ""},
		"xoauth2":                            {"xoauth2", "ya29.token"},
		"xoauth2 with a token past one line": {"xoauth2", strings.Repeat("long", 500)},
	} {
		t.Run(name, func(t *testing.T) {
			o := upstreamtest.HostOptions{TLS: "implicit", Username: "gp@example.com", Password: "pass word", Token: tt.token}
			h := upstreamtest.NewHost(t, o)
			c := configFor(t, h, o)
			c.Auth = tt.auth
			wantClasses(t, send(t, open(t, c), envelope()), message.Accepted)
			if m := h.Wait(1)[0]; m.User != o.Username || !m.TLS || m.Helo != "gw.example.com" {
				t.Errorf("the mail came from %+v, want a login over TLS", m)
			}
		})
	}
}

func TestAWrongPasswordPausesAsUnauthorisedUntilTheFileIsRight(t *testing.T) {
	for _, auth := range []string{"plain", "login", "xoauth2"} {
		o := upstreamtest.HostOptions{TLS: "starttls", Username: "gp", Password: "right-pass", Token: "right-token"}
		h := upstreamtest.NewHost(t, o)
		c := configFor(t, h, o)
		c.Auth = auth
		c.Password, c.Token = secretFile(t, "wrong"), secretFile(t, "wrong")
		u := open(t, c)
		if p := wantPaused(t, u); p.Verdict.Class != message.Unauthorised || p.Verdict.Code != 535 {
			t.Errorf("%s: verdict %+v, want unauthorised by 535", auth, p.Verdict)
		}
		for f, right := range map[string]string{c.Password.File: o.Password, c.Token.File: o.Token} {
			if err := os.WriteFile(f, []byte(right+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		wantClasses(t, send(t, u, envelope()), message.Accepted)
	}
}

func TestASecretThatTheHostRepeatsIsNotPassedOn(t *testing.T) {
	o := upstreamtest.HostOptions{Username: "gp", Password: "hunter-two"}
	h := upstreamtest.NewHost(t, o)
	h.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == "AUTH" {
			return upstreamtest.Action{Reply: "535-5.7.8 not " + o.Password + "\r\n535 5.7.8 got " + s.Arg}
		}
		return upstreamtest.Action{}
	})
	p := wantPaused(t, open(t, configFor(t, h, o)))
	if got, want := p.Verdict.Text, "AUTH: not … got PLAIN …"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestALoginThatCannotBeTriedSaysWhatToDo(t *testing.T) {
	o := upstreamtest.HostOptions{Username: "gp", Password: "pass"}
	for name, tt := range map[string]struct {
		opts   upstreamtest.HostOptions
		change func(*config.Upstream)
		want   string
	}{
		"no such file": {o, func(c *config.Upstream) { c.Password.File += ".gone" }, "no such file"},
		"AUTH not offered": {
			upstreamtest.HostOptions{Username: "gp", Password: "pass", Without: []string{"AUTH"}}, func(*config.Upstream) {},
			"look at auth and tls of [upstream.sink]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := upstreamtest.NewHost(t, tt.opts)
			c := configFor(t, h, tt.opts)
			tt.change(c)
			p := wantPaused(t, open(t, c))
			if p.Verdict.Class != message.Unauthorised || !strings.Contains(p.Verdict.Text, tt.want) {
				t.Errorf("verdict %+v, want unauthorised with %q", p.Verdict, tt.want)
			}
		})
	}
}

func TestARefusalBeforeAnyMailPauses(t *testing.T) {
	for name, tt := range map[string]struct {
		verb, reply string
		want        message.Class
	}{
		"421 at the banner":    {upstreamtest.Greeting, "421 4.3.2 later", message.Throttled},
		"450 at the banner":    {upstreamtest.Greeting, "450 4.3.2 later", message.Temporary},
		"554 at the banner":    {upstreamtest.Greeting, "554 5.3.2 no service here", message.Temporary},
		"garbage for a banner": {upstreamtest.Greeting, "SSH-2.0-OpenSSH_9.9", message.Temporary},
		"no banner":            {upstreamtest.Greeting, upstreamtest.Drop, message.Temporary},
		"550 to EHLO":          {"EHLO", "550 5.7.1 not you", message.Temporary},
		"454 to AUTH":          {"AUTH", "454 4.7.0 later", message.Temporary},
		"421 to AUTH":          {"AUTH", "421 4.7.0 too many logins", message.Throttled},
		"534 to AUTH":          {"AUTH", "534 5.7.9 too weak", message.Unauthorised},
		"no base64 to AUTH":    {"AUTH", "334 what is it?", message.Temporary},
		"504 to AUTH":          {"AUTH", "504 5.5.4 no such mechanism", message.Unauthorised},
	} {
		t.Run(name, func(t *testing.T) {
			o := upstreamtest.HostOptions{Username: "gp", Password: "pass"}
			h := upstreamtest.NewHost(t, o)
			h.Reply(tt.verb, tt.reply)
			u := open(t, configFor(t, h, o))
			if p := wantPaused(t, u); p.Verdict.Class != tt.want {
				t.Errorf("verdict %+v, want %s", p.Verdict, tt.want)
			}
			wantClasses(t, send(t, u, envelope()), message.Accepted)
		})
	}
}

func TestAHostWithoutESMTPGetsHELO(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Reply("EHLO", "502 5.5.1 what?")
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if m := h.Wait(1)[0]; m.Params != "" || !slices.Contains(h.Verbs(), "HELO") {
		t.Errorf("parameters %q after %v, want none after HELO", m.Params, h.Verbs())
	}
}

func TestAHostThatAsksForEverMoreAtLoginPauses(t *testing.T) {
	o := upstreamtest.HostOptions{Username: "gp", Password: "pass"}
	h := upstreamtest.NewHost(t, o)
	asks := upstreamtest.Action{Reply: "334 UGFzc3dvcmQ6"} // Password:
	h.Script(func(s upstreamtest.Step) upstreamtest.Action {
		switch s.Verb {
		case upstreamtest.Greeting, "EHLO":
			return upstreamtest.Action{}
		}
		return asks
	})
	c := configFor(t, h, o)
	c.Auth = "login"
	if p := wantPaused(t, open(t, c)); p.Verdict.Class != message.Temporary {
		t.Errorf("verdict %+v, want temporary", p.Verdict)
	}
}

func TestLimitsToldWithEHLOAreKept(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{Extensions: []string{"LIMITS RCPTMAX=7 MAILMAX=2 RCPTDOMAINMAX=x"}})
	slot := reserve(t, u)
	caps := slot.Caps()
	slot.Release()
	if want := (upstream.Caps{EightBitMIME: true, SMTPUTF8: true, Size: 26214400, MaxRecipients: 7}); caps != want {
		t.Errorf("caps %+v, want %+v", caps, want)
	}
	for range 4 {
		wantClasses(t, send(t, u, envelope()), message.Accepted)
	}
	if h.Accepted() != 2 {
		t.Errorf("%d connections for 4 mails at two each, want 2", h.Accepted())
	}
}

func TestClearTextIsNeverSentWhereTLSIsConfigured(t *testing.T) {
	const secret = "do-not-show"
	o := upstreamtest.HostOptions{TLS: "starttls", Username: "gp", Password: secret}
	for name, f := range map[string]func(*upstreamtest.Host, *config.Upstream){
		"STARTTLS is not offered":   func(h *upstreamtest.Host, _ *config.Upstream) { h.Reply("EHLO", "250-host\r\n250 AUTH PLAIN") },
		"STARTTLS is refused":       func(h *upstreamtest.Host, _ *config.Upstream) { h.Reply("STARTTLS", "454 4.7.0 not now") },
		"more follows in the clear": func(h *upstreamtest.Host, _ *config.Upstream) { h.Reply("STARTTLS", "220 go\r\n250 AUTH PLAIN") },
		"the handshake is not TLS":  func(h *upstreamtest.Host, _ *config.Upstream) { h.Reply("STARTTLS", upstreamtest.Drop) },
		"the authority is unknown":  func(_ *upstreamtest.Host, c *config.Upstream) { c.TLSCAFile = "" },
		"the name is another":       func(_ *upstreamtest.Host, c *config.Upstream) { c.TLSServerName = "mx.example.org" },
	} {
		t.Run(name, func(t *testing.T) {
			h := upstreamtest.NewHost(t, o)
			c := configFor(t, h, o)
			f(h, c)
			if p := wantPaused(t, open(t, c)); p.Verdict.Class != message.Temporary {
				t.Errorf("verdict %+v, want temporary", p.Verdict)
			}
			for _, verb := range []string{"AUTH", "MAIL"} {
				if slices.Contains(h.Verbs(), verb) {
					t.Errorf("the host heard %v", h.Verbs())
				}
			}
		})
	}
}

func TestACertificateErrorSaysWhatToLookAt(t *testing.T) {
	o := upstreamtest.HostOptions{TLS: "implicit"}
	h := upstreamtest.NewHost(t, o)
	c := configFor(t, h, o)
	c.TLSServerName = "mx.example.org"
	if p := wantPaused(t, open(t, c)); !strings.Contains(p.Verdict.Text, "tls_server_name and tls_ca_file of [upstream.sink]") {
		t.Errorf("text %q names no key to look at", p.Verdict.Text)
	}
}

func TestABadCAFileIsRefusedAtStart(t *testing.T) {
	for _, file := range []string{secretFile(t, "no certificate").File, "/nonexistent/ca.pem"} {
		c := &config.Upstream{Name: "sink", Type: "smtp", Address: "127.0.0.1:25", TLS: "starttls", TLSCAFile: file}
		if _, err := upstream.New(c, "gw.example.com", egress(), nil); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("err = %v, want one that names %s", err, file)
		}
	}
}

func TestNothingIsWrittenBeforeTheBanner(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	early := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b, _ := io.ReadAll(bufio.NewReader(conn))
		early <- b
	}()
	wantPaused(t, open(t, &config.Upstream{Name: "sink", Type: "smtp", Address: l.Addr().String(), TLS: "none", Connections: 1}))
	if b := <-early; len(b) != 0 {
		t.Errorf("%q was written before the banner", b)
	}
}
