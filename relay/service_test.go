package relay

import (
	"os"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
)

// TestAMailThatMeetsARefusedKeyLeavesAsSoonAsTheKeyIsMended: a service with an API refuses the request of the mail itself,
// where an SMTP host refuses the login before any mail.
func TestAMailThatMeetsARefusedKeyLeavesAsSoonAsTheKeyIsMended(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			c.Upstream["sink"].APIKey = config.Secret{File: c.Dir + "/key"}
			if err := os.WriteFile(c.Dir+"/key", []byte("old\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		})
		g.auth.set(says(verdictOf(message.Unauthorised, message.ScopeUpstream, 401)))
		g.code()
		if n := len(g.history.of(event.Delivered)); n != 0 {
			t.Fatalf("%d codes were delivered with a key that is refused", n)
		}
		time.Sleep(2 * time.Second)
		g.auth.set(func(s *service) { s.verdict = nil })
		if err := os.WriteFile(g.cfg.Dir+"/key", []byte("new\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2500 * time.Millisecond)
		if n := len(g.history.of(event.Delivered)); n != 1 {
			t.Errorf("%d codes were delivered after the new key, want 1", n)
		}
	})
}

func TestWhatAnOperatorShouldKnowIsToldThoughTheNextUpstreamTakesTheMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, _ := newPairRig(t, nil)
		v := verdictOf(message.Permanent, message.ScopeMessage, 400)
		v.Alarm = "the account is in the sandbox"
		g.auth.set(says(v))
		g.code()
		time.Sleep(time.Second)
		es := g.history.of(event.Delivered)
		if len(es) != 1 || es[0].Upstream != "spare" || !es[0].Data.Alarm || es[0].Data.Text != v.Alarm {
			t.Errorf("delivered: %+v, want it by the second upstream, with the alarm of the first", es)
		}
	})
}
