package policy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/argon2"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// peerAt is who connects from an address.
func peerAt(address string) message.Peer {
	return message.Peer{Addr: netip.MustParseAddr(address), UID: -1}
}

// hashed returns a hash that costs as little as a file may ask for.
func hashed(t testing.TB, password string) string {
	t.Helper()
	h := config.Argon2id{Memory: 8 << 10, Time: 1, Threads: 1, Salt: []byte(rand.Text())}
	h.Key = argon2.IDKey([]byte(password), h.Salt, h.Time, h.Memory, h.Threads, 32)
	return h.String()
}

// loginConfig has clients that log in: one with a plain password, one with a hashed one that may come from one network
// only. The files are in dir.
func loginConfig(t testing.TB, dir string) *config.Config {
	t.Helper()
	c := testConfig()
	for name, contents := range map[string]string{"plain": "open sesame\n", "hashed": hashed(t, "correct horse") + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(contents), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.Client["app"] = &config.Client{Name: "app", Username: "app", Password: config.Secret{File: filepath.Join(dir, "plain")}, Streams: []string{"auth"}}
	c.Client["shop"] = &config.Client{Name: "shop", Username: "shop", Password: config.Secret{File: filepath.Join(dir, "hashed")},
		Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Streams: []string{"marketing"}}
	c.Listen["login"] = &config.Listen{Name: "login", Clients: []string{"app", "shop"}}
	c.Listen["zitadel"] = &config.Listen{Name: "zitadel", Clients: []string{"logto"}, Auth: "any"}
	return c
}

func newLoginPolicy(t testing.TB) (*Policy, string) {
	t.Helper()
	dir := t.TempDir()
	p, err := New(loginConfig(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	return p, dir
}

func TestLoginAndNetworkMustBothMatch(t *testing.T) {
	p, _ := newLoginPolicy(t)
	for name, tt := range map[string]struct{ listener, from, user, password, client string }{
		"a plain password from anywhere":        {"login", "198.51.100.1", "app", "open sesame", "app"},
		"a hashed password from its network":    {"login", "192.0.2.7", "shop", "correct horse", "shop"},
		"an IPv4 address in IPv6 form":          {"login", "::ffff:192.0.2.7", "shop", "correct horse", "shop"},
		"a hashed password from elsewhere":      {"login", "198.51.100.1", "shop", "correct horse", ""},
		"another's password":                    {"login", "192.0.2.7", "shop", "open sesame", ""},
		"a password and more":                   {"login", "192.0.2.7", "app", "open sesame ", ""},
		"a password in other case":              {"login", "192.0.2.7", "app", "Open sesame", ""},
		"no password":                           {"login", "192.0.2.7", "app", "", ""},
		"a user in other case":                  {"login", "192.0.2.7", "App", "open sesame", ""},
		"the name of a client without a login":  {"login", "127.0.0.1", "logto", "", ""},
		"the file's contents for a password":    {"login", "192.0.2.7", "shop", "$argon2id$", ""},
		"a password that is far too long":       {"login", "192.0.2.7", "app", strings.Repeat("x", 5000), ""},
		"a login where the client is not named": {"smtp", "127.0.0.1", "app", "open sesame", ""},
		"any login where the address decides":   {"zitadel", "127.0.0.1", "whoever", "whatever", "logto"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, err := p.Login(t.Context(), tt.listener, peerAt(tt.from), tt.user, tt.password)
				if client != tt.client {
					t.Errorf("Login = %q, %v, want %q", client, err, tt.client)
				}
				want := ""
				if tt.client == "" {
					want = "535 5.7.8 Authentication failed"
				}
				checkRefusal(t, err, want)
			})
		})
	}
	_, err := p.Login(t.Context(), "zitadel", peerAt("198.51.100.1"), "whoever", "whatever")
	checkRefusal(t, err, "550 5.7.1")
}

// refusals tries logins one after another from one address and returns how long each took, by the clock of the bubble.
func refusals(t *testing.T, p *Policy, user, password string, n int) (took []time.Duration, text string) {
	t.Helper()
	for range n {
		begun := time.Now()
		_, err := p.Login(t.Context(), "login", peerAt("192.0.2.7"), user, password)
		if err == nil {
			t.Fatalf("%s may log in with %q", user, password)
		}
		took, text = append(took, time.Since(begun)), err.Error()
	}
	return took, text
}

func TestUnknownUsersGetTheSameAnswerInTheSameTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newLoginPolicy(t)
		times, text := refusals(t, p, "shop", "wrong", 6)
		for _, user := range []string{"app", "nobody", ""} {
			gotTimes, gotText := refusals(t, p, user, "wrong", 6)
			if gotText != text || fmt.Sprint(gotTimes) != fmt.Sprint(times) {
				t.Errorf("%q gets %q after %v, a user with a hash %q after %v", user, gotText, gotTimes, text, times)
			}
			time.Sleep(time.Minute) // so that the limit of the source is out of the way
		}
	})
}

func TestAWrongLoginOfAnyUserCostsAHashWhereOneDoes(t *testing.T) {
	p, _ := newLoginPolicy(t)
	for range hashesAtOnce { // all turns are taken: whoever needs a hash has to wait
		if err := p.logins.hashing.enter(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer stop()
	for _, user := range []string{"app", "shop", "nobody"} {
		if _, err := p.Login(ctx, "login", peerAt("192.0.2.7"), user, "wrong"); err == nil || reply.Of(err).Code != 454 {
			t.Errorf("a wrong login of %q is answered %v without a hash", user, err)
		}
	}
}

func TestFailuresSlowDownASourceAndUserAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newLoginPolicy(t)
		took, _ := refusals(t, p, "app", "wrong", 8)
		for i, d := range took {
			if want := min(longestDelay, firstDelay<<i); d != want {
				t.Errorf("refusal %d took %v, want %v", i, d, want)
			}
		}
		begun := time.Now()
		if _, err := p.Login(t.Context(), "login", peerAt("192.0.2.7"), "app", "open sesame"); err != nil || time.Since(begun) > 0 {
			t.Errorf("the right password is answered %v after %v", err, time.Since(begun))
		}
		if took, _ := refusals(t, p, "app", "wrong", 1); took[0] != firstDelay {
			t.Errorf("after a right password a wrong one takes %v", took[0])
		}
		refusals(t, p, "shop", "wrong", 4)
		time.Sleep(forgetAfter + time.Second)
		if took, _ := refusals(t, p, "shop", "wrong", 1); took[0] != firstDelay {
			t.Errorf("long after the last failure a wrong password takes %v", took[0])
		}
	})
}

func TestTwentyTriesAMinuteAndSourceThenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := newLoginPolicy(t)
		if _, err := p.Login(t.Context(), "login", peerAt("192.0.2.8"), "shop", "correct horse"); err != nil {
			t.Fatal(err)
		}
		codes := map[int]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				_, err := p.Login(t.Context(), "login", peerAt("192.0.2.8"), fmt.Sprintf("user%d", i), "wrong")
				mu.Lock()
				defer mu.Unlock()
				codes[reply.Of(err).Code]++
			})
		}
		all.Wait()
		if codes[535] != triesPerMinute || codes[454] != 50-triesPerMinute {
			t.Errorf("50 wrong logins are answered %v", codes)
		}
		login := func(from, user, password string) int {
			_, err := p.Login(t.Context(), "login", peerAt(from), user, password)
			if err == nil {
				return 235
			}
			return reply.Of(err).Code
		}
		if got := login("192.0.2.8", "shop", "correct horse"); got != 235 {
			t.Errorf("a login that was right before is answered %d", got)
		}
		if got := login("192.0.2.8", "app", "open sesame"); got != 454 {
			t.Errorf("a first login from there is answered %d, want 454: it might be a guess", got)
		}
		if got := login("192.0.2.9", "app", "open sesame"); got != 235 {
			t.Errorf("a login from next door is answered %d", got)
		}
		if client, err := p.Identify("smtp", peerAt("10.0.0.1")); client != "both" || err != nil {
			t.Errorf("a client by address is %q, %v", client, err)
		}
		time.Sleep(time.Minute)
		if got := login("192.0.2.8", "app", "open sesame"); got != 235 {
			t.Errorf("a minute later it is answered %d", got)
		}
	})
}

func TestRightLoginsAreNoTries(t *testing.T) {
	p, dir := newLoginPolicy(t)
	for i := range 2 * triesPerMinute { // each with a new file, so that none is known
		if err := os.WriteFile(filepath.Join(dir, "plain"), fmt.Appendf(nil, "password %d", i), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Login(t.Context(), "login", peerAt("192.0.2.7"), "app", fmt.Sprintf("password %d", i)); err != nil {
			t.Fatalf("login %d: %v", i, err)
		}
	}
}

func TestAHostIsOneSourceHoweverManyIPv6AddressesItHas(t *testing.T) {
	for peer, want := range map[string]string{"2001:db8::1": "2001:db8::/64", "2001:db8::ffff:1": "2001:db8::/64", "2001:db8:0:1::1": "2001:db8:0:1::/64", "::ffff:192.0.2.1": "192.0.2.1"} {
		if got := sourceOf(peerAt(peer)); got != want {
			t.Errorf("%s is source %s, want %s", peer, got, want)
		}
	}
	if a, b := sourceOf(message.Peer{UID: 7}), sourceOf(message.Peer{UID: 8}); a == b {
		t.Errorf("two users of unix sockets are both %s", a)
	}
}

func TestALoginThatWasRightCostsNoHashUntilTheFileChanges(t *testing.T) {
	p, dir := newLoginPolicy(t)
	file := filepath.Join(dir, "hashed")
	ctx, stop := context.WithCancel(t.Context())
	login := func(password string) error {
		_, err := p.Login(ctx, "login", peerAt("192.0.2.7"), "shop", password)
		return err
	}
	if err := login("correct horse"); err != nil {
		t.Fatal(err)
	}
	for range hashesAtOnce { // from here on a hash is not to be had
		if err := p.logins.hashing.enter(t.Context(), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := login("correct horse"); err != nil {
		t.Errorf("the second login: %v", err)
	}
	next, err := p.Renew(loginConfig(t, t.TempDir())) // other salts, so other files
	if err != nil {
		t.Fatal(err)
	}
	if next.logins != p.logins {
		t.Error("a reload forgets who logged in")
	}
	if err := os.WriteFile(file, []byte(hashed(t, "correct horse")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := login("correct horse"); err == nil || !errors.Is(err, context.Canceled) {
		t.Errorf("with another file it is %v, want a wait for a hash", err)
	}
	if e := reply.Of(login("correct horse")); e.Code != 454 || e.Enhanced != "4.7.0" {
		t.Errorf("a login that cannot be checked is answered %v", e)
	}
}

func TestTwoPasswordsAreRightWhileOneReplacesTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, dir := newLoginPolicy(t)
		write := func(lines ...string) {
			t.Helper()
			if err := os.WriteFile(filepath.Join(dir, "hashed"), []byte(strings.Join(lines, "\r\n")), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		right := func(password string) bool {
			_, err := p.Login(t.Context(), "login", peerAt("192.0.2.7"), "shop", password)
			return err == nil
		}
		write(hashed(t, "correct horse"), "battery staple", "")
		if !right("correct horse") || !right("battery staple") {
			t.Error("one of the two passwords is wrong")
		}
		write("battery staple")
		if right("correct horse") || !right("battery staple") {
			t.Error("the old password is right still, or the new one is not")
		}
	})
}

func TestAPasswordFileThatCannotBeReadIsOurTrouble(t *testing.T) {
	p, dir := newLoginPolicy(t)
	if err := os.Remove(filepath.Join(dir, "plain")); err != nil {
		t.Fatal(err)
	}
	_, err := p.Login(t.Context(), "login", peerAt("192.0.2.7"), "app", "open sesame")
	if err == nil || !reply.Of(err).Temporary() {
		t.Fatalf("answered %v, want a temporary reply", err)
	}
	if e := reply.Of(err); strings.Contains(e.Text, dir) || !strings.Contains(e.Error(), "read passwords") {
		t.Errorf("the client is told %q, the log %q", e.Text, e.Error())
	}
}

func TestHashesRunTwoAtOnceAndAuthFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHashing()
		var order []string
		var mu sync.Mutex
		enter := func(ctx context.Context, name string, first bool) {
			go func() {
				if h.enter(ctx, first) == nil {
					mu.Lock()
					order = append(order, name)
					mu.Unlock()
				}
			}()
			synctest.Wait()
		}
		gone, leave := context.WithCancel(t.Context())
		enter(t.Context(), "a", false)
		enter(t.Context(), "b", false)
		enter(t.Context(), "news", false)
		enter(gone, "left", true)
		enter(t.Context(), "logto", true)
		leave()
		synctest.Wait()
		if got := strings.Join(order, " "); got != "a b" {
			t.Fatalf("before anybody leaves %q are in", got)
		}
		h.leave()
		synctest.Wait()
		h.leave()
		synctest.Wait()
		if got := strings.Join(order, " "); got != "a b logto news" {
			t.Errorf("they came in as %q", got)
		}
		h.leave()
		h.leave()
		if h.free != hashesAtOnce {
			t.Errorf("%d turns are free at the end", h.free)
		}
	})
}

func TestTheLineBeforeTheHashesIsBounded(t *testing.T) {
	h := newHashing()
	for range hashesAtOnce + maxWaiting {
		if _, err := h.queue(false); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.queue(true); !errors.Is(err, errBusy) {
		t.Errorf("one more: %v", err)
	}
}

func TestAHashedPasswordIsWhatAFileTakes(t *testing.T) {
	one, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if two, _ := HashPassword("correct horse"); one == two {
		t.Error("two hashes of one password are alike: there is no salt")
	}
	ps, err := config.ParsePasswords(one + "\n")
	if err != nil || len(ps) != 1 || ps[0].Hash == nil || ps[0].Hash.String() != one {
		t.Fatalf("%q is read as %v, %v", one, ps, err)
	}
	for password, want := range map[string]bool{"correct horse": true, "correct horsE": false, "": false} {
		if right, err := newHashing().verify(t.Context(), ps, password, false); right != want || err != nil {
			t.Errorf("%q is right: %v, %v", password, right, err)
		}
	}
	for _, bad := range []string{"", "a\nb", "a\x00b", strings.Repeat("x", config.MaxPassword+1)} {
		if h, err := HashPassword(bad); err == nil {
			t.Errorf("%q is hashed to %s", bad, h)
		}
	}
}

func TestWhatIsRememberedOfLoginsIsBounded(t *testing.T) {
	tries, now := newTries(), time.Now()
	for i := range maxSources + 10 {
		source := fmt.Sprint(i)
		if !tries.begin(source, now) {
			t.Fatal("a source has no try left at its first")
		}
		tries.failed(source, "u", now)
	}
	if n, m := len(tries.recent.byKey), len(tries.failing.byKey); n != maxSources || m != maxSources || tries.recent.order.Len() != maxSources {
		t.Errorf("%d sources and %d failures are remembered, want %d", n, m, maxSources)
	}
	l := newLRU[int, int](2)
	l.put(1, 1)
	l.put(2, 2)
	l.get(1)
	l.put(3, 3)
	if _, ok := l.get(2); ok {
		t.Error("what was not used for longest is kept")
	}
	if v, ok := l.get(1); !ok || v != 1 {
		t.Error("what was used is forgotten")
	}
}

func TestAuthIsOfferedWhereALoginMeansSomething(t *testing.T) {
	p, _ := newLoginPolicy(t)
	for listener, want := range map[string]bool{"login": true, "zitadel": true, "smtp": false, "gone": false} {
		if got := p.Offers(listener); got != want {
			t.Errorf("AUTH is offered on %s: %v", listener, got)
		}
	}
}
