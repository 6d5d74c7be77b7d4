package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	logtoNetworks = "networks = [\"127.0.0.0/24\"]\n"
	newsNetworks  = "networks = [\"127.0.1.0/24\"]\n"
	credentials   = "username = \"u\"\npassword_file = \"p\"\n"
)

// bothLogIn makes both clients of the small config log in.
func bothLogIn(more ...edit) []edit {
	return append([]edit{{logtoNetworks, "username = \"a\"\npassword_file = \"p\"\n"}, {newsNetworks, credentials}}, more...)
}

// badLogins is about how clients are known, and the sockets that they connect to.
var badLogins = map[string]badConfig{
	"a username without a password": {
		[]edit{{logtoNetworks, "username = \"u\"\n"}, {"[listen.smtp]\n", "[listen.smtp]\nmixed = true\n"}},
		[]string{"8: client.logto.username: has no password_file"},
	},
	"a password without a username": {
		[]edit{{logtoNetworks, logtoNetworks + "password_file = \"p\"\n"}},
		[]string{"8: client.logto.password_file: has no username"},
	},
	"passwords that would cross a network in clear text": {
		bothLogIn(edit{"127.0.0.1:2525", ":2525"}),
		[]string{`3: listen.smtp.tls: client "logto" could never log in: without TLS no password is taken from a network`},
	},
	"clients of both sorts on one listener": {
		[]edit{{newsNetworks, credentials}},
		[]string{`5: listen.smtp.clients: client "news" logs in and client "logto" is known without`},
	},
	"one login for two clients": {
		[]edit{{logtoNetworks, credentials}, {newsNetworks, credentials}},
		[]string{`11: client.news.username: "u" is the login of client "logto" on listener "smtp" too`},
	},
	"any login beside one that counts": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nauth = \"any\"\nmixed = true\n"}, {newsNetworks, credentials}},
		[]string{`4: listen.smtp.auth: "any" takes every password, but client "news" has one of its own`},
	},
	"a word for auth that is not known": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nauth = \"none\"\n"}},
		[]string{`4: listen.smtp.auth: "none" is not "any"`},
	},
	"certificates of clients that nobody asks for": {
		[]edit{{logtoNetworks, "tls_names = [\"logto.internal\"]\n"}},
		[]string{`5: listen.smtp.clients: client "logto" has tls_names, but the listener has no tls_client_ca_file`},
	},
	"names in certificates that are none": {
		[]edit{{logtoNetworks, logtoNetworks + "tls_names = [\"*.internal\", \"\"]\n"}},
		[]string{
			`5: listen.smtp.clients: client "logto" has tls_names, but the listener has no tls_client_ca_file`,
			"8: client.logto.tls_names: is empty",
			`8: client.logto.tls_names: "*.internal" cannot be used: the domain has a character that is not allowed`,
		},
	},
	"a client of a unix socket on a port": {
		[]edit{{logtoNetworks, "unix_users = [\"0\"]\n"}},
		[]string{`5: listen.smtp.clients: client "logto" is known by its user id, which only a unix socket tells`},
	},
	"users that are none": {
		[]edit{{logtoNetworks, logtoNetworks + "unix_users = [\"nobody-has-this-name\", \"-1\", \"4294967295\", \"99999999999\", \"007\", \"7\"]\n"}},
		[]string{
			`8: client.logto.unix_users: there is no user "nobody-has-this-name" on this host`,
			`8: client.logto.unix_users: there is no user "-1" on this host`,
			`8: client.logto.unix_users: "4294967295" is not a user id`,
			`8: client.logto.unix_users: "99999999999" is not a user id`,
			`8: client.logto.unix_users: "7" stands here twice`,
		},
	},
	"clients that a unix socket cannot tell": {
		[]edit{{"127.0.0.1:2525", "unix:smtp.sock"}, {newsNetworks, newsNetworks + credentials}, {"[listen.smtp]\n", "[listen.smtp]\nmixed = true\n"}},
		[]string{
			`6: listen.smtp.clients: client "logto" cannot be told on a unix socket, whose peers have neither an address nor a certificate`,
			`6: listen.smtp.clients: client "news" cannot log in on a unix socket: its peers have no address, and the client has networks`,
		},
	},
	"one user for two clients": {
		[]edit{{"127.0.0.1:2525", "unix:smtp.sock"}, {logtoNetworks, "unix_users = [\"0\"]\n"}, {newsNetworks, "unix_users = [\"1000\", \"root\"]\n"}},
		[]string{`10: client.news.unix_users: user id 0 is client "logto" on listener "smtp" too`},
	},
	"sockets without a name": {
		[]edit{{"127.0.0.1:2525", "unix:"}, {"", "[listen.a]\nprotocol = \"smtp\"\naddress = \"systemd:\"\nclients = [\"logto\"]\n[listen.b]\nprotocol = \"smtp\"\naddress = \"systemd:a b\"\nclients = [\"logto\"]\n"}},
		[]string{
			`4: listen.smtp.address: "unix:" names no file for a unix socket`,
			`38: listen.a.address: "systemd:" names no socket of systemd`,
			`42: listen.b.address: "systemd:a b" names no socket of systemd`,
		},
	},
	"a socket with too long a path": {
		[]edit{{"127.0.0.1:2525", "unix:/" + strings.Repeat("x", 107)}},
		[]string{"4: listen.smtp.address: the path of a unix socket has 107 octets at most, /" + strings.Repeat("x", 107) + " has 108"},
	},
	"two listeners on one unix socket": {
		[]edit{{"127.0.0.1:2525", "unix:a/../s"}, {"clients = [\"logto\", \"news\"]", "clients = [\"logto\"]"}, {logtoNetworks, "unix_users = [\"0\"]\n"},
			{"", "[listen.b]\nprotocol = \"smtp\"\naddress = \"unix:s\"\nclients = [\"logto\"]\n"}},
		[]string{`38: listen.b.address: unix:DIR/s is taken by listener "smtp" (unix:DIR/s)`},
	},
	"permissions of a port": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nsocket_mode = \"0660\"\n"}},
		[]string{"4: listen.smtp.socket_mode: has no meaning where the address is not unix:PATH"},
	},
	"permissions that are none": {
		[]edit{{"127.0.0.1:2525\"\n", "unix:s\"\nsocket_mode = \"0999\"\n"}, {logtoNetworks, "unix_users = [\"0\"]\n"}, {newsNetworks, "unix_users = [\"1\"]\n"}},
		[]string{`5: listen.smtp.socket_mode: "0999" is not an octal mode that lets the owner connect`},
	},
	"permissions for nobody": {
		[]edit{{"127.0.0.1:2525\"\n", "unix:s\"\nsocket_mode = \"0060\"\n"}, {logtoNetworks, "unix_users = [\"0\"]\n"}, {newsNetworks, "unix_users = [\"1\"]\n"}},
		[]string{`5: listen.smtp.socket_mode: "0060" is not an octal mode that lets the owner connect`},
	},
	"balancers that are everybody": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\nproxy_from = [\"0.0.0.0/0\", \"::/3\", \"10.0.0.1/8\", \"balancer\"]\n"}},
		[]string{
			`4: listen.smtp.proxy_from: strangers in "0.0.0.0/0" could claim to be any client`,
			`4: listen.smtp.proxy_from: strangers in "::/3" could claim to be any client`,
			`4: listen.smtp.proxy_from: "10.0.0.1/8" has bits set beyond its length`,
			`4: listen.smtp.proxy_from: "balancer" is not a network or an address`,
		},
	},
	"balancers on a unix socket": {
		[]edit{{"127.0.0.1:2525\"\n", "unix:s\"\nproxy_from = [\"10.0.0.1\"]\n"}, {logtoNetworks, "unix_users = [\"0\"]\n"}, {newsNetworks, "unix_users = [\"1\"]\n"}},
		[]string{"5: listen.smtp.proxy_from: has no place on a unix socket, whose peers have no address"},
	},
	"sizes of a client that memory does not allow": {
		[]edit{{logtoNetworks, logtoNetworks + "max_size = \"97MB\"\nmax_connections = 0\n"}},
		[]string{
			"8: client.logto.max_size: 97MB is more than three eighths of limits.bytes_in_flight (128MB): such a mail could never be taken",
			"9: client.logto.max_connections: 0 is not from 1 to 1000000",
		},
	},
	"memory that mail alone fills": {
		[]edit{{"", "[limits]\nmemory = \"255MB\"\nqueue_age = \"x\"\n"}},
		[]string{
			"37: limits.memory: 255MB is less than twice bytes_in_flight (128MB): mail in flight alone could close the doors",
			`38: limits.queue_age: "x" is not a duration`,
		},
	},
}

// A client that needs no more than its address has to be bounded, whatever the listener is like. One that logs in or shows
// a certificate may come from anywhere.
func TestOnlyAnAddressAloneCanMakeAnOpenRelay(t *testing.T) {
	const ca = "tls_client_ca_file = \"gw.pem\"\n"
	listeners := map[string]string{
		"loopback": "address = \"127.0.0.1:2525\"\n" + pair + ca, "everywhere": "address = \":2525\"\n" + pair + ca,
		"any login": "address = \":2525\"\nauth = \"any\"\n" + pair + ca, "mixed": "address = \":2525\"\nmixed = true\n" + pair + ca,
		"systemd": "address = \"systemd:gatepost.socket\"\n" + pair + ca, "balanced": "address = \":2525\"\nproxy_from = [\"10.0.0.1\"]\n" + pair + ca,
	}
	networks := map[string]bool{ // and whether it is open
		"": false, `"10.0.0.0/8"`: false, `"198.51.100.0/24"`: false, `"127.0.0.1", "0.0.0.0/0"`: true, `"0.0.0.0/1", "128.0.0.0/1"`: true,
		`"::/0"`: true, `"::ffff:0:0/96"`: true, `"2000::/3"`: true, `"198.0.0.0/7"`: true,
	}
	proofs := map[string]struct {
		lines    string
		byItself bool // the address need not decide
		login    bool
	}{
		"nothing":     {"", false, false},
		"a user id":   {"unix_users = [\"1000\"]\n", false, false},
		"a login":     {credentials, true, true},
		"certificate": {"tls_names = [\"logto.internal\"]\n", true, false},
		"all":         {credentials + "tls_names = [\"logto.internal\"]\nunix_users = [\"1000\"]\n", true, true},
	}
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "p")
	writeCertificate(t, dir, "gw", certificateFor("gw.auth.example.com"))
	for listener, door := range listeners {
		for network, open := range networks {
			for proof, by := range proofs {
				t.Run(strings.Join([]string{listener, network, proof}, "/"), func(t *testing.T) {
					client := by.lines
					if network != "" {
						client += "networks = [" + network + "]\n"
					}
					text := strings.Replace(show2, "address = \"127.0.0.1:2525\"\nclients = [\"logto\", \"news\"]\n", door+"clients = [\"logto\"]\n", 1)
					text = strings.Replace(text, logtoNetworks, client, 1)
					bad := open && !by.byItself || network == "" && !by.byItself && listener != "systemd" || network == "" && proof == "nothing" || by.login && listener == "any login"
					if got := told(t, dir, text); (len(got) > 0) != bad {
						t.Errorf("told %q, want a problem: %v", got, bad)
					}
				})
			}
		}
	}
}

func TestAClientMayBeKnownInManyWays(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "p")
	writeCertificate(t, dir, "gw", certificateFor("gw.auth.example.com"))
	for name, tt := range map[string]struct{ listen, client string }{
		"by login from anywhere":            {"address = \":465\"\n" + pair, credentials},
		"by login on loopback without TLS":  {"address = \"localhost:587\"\n", credentials},
		"by login from the whole world":     {"address = \":587\"\n" + pair, credentials + "networks = [\"0.0.0.0/0\", \"::/0\"]\n"},
		"by certificate":                    {"address = \":587\"\n" + pair + "tls_client_ca_file = \"gw.pem\"\n", "tls_names = [\"Logto.Internal\"]\n"},
		"by user id":                        {"address = \"unix:/run/gatepost/smtp.sock\"\nsocket_mode = \"0666\"\n", "unix_users = [\"root\", \"1000\"]\n"},
		"by login on a unix socket":         {"address = \"unix:smtp.sock\"\n", credentials},
		"on a socket of systemd":            {"address = \"systemd:gatepost.socket\"\n", "unix_users = [\"0\"]\n"},
		"with any login":                    {"address = \":2525\"\nauth = \"any\"\n", "networks = [\"10.0.0.0/8\"]\nmax_size = \"1MB\"\nmax_connections = 5\n"},
		"behind a balancer":                 {"address = \":2525\"\nproxy_from = [\"10.0.0.5\", \"fd00::/64\"]\n", "networks = [\"10.0.0.0/8\"]\n"},
		"behind a balancer on this machine": {"address = \"127.0.0.1:2525\"\nproxy_from = [\"127.0.0.1\"]\n", "networks = [\"10.0.0.0/8\"]\n"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(show2, "address = \"127.0.0.1:2525\"\nclients = [\"logto\", \"news\"]\n", tt.listen+"clients = [\"logto\"]\n", 1)
			text = strings.Replace(text, logtoNetworks, tt.client, 1)
			c := parse(t, dir, text)
			for _, w := range c.Warnings {
				if w.Key != "client.news" {
					t.Errorf("warned: %v", w)
				}
			}
			again := parse(t, dir, c.Effective())
			if a, b := c.Effective(), again.Effective(); a != b {
				t.Errorf("its effective form becomes\n%s\nfrom\n%s", b, a)
			}
		})
	}
}

func TestAPasswordFileHoldsOneOrTwoPasswords(t *testing.T) {
	const hash = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Ng"
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	text := strings.NewReplacer(logtoNetworks, credentials, "[listen.smtp]\n", "[listen.smtp]\nmixed = true\n").Replace(show2)
	for name, tt := range map[string]struct{ contents, problem string }{
		"one":                               {"open sesame\n", ""},
		"one without a line end":            {"open sesame", ""},
		"two":                               {"open sesame\r\ncorrect horse\r\n", ""},
		"a hash":                            {hash + "\n", ""},
		"a hash and a password":             {hash + "\n\nopen sesame\n", ""},
		"three":                             {"open sesame\nopen sesame\nopen sesame\n", "it has 3 passwords"},
		"a control character":               {"open\x07sesame\n", "line 1: the password is longer than 1024 octets, or has a control character"},
		"invalid UTF-8":                     {"open sesame\nopen\xffsesame\n", "line 2: the password"},
		"a very long one":                   {strings.Repeat("x", 1025), "longer than 1024 octets"},
		"a hash of another kind":            {strings.Replace(hash, "2id", "2i", 1), "line 1: the hash cannot be used: not of the form"},
		"a hash of another version":         {strings.Replace(hash, "v=19", "v=16", 1), "not of the form"},
		"a hash that takes all memory":      {strings.Replace(hash, "m=19456", "m=65537", 1), "m is not from 8192 to 65536"},
		"a hash that is worth little":       {strings.Replace(hash, "m=19456", "m=1024", 1), "m is not from 8192 to 65536"},
		"a hash that takes all day":         {strings.Replace(hash, "t=2", "t=11", 1), "t is not from 1 to 10"},
		"a hash with many lanes and passes": {strings.Replace(hash, "t=2,p=1", "t=0,p=5", 1), "t is not from 1 to 10; p is not from 1 to 4"},
		"a hash with settings in disorder":  {strings.Replace(hash, "m=19456,t=2", "t=2,m=19456", 1), "m is not from"},
		"a hash with settings left out":     {strings.Replace(hash, ",p=1", "", 1), "its settings are not"},
		"a hash without salt":               {strings.Replace(hash, "c29tZXNhbHQ", "", 1), "the salt is not base64 of 8 to 64 octets"},
		"a hash cut short":                  {hash[:len(hash)-8], "the hash is not base64 of 16 to 64 octets"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "p"), []byte(tt.contents), 0o600); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(told(t, dir, text), "\n")
			if (got == "") != (tt.problem == "") || !strings.Contains(got, tt.problem) {
				t.Errorf("told %q, want %q", got, tt.problem)
			}
			for line := range strings.FieldsSeq(tt.contents) {
				if len(line) > 3 && strings.Contains(got, line) {
					t.Errorf("%q tells what is in the file", got)
				}
			}
		})
	}
	if err := os.WriteFile(filepath.Join(dir, "p"), []byte("sesame!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := parse(t, dir, text); len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Text, "less than 8 characters") {
		t.Errorf("a short password is warned of as %v", c.Warnings)
	}
}
