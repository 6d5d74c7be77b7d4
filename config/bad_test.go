package config_test

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
)

// told returns the problems of a config without the file's name, and with DIR for its directory.
func told(t *testing.T, dir, text string) []string {
	t.Helper()
	file := filepath.Join(dir, "gatepost.toml")
	c, err := config.Parse(file, []byte(text))
	if (err == nil) != (c != nil) {
		t.Fatalf("Parse returned %v and %v", c, err)
	}
	return lines(file, config.Problems(err))
}

func lines(file string, problems []*config.Problem) (all []string) {
	for _, p := range problems {
		all = append(all, strings.ReplaceAll(strings.TrimPrefix(p.Error(), file+":"), filepath.Dir(file), "DIR"))
	}
	return all
}

// edit is a change to the small config: the first old becomes new; "" for old appends.
type edit struct{ old, new string }

func (e edit) apply(t *testing.T, text string) string {
	t.Helper()
	if e.old == "" {
		return text + e.new
	}
	if !strings.Contains(text, e.old) {
		t.Fatalf("the small config has no %q", e.old)
	}
	return strings.Replace(text, e.old, e.new, 1)
}

func TestABadConfigIsToldByLineAndKey(t *testing.T) {
	all := maps.Clone(badDoors)
	maps.Copy(all, badLogins)
	maps.Copy(all, badStreams)
	maps.Copy(all, badRules)
	maps.Copy(all, badDelivery)
	maps.Copy(all, badHooks)
	maps.Copy(all, badTemplates)
	maps.Copy(all, badServices)
	maps.Copy(all, badMapped)
	maps.Copy(all, badAPIs)
	maps.Copy(all, badStores)
	for name, tt := range all {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem", "p", "t")
			writeSecrets(t, dir)
			text := show2
			for _, e := range tt.edits {
				text = e.apply(t, text)
			}
			if got := told(t, dir, text); !slices.Equal(got, tt.want) {
				t.Errorf("told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

type badConfig struct {
	edits []edit
	want  []string
}

// badDoors is about the file as a whole, listeners and clients.
var badDoors = map[string]badConfig{
	"a file that is not TOML": {
		[]edit{{`kind    = "auth"`, `kind    = auth"`}},
		[]string{
			`13: not valid TOML: expected value but found "auth" instead`,
		},
	},
	"a key that is written twice": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nkind = \"auth\""}},
		[]string{
			"14: not valid TOML: Key 'stream.auth.kind' has already been defined.",
		},
	},
	"a section that does not exist": {
		[]edit{{"[egress.bulk]", "[egres.bulk]"}},
		[]string{
			`22: stream.marketing.egress: there is no egress "bulk"`,
			"26: egres: unknown key",
		},
	},
	"a key that does not exist": {
		[]edit{{"clients =", "client ="}},
		[]string{
			"3: listen.smtp.clients: is missing",
			"5: listen.smtp.client: unknown key",
		},
	},
	"a key of a later release": {
		[]edit{{`streams  = ["auth"]`, "streams  = [\"auth\"]\noauth_files = [\"x\"]"}},
		[]string{
			"9: client.logto.oauth_files: unknown key",
		},
	},
	"a value where a table belongs": {
		[]edit{{"[listen.smtp]\n", "[listen]\nname = 7\n[listen.smtp]\n"}},
		[]string{
			"4: listen.name: is an integer, want a table",
		},
	},
	"a list where named tables belong": {
		[]edit{{"", "[[log]]\nlevel = \"info\"\n"}},
		[]string{
			"36: log: is a list, want a table",
		},
	},
	"a hostname that is missing": {
		[]edit{{"hostname  = \"gw.auth.example.com\"\n", ""}},
		[]string{
			"1: hostname: is missing",
		},
	},
	"a hostname that is none": {
		[]edit{{"gw.auth.example.com", "gw..example.com"}},
		[]string{
			`1: hostname: "gw..example.com" is not a host name: the domain has an empty or malformed label`,
		},
	},
	"a state_dir that is missing": {
		[]edit{{"state_dir = \"state\"\n", ""}},
		[]string{
			"1: state_dir: is missing",
		},
	},
	"a name that cannot be one": {
		[]edit{{"[egress.auth]", `[egress."a b"]`}},
		[]string{
			`16: stream.auth.egress: there is no egress "auth"`,
			`24: egress."a b": "a b" cannot be a name`,
		},
	},
	"an environment variable that is not set": {
		[]edit{{`"127.0.0.2"`, `"${GATEPOST_TEST_UNSET}"`}},
		[]string{
			`25: egress.auth.ipv4: the environment variable "GATEPOST_TEST_UNSET" is not set`,
		},
	},
	"a broken reference to the environment": {
		[]edit{{`"127.0.0.2"`, `"${OOPS"`}},
		[]string{
			"25: egress.auth.ipv4: has ${ without a variable's name and }",
		},
	},
	"a control character": {
		[]edit{{`"127.0.0.2"`, `"127.0.0.2\u0000"`}},
		[]string{
			"25: egress.auth.ipv4: has a control character or invalid UTF-8",
		},
	},
	"an empty string": {
		[]edit{{`"127.0.0.2"`, `""`}},
		[]string{
			"25: egress.auth.ipv4: is empty",
		},
	},
	"every wrong type": {
		[]edit{{`streams  = ["auth"]`, `streams  = "auth"`}, {`kind    = "auth"`, "kind    = 3"}, {`domains = ["auth.example.com"]`, "domains = [1.5, true]"}, {`dkim    = { selector = "gp1", key_file = "auth.pem" }`, "dkim    = 1979-05-27"}, {`clients = ["logto", "news"]`, "clients = {}\nmax_recipients = \"5\"\nmax_size = [1]"}, {`ipv4 = "127.0.0.2"`, "ipv4 = []\nshared = \"yes\""}, {"", "[[egress.x]]\nipv4 = \"127.0.0.9\"\n"}},
		[]string{
			"5: listen.smtp.clients: is a table, want a list of strings",
			"6: listen.smtp.max_recipients: is a string, want an integer",
			"7: listen.smtp.max_size: is a list, want a size",
			"10: client.logto.streams: is a string, want a list of strings",
			"15: stream.auth.kind: is an integer, want a string",
			"16: stream.auth.domains: is a number with a fraction, want a string",
			"16: stream.auth.domains: is true or false, want a string",
			"19: stream.auth.dkim: is a date or time, want a table or a list of tables",
			"27: egress.auth.ipv4: is a list, want a string",
			"28: egress.auth.shared: is a string, want true or false",
			"39: egress.x: is a list, want a table",
		},
	},
	"no listener at all": {
		[]edit{{"[listen.smtp]\naddress = \"127.0.0.1:2525\"\nclients = [\"logto\", \"news\"]\n", ""}},
		[]string{
			"1: listen: there is no listener: no mail could come in",
		},
	},
	"a listener without clients": {
		[]edit{{"clients = [\"logto\", \"news\"]\n", ""}},
		[]string{
			"3: listen.smtp.clients: is missing",
		},
	},
	"a listener with an empty list of clients": {
		[]edit{{"clients = [\"logto\", \"news\"]\n", "clients = []\n"}},
		[]string{
			"5: listen.smtp.clients: is empty",
		},
	},
	"a client that does not exist": {
		[]edit{{"clients = [\"logto\", \"news\"]\n", "clients = [\n  \"logto\",\n  \"nwes\",\n]\n"}},
		[]string{
			`7: listen.smtp.clients: there is no client "nwes"`,
		},
	},
	"a client that is named twice": {
		[]edit{{"clients = [\"logto\", \"news\"]\n", "clients = [\"logto\", \"logto\"]\n"}},
		[]string{
			`5: listen.smtp.clients: "logto" stands here twice`,
		},
	},
	"a listener without a protocol": {
		[]edit{{"[listen.smtp]", "[listen.bulk]"}},
		[]string{
			`3: listen.bulk.protocol: is missing, and the listener's name "bulk" is none`,
		},
	},
	"a protocol that is not there yet": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nprotocol = \"lmtp\"\n"}},
		[]string{
			`4: listen.smtp.protocol: "lmtp" is not "smtp" or "http"`,
		},
	},
	"a listener's address without a port": {
		[]edit{{"127.0.0.1:2525", "127.0.0.1"}},
		[]string{
			`4: listen.smtp.address: "127.0.0.1" is not host:port`,
		},
	},
	"a listener's address with a bad port": {
		[]edit{{"127.0.0.1:2525", "127.0.0.1:smtp"}},
		[]string{
			`4: listen.smtp.address: "127.0.0.1:smtp" has no port from 0 to 65535`,
		},
	},
	"a listener's address with a name": {
		[]edit{{"127.0.0.1:2525", "gw.example.com:25"}},
		[]string{
			`4: listen.smtp.address: "gw.example.com" is not an IP address`,
		},
	},
	"two listeners on one address": {
		[]edit{{"", "[listen.b]\nprotocol = \"smtp\"\naddress = \":2525\"\nclients = [\"news\"]\n"}},
		[]string{
			`38: listen.b.address: :2525 is taken by listener "smtp" (127.0.0.1:2525)`,
		},
	},
	"sizes that are none": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nmax_size = \"25 bananas\"\n"}, {"", "[limits]\nbytes_in_flight = 25\n"}},
		[]string{
			`4: listen.smtp.max_size: "25 bananas" is not a size`,
			"38: limits.bytes_in_flight: 25 octets is too small for mail",
		},
	},
	"a mail larger than memory allows": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nmax_size = \"1GB\"\n"}},
		[]string{
			"4: listen.smtp.max_size: 1GB is more than three eighths of limits.bytes_in_flight (128MB): such a mail could never be taken",
		},
	},
	"counts out of range": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nmax_recipients = 0\nmax_connections = -1\nmax_per_source = 99999999\nreceived_from = \"no\"\n"}},
		[]string{
			"4: listen.smtp.max_recipients: 0 is not from 1 to 100000",
			"5: listen.smtp.max_connections: -1 is not from 1 to 1000000",
			"6: listen.smtp.max_per_source: 99999999 is not from 1 to 1000000",
			`7: listen.smtp.received_from: "no" is not "public", "always" or "never"`,
		},
	},
	"a client without networks": {
		[]edit{{"networks = [\"127.0.0.0/24\"]\n", ""}},
		[]string{
			"6: client.logto.networks: is missing",
		},
	},
	"an open relay": {
		[]edit{{`["127.0.0.0/24"]`, `["0.0.0.0/0"]`}},
		[]string{
			`7: client.logto.networks: "0.0.0.0/0" would make this an open relay`,
		},
	},
	"an open relay in halves": {
		[]edit{{`["127.0.0.0/24"]`, `["0.0.0.0/1", "128.0.0.0/1", "::/0", "2000::/3", "::ffff:0:0/96"]`}},
		[]string{
			`7: client.logto.networks: "0.0.0.0/1" would make this an open relay`,
			`7: client.logto.networks: "128.0.0.0/1" would make this an open relay`,
			`7: client.logto.networks: "::/0" would make this an open relay`,
			`7: client.logto.networks: "2000::/3" would make this an open relay`,
			`7: client.logto.networks: "::ffff:0:0/96" would make this an open relay`,
		},
	},
	"networks that are none": {
		[]edit{{`["127.0.0.0/24"]`, `["localhost", "10.0.0.1/8", "fe80::1%eth0", "300.1.1.1"]`}},
		[]string{
			`7: client.logto.networks: "localhost" is not a network or an address`,
			`7: client.logto.networks: "10.0.0.1/8" has bits set beyond its length`,
			`7: client.logto.networks: "fe80::1%eth0" is not a network or an address`,
			`7: client.logto.networks: "300.1.1.1" is not a network or an address`,
		},
	},
	"an address that is two clients": {
		[]edit{{`["127.0.1.0/24"]`, `["10.0.0.0/8", "127.0.0.7"]`}},
		[]string{
			`10: client.news.networks: 127.0.0.7/32 overlaps 127.0.0.0/24 of client "logto" on listener "smtp": which client would it be?`,
		},
	},
	"a stream that does not exist": {
		[]edit{{`streams  = ["auth"]`, `streams  = ["auht"]`}},
		[]string{
			`8: client.logto.streams: there is no stream "auht"`,
		},
	},
}
