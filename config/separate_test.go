package config_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
)

func TestWhatIsMarkedSharedMayCarryBothKinds(t *testing.T) {
	for name, edits := range map[string][]edit{
		"one upstream": {
			{`["bulk"]`, `["sink"]`},
			{"tls     = \"none\"", "tls = \"none\"\nshared = true"},
		},
		"one account under two names": {
			{"127.0.0.1:2527\"\ntls     = \"none\"", "127.0.0.1:2526\"\ntls = \"none\"\nshared = true"},
			{"tls     = \"none\"", "tls = \"none\"\nshared = true"},
		},
		"one egress": {
			{`egress  = "bulk"`, `egress = "auth"`},
			{"ipv4 = \"127.0.0.2\"", "ipv4 = \"127.0.0.2\"\nshared = true"},
		},
		"one source address under two names": {
			{"ipv4 = \"127.0.0.2\"", "ipv4 = \"127.0.0.2\"\nshared = true"},
			{"ipv4 = \"127.0.0.3\"", "ipv4 = \"127.0.0.2\"\nshared = true"},
		},
		"one source address that is said to be seen as two": {
			{"ipv4 = \"127.0.0.2\"", "ipv4 = \"127.0.0.2\"\npublic_ipv4 = \"203.0.113.1\"\nshared = true"},
			{"ipv4 = \"127.0.0.3\"", "ipv4 = \"127.0.0.2\"\npublic_ipv4 = \"203.0.113.2\"\nshared = true"},
		},
		"one DKIM key": {
			{`"auth.pem" }`, `"auth.pem", shared = true }`},
			{`"marketing.pem" }`, `"auth.pem", shared = true }`},
		},
		"one DKIM domain": {
			{`"auth.pem" }`, `"auth.pem", domain = "example.com", shared = true }`},
			{`"marketing.pem" }`, `"marketing.pem", domain = "example.com", shared = true }`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, text := t.TempDir(), show2
			write(t, dir, "auth.pem", "marketing.pem")
			for _, e := range edits {
				text = e.apply(t, text)
			}
			if got := told(t, dir, text); len(got) > 0 {
				t.Errorf("marked as shared it is refused: %q", got)
			}
			unmarked := strings.NewReplacer(", shared = true", "", "\nshared = true", "").Replace(text)
			if got := told(t, dir, unmarked); len(got) != 1 || !strings.Contains(got[0], "is used by streams of both kinds") {
				t.Errorf("without the mark it is told as %q", got)
			}
		})
	}
}

func TestTwoNamesThatLeadToOneKeyFileAreOneKey(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem")
	if err := os.Symlink("auth.pem", filepath.Join(dir, "marketing.pem")); err != nil {
		t.Fatal(err)
	}
	got := told(t, dir, show2)
	if len(got) != 1 || !strings.HasPrefix(got[0], "23: stream.marketing.dkim: the DKIM key DIR/auth.pem is used by streams of both kinds") {
		t.Errorf("told %q", got)
	}
}

func TestCaptureUpstreamsKeepNoReputation(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	text := strings.ReplaceAll(show2, "type    = \"smtp\"\naddress = \"127.0.0.1:2526\"\ntls     = \"none\"", `type = "capture"`)
	text = strings.NewReplacer(`["bulk"]`, `["sink"]`, `egress  = "bulk"`, `egress = "auth"`).Replace(text)
	if got := told(t, dir, text); len(got) > 0 {
		t.Errorf("one capture upstream for both kinds is refused: %q", got)
	}
}

func TestTheLongestDomainMatchOwnsTheReturnPath(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	for name, tt := range map[string]struct{ domains, address, want string }{
		"a subdomain by wildcard":              {`["*.example.com"]`, "b@x.y.example.com", ""},
		"a wildcard does not hold its base":    {`["*.example.com"]`, "b@example.com", "no domain of this stream"},
		"a lookalike is not a subdomain":       {`["*.example.com"]`, "b@badexample.com", "no domain of this stream"},
		"the other stream's name is more":      {`["*.example.com"]`, "b@marketing.example.com", "no domain of this stream"},
		"a name below the other stream's name": {`["*.example.com"]`, "b@x.marketing.example.com", ""},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(show2, `["auth.example.com"]`, tt.domains+"\nreturn_path = \""+tt.address+`"`, 1)
			got := strings.Join(told(t, dir, text), "\n")
			if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWhatWorksButShouldBeKnownIsAWarning(t *testing.T) {
	for name, tt := range map[string]struct {
		edits []edit
		want  []string
	}{
		"nothing to say": {nil, nil},
		"unused sections": {
			[]edit{{`clients = ["logto", "news"]`, `clients = ["logto"]`}, {`["auth"]`, `["marketing"]`},
				{"", "[upstream.u]\ntype = \"capture\"\n[egress.e]\nipv4 = \"127.0.0.9\"\n"}},
			[]string{
				"9: client.news: is not used: no listener names it",
				"12: stream.auth: is not used: no client names it",
				"36: upstream.u: is not used: no stream names it",
				"38: egress.e: is not used: no stream or upstream names it",
			},
		},
		"a limit that limits nothing": {
			[]edit{{"[listen.smtp]\n", "[listen.smtp]\nmax_connections = 10\nmax_per_source = 11\n"}},
			[]string{"5: listen.smtp.max_per_source: 11 is more than max_connections (10), so it limits nothing"},
		},
		"a host name without a dot": {
			[]edit{{"gw.auth.example.com", "gateway"}},
			[]string{`1: hostname: "gateway" has no dot`},
		},
		"a wide public network": {
			[]edit{{"127.0.0.1:2525", "0.0.0.0:2525"}, {`["127.0.1.0/24"]`, `["198.51.0.0/16", "2001:db8::/32", "10.0.0.0/8", "fd00::/8", "203.0.113.0/24"]`}},
			[]string{
				`10: client.news.networks: everybody in "198.51.0.0/16", a public network, may send as this client`,
				`10: client.news.networks: everybody in "2001:db8::/32", a public network, may send as this client`,
			},
		},
		"a client that cannot reach its listener": {
			[]edit{{`["127.0.1.0/24"]`, `["172.17.0.0/16", "::ffff:10.0.0.1"]`}},
			[]string{`5: listen.smtp.clients: client "news" cannot connect: 127.0.0.1:2525 is only reached from this machine, and its networks are elsewhere`},
		},
		"a balancer that may hear passwords": {
			bothLogIn(edit{"[listen.smtp]\n", "[listen.smtp]\nproxy_from = [\"127.0.0.1\"]\n"}),
			[]string{`3: listen.smtp.tls: the password of client "logto" reaches the balancer in clear text unless that speaks TLS`},
		},
		"a socket of systemd that may be on a network": {
			bothLogIn(edit{"127.0.0.1:2525", "systemd:gatepost.socket"}),
			[]string{`3: listen.smtp.tls: client "logto" can log in only if systemd's socket is on loopback or a unix socket: there is no certificate`},
		},
		"clients that are not mixed": {
			[]edit{{"[listen.smtp]\n", "[listen.smtp]\nmixed = true\n"}},
			[]string{"4: listen.smtp.mixed: changes nothing: clients that log in and clients that do not are not both here"},
		},
		"a key that signs nothing": {
			[]edit{{"tls     = \"none\"", "tls = \"none\"\ndkim = \"strip\""}},
			[]string{`17: stream.auth.dkim: is not used for upstream "sink", whose dkim is "strip"`},
		},
		"a lifetime without a second try": {
			[]edit{{`kind    = "auth"`, "kind = \"auth\"\nretry = [\"2h\"]"}},
			[]string{"14: stream.auth.retry: the first wait (2h) is not below ttl (1h): there is only one try"},
		},
		"one account under two names": {
			[]edit{{"", "[upstream.again]\ntype = \"smtp\"\naddress = \"127.0.0.1:2527\"\ntls = \"none\"\n"}},
			[]string{
				`36: upstream.again: is the same account as upstream "bulk"; connections are counted for each by itself`,
				"36: upstream.again: is not used: no stream names it",
			},
		},
		"a route that ends at nobody": {
			[]edit{withSpare(`["sink", "spare"]`), {"", "[upstream.spare]\ntype = \"capture\"\n"}},
			[]string{`15: stream.auth.route: what goes to upstream "spare", of type "capture", reaches nobody`},
		},
		"weights that leave nothing for the first": {
			[]edit{withSpare(`["sink", { upstream = "spare", weight = 100 }]`), spare},
			[]string{`15: stream.auth.route: the weights leave nothing for "sink", which only gets what the others could not deliver`},
		},
		"a second copy that has nowhere to go": {
			[]edit{{`kind    = "auth"`, "kind = \"auth\"\nhedge_after = \"2s\""}, {"127.0.0.1:2527\"\ntls     = \"none\"", "127.0.0.1:2527\"\ntls = \"none\"\nhedge_after = \"2s\""}},
			[]string{
				`14: stream.auth.hedge_after: changes nothing for stream "auth": its route has no other upstream for a second copy`,
				`37: upstream.bulk.hedge_after: changes nothing for stream "marketing": only mail of kind "auth" is sent a second time`,
			},
		},
		"both kinds from the host's address": {
			[]edit{{`egress  = "auth"`, `egress = "any"`}, {`egress  = "bulk"`, `egress = "any"`}},
			[]string{
				`22: stream.marketing.egress: mail of streams "auth" and "marketing" leaves from one address, the host's: complaints about one can stop the other`,
				"24: egress.auth: is not used: no stream or upstream names it",
				"26: egress.bulk: is not used: no stream or upstream names it",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, text := t.TempDir(), show2
			write(t, dir, "auth.pem", "marketing.pem", "p")
			for _, e := range tt.edits {
				text = e.apply(t, text)
			}
			c := parse(t, dir, text)
			if got := lines(c.File, c.Warnings); !slices.Equal(got, tt.want) {
				t.Errorf("warned\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

func TestAHintSaysWhatToDo(t *testing.T) {
	for hint, e := range map[string]edit{
		`did you mean "clients"?`:                           {"clients =", "clientz ="},
		`did you mean "password_file"?`:                     {"tls     = \"none\"", "tls = \"none\"\npassword = \"x\""},
		`did you mean "sink"?`:                              {`["sink"]`, `["skin"]`},
		`add [upstream.postmark], or name "bulk" or "sink"`: {`["sink"]`, `["postmark"]`},
		`write ["auth"]`:                                    {`streams  = ["auth"]`, `streams = "auth"`},
		`write "90s" if seconds are meant`:                  {`kind    = "auth"`, "kind = \"auth\"\nttl = 90"},
		"relative paths start at DIR; make one with: gatepost dkim generate FILE --domain DOMAIN":             {`"auth.pem"`, `"no.pem"`},
		`add a port, as in "mx.example.com:587"`:                                                              {"127.0.0.1:2526", "mx.example.com"},
		`write "10.0.0.0/8" for the network, "10.0.0.1" for the address`:                                      {"127.0.0.0/24", "10.0.0.1/8"},
		`add dkim = { selector = …, key_file = … }, or dkim = "none" on [upstream.sink] if the service signs`: {`dkim    = { selector = "gp1", key_file = "auth.pem" }`, ""},
		`give each kind its own, or set shared = true on upstream.bulk and upstream.sink if you mean it`:      {"127.0.0.1:2527", "127.0.0.1:2526"},
	} {
		dir := t.TempDir()
		write(t, dir, "auth.pem", "marketing.pem")
		_, err := config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(e.apply(t, show2)))
		if !slices.ContainsFunc(config.Problems(err), func(p *config.Problem) bool { return strings.ReplaceAll(p.Hint, dir, "DIR") == hint }) {
			t.Errorf("%q has no hint %q:", e.new, hint)
			for _, p := range config.Problems(err) {
				t.Logf("  %v (hint: %s)", p, p.Hint)
			}
		}
	}
}
