package policy

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// ruleConfig is the test config with rules on the auth stream.
func ruleConfig() *config.Config {
	c := testConfig()
	c.Stream["auth"].Supersede = true
	c.Stream["auth"].Match = []config.Match{
		{Subject: regexp.MustCompile(`(?i)^invit`), Header: "X-Team", TTL: 96 * time.Hour, Purpose: "invitation", Verdict: "queued"},
		{Subject: regexp.MustCompile(`確認コード|code`), TTL: 10 * time.Minute, Purpose: "code"},
		{Header: "X-Template", Value: regexp.MustCompile(`^Sign(In|Up)$`), Purpose: "code", Verdict: "upstream"},
		{Header: "X-Notice", TTL: 24 * time.Hour, Purpose: "notice"},
		{Subject: regexp.MustCompile(`code`), Purpose: "notice"},
	}
	return c
}

func newRulePolicy(t testing.TB) *Policy {
	t.Helper()
	p, err := New(ruleConfig())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestTheFirstRuleThatFitsCounts(t *testing.T) {
	p := newRulePolicy(t)
	for name, tt := range map[string]struct {
		header  []string
		ttl     time.Duration
		purpose string
		verdict string
	}{
		"no rule":                            {[]string{"Subject: hello"}, time.Hour, "", ""},
		"no subject":                         {nil, time.Hour, "", ""},
		"a subject":                          {[]string{"Subject: Your code is 1"}, 10 * time.Minute, "code", ""},
		"an encoded subject":                 {[]string{"Subject: =?UTF-8?B?56K66KqN44Kz44O844OJ?=\r\n =?UTF-8?B?IDEyMzQ1Ng==?="}, 10 * time.Minute, "code", ""},
		"Zitadel's raw encoded word":         {[]string{"Subject: =?utf-8?q?Your code\u00e9?="}, 10 * time.Minute, "code", ""},
		"a folded subject":                   {[]string{"Subject: Your\r\n code"}, 10 * time.Minute, "code", ""},
		"a header's value":                   {[]string{"x-template: SignIn"}, time.Hour, "code", "upstream"},
		"a header's other value":             {[]string{"X-Template: SignOut"}, time.Hour, "", ""},
		"one of several fields":              {[]string{"X-Template: a", "X-Template: SignUp"}, time.Hour, "code", "upstream"},
		"a header that is there":             {[]string{"X-Notice:"}, 24 * time.Hour, "notice", ""},
		"subject and header":                 {[]string{"Subject: Invitation", "X-Team: a"}, 96 * time.Hour, "invitation", "queued"},
		"a subject without its header":       {[]string{"Subject: Invitation"}, time.Hour, "", ""},
		"X-Gatepost-TTL wins over the rule":  {[]string{"Subject: code", "X-Gatepost-TTL: 30m"}, 30 * time.Minute, "code", ""},
		"up to the longer of both: stream's": {[]string{"Subject: code", "X-Gatepost-TTL: 5h"}, time.Hour, "code", ""},
		"up to the longer of both: rule's":   {[]string{"X-Notice: 1", "X-Gatepost-TTL: 300h"}, 24 * time.Hour, "notice", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := p.Check(submission("logto", "", append(tt.header, "From: a@auth.example.com")...), testID, testTime)
			if err != nil {
				t.Fatal(err)
			}
			if ttl := m.ExpiresAt.Sub(testTime); ttl != tt.ttl || m.Purpose != tt.purpose || m.Verdict != tt.verdict {
				t.Errorf("ttl %v, purpose %q, verdict %q, want %v, %q, %q", ttl, m.Purpose, m.Verdict, tt.ttl, tt.purpose, tt.verdict)
			}
		})
	}
}

func TestRulesAreThoseOfTheStream(t *testing.T) {
	m, err := newRulePolicy(t).Check(submission("both", "", "From: a@news.example.com", "Subject: code"), testID, testTime)
	if err != nil || m.Purpose != "" || m.Supersede != nil {
		t.Errorf("marketing mail has purpose %q, key %x, %v", m.Purpose, m.Supersede, err)
	}
}

func TestOnlyCodesToOnePersonAreSuperseded(t *testing.T) {
	p := newRulePolicy(t)
	key := func(change func(*message.Submission), header ...string) []byte {
		t.Helper()
		s := submission("logto", "", append(header, "From: a@auth.example.com")...)
		if change != nil {
			change(s)
		}
		m, err := p.Check(s, testID, testTime)
		if err != nil {
			t.Fatal(err)
		}
		return m.Supersede
	}
	first := key(nil, "Subject: code 1")
	if len(first) == 0 || !bytes.Equal(first, key(nil, "Subject: code 2")) {
		t.Errorf("two codes for one person have the keys %x and %x", first, key(nil, "Subject: code 2"))
	}
	for name, other := range map[string][]byte{
		"another person":      key(func(s *message.Submission) { s.To[0].Local = "other" }, "Subject: code"),
		"another client":      key(func(s *message.Submission) { s.Client = "both" }, "Subject: code"),
		"another application": key(nil, "Subject: code", "X-Gatepost-Application: shop"),
	} {
		if len(other) == 0 || bytes.Equal(first, other) {
			t.Errorf("a code of %s has key %x, want one of its own", name, other)
		}
	}
	for name, none := range map[string][]byte{
		"a notice":       key(nil, "X-Notice: 1"),
		"other mail":     key(nil, "Subject: hello"),
		"two recipients": key(func(s *message.Submission) { s.To = append(s.To, message.Address{Local: "b", Domain: "example.net"}) }, "Subject: code"),
	} {
		if none != nil {
			t.Errorf("%s has a key", name)
		}
	}
	p.clients["logto"].streams[0].Supersede = false
	if key(nil, "Subject: code") != nil {
		t.Error("a code has a key in a stream that does not supersede")
	}
}

func TestControlFieldsNeverLeave(t *testing.T) {
	p := newRulePolicy(t)
	s := submission("logto", "", "From: a@auth.example.com", "X-Gatepost-Application: shop", "X-Gatepost-TTL: 60", "x-gatepost-Else: 1")
	m, err := p.Check(s, testID, testTime)
	if err != nil || strings.Contains(strings.ToLower(string(m.Raw)), "x-gatepost") {
		t.Errorf("they are in %q, %v", m.Raw, err)
	}
}

func TestLimits(t *testing.T) {
	c := testConfig()
	c.Client["logto"].MaxSize, c.Stream["auth"].MaxSize, c.Stream["auth"].DefaultFrom = 2000, 1000, "a@auth.example.com"
	c.Client["news"].MaxSize = 500
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		client, header string
		want           int64
	}{
		"the smaller of client and its only stream": {"logto", "", 1000},
		"a client whose stream has no limit":        {"news", "", 500},
		"a client of several streams":               {"both", "", 0},
		"nobody":                                    {"gone", "", 0},
		"by stream":                                 {"both", "From: a@auth.example.com\r\n", 1000},
		"by stream, behind other fields":            {"both", "To: x\r\nFrom:\r\n a@auth.example.com\r\nSubject: x\r\n", 1000},
		"a stream without a limit":                  {"both", "From: a@news.example.com\r\n", 0},
		"a client below its stream":                 {"news", "From: a@news.example.com\r\n", 500},
		"a stream below its client":                 {"logto", "From: a@auth.example.com\r\n", 1000},
		"a stream that is not the client's":         {"news", "From: a@auth.example.com\r\n", 500},
		"a From that cannot be read":                {"logto", "From: <\r\n", 2000},
		"no From but a default":                     {"logto", "To: x\r\n", 1000},
	} {
		t.Run(name, func(t *testing.T) {
			var header []byte
			if tt.header != "" {
				header = []byte(tt.header)
			}
			if got := p.Limit(tt.client, header); got != tt.want {
				t.Errorf("Limit = %d, want %d", got, tt.want)
			}
		})
	}
}
