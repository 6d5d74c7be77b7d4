package policy

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// doorConfig has a client of each sort, alone and together with the others.
func doorConfig(t testing.TB) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("open sesame\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	c := testConfig()
	c.Client = map[string]*config.Client{
		"address":     {Networks: inside},
		"login":       {Username: "u", Password: config.Secret{File: file}},
		"login-from":  {Username: "f", Password: config.Secret{File: file}, Networks: inside},
		"certificate": {TLSNames: []string{"app.internal"}},
		"cert-from":   {TLSNames: []string{"from.internal"}, Networks: inside},
		"user":        {UnixUsers: []int{1000}},
		"user-addr":   {UnixUsers: []int{1001}, Networks: inside},
		"everything":  {UnixUsers: []int{1002}, Networks: inside, TLSNames: []string{"all.internal"}, Username: "a", Password: config.Secret{File: file}},
	}
	c.Listen = map[string]*config.Listen{"any": {Name: "any", Auth: "any", Clients: []string{"address"}}}
	for name, client := range c.Client {
		client.Name, client.Streams = name, []string{"auth"}
		c.Listen[name] = &config.Listen{Name: name, Clients: []string{name}}
	}
	c.Listen["any+cert"] = &config.Listen{Name: "any+cert", Auth: "any", Clients: []string{"certificate"}}
	c.Listen["address+login"] = &config.Listen{Name: "address+login", Mixed: true, Clients: []string{"address", "login"}}
	return c
}

// Every listener, with every peer, with every login: who is let in is in the table, and everybody else is refused.
func TestOpenRelayMatrix(t *testing.T) {
	p, err := New(doorConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	stranger, friend := netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("10.1.2.3")
	peers := map[string]message.Peer{
		"stranger":              {Addr: stranger, UID: -1},
		"stranger as root":      {Addr: stranger},
		"stranger with uid":     {Addr: stranger, UID: 1000},
		"stranger, cert":        {Addr: stranger, UID: -1, Names: []string{"App.Internal"}},
		"stranger, inside cert": {Addr: stranger, UID: -1, Names: []string{"from.internal"}},
		"stranger, full cert":   {Addr: stranger, UID: -1, Names: []string{"all.internal"}},
		"stranger, other cert":  {Addr: stranger, UID: -1, Names: []string{"app.internal.evil.example", "*.internal", "*", ""}},
		"friend":                {Addr: friend, UID: -1},
		"friend, inside cert":   {Addr: friend, UID: -1, Names: []string{"from.internal"}},
		"friend, full cert":     {Addr: friend, UID: -1, Names: []string{"x", "all.internal"}},
		"friend in IPv6 form":   {Addr: netip.AddrFrom16(friend.As16()), UID: -1},
		"unix, user 1000":       {UID: 1000},
		"unix, user 1001":       {UID: 1001},
		"unix, user 1002":       {UID: 1002},
		"unix, root":            {UID: 0},
		"unix, user unknown":    {UID: -1},
	}
	logins := map[string][]string{
		"no login": nil, "login": {"u", "open sesame"}, "inside login": {"f", "open sesame"}, "full login": {"a", "open sesame"},
		"wrong password": {"u", "open sesam"}, "wrong user": {"x", "open sesame"}, "empty": {"", ""},
	}
	for listener, in := range map[string]string{ // "peer" for who is let in with any login or none, "peer+login" for who is by that
		"address":       "friend; friend, inside cert; friend, full cert; friend in IPv6 form",
		"any":           "friend; friend, inside cert; friend, full cert; friend in IPv6 form; friend+*; friend, inside cert+*; friend, full cert+*; friend in IPv6 form+*",
		"any+cert":      "stranger, cert; stranger, cert+*",
		"login":         "*+login",
		"login-from":    "friend+inside login; friend, inside cert+inside login; friend, full cert+inside login; friend in IPv6 form+inside login",
		"certificate":   "stranger, cert",
		"cert-from":     "friend, inside cert",
		"user":          "unix, user 1000",
		"user-addr":     "unix, user 1001; friend; friend, inside cert; friend, full cert; friend in IPv6 form",
		"everything":    "unix, user 1002; friend, full cert; friend+full login; friend, inside cert+full login; friend, full cert+full login; friend in IPv6 form+full login",
		"address+login": "friend; friend, inside cert; friend, full cert; friend in IPv6 form; *+login",
	} {
		allowed := map[string]bool{}
		for entry := range strings.SplitSeq(in, "; ") {
			allowed[entry] = true
		}
		for peerName, peer := range peers {
			for loginName, login := range logins {
				way, name := peerName, fmt.Sprintf("%s/%s/%s", listener, peerName, loginName)
				if loginName != "no login" {
					way = peerName + "+" + loginName
				}
				want := allowed[way] || loginName != "no login" && (allowed[peerName+"+*"] || allowed["*+"+loginName])
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { checkDoor(t, p, listener, peer, login, want) })
				})
				p.logins.tries = newTries()
			}
		}
	}
}

// checkDoor looks at whether peer becomes a client of listener by itself or, where there is one, by a login.
func checkDoor(t *testing.T, p *Policy, listener string, peer message.Peer, login []string, want bool) {
	t.Helper()
	client, err := p.Identify(listener, peer)
	if login != nil {
		client, err = p.Login(t.Context(), listener, peer, login[0], login[1])
	}
	if (client != "") != want {
		t.Errorf("the client is %q, %v, want one: %v", client, err, want)
	}
	if err == nil {
		return
	}
	if e := reply.Of(err); client != "" || e.Code != 550 && e.Code != 535 {
		t.Errorf("client %q with the answer %v, want 550 or 535", client, e)
	}
}

func TestWhoMayBecomeAClientIsNotTurnedAwayAtTheDoor(t *testing.T) {
	p, err := New(doorConfig(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		listener string
		peer     message.Peer
		stay     bool
	}{
		"before a login":                               {"login", peerAt("198.51.100.1"), true},
		"before a login that only insiders have":       {"login-from", peerAt("10.0.0.1"), true},
		"a stranger before it":                         {"login-from", peerAt("198.51.100.1"), false},
		"before a certificate":                         {"certificate", peerAt("198.51.100.1"), true},
		"after the wrong certificate":                  {"certificate", message.Peer{Addr: netip.MustParseAddr("198.51.100.1"), UID: -1, Names: []string{"x.internal"}}, false},
		"before a certificate that only insiders have": {"cert-from", peerAt("198.51.100.1"), false},
		"a unix socket has no certificates":            {"certificate", message.Peer{UID: 5}, false},
		"a unix socket has no networks":                {"login-from", message.Peer{UID: 5}, false},
		"a unix socket with a login":                   {"login", message.Peer{UID: 5}, true},
		"a stranger to addresses":                      {"address", peerAt("198.51.100.1"), false},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := p.Identify(tt.listener, tt.peer)
			if client != "" || (err == nil) != tt.stay {
				t.Errorf("Identify = %q, %v, want to stay: %v", client, err, tt.stay)
			}
			if !tt.stay {
				checkRefusal(t, err, "550 5.7.1")
			}
		})
	}
}

func TestACertificateOfTwoClientsIsNone(t *testing.T) {
	c := doorConfig(t)
	c.Listen["both"] = &config.Listen{Name: "both", Clients: []string{"certificate", "cert-from"}}
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	peer := message.Peer{Addr: netip.MustParseAddr("10.0.0.1"), UID: -1, Names: []string{"app.internal", "from.internal"}}
	_, err = p.Identify("both", peer)
	checkRefusal(t, err, "550 5.7.1 Your certificate has the names of two clients")
	peer.Addr = netip.MustParseAddr("198.51.100.1")
	if client, err := p.Identify("both", peer); client != "certificate" || err != nil {
		t.Errorf("where only one of them may come from there, it is %q, %v", client, err)
	}
}

func TestOneUsernameIsOneClient(t *testing.T) {
	c := doorConfig(t)
	c.Client["login-from"].Username = "u"
	c.Listen["both"] = &config.Listen{Name: "both", Clients: []string{"login", "login-from"}}
	if _, err := New(c); err == nil || !strings.Contains(err.Error(), "have one username") {
		t.Errorf("New: %v", err)
	}
}
