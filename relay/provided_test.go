package relay

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/upstream"
)

// keeps is what an upstream has that keeps templates.
var keeps = upstream.Traits{DKIM: "none", Templates: true}

// templatedCode submits a sign-in code for which the upstreams sink and third have a template.
func (g *rig) templatedCode() {
	g.t.Helper()
	s := g.submission("logto", "Message-ID: <1@auth.example.com>\r\n")
	s.Provided = map[string]message.Provided{
		"sink":  {Template: "sign-in", Variables: json.RawMessage(`{"code":"123456"}`)},
		"third": {Template: "d-4711", Variables: json.RawMessage(`{"pin":"123456"}`)},
	}
	if _, err := g.accept(s); err != nil {
		g.t.Fatalf("the code was not accepted: %v", err)
	}
}

// wantTemplate checks that s was sent one mail, with that template or with "" signed and in our words.
func wantTemplate(t *testing.T, s *service, template string) {
	t.Helper()
	got := s.got()
	if len(got) != 1 {
		t.Fatalf("%d copies, want one", len(got))
	}
	p, signed := got[0].env.Provided, strings.HasPrefix(got[0].wire, "DKIM-Signature:")
	switch {
	case template == "" && (p != nil || !signed):
		t.Errorf("it was sent the template %+v, signed: %v, want our words, signed", p, signed)
	case template != "" && (p == nil || p.Template != template || !strings.Contains(string(p.Variables), "123456") || signed):
		t.Errorf("it was sent the template %+v, signed: %v, want %s", p, signed, template)
	}
	if !strings.Contains(got[0].wire, "123456") || messageID(got[0].wire) != "<1@auth.example.com>" {
		t.Errorf("the local rendering is not with it:\n%s", got[0].wire)
	}
}

func TestATemplateGoesToTheUpstreamThatKeepsItAndOurWordsSignedToTheNext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g, spare := newPairRig(t, nil)
		g.auth.traits = keeps
		g.auth.set(says(verdictOf(message.Permanent, message.ScopeMessage, 400)))
		g.templatedCode()
		time.Sleep(time.Second)
		wantTemplate(t, g.auth, "sign-in")
		wantTemplate(t, spare, "")
		if es := g.history.of(event.Delivered); len(es) != 1 || es[0].Upstream != "spare" {
			t.Errorf("delivered: %+v", es)
		}
	})
}

func TestASecondCopyIsOfWhatItsOwnUpstreamKeepsUnderTheSameMessageID(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			c.Stream["auth"].Route = []string{"sink", "third"}
			c.Stream["auth"].HedgeAfter = 2 * time.Second
		}, "third")
		g.auth.traits, g.others["third"].traits = keeps, keeps
		g.auth.set(answersAfter(6*time.Second, accepted))
		g.templatedCode()
		time.Sleep(time.Minute)
		wantTemplate(t, g.auth, "sign-in")
		wantTemplate(t, g.others["third"], "d-4711")
	})
}

func TestATemplateThatIsRefusedAfterAnotherCopyWasAcceptedIsNotFollowedByOurWords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			c.Stream["auth"].Route = []string{"sink", "third"}
			c.Stream["auth"].HedgeAfter = 2 * time.Second
		}, "third")
		g.auth.traits = keeps
		g.auth.set(answersAfter(6*time.Second, verdictOf(message.Permanent, message.ScopeMessage, 400)))
		g.auth.set(func(s *service) { s.fallsBack = true })
		g.templatedCode()
		time.Sleep(time.Minute)
		wantTemplate(t, g.auth, "sign-in")
		wantTemplate(t, g.others["third"], "")
		if s := g.relay.Status()[0]; s.InFlight != 0 {
			t.Errorf("%d places are still taken", s.InFlight)
		}
	})
}

func TestAQueuedMailKeepsItsTemplateOverARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.auth.traits = keeps
		g.auth.set(func(s *service) { s.down = down() })
		g.templatedCode()
		g.stop()
		g.auth.set(func(s *service) { s.down = nil })
		g.start(nil)
		time.Sleep(10 * time.Second)
		wantTemplate(t, g.auth, "sign-in")
		g.history.mu.Lock()
		defer g.history.mu.Unlock()
		for _, e := range g.history.events {
			if b, err := json.Marshal(e); err != nil || strings.Contains(string(b), "123456") || strings.Contains(string(b), "sign-in") {
				t.Errorf("an event tells of the variables, err %v: %s", err, b)
			}
		}
	})
}

func TestMailThatIsToBeSignedNeverLeavesAsATemplate(t *testing.T) {
	for name, traits := range map[string]upstream.Traits{
		"signed here":        {DKIM: "sign", Templates: true},
		"keeps no templates": {DKIM: "sign"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, nil)
				g.auth.traits = traits
				g.templatedCode()
				wantTemplate(t, g.auth, "")
			})
		})
	}
}
