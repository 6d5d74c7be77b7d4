package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/dkim"
)

// zone is a Resolver that knows a few names; errors stand for names whose lookup fails.
type zone struct {
	txt    map[string][]string
	errors map[string]error
}

func (z zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	name = strings.TrimSuffix(name, ".")
	if err := z.errors[name]; err != nil {
		return nil, err
	}
	if v, ok := z.txt[name]; ok {
		return v, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// host is an SMTP host that greets everybody, offers a login and lets nobody in by it.
func host(t *testing.T) (address string) { return hostOffering(t, "AUTH PLAIN") }

// hostOffering is an SMTP host whose EHLO reply ends with the line extension.
func hostOffering(t *testing.T, extension string) (address string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go greet(c, extension)
		}
	}()
	return ln.Addr().String()
}

func greet(c net.Conn, extension string) {
	defer c.Close()
	fmt.Fprint(c, "220 host ESMTP\r\n")
	for s := bufio.NewScanner(c); s.Scan(); {
		switch verb, _, _ := strings.Cut(strings.ToUpper(s.Text()), " "); {
		case verb == "EHLO":
			fmt.Fprintf(c, "250-host\r\n250 %s\r\n", extension)
		case verb == "AUTH":
			fmt.Fprint(c, "535 5.7.8 no\x1b[2J such user\r\n")
		case verb == "QUIT":
			fmt.Fprint(c, "221 bye\r\n")
			return
		default:
			fmt.Fprint(c, "502 5.5.1 only logins here\r\n")
		}
	}
}

// load writes a config with one signed stream to upstream address, and returns it and the record of its key.
func load(t *testing.T, address, egress string, more ...string) (*config.Config, dkim.Record) {
	t.Helper()
	dir := t.TempDir()
	key, err := dkim.GenerateKey("ed25519", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := dkim.WriteKey(filepath.Join(dir, "auth.pem"), key); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "gatepost.toml")
	text := fmt.Sprintf(`hostname = "gw.example.com"
state_dir = "state"
[listen.smtp]
address = "127.0.0.1:0"
clients = ["app"]
[client.app]
networks = ["127.0.0.0/8"]
streams = ["auth"]
[stream.auth]
kind = "auth"
domains = ["auth.example.com"]
route = ["sink"]
egress = "out"
dkim = { selector = "gp1", key_file = "auth.pem" }
[egress.out]
ipv4 = %q
[upstream.sink]
type = "smtp"
address = %q
tls = "none"
%s
`, egress, address, strings.Join(more, "\n"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "password"), []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := dkim.NewSigner(cfg.Stream["auth"].DKIM)
	if err != nil {
		t.Fatal(err)
	}
	records, err := signer.Records("auth.example.com")
	if err != nil {
		t.Fatal(err)
	}
	return cfg, records[0]
}

func find(t *testing.T, found []Finding, check string) Finding {
	t.Helper()
	for _, f := range found {
		if f.Check == check {
			return f
		}
	}
	t.Fatalf("no finding about %s in %+v", check, found)
	return Finding{}
}

func TestAHealthySetUpHasOnlyOKs(t *testing.T) {
	cfg, record := load(t, hostOffering(t, "8BITMIME"), "127.0.0.2")
	found := Run(t.Context(), cfg, Options{Resolver: zone{txt: map[string][]string{record.Name: {"other text", record.Value}}}})
	if len(found) != 5 {
		t.Errorf("%d findings, want one each for listener, egress, key, record and upstream: %+v", len(found), found)
	}
	for _, f := range found {
		if f.Level != OK {
			t.Errorf("%+v, want OK", f)
		}
	}
}

func TestAnEgressThatIsNotHereFailsAndIsNamed(t *testing.T) {
	cfg, record := load(t, host(t), "192.0.2.1")
	found := Run(t.Context(), cfg, Options{Resolver: zone{txt: map[string][]string{record.Name: {record.Value}}}})
	if f := find(t, found, "egress"); f.Level != Fail || f.Subject != "out" || !strings.HasPrefix(f.Text, "192.0.2.1") || f.Hint == "" {
		t.Errorf("egress 192.0.2.1: %+v", f)
	}
	if f := find(t, found, "upstream"); f.Level != Fail || !strings.Contains(f.Text, "192.0.2.1") || f.Hint != "mend the egress first" {
		t.Errorf("upstream through an egress that is not here: %+v", f)
	}
}

func TestOfflineNeitherLooksUpNorLogsIn(t *testing.T) {
	cfg, _ := load(t, "127.0.0.1:1", "127.0.0.2")
	for _, f := range Run(t.Context(), cfg, Options{}) {
		if f.Level != OK || f.Check == "upstream" || f.Check == "dkim record" {
			t.Errorf("offline found %+v", f)
		}
	}
}

func TestRecordsAreComparedWithTheKey(t *testing.T) {
	cfg, record := load(t, "127.0.0.1:1", "127.0.0.2")
	_, other := load(t, "127.0.0.1:1", "127.0.0.2")
	for name, tt := range map[string]struct {
		zone  zone
		level Level
		text  string
	}{
		"the same key in another spelling": {zone{txt: map[string][]string{record.Name: {"p=" + record.Value[strings.Index(record.Value, "p=")+2:] + " ; k = ed25519;v=DKIM1"}}}, OK, "matches"},
		"another key":                      {zone{txt: map[string][]string{record.Name: {other.Value}}}, Fail, "not this key"},
		"a revoked key":                    {zone{txt: map[string][]string{record.Name: {"v=DKIM1; p="}}}, Fail, "not this key"},
		"nothing":                          {zone{}, Fail, "not published"},
		"a name server that is down":       {zone{errors: map[string]error{record.Name: &net.DNSError{Err: "i/o timeout", IsTimeout: true}}}, Warn, "could not be looked up"},
		"an error of another sort":         {zone{errors: map[string]error{record.Name: errors.New("no resolver")}}, Warn, "could not be looked up"},
	} {
		t.Run(name, func(t *testing.T) {
			f := find(t, publishedRecords(t.Context(), cfg, tt.zone), "dkim record")
			if f.Level != tt.level || !strings.Contains(f.Text, tt.text) || tt.level != OK && f.Hint == "" {
				t.Errorf("%+v, want %s with %q and a hint", f, tt.level, tt.text)
			}
		})
	}
}

func TestAWildcardDomainWithoutAFixedSignerIsWarnedOf(t *testing.T) {
	cfg, _ := load(t, "127.0.0.1:1", "127.0.0.2")
	cfg.Stream["auth"].Domains = []string{"*.example.com"}
	if f := find(t, publishedRecords(t.Context(), cfg, zone{}), "dkim record"); f.Level != Warn || !strings.Contains(f.Hint, `domain = "example.com"`) {
		t.Errorf("%+v, want a warning that names the cure", f)
	}
	cfg.Stream["auth"].DKIM[0].Domain = "example.com"
	if f := find(t, publishedRecords(t.Context(), cfg, zone{}), "dkim record"); f.Subject != "gp1._domainkey.example.com" || f.Level != Fail {
		t.Errorf("with a fixed d=: %+v, want its record looked up", f)
	}
}

func TestAKeyThatDoesNotLoadFails(t *testing.T) {
	cfg, _ := load(t, "127.0.0.1:1", "127.0.0.2")
	if err := os.WriteFile(cfg.Stream["auth"].DKIM[0].KeyFile, []byte("not a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := find(t, Run(t.Context(), cfg, Options{}), "dkim key"); f.Level != Fail || f.Hint == "" {
		t.Errorf("%+v, want FAIL with a hint", f)
	}
}

func TestAWrongPasswordIsToldWithoutTerminalCodes(t *testing.T) {
	cfg, _ := load(t, host(t), "127.0.0.2", `username = "joe"`, `password_file = "password"`)
	f := find(t, Logins(t.Context(), cfg), "upstream")
	if f.Level != Fail || !strings.Contains(f.Text, "535") || strings.ContainsRune(f.Text, '\x1b') || !strings.Contains(f.Hint, "username") {
		t.Errorf("%+v, want FAIL with the host's words and what to check", f)
	}
}

func TestAClosedPortFailsWithWhatToCheck(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	cfg, _ := load(t, ln.Addr().String(), "127.0.0.2")
	f := find(t, Logins(t.Context(), cfg), "upstream")
	if f.Level != Fail || !strings.Contains(f.Text, ln.Addr().String()) || !strings.Contains(f.Hint, "address and tls") {
		t.Errorf("%+v, want FAIL that names the address", f)
	}
}

func TestALoginThatIsOfferedAndNotUsedIsWarnedOf(t *testing.T) {
	cfg, _ := load(t, host(t), "127.0.0.2")
	f := find(t, Logins(t.Context(), cfg), "upstream")
	if f.Level != Warn || !strings.Contains(f.Text, "without a login") || !strings.Contains(f.Hint, "password_file") {
		t.Errorf("%+v, want a warning that names what to set", f)
	}
}

func TestTheUpstreamForBouncesIsTriedToo(t *testing.T) {
	cfg, _ := load(t, hostOffering(t, "8BITMIME"), "127.0.0.2")
	back := *cfg.Upstream["sink"]
	back.Name, back.Address = "back", "127.0.0.1:1"
	cfg.Upstream["back"], cfg.Stream["auth"].DSNUpstream = &back, "back"
	found := Logins(t.Context(), cfg)
	if len(found) != 2 || found[1].Subject != "back" || found[1].Level != Fail {
		t.Errorf("%+v, want that upstream back fails", found)
	}
}
