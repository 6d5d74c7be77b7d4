package doctor

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/upstream/upstreamtest"
)

func TestTheAllowListHasWhatTheWorldSees(t *testing.T) {
	addr := netip.MustParseAddr
	for name, tt := range map[string]struct {
		egress *config.Egress
		local  string
		allow  []string
		note   string
	}{
		"a public address":               {&config.Egress{IPv4: addr("203.0.113.10")}, "203.0.113.10", []string{"203.0.113.10"}, ""},
		"a private one":                  {&config.Egress{Name: "out", IPv4: addr("10.0.0.3")}, "10.0.0.3", nil, "not verified: 10.0.0.3 is private, set public_ipv4 of [egress.out]"},
		"a private one with its NAT":     {&config.Egress{IPv4: addr("10.0.0.3"), PublicIPv4: addr("203.0.113.10")}, "10.0.0.3", []string{"203.0.113.10"}, ""},
		"carrier-grade NAT":              {&config.Egress{Name: "out", IPv4: addr("100.64.1.1")}, "", nil, "not verified: 100.64.1.1 is private, set public_ipv4 of [egress.out]"},
		"both families":                  {&config.Egress{IPv4: addr("203.0.113.10"), IPv6: addr("2001:db8::1")}, "2001:db8::1", []string{"203.0.113.10", "2001:db8::1"}, ""},
		"a private IPv6 beside a NAT":    {&config.Egress{Name: "out", IPv4: addr("10.0.0.3"), PublicIPv4: addr("203.0.113.10"), IPv6: addr("fd00::1")}, "", []string{"203.0.113.10"}, "not verified: fd00::1 is private"},
		"no connection":                  {&config.Egress{IPv4: addr("203.0.113.10")}, "", []string{"203.0.113.10"}, ""},
		"a host on this machine":         {&config.Egress{IPv4: addr("127.0.0.2")}, "127.0.0.2", []string{"127.0.0.2"}, ""},
		"any address of this host":       {nil, "203.0.113.99", []string{"203.0.113.99"}, ""},
		"any address, which is private":  {nil, "192.168.1.2", nil, "not verified: 192.168.1.2 is private"},
		"any address, and no connection": {nil, "", nil, ""},
		"a proxy":                        {&config.Egress{Name: "out", Proxy: "10.0.0.9:1080"}, "", nil, "the proxy's own address: set public_ipv4 of [egress.out]"},
		"a proxy that is known":          {&config.Egress{Proxy: "10.0.0.9:1080", PublicIPv4: addr("203.0.113.10")}, "", []string{"203.0.113.10"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var w Way
			if w.see(tt.egress, tt.local); !slices.Equal(w.Allow, tt.allow) || w.Note != tt.note {
				t.Errorf("allow %q, note %q; want %q, %q", w.Allow, w.Note, tt.allow, tt.note)
			}
		})
	}
}

// loadService is load with upstream dm at Aliyun, whose service answers every check call so.
func loadService(t *testing.T, reply upstreamtest.Reply) (*config.Config, *upstreamtest.Service) {
	t.Helper()
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply { return reply })
	cfg, _ := load(t, "127.0.0.1:1", "127.0.0.2")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Upstream["sink"] = &config.Upstream{Name: "sink", Type: "aliyun", AccountName: "no-reply@auth.example.com", Region: "cn-hangzhou",
		Endpoint: s.URL(), TLSCAFile: s.CAFile(), AccessKeyID: config.Secret{File: secret}, AccessKeySecret: config.Secret{File: secret},
		Connections: 1, DKIM: "none"}
	return cfg, s
}

func TestAServiceIsAskedWithoutSending(t *testing.T) {
	const sender = `{"TotalCount":1,"data":{"mailAddress":[{"AccountName":"no-reply@auth.example.com","AccountStatus":"0","DomainStatus":"0","Sendtype":"trigger"}]}}`
	for name, tt := range map[string]struct {
		reply  upstreamtest.Reply
		level  Level
		result string
		text   string
		hint   string
	}{
		"an account that works": {upstreamtest.Reply{Body: sender}, OK, "works", "sender type trigger", ""},
		"an account with a trap": {upstreamtest.Reply{Body: strings.Replace(sender, `"AccountStatus":"0"`, `"AccountStatus":"1"`, 1)},
			Warn, "works", "frozen", "docs/upstreams.md"},
		"a key that may send but not read": {upstreamtest.Reply{Status: 403, Body: `{"Code":"Forbidden.RAM","Message":"User not authorized"}`},
			Warn, "not proven", "only a mail can show", "gatepost send --upstream sink"},
		"a key that is wrong": {upstreamtest.Reply{Status: 404, Body: `{"Code":"InvalidAccessKeyId.NotFound","Message":"Specified access key is not found."}`},
			Fail, "fails", "Specified access key is not found", "allow-list of addresses must have 127.0.0.2"},
		"a service that is too busy": {upstreamtest.Reply{Status: 400, Body: `{"Code":"Throttling.User","Message":"x\u001b[2J"}`},
			Fail, "fails", "Throttling.User", "lower connections"},
		"somebody else's page": {upstreamtest.Reply{Status: 502, Body: "<h1>", Header: map[string]string{"Content-Type": "text/html"}},
			Fail, "fails", "502", "in trouble"},
		"a clock that is wrong": {upstreamtest.Reply{Status: 400, Body: `{"Code":"InvalidTimeStamp.Expired","Message":"x"}`},
			Fail, "fails", "InvalidTimeStamp", "the clock of this host"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, s := loadService(t, tt.reply)
			f := find(t, Logins(t.Context(), cfg), "upstream")
			if f.Level != tt.level || f.Way.Result != tt.result || !strings.Contains(f.Text, tt.text) || !strings.Contains(f.Hint, tt.hint) {
				t.Errorf("%+v %+v, want %s, %q, with %q and %q", f, f.Way, tt.level, tt.result, tt.text, tt.hint)
			}
			if f.Way.Local != "127.0.0.2" || !slices.Equal(f.Way.Allow, []string{"127.0.0.2"}) || f.Way.Type != "aliyun" || f.Way.Egress != "out" {
				t.Errorf("way %+v, want type aliyun from egress out, 127.0.0.2", f.Way)
			}
			if strings.ContainsRune(f.Text, '\x1b') || strings.Contains(f.Text+f.Hint, "hunter2") || len(s.Requests()) != 0 {
				t.Errorf("%+v after %d mails: want no terminal codes, no secret, no mail", f, len(s.Requests()))
			}
		})
	}
}

func TestAServiceThatCannotBeReachedTellsWhatToLookAt(t *testing.T) {
	cfg, s := loadService(t, upstreamtest.Reply{})
	s.Stop()
	f := find(t, Logins(t.Context(), cfg), "upstream")
	if f.Level != Fail || f.Way.Result != "fails" || f.Way.Local != "" || !slices.Equal(f.Way.Allow, []string{"127.0.0.2"}) || !strings.Contains(f.Hint, "endpoint of [upstream.sink]") {
		t.Errorf("%+v %+v, want FAIL, the egress for the allow-list, and what to look at", f, f.Way)
	}
}
