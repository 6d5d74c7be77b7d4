package test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// attempt is one combination of the matrix: somebody at an address tries to send mail from a domain through a door.
type attempt struct {
	door   string // "plain", "any", "starttls" or "implicit"
	net    string // "web", "letters", "remote" or "nowhere": whose network it comes from
	local  string // an address of it
	login  string // a key of credentials
	domain string // of both senders
	id     string
}

func (a attempt) String() string {
	return fmt.Sprintf("door %s, network of %s, login %s, sender in %s", a.door, a.net, a.login, a.domain)
}

var credentials = map[string]login{
	"none":           {},
	"web":            webLogin,
	"letters":        lettersLogin,
	"remote":         remoteLogin,
	"wrong password": {webLogin.user, remoteLogin.password},
	"unknown user":   {"root", webLogin.password},
	"empty password": {webLogin.user, ""},
}

// networks are the third octets of those that doorsText names, and of one that it does not.
var networks = map[string]int{"web": 0, "letters": 1, "remote": 2, "nowhere": 9}

// allowed is the rule, told once more and in another way: the domain that may be sent from, "" for none.
func (a attempt) allowed() string {
	byName := map[string]string{"web": authDomain, "letters": bulkDomain, "remote": authDomain}
	switch a.door {
	case "plain", "any": // known by address, whatever the login
		return map[string]string{"web": authDomain, "letters": bulkDomain}[a.net]
	default: // the login and its network
		if a.login != a.net {
			return ""
		}
		return byName[a.login]
	}
}

func TestItIsNoOpenRelayForAnyDoorNetworkLoginAndSender(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.start()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 32)
	var mu sync.Mutex
	taken, tried := make(map[string]attempt), 0
	for _, a := range matrix() {
		tried++
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			reply, err := d.try(a)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				taken[a.id] = a
			}
			switch should := a.allowed() == a.domain; {
			case should != (err == nil):
				t.Errorf("%v: got %q, %v", a, reply, err)
			case a.door == "implicit" && a.net == "nowhere": // closed before the handshake, so without a reply
			case !should && !isPermanent(err):
				t.Errorf("%v: got %v, want a refusal for good", a, err)
			}
		})
	}
	wg.Wait()
	for id, a := range taken {
		far := d.auth
		if a.domain == bulkDomain {
			far = d.bulk
		}
		eventually(t, 10*time.Second, a.String()+": its mail has arrived", func() bool { return len(far.copies()[id]) == 1 })
	}
	if n := len(d.auth.all()) + len(d.bulk.all()); n != len(taken) {
		t.Errorf("%d mails arrived and %d were taken", n, len(taken))
	}
	t.Logf("%d combinations, %d allowed", tried, len(taken))
}

// matrix returns all combinations, each with a source address of its own where that tries a login: failures slow the
// next try from an address down.
func matrix() (all []attempt) {
	host := 9
	for _, door := range []string{"plain", "any", "starttls", "implicit"} {
		for login := range credentials {
			host++
			for network, octet := range networks {
				for _, domain := range []string{authDomain, bulkDomain, "example.org", "sub." + authDomain} {
					all = append(all, attempt{door, network, fmt.Sprintf("127.0.%d.%d", octet, host), login, domain, fmt.Sprintf("a%d", len(all))})
				}
			}
		}
	}
	return all
}

// try goes on as far as it gets, also where a login was refused: what counts is whether mail passes. The error is the
// first refusal.
func (d *doors) try(a attempt) (string, error) {
	c, err := d.enter(a)
	if err != nil {
		return "", err
	}
	defer c.quit()
	var refused error
	if l := credentials[a.login]; l.user != "" {
		refused = c.login(l)
	}
	s := stream{domain: a.domain}
	reply, err := c.send(s.sender(), a.id+"@example.net", s.letter(a.id, "1"))
	if err != nil && refused != nil {
		return "", refused
	}
	return reply, err
}

func (d *doors) enter(a attempt) (*client, error) {
	switch a.door {
	case "plain":
		return dial(d.listen, a.local)
	case "any":
		return dial(d.any, a.local)
	case "starttls":
		return d.dialTLS(d.starttls, a.local)
	}
	return d.dialTLS(d.implicit, a.local)
}

func isPermanent(err error) bool {
	r, ok := errors.AsType[refusal](err)
	return ok && strings.HasPrefix(string(r), "5")
}
