package relay

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/dkim"
	"gatepost/message"
	"gatepost/upstream"
)

// verified returns when wire was signed, having checked its signature against the key in file.
func verified(t *testing.T, file, wire string) time.Time {
	t.Helper()
	s, err := dkim.NewSigner([]config.DKIM{{Selector: "gp1", KeyFile: file}})
	if err != nil {
		t.Fatal(err)
	}
	records, err := s.Records("news.example.com")
	if err != nil {
		t.Fatal(err)
	}
	codes, err := s.Records("auth.example.com")
	if err != nil {
		t.Fatal(err)
	}
	results, err := dkim.Verify(strings.NewReader(wire), dkim.Published(append(records, codes...)...))
	if err != nil || len(results) != 1 || results[0].Err != nil {
		t.Fatalf("the signature is not valid: %+v, %v\n%s", results, err, wire)
	}
	var at int64
	if _, err := fmt.Sscanf(regexp.MustCompile(`\bt=\d+`).FindString(wire), "t=%d", &at); err != nil {
		t.Fatalf("no time of signing: %v\n%s", err, wire)
	}
	return time.Unix(at, 0)
}

// crowd has the second of three newsletters held up for ten seconds by its host, so that the third waits in line. It
// returns when the third began to.
func (g *rig) crowd(header string) time.Time {
	g.t.Helper()
	taken := 0
	g.marketing.set(func(s *service) {
		s.verdict = func(e message.Envelope) []message.Verdict {
			if taken++; taken == 2 {
				time.Sleep(10 * time.Second)
			}
			return message.Verdict{Class: message.Accepted, Code: 250}.Verdicts(len(e.To))
		}
	})
	for i := range 3 {
		if _, err := g.submit("news", header, fmt.Sprintf("n%d@example.net", i)); err != nil {
			g.t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
	}
	return time.Now().Add(-time.Second)
}

func oneConnection(c *config.Config) { c.Upstream["bulk"].Connections = 1 }

func TestMailIsSignedWhileItWaitsForItsPlace(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, oneConnection)
		waits := g.crowd("")
		time.Sleep(time.Minute)
		got := g.marketing.got()
		if len(got) != 3 {
			t.Fatalf("%d newsletters were handed over, want 3", len(got))
		}
		if signed := verified(t, g.key, got[2].wire); signed.After(waits.Add(time.Second)) || got[2].at.Sub(waits) < 5*time.Second {
			t.Errorf("signed at %v and handed over at %v, want it signed when it began to wait, at %v", signed, got[2].at, waits)
		}
	})
}

func TestWhatAHostOffersNowIsWhatIsSignedAlsoWhereMailWasSignedBefore(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, oneConnection)
		g.crowd("MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nDéjà vu\r\n")
		g.marketing.set(func(s *service) { s.caps = &upstream.Caps{} })
		time.Sleep(time.Minute)
		got := g.marketing.got()
		if len(got) != 3 || !strings.Contains(got[2].wire, "D=C3=A9j=C3=A0 vu") {
			t.Fatalf("want the third of %d newsletters without octets over 127", len(got))
		}
		verified(t, g.key, got[0].wire)
		verified(t, g.key, got[2].wire)
	})
}

// putOffTwice submits mail that its upstream puts off twice before it takes it, and returns when each try was signed.
func (g *rig) putOffTwice(s *service, client, key string, between func()) (signed []time.Time) {
	g.t.Helper()
	s.set(func(s *service) {
		s.verdict = func(e message.Envelope) []message.Verdict {
			v := message.Verdict{Class: message.Temporary, Scope: message.ScopeRecipient, Code: 450, Text: "later"}
			if len(s.sends) == 3 {
				v = message.Verdict{Class: message.Accepted, Code: 250}
			}
			return v.Verdicts(len(e.To))
		}
	})
	if _, err := g.submit(client, ""); err != nil {
		g.t.Fatal(err)
	}
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		between()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
	}
	got := s.got()
	if len(got) != 3 || len(g.queue()) != 0 {
		g.t.Fatalf("%d tries, and %d rows are left", len(got), len(g.queue()))
	}
	signed = append(signed, verified(g.t, g.key, got[0].wire))
	for _, s := range got[1:] {
		signed = append(signed, verified(g.t, key, s.wire))
	}
	return signed
}

func TestDeferredMailIsSignedOnce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		restart := func() { g.stop(); g.start(nil) }
		if s := g.putOffTwice(g.marketing, "news", g.key, restart); !s[1].Equal(s[0]) || !s[2].Equal(s[0]) {
			t.Errorf("signed at %v, want each try with the first one's signature", s)
		}
	})
}

func TestDeferredMailIsSignedAnewWithAnotherKey(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		other := g.key + ".other"
		writeKey(t, other)
		change := func() {
			g.stop()
			g.cfg.Stream["marketing"].DKIM[0].KeyFile = other
			g.start(nil)
		}
		if s := g.putOffTwice(g.marketing, "news", other, change); !s[1].After(s[0]) || !s[2].Equal(s[1]) {
			t.Errorf("signed at %v, want the second try anew and the third as the second", s)
		}
	})
}

func TestADeferredCodeIsSignedForEachTry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) { c.Stream["auth"].Retry = []time.Duration{time.Minute} })
		if s := g.putOffTwice(g.auth, "logto", g.key, func() {}); !s[1].After(s[0]) || !s[2].After(s[1]) {
			t.Errorf("signed at %v, want nothing kept that the code could be guessed from", s)
		}
	})
}
