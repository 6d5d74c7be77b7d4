package policy

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// callers is a policy with an HTTP listener and a client for each way in which callers are narrowed down.
func callers(t *testing.T, tokens ...string) *Policy {
	t.Helper()
	local := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}
	cfg := &config.Config{Hostname: "gw.example.com",
		Stream: map[string]*config.Stream{
			"auth": {Name: "auth", Kind: message.Auth, Domains: []string{"auth.example.com"}, TTL: time.Hour, Supersede: true},
			"news": {Name: "news", Kind: message.Marketing, Domains: []string{"news.example.com"}, TTL: 72 * time.Hour},
		},
		Client: map[string]*config.Client{
			"near":     {Name: "near", Networks: local, Streams: []string{"auth", "news"}},
			"anywhere": {Name: "anywhere", Streams: []string{"auth"}},
			"shown":    {Name: "shown", Networks: local, TLSNames: []string{"web.internal"}, Streams: []string{"auth"}},
			"user":     {Name: "user", UnixUsers: []int{1000}, Streams: []string{"auth"}},
		},
		Listen: map[string]*config.Listen{"http": {Name: "http", Protocol: "http", Clients: []string{"near", "anywhere", "shown", "user"}},
			"narrow": {Name: "narrow", Protocol: "http", Clients: []string{"near"}}},
	}
	for _, name := range tokens {
		cfg.Client["near"].Tokens = append(cfg.Client["near"].Tokens, config.Secret{File: name})
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestACallerMustBeWhereItsClientMayBe(t *testing.T) {
	p := callers(t)
	near, far := netip.MustParseAddr("::ffff:127.0.0.9"), netip.MustParseAddr("203.0.113.9")
	for name, tt := range map[string]struct {
		client string
		peer   message.Peer
		want   int
	}{
		"in its network":                 {"near", message.Peer{Addr: near, UID: -1}, 0},
		"outside of it":                  {"near", message.Peer{Addr: far, UID: -1}, 550},
		"on a unix socket, no network":   {"near", message.Peer{UID: 1000}, 550},
		"without a network":              {"anywhere", message.Peer{Addr: far, UID: -1}, 0},
		"with its certificate":           {"shown", message.Peer{Addr: near, UID: -1, Names: []string{"WEB.internal"}}, 0},
		"with its certificate, far away": {"shown", message.Peer{Addr: far, UID: -1, Names: []string{"web.internal"}}, 550},
		"with another certificate":       {"shown", message.Peer{Addr: near, UID: -1, Names: []string{"news.internal"}}, 550},
		"without a certificate":          {"shown", message.Peer{Addr: near, UID: -1}, 550},
		"its user":                       {"user", message.Peer{UID: 1000}, 0},
		"another user":                   {"user", message.Peer{UID: 0}, 550},
		"nobody's":                       {"nobody", message.Peer{Addr: near, UID: -1}, 550},
	} {
		if got := codeOf(p.Admits("http", tt.client, tt.peer)); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
	if p.AdmitsAny("narrow", message.Peer{Addr: far, UID: -1}) || !p.AdmitsAny("narrow", message.Peer{Addr: near, UID: -1}) ||
		!p.AdmitsAny("http", message.Peer{Addr: far, UID: -1}) || p.AdmitsAny("nowhere", message.Peer{Addr: near}) {
		t.Error("AdmitsAny does not follow the networks")
	}
	if err := p.Admits("nowhere", "near", message.Peer{}); err == nil {
		t.Error("a listener that is not there admits")
	}
}

// codeOf returns the reply code of err, 0 for none.
func codeOf(err error) int {
	if e, ok := errors.AsType[*reply.Error](err); ok {
		return e.Code
	}
	return 0
}

func TestATokenIsReadWhenItIsNeededAndTwoAreGood(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write := func(file, token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first, "the first token")
	write(second, "the second token")
	p := callers(t, first, second)
	check := func(what, token string, want int) {
		t.Helper()
		if got := codeOf(p.Token("http", "near", token)); got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	check("the first", "the first token", 0)
	check("the second", "the second token", 0)
	check("another", "the third token", 535)
	check("none", "", 535)
	write(second, "the third token")
	check("the new one", "the third token", 0)
	for token, want := range map[string]string{"": "shows no token", "x": "in no file of the client's token_files"} {
		if err := p.Token("http", "near", token); !strings.Contains(err.Error(), want) {
			t.Errorf("the log is told %q, want %q", err, want)
		}
	}
	check("the one that it replaced", "the second token", 535)
	os.Remove(first)
	check("beside a file that is gone", "the third token", 0)
	check("a wrong one beside a file that is gone", "x", 535)
	os.Remove(second)
	check("with no file left", "the third token", 454)
	if got := codeOf(p.Token("http", "anywhere", "")); got != 535 {
		t.Errorf("a client without a token is satisfied with none: %d", got)
	}
}

func TestAnOrderDecidesStreamLifetimeAndPurpose(t *testing.T) {
	p := callers(t)
	now := time.Now()
	sub := func(from string, change func(o *message.Order)) *message.Submission {
		o := &message.Order{Hook: "logto", Type: "SignIn", Stream: "auth", Purpose: "code", TTL: 10 * time.Minute, Application: "app", Key: []byte("k")}
		change(o)
		to, err := message.ParseAddress("kim@example.net")
		if err != nil {
			t.Fatal(err)
		}
		return &message.Submission{Client: "near", Listener: "http", With: "HTTP", MailFrom: from, To: []message.Address{to}, StartedAt: now, Order: o,
			Raw: message.Raw("From: " + from + "\r\nSubject: x\r\nX-Gatepost-TTL: 1s\r\nX-Gatepost-Application: other\r\n\r\nx\r\n")}
	}
	m, err := p.Check(sub("a@auth.example.com", func(*message.Order) {}), 1, now)
	if err != nil {
		t.Fatal(err)
	}
	hook, kind := m.Ordered()
	if hook != "logto" || kind != "SignIn" || m.Purpose != "code" || string(m.Key) != "k" || !m.ExpiresAt.Equal(now.Add(10*time.Minute)) {
		t.Errorf("got %+v", m)
	}
	if m, err := p.Check(sub("a@auth.example.com", func(o *message.Order) { o.TTL, o.Purpose = 24*time.Hour, "invitation" }), 2, now); err != nil ||
		!m.ExpiresAt.Equal(now.Add(24*time.Hour)) || m.Supersede != nil {
		t.Errorf("an invitation is not worth a day: %+v, %v", m, err)
	}
	if _, err := p.Check(sub("a@news.example.com", func(*message.Order) {}), 3, now); codeOf(err) != 550 {
		t.Errorf("mail of another stream: %v", err)
	}
	key := func(change func(*message.Order)) string {
		m, err := p.Check(sub("a@auth.example.com", change), 4, now)
		if err != nil {
			t.Fatal(err)
		}
		return string(m.Supersede)
	}
	app, other, none := key(func(*message.Order) {}), key(func(o *message.Order) { o.Application = "app2" }), key(func(o *message.Order) { o.Application = "" })
	if app == "" || app == other || none == "" || none == app || app != key(func(o *message.Order) { o.Type = "Register" }) {
		t.Error("a code is not superseded by application or else purpose")
	}
}
