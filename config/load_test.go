package config_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// show2 is the config of the smallest real set-up: two clients, two streams, two pinned addresses.
const show2 = `hostname  = "gw.auth.example.com"
state_dir = "state"
[listen.smtp]
address = "127.0.0.1:2525"
clients = ["logto", "news"]
[client.logto]
networks = ["127.0.0.0/24"]
streams  = ["auth"]
[client.news]
networks = ["127.0.1.0/24"]
streams  = ["marketing"]
[stream.auth]
kind    = "auth"
domains = ["auth.example.com"]
route   = ["sink"]
egress  = "auth"
dkim    = { selector = "gp1", key_file = "auth.pem" }
[stream.marketing]
kind    = "marketing"
domains = ["marketing.example.com"]
route   = ["bulk"]
egress  = "bulk"
dkim    = { selector = "gp1", key_file = "marketing.pem" }
[egress.auth]
ipv4 = "127.0.0.2"
[egress.bulk]
ipv4 = "127.0.0.3"
[upstream.sink]
type    = "smtp"
address = "127.0.0.1:2526"
tls     = "none"
[upstream.bulk]
type    = "smtp"
address = "127.0.0.1:2527"
tls     = "none"
`

// writeSecrets makes a token and a secret of Standard Webhooks in dir, long enough to be used.
func writeSecrets(t *testing.T, dir string) {
	t.Helper()
	for name, text := range map[string]string{"token": "0123456789abcdef0123456789abcdef\n", "whsec": "v1,whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// write makes files in dir, readable by their owner only.
func write(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("content of "+name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func parse(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	c, err := config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestASmallConfigLoadsWithTheDefaultsOfEachKind(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	file := filepath.Join(dir, "gatepost.toml")
	if err := os.WriteFile(file, []byte(show2), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warnings: %v", c.Warnings[0])
	}
	equal := func(what string, got, want any) {
		t.Helper()
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %#v, want %#v", what, got, want)
		}
	}
	equal("state_dir", c.StateDir, filepath.Join(dir, "state"))
	equal("listener", *c.Listen["smtp"], config.Listen{Name: "smtp", Protocol: "smtp", Address: "127.0.0.1:2525",
		Clients: []string{"logto", "news"}, MaxSize: 25 << 20, MaxRecipients: 100, MaxConnections: 1000, MaxPerSource: 200, TLS: "none", ReceivedFrom: "public"})
	equal("client", *c.Client["news"], config.Client{Name: "news",
		Networks: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}, Streams: []string{"marketing"}})
	equal("auth", *c.Stream["auth"], config.Stream{Name: "auth", Kind: message.Auth, Domains: []string{"auth.example.com"},
		Route: []string{"sink"}, Egress: "auth", DKIM: []config.DKIM{{Selector: "gp1", KeyFile: filepath.Join(dir, "auth.pem")}},
		TTL: time.Hour, Verdict: "upstream", VerdictTimeout: 4 * time.Second, WhenDown: "refuse",
		CommitTimeout: 1500 * time.Millisecond, AnswerTimeout: 10 * time.Second,
		Retry: []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second}})
	equal("marketing", *c.Stream["marketing"], config.Stream{Name: "marketing", Kind: message.Marketing, Domains: []string{"marketing.example.com"},
		Route: []string{"bulk"}, Egress: "bulk", DKIM: []config.DKIM{{Selector: "gp1", KeyFile: filepath.Join(dir, "marketing.pem")}},
		TTL: 72 * time.Hour, Verdict: "queued", VerdictTimeout: 4 * time.Second, WhenDown: "queue",
		CommitTimeout: time.Minute, AnswerTimeout: 2 * time.Minute,
		Retry: []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour}})
	equal("egress", *c.Egress["auth"], config.Egress{Name: "auth", IPv4: netip.MustParseAddr("127.0.0.2")})
	equal("upstream", *c.Upstream["sink"], config.Upstream{Name: "sink", Type: "smtp", Address: "127.0.0.1:2526", Host: "127.0.0.1", Port: 2526,
		TLS: "none", Chunking: "probe", Connections: 20, DKIM: "sign"})
	equal("store", c.Store, config.Store{Engine: "sqlite"})
	equal("history", c.History, config.History{Keep: 30 * 24 * time.Hour})
	equal("log", c.Log, config.Log{Level: "info"})
	equal("limits", c.Limits, config.Limits{BytesInFlight: 128 << 20, Memory: 512 << 20})
	equal("templates", c.Templates, config.Templates{DefaultLocale: "en", Color: "#2456d6"})
}

// exampleFiles are the keys and secrets that config.example.toml names.
var exampleFiles = []string{"keys/auth.gp1.pem", "keys/marketing.gp1.pem", "esp-auth.password", "esp-spare.password", "esp-marketing.password", "billing.password", "logto.token"}

func readExample(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../config.example.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTheExampleLoadsAndTheDefaultsItNamesAreTheDefaults(t *testing.T) {
	dir, text := t.TempDir(), readExample(t)
	write(t, dir, exampleFiles...)
	plain := parse(t, dir, text)
	if len(plain.Warnings) > 0 {
		t.Errorf("warnings: %v", plain.Warnings[0])
	}
	uncommented := regexp.MustCompile(`(?m)^#(\w+ = )`).ReplaceAllString(text, "$1")
	if uncommented == text {
		t.Fatal("no defaults found in the example")
	}
	if spelt := parse(t, dir, uncommented); !reflect.DeepEqual(plain, spelt) {
		t.Errorf("with its defaults uncommented the example means something else:\n%s\nbut without:\n%s", spelt.Effective(), plain.Effective())
	}
}

func TestWhatTheExampleNamesWithoutDefaultIsAKeyToo(t *testing.T) {
	dir, text := t.TempDir(), readExample(t)
	write(t, dir, append(exampleFiles, "esp-auth.token", "zitadel.secret", "templates/SignIn/en.txt", "store.dsn", "store.key")...)
	writeCertificate(t, dir, "gw", certificateFor("gw.example.com"))
	all := regexp.MustCompile(`(?m)^# e\.g\. (\w+ = )`).ReplaceAllString(text, "$1")
	all = strings.NewReplacer(`"ca.pem"`, `"gw.pem"`, `"clients-ca.pem"`, `"gw.pem"`, `#engine = "sqlite"`, `engine = "postgres"`).Replace(all)
	var texts []string
	_, err := config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(all))
	for _, p := range config.Problems(err) {
		texts = append(texts, p.Text)
	}
	want := []string{ // examples that do not go with what stands around them
		"has no meaning where the address is not unix:PATH",
		`client "billing" has tls_names, but the listener has no tls_client_ca_file`,
		`does not go with auth "xoauth2"`,
		`has no place where adapter is "logto", whose requests are not signed`,
		`has no place where adapter is "logto", whose requests hold whole links`,
	}
	if !slices.Equal(texts, want) {
		t.Errorf("told %q, want %q", texts, want)
	}
}

func TestTheEffectiveConfigLoadsToTheSameConfig(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, append(exampleFiles, "auth.pem", "marketing.pem", "t.token", "p")...)
	writeSecrets(t, dir)
	for name, text := range map[string]string{
		"small":   show2,
		"hooks":   show2 + rareHooks,
		"example": readExample(t),
		"rare keys": strings.NewReplacer(
			`dkim    = { selector = "gp1", key_file = "auth.pem" }`,
			`dkim = [{ selector = "a", key_file = "auth.pem", domain = "Auth.Example.COM" }, { selector = "b\u002d1", key_file = "p", shared = true }]
			 return_path = "Bounce@auth.example.com"
			 retry = ["100ms", "1m30s", "1d12h"]
			 ttl = "36h"`,
			"address = \"127.0.0.1:2526\"\ntls     = \"none\"",
			`address = "SMTP.example.net:587"
			 username = "o'quote \"and\" \\back"
			 token_file = "t.token"
			 chunking = "never"
			 commit_timeout = "2s"
			 connections = 3`,
			`domains = ["marketing.example.com"]`, `domains = ["bücher.example", "*.Marketing.example.com"]`,
			`["127.0.1.0/24"]`, `["127.0.1.0/24", "2001:db8:7::/48", "::ffff:192.0.2.7"]`,
		).Replace(show2) + "[history]\naddresses = \"clear\"\n[log]\nformat = \"json\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			one := parse(t, dir, text)
			two := parse(t, dir, one.Effective())
			one.Warnings, two.Warnings = nil, nil
			if !reflect.DeepEqual(one, two) {
				t.Errorf("the effective config is read as\n%s\nbut was\n%s", two.Effective(), one.Effective())
			}
		})
	}
}

func TestTheJSONFormHasTheNamesAndValuesOfTheFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	b, err := json.Marshal(parse(t, dir, show2))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Hostname string
		Listen   map[string]struct {
			Address string
			MaxSize string `json:"max_size"`
		}
		Stream map[string]struct {
			DKIM  []struct{ Selector string }
			Retry []string
			TTL   string
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	s := got.Stream["auth"]
	if got.Hostname != "gw.auth.example.com" || got.Listen["smtp"].MaxSize != "25MB" || s.TTL != "1h" || len(s.Retry) != 6 ||
		len(s.DKIM) != 1 || s.DKIM[0].Selector != "gp1" {
		t.Errorf("the JSON form is %s", b)
	}
}

func TestNoSecretIsInTheEffectiveConfigOrInAProblem(t *testing.T) {
	dir, text := t.TempDir(), readExample(t)
	const secret = "hunter2-and-more"
	write(t, dir, exampleFiles...)
	if err := os.WriteFile(filepath.Join(dir, "esp-auth.password"), []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	c := parse(t, dir, text)
	b, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	if out := c.Effective() + string(b); strings.Contains(out, secret) || !strings.Contains(out, "esp-auth.password") {
		t.Errorf("the effective config has the secret, or not its file:\n%s", out)
	}
	inline := strings.Replace(text, `password_file = "esp-auth.password"`, `password = "`+secret+`"`, 1)
	_, err = config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(inline))
	for _, p := range config.Problems(err) {
		if strings.Contains(p.Error()+p.Hint, secret) {
			t.Errorf("a problem shows the secret: %v", p)
		}
	}
	if len(config.Problems(err)) != 2 || !strings.Contains(config.Problems(err)[1].Hint, `"password_file"`) {
		t.Errorf("an inline password gives %v, want a pointer to password_file", err)
	}
}

func TestAFileThatCannotBeReadIsAProblemWithAHint(t *testing.T) {
	_, err := config.Load(filepath.Join(t.TempDir(), "none.toml"))
	p := config.Problems(err)
	if len(p) != 1 || p[0].Line != 0 || p[0].Hint == "" || !strings.HasSuffix(p[0].Error(), "none.toml: the config cannot be read: no such file or directory") {
		t.Errorf("Load of a missing file: %v", err)
	}
}

func TestProblemsAreFoundHoweverTheErrorIsWrapped(t *testing.T) {
	one, two := &config.Problem{File: "f", Line: 1, Text: "one"}, &config.Problem{File: "f", Line: 2, Key: "k", Text: "two"}
	err := fmt.Errorf("load: %w", errors.Join(one, errors.New("other"), fmt.Errorf("again: %w", two)))
	if got := config.Problems(err); len(got) != 2 || got[0] != one || got[1] != two {
		t.Errorf("found %v", got)
	}
	if got := config.Problems(nil); got != nil {
		t.Errorf("no error has problems %v", got)
	}
	if one.Error() != "f:1: one" || two.Error() != "f:2: k: two" {
		t.Errorf("problems print as %q and %q", one, two)
	}
}

func TestListenersThatCanBothBindAreLetThrough(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	for addresses, clash := range map[[2]string]bool{
		{"127.0.0.1:2525", "127.0.0.1:2526"}: false,
		{"127.0.0.1:2525", "127.0.0.2:2525"}: false,
		{"127.0.0.1:0", "127.0.0.1:0"}:       false,
		{"0.0.0.0:2525", "[::1]:2525"}:       false,
		{"0.0.0.0:2525", "127.0.0.1:2525"}:   true,
		{"[::]:2525", "127.0.0.1:2525"}:      true,
		{"localhost:2525", "127.0.0.1:2525"}: true,
		{":2525", "0.0.0.0:2525"}:            true,
	} {
		text := strings.Replace(show2, "127.0.0.1:2525", addresses[0], 1) +
			"[listen.second]\nprotocol = \"smtp\"\naddress = \"" + addresses[1] + "\"\nclients = [\"logto\"]\n"
		got := told(t, dir, text)
		if clash != (len(got) == 1 && strings.HasPrefix(got[0], "38: listen.second.address: ")) || !clash && len(got) > 0 {
			t.Errorf("listeners on %v: told %q", addresses, got)
		}
	}
}
