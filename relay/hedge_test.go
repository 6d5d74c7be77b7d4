package relay

import (
	"sync"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
)

// newHedgeRig is a rig whose auth stream sends a second copy after two seconds, through "spare", or "third".
func newHedgeRig(t *testing.T) *rig {
	t.Helper()
	return newRig(t, func(c *config.Config) {
		c.Stream["auth"].Route = []string{"sink", "spare", "third"}
		c.Stream["auth"].HedgeAfter = 2 * time.Second
	}, "spare", "third")
}

// answersAfter makes an upstream take its time, after the commit, to say v.
func answersAfter(d time.Duration, v message.Verdict) func(*service) {
	return func(s *service) {
		s.verdict = func(e message.Envelope) []message.Verdict {
			time.Sleep(d)
			return v.Verdicts(len(e.To))
		}
	}
}

var accepted = message.Verdict{Class: message.Accepted, Code: 250}

func loses(s *service) { s.lose = 9 }

// copies returns how many copies went to sink, spare and third.
func (g *rig) copies() [3]int {
	return [3]int{len(g.auth.got()), len(g.others["spare"].got()), len(g.others["third"].got())}
}

func TestACodeWithoutAnAnswerIsSentThroughTheNextUpstreamTooAndTheFirstAcceptanceCounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newHedgeRig(t)
		g.auth.set(answersAfter(6*time.Second, accepted))
		began := time.Now()
		g.code()
		if took := time.Since(began); took < 2*time.Second || took > 2100*time.Millisecond {
			t.Errorf("the client was answered after %v, want 2s", took)
		}
		time.Sleep(100 * time.Millisecond)
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("still queued after the acceptance: %+v", rows)
		}
		time.Sleep(time.Minute)
		if got := g.copies(); got != [3]int{1, 1, 0} {
			t.Fatalf("copies %v, want one and one", got)
		}
		if messageID(g.auth.got()[0].wire) != messageID(g.others["spare"].got()[0].wire) {
			t.Error("the copies have different Message-IDs")
		}
		hedged, ends, late := g.history.of(event.Hedged), g.history.of(event.Delivered), g.history.of(event.Answered)
		if len(hedged) != 1 || hedged[0].Upstream != "spare" || hedged[0].Data.Copies != 2 {
			t.Errorf("the second copy is not marked: %+v", hedged)
		}
		if len(ends) != 1 || ends[0].Upstream != "spare" || ends[0].Data.Copies != 1 {
			t.Errorf("delivered: %+v", ends)
		}
		if len(late) != 1 || late[0].Upstream != "sink" || late[0].Data.Class != message.Accepted || time.Duration(late[0].Data.Took) != 6*time.Second {
			t.Errorf("the late answer is told as %+v", late)
		}
		if s := g.relay.Stats()[0]; s.Hedged != 1 || len(g.history.of(event.FailedOver)) != 0 {
			t.Errorf("counted as %+v", s)
		}
		if s := g.relay.Status()[0]; s.InFlight != 0 {
			t.Errorf("%d places are still taken", s.InFlight)
		}
	})
}

func TestWhatBecomesOfACodeThatWasSentTwice(t *testing.T) {
	temporary := verdictOf(message.Temporary, message.ScopeMessage, 451)
	throttled := verdictOf(message.Throttled, message.ScopeUpstream, 421)
	for name, tt := range map[string]struct {
		first, second, third func(*service)
		copies               [3]int
		end                  event.Kind
		by                   string
		late                 int // answers
	}{
		"an answer in time":                     {first: answersAfter(1900*time.Millisecond, accepted), copies: [3]int{1, 0, 0}, end: event.Delivered, by: "sink"},
		"a refusal in time":                     {first: answersAfter(1900*time.Millisecond, temporary), copies: [3]int{1, 1, 0}, end: event.Delivered, by: "spare"},
		"the first accepts before the second":   {first: answersAfter(3*time.Second, accepted), second: answersAfter(5*time.Second, accepted), copies: [3]int{1, 1, 0}, end: event.Delivered, by: "sink", late: 1},
		"the first never answers":               {first: loses, copies: [3]int{1, 1, 0}, end: event.Delivered, by: "spare", late: 1},
		"the second never answers":              {first: answersAfter(5*time.Second, accepted), second: loses, copies: [3]int{1, 1, 0}, end: event.Delivered, by: "sink", late: 1},
		"neither answers":                       {first: loses, second: loses, copies: [3]int{1, 1, 0}, end: event.Unconfirmed, by: "spare"},
		"the second is down, the third is not":  {first: loses, second: func(s *service) { s.down = down() }, copies: [3]int{1, 0, 1}, end: event.Delivered, by: "third", late: 1},
		"the second puts it off":                {first: loses, second: says(temporary), copies: [3]int{1, 1, 1}, end: event.Delivered, by: "third", late: 1},
		"the second throttles":                  {first: answersAfter(4*time.Second, accepted), second: says(throttled), third: answersAfter(6*time.Second, accepted), copies: [3]int{1, 1, 1}, end: event.Delivered, by: "sink", late: 1},
		"the second knows no such recipient":    {first: answersAfter(3*time.Second, accepted), second: says(refused), copies: [3]int{1, 1, 0}, end: event.Delivered, by: "sink"},
		"… and the first never answers":         {first: loses, second: says(refused), copies: [3]int{1, 1, 0}, end: event.Bounced, by: "spare"},
		"the second stalls, the first accepts":  {first: answersAfter(3*time.Second, accepted), second: func(s *service) { s.stall = true }, copies: [3]int{1, 0, 0}, end: event.Delivered, by: "sink"},
		"the first refuses, the second accepts": {first: answersAfter(3*time.Second, temporary), second: answersAfter(3*time.Second, accepted), copies: [3]int{1, 1, 0}, end: event.Delivered, by: "spare"},
		"both refuse, the third accepts":        {first: answersAfter(3*time.Second, temporary), second: answersAfter(3*time.Second, temporary), copies: [3]int{1, 1, 1}, end: event.Delivered, by: "third"},
		"the first is lost, the second refuses": {first: loses, second: answersAfter(9*time.Second, temporary), copies: [3]int{1, 1, 1}, end: event.Delivered, by: "third"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newHedgeRig(t)
				for s, change := range map[*service]func(*service){g.auth: tt.first, g.others["spare"]: tt.second, g.others["third"]: tt.third} {
					if change != nil {
						s.set(change)
					}
				}
				g.code()
				time.Sleep(time.Minute)
				if got := g.copies(); got != tt.copies {
					t.Errorf("copies %v, want %v", got, tt.copies)
				}
				ends := g.history.of(tt.end)
				if len(ends) != 1 || ends[0].Upstream != tt.by || len(g.queue()) != 0 {
					t.Errorf("%d ended as %v, %+v; %d queued", len(ends), tt.end, ends, len(g.queue()))
				}
				if n := len(g.history.of(event.Answered)); n != tt.late {
					t.Errorf("%d late answers in the trace, want %d", n, tt.late)
				}
				if s := g.relay.Status()[0]; s.InFlight != 0 {
					t.Errorf("%d places are still taken", s.InFlight)
				}
				for name, s := range g.others {
					if s.inUse != 0 {
						t.Errorf("%d slots of %s are still taken", s.inUse, name)
					}
				}
			})
		})
	}
}

func TestNoSecondCopyOfWhatMayHaveBeenSentTwiceAlready(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newHedgeRig(t)
		g.auth.set(loses)
		for _, name := range []string{"spare", "third"} {
			g.others[name].set(func(s *service) { s.down = down() })
		}
		g.code()
		time.Sleep(5 * time.Second)
		for _, name := range []string{"spare", "third"} {
			g.others[name].set(func(s *service) { s.down, s.lose = nil, 9 })
		}
		time.Sleep(time.Minute)
		if got := g.copies(); got[0]+got[1]+got[2] != 2 {
			t.Errorf("copies %v, want two in all", got)
		}
		if n := len(g.history.of(event.Unconfirmed)); n != 1 {
			t.Errorf("%d unconfirmed, want 1", n)
		}
	})
}

func TestNothingIsSentTwiceUnlessAsked(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*config.Config)
		to     []string
	}{
		"hedging is off":         {change: func(c *config.Config) { c.Stream["auth"].HedgeAfter = 0 }},
		"the mail is to several": {to: []string{"kim@example.net", "lee@example.net"}},
		"there is no other":      {change: func(c *config.Config) { c.Stream["auth"].Route = []string{"sink"} }},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, func(c *config.Config) {
					c.Stream["auth"].Route, c.Stream["auth"].HedgeAfter = []string{"sink", "spare"}, 2*time.Second
					if tt.change != nil {
						tt.change(c)
					}
				}, "spare")
				g.auth.set(answersAfter(9*time.Second, accepted))
				if _, err := g.submit("logto", "", tt.to...); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if a, b := len(g.auth.got()), len(g.others["spare"].got()); a != 1 || b != 0 {
					t.Errorf("%d copies through the first and %d through the second, want 1 and 0", a, b)
				}
			})
		})
	}
}

func TestStoppingEndsBothCopiesAndLosesNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newHedgeRig(t)
		g.auth.set(answersAfter(5*time.Second, accepted))
		g.others["spare"].set(answersAfter(3*time.Second, accepted))
		began := time.Now()
		var client sync.WaitGroup
		client.Go(func() {
			if _, err := g.submit("logto", ""); err != nil {
				t.Errorf("the code was not accepted: %v", err)
			}
		})
		time.Sleep(3 * time.Second)
		g.stop()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("stopping took %v", took)
		}
		client.Wait()
		g.start(nil)
		time.Sleep(time.Minute)
		if got := g.copies(); got != [3]int{1, 1, 0} || len(g.history.of(event.Delivered)) != 1 || len(g.history.of(event.Recovered)) != 0 {
			t.Errorf("copies %v, events %+v", got, g.history.events)
		}
	})
}
