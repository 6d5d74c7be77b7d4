package policy

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

var (
	testTime = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	testID   = message.NewID(testTime, 1, 0)
)

// testConfig has an auth and a marketing stream, a client for each and one for both.
func testConfig() *config.Config {
	prefixes := func(ps ...string) (out []netip.Prefix) {
		for _, p := range ps {
			out = append(out, netip.MustParsePrefix(p))
		}
		return out
	}
	return &config.Config{
		Hostname: "gw.example.com",
		Listen: map[string]*config.Listen{
			"smtp":  {Name: "smtp", Clients: []string{"logto", "news", "both"}, ReceivedFrom: "public"},
			"open":  {Name: "open", Clients: []string{"logto"}, ReceivedFrom: "always"},
			"quiet": {Name: "quiet", Clients: []string{"news"}, ReceivedFrom: "never"},
		},
		Client: map[string]*config.Client{
			"logto": {Name: "logto", Networks: prefixes("127.0.0.0/24", "2001:db8::/64"), Streams: []string{"auth"}},
			"news":  {Name: "news", Networks: prefixes("127.0.0.0/8", "203.0.113.9/32"), Streams: []string{"marketing"}},
			"both":  {Name: "both", Networks: prefixes("10.0.0.0/8"), Streams: []string{"auth", "marketing"}},
		},
		Stream: map[string]*config.Stream{
			"auth": {Name: "auth", Kind: message.Auth, TTL: time.Hour,
				Domains: []string{"auth.example.com", "*.login.example.com", "xn--bcher-kva.example"}},
			"marketing": {Name: "marketing", Kind: message.Marketing, TTL: 72 * time.Hour, ReturnPath: "bounces@news.example.com",
				Domains: []string{"news.example.com", "news.login.example.com", "*.eu.login.example.com"}},
		},
	}
}

func newPolicy(t testing.TB) *Policy {
	t.Helper()
	p, err := New(testConfig())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// submission is a mail of client with these header lines, from its first From address.
func submission(client, sender string, header ...string) *message.Submission {
	return &message.Submission{
		Client: client, Listener: "smtp", Remote: netip.MustParseAddrPort("127.0.0.1:40000"), Helo: "app.internal", With: "ESMTP",
		MailFrom: sender, To: []message.Address{{Local: "user", Domain: "example.net"}},
		Raw: message.Raw(strings.Join(header, "\r\n") + "\r\n\r\nbody\r\n"), StartedAt: testTime,
	}
}

// checkRefusal wants err to be nil where want is empty, else a permanent *reply.Error whose line holds want.
func checkRefusal(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if err == nil {
		t.Fatalf("accepted, want %q", want)
	}
	e := reply.Of(err)
	if e.Code < 500 || !strings.Contains(e.Error(), want) {
		t.Errorf("answer %q, want a permanent one with %q", e, want)
	}
	if len(e.Text) > 400 || strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("text %q does not fit a reply line", e.Text)
	}
}

func TestIdentify(t *testing.T) {
	p := newPolicy(t)
	for name, tt := range map[string]struct{ listener, from, client string }{
		"the longest prefix wins":                    {"smtp", "127.0.0.5", "logto"},
		"the shorter prefix takes the rest":          {"smtp", "127.0.1.5", "news"},
		"an IPv4 address in IPv6 form is the same":   {"smtp", "::ffff:127.0.0.5", "logto"},
		"an IPv6 network":                            {"smtp", "2001:db8::1", "logto"},
		"a zone does not matter":                     {"smtp", "2001:db8::1%eth0", "logto"},
		"a single host":                              {"smtp", "203.0.113.9", "news"},
		"its neighbour is a stranger":                {"smtp", "203.0.113.10", ""},
		"a client of another listener is a stranger": {"open", "203.0.113.9", ""},
		"the other address family is a stranger":     {"smtp", "::1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := p.Identify(tt.listener, message.Peer{Addr: netip.MustParseAddr(tt.from), UID: -1})
			if client != tt.client {
				t.Errorf("Identify = %q, want %q", client, tt.client)
			}
			want := ""
			if tt.client == "" {
				want = "550 5.7.1"
			}
			checkRefusal(t, err, want)
		})
	}
}

func TestOurOwnMistakesAreTemporary(t *testing.T) {
	p := newPolicy(t)
	_, unknownDoor := p.Identify("gone", message.Peer{Addr: netip.MustParseAddr("127.0.0.1"), UID: -1})
	_, unknownLogin := p.Login(t.Context(), "gone", message.Peer{}, "u", "p")
	_, unknownClient := p.Check(submission("gone", "", "From: a@auth.example.com"), testID, testTime)
	for name, err := range map[string]error{"a listener that is not configured": unknownDoor, "a client that is not configured": unknownClient,
		"a login on a listener that is not configured": unknownLogin} {
		if err == nil || !reply.Of(err).Temporary() {
			t.Errorf("%s: %v, want a temporary answer", name, err)
		}
	}
}

func TestNewRefusesWhatDoesNotResolve(t *testing.T) {
	for name, spoil := range map[string]func(*config.Config){
		"a client's stream":         func(c *config.Config) { delete(c.Stream, "auth") },
		"a listener's client":       func(c *config.Config) { delete(c.Client, "both") },
		"a domain of two streams":   func(c *config.Config) { c.Stream["marketing"].Domains[0] = "auth.example.com" },
		"a wildcard of two streams": func(c *config.Config) { c.Stream["marketing"].Domains[0] = "*.login.example.com" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			spoil(cfg)
			if p, err := New(cfg); err == nil {
				t.Errorf("New made %v", p)
			}
		})
	}
}

func TestStreamByHeaderFrom(t *testing.T) {
	p := newPolicy(t)
	for name, tt := range map[string]struct{ client, from, stream, refusal string }{
		"auth mail from the auth domain":           {"logto", "no-reply@auth.example.com", "auth", ""},
		"a domain in upper case":                   {"logto", "no-reply@AUTH.Example.COM", "auth", ""},
		"auth mail never borrows the news domain":  {"logto", "hi@news.example.com", "", "550 5.7.1 From domain news.example.com belongs to no stream of client \"logto\"; use an address in auth.example.com"},
		"news never borrows the auth domain":       {"news", "hi@auth.example.com", "", "550 5.7.1"},
		"a domain of nobody":                       {"both", "a@example.com", "", "550 5.7.1"},
		"a client of both: auth":                   {"both", "a@auth.example.com", "auth", ""},
		"a client of both: marketing":              {"both", "a@news.example.com", "marketing", ""},
		"a lookalike is not a subdomain":           {"logto", "x@evil-auth.example.com", "", "550 5.7.1"},
		"a longer name that begins the same":       {"logto", "x@auth.example.com.evil.example", "", "550 5.7.1"},
		"an exact name does not cover subdomains":  {"logto", "x@sub.auth.example.com", "", "550 5.7.1"},
		"a wildcard covers a subdomain":            {"logto", "x@a.login.example.com", "auth", ""},
		"a wildcard covers a deeper subdomain":     {"logto", "x@b.a.login.example.com", "auth", ""},
		"a wildcard does not cover its own name":   {"logto", "x@login.example.com", "", "550 5.7.1"},
		"a lookalike is not under a wildcard":      {"logto", "x@evillogin.example.com", "", "550 5.7.1"},
		"an exact name wins over a wildcard":       {"both", "x@news.login.example.com", "marketing", ""},
		"a wildcard does not reach another's name": {"logto", "x@news.login.example.com", "", "550 5.7.1"},
		"the longer wildcard wins":                 {"both", "x@a.eu.login.example.com", "marketing", ""},
		"the shorter wildcard takes the rest":      {"both", "x@eu.login.example.com", "auth", ""},
		"an internationalised domain":              {"logto", "x@bücher.example", "auth", ""},
		"the same as an A-label":                   {"logto", "x@XN--bcher-kva.example", "auth", ""},
		"an A-label lookalike":                     {"logto", "x@bucher.example", "", "550 5.7.1"},
		"two addresses of one stream":              {"logto", "a@auth.example.com, b@a.login.example.com", "auth", ""},
		"a second address of another stream":       {"both", "a@auth.example.com, b@news.example.com", "", "550 5.7.1 The From field names domains of more than one stream"},
		"a second address of nobody":               {"logto", "a@auth.example.com, b@example.org", "", "550 5.7.1"},
		"a very long domain":                       {"logto", "a@" + strings.Repeat(strings.Repeat("a", 60)+".", 4) + "com", "", "550 5.7.1"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := p.Check(submission(tt.client, "", "From: "+tt.from), testID, testTime)
			checkRefusal(t, err, tt.refusal)
			if err == nil && (m.Stream != tt.stream || m.Recipients[0].Lane != tt.stream || m.Kind != p.domains.stream(m.HeaderFrom).Kind) {
				t.Errorf("stream %q, kind %q, lane %q, want %q", m.Stream, m.Kind, m.Recipients[0].Lane, tt.stream)
			}
		})
	}
}

func TestEverySenderFieldBelongsToTheStream(t *testing.T) {
	p := newPolicy(t)
	for name, tt := range map[string]struct{ field, refusal string }{
		"Sender of the stream":                {"Sender: app@a.login.example.com", ""},
		"Sender of the client's other stream": {"Sender: app@news.example.com", "550 5.7.1 Sender domain news.example.com is not one of stream \"auth\""},
		"Sender of nobody":                    {"Sender: app@example.org", "550 5.7.1"},
		"two addresses in Sender":             {"Sender: a@auth.example.com, b@auth.example.com", "550 5.6.0"},
		"an empty Sender":                     {"Sender:", "550 5.6.0"},
		"a group as Sender":                   {"Sender: x: a@auth.example.com;", "550 5.6.0"},
		"Resent-From of the stream":           {"Resent-From: a@auth.example.com, b@auth.example.com", ""},
		"Resent-From of another":              {"Resent-From: a@auth.example.com, b@example.org", "550 5.7.1"},
		"a second Resent-From of another":     {"Resent-From: a@auth.example.com\r\nResent-From: b@example.org", "550 5.7.1"},
		"Resent-Sender of another":            {"Resent-Sender: b@example.org", "550 5.7.1"},
		"Reply-To is the client's affair":     {"Reply-To: support@example.org", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Check(submission("both", "", "From: a@auth.example.com", tt.field), testID, testTime)
			checkRefusal(t, err, tt.refusal)
		})
	}
}

func TestEnvelopeSender(t *testing.T) {
	p := newPolicy(t)
	for name, tt := range map[string]struct{ from, sender, want, refusal string }{
		"the same domain is kept":                           {"a@auth.example.com", "a@auth.example.com", "a@auth.example.com", ""},
		"Keycloak's envelopeFrom in another of its domains": {"a@auth.example.com", "bounces@k.login.example.com", "bounces@k.login.example.com", ""},
		"a domain in upper case is written in lower":        {"a@auth.example.com", "Bounce@AUTH.example.com", "Bounce@auth.example.com", ""},
		"another domain without return_path":                {"a@auth.example.com", "a@news.example.com", "", `550 5.7.1 Envelope sender domain news.example.com is not one of stream "auth"; use an address in auth.example.com`},
		"another domain becomes return_path":                {"a@news.example.com", "a@example.org", "bounces@news.example.com", ""},
		"the other stream's domain becomes return_path":     {"a@news.example.com", "a@auth.example.com", "bounces@news.example.com", ""},
		"the null sender becomes return_path":               {"a@news.example.com", "", "bounces@news.example.com", ""},
		"the null sender stays without return_path":         {"a@auth.example.com", "", "", ""},
		"what is no address":                                {"a@news.example.com", "not an address", "", "550 5.1.7"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := p.Check(submission("both", tt.sender, "From: "+tt.from), testID, testTime)
			checkRefusal(t, err, tt.refusal)
			if err == nil && m.MailFrom != tt.want {
				t.Errorf("envelope sender %q, want %q", m.MailFrom, tt.want)
			}
		})
	}
}

func TestRecipientsAreSentToOnce(t *testing.T) {
	p := newPolicy(t)
	s := submission("logto", "", "From: a@auth.example.com")
	s.To = nil
	for _, a := range []string{"User@example.net", "User@EXAMPLE.net", "user@example.net", "二@example.net", "User@example.net"} {
		address, err := message.ParseAddress(a)
		if err != nil {
			t.Fatal(err)
		}
		s.To = append(s.To, address)
	}
	m, err := p.Check(s, testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"User@example.net", "user@example.net", "二@example.net"} // local parts are case-sensitive
	if len(m.Recipients) != len(want) {
		t.Fatalf("recipients %+v, want %q", m.Recipients, want)
	}
	for i, r := range m.Recipients {
		if r.N != i || r.Address != want[i] || !r.DueAt.Equal(testTime) || r.State != message.Queued {
			t.Errorf("recipient %d: %+v, want %s, due now", i, r, want[i])
		}
	}
	s.To = nil
	_, err = p.Check(s, testID, testTime)
	checkRefusal(t, err, "554 5.5.1")
}

func TestSMTPUTF8(t *testing.T) {
	p := newPolicy(t)
	utf8User := message.Address{Local: "用户", Domain: "example.net"}
	for name, tt := range map[string]struct {
		change func(*message.Submission)
		from   string
		want   bool
	}{
		"ASCII throughout":                    {func(*message.Submission) {}, "a@auth.example.com", false},
		"a recipient with a UTF-8 local part": {func(s *message.Submission) { s.To = append(s.To, utf8User) }, "a@auth.example.com", true},
		"an envelope sender with one":         {func(s *message.Submission) { s.MailFrom = "用户@auth.example.com" }, "a@auth.example.com", true},
		"a From with one":                     {func(*message.Submission) {}, "用户@auth.example.com", true},
		"an IDN as A-label does not need it":  {func(*message.Submission) {}, "a@xn--bcher-kva.example", false},
		"raw UTF-8 that was not declared":     {func(*message.Submission) {}, "確認 <a@auth.example.com>", false},
		"raw UTF-8 that was declared":         {func(s *message.Submission) { s.SMTPUTF8 = true }, "確認 <a@auth.example.com>", true},
		"declared for an ASCII header":        {func(s *message.Submission) { s.SMTPUTF8 = true }, "a@auth.example.com", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "", "From: "+tt.from)
			tt.change(s)
			m, err := p.Check(s, testID, testTime)
			if err != nil {
				t.Fatal(err)
			}
			if m.SMTPUTF8 != tt.want {
				t.Errorf("SMTPUTF8 %v, want %v", m.SMTPUTF8, tt.want)
			}
		})
	}
}
