package relay

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"gatepost/event"
	"gatepost/message"
)

const (
	barTime    = 30 * time.Second // from a domain-scope verdict until one mail of the domain is let through to see
	maxDomains = 1000             // that one pair remembers; mail of others asks for itself
)

// What a hand-over tells a domain's breaker.
var (
	errDomainRefused = errors.New("the sending domain is not taken")
	errDomainUntold  = errors.New("nothing was said about the sending domain")
)

// domains holds the circuit breakers of one pair and each sending domain that its upstream has refused: mail of such a
// domain goes to the next upstream without asking, but for one message in barTime that is let through to see. What
// goes nowhere stays in the queue, as if the upstream had refused the domain again.
type domains struct {
	mu     sync.Mutex
	barred map[string]*bar
}

// bar is the breaker of one domain.
type bar struct {
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	verdict message.Verdict // the last refusal
	since   time.Time
}

func newDomains() *domains { return &domains{barred: map[string]*bar{}} }

func newBar() *bar {
	return &bar{since: time.Now(), breaker: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1,
		Timeout:     barTime,
		ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures > 0 },
		IsExcluded:  func(err error) bool { return errors.Is(err, errDomainUntold) },
	})}
}

// ask reports whether mail of domain may be handed over: v is the refusal that stands against it. told, nil where
// nothing is known against the domain, must be called once the hand-over has ended.
func (d *domains) ask(domain string) (told func(error), v message.Verdict, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.barred[domain]
	if b == nil {
		return nil, v, true
	}
	told, err := b.breaker.Allow()
	return told, b.verdict, err == nil
}

// has reports whether mail of domain need not be offered now.
func (d *domains) has(domain string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.barred[domain]
	return b != nil && b.breaker.State() == gobreaker.StateOpen
}

// list returns the domains that are not taken, sorted.
func (d *domains) list() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.barred))
}

// bar notes that domain was refused with v, and reports whether that is news.
func (d *domains) bar(domain string, v message.Verdict) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.barred[domain]
	if b == nil {
		if len(d.barred) >= maxDomains {
			return true
		}
		b, news = newBar(), true
		d.barred[domain] = b
		if told, err := b.breaker.Allow(); err == nil {
			told(errDomainRefused)
		}
	}
	b.verdict = v
	return news
}

// free notes that domain was taken, and returns since when it had not been; zero where it was well.
func (d *domains) free(domain string) (since time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.barred[domain]
	if b == nil || b.breaker.State() != gobreaker.StateClosed {
		return time.Time{}
	}
	delete(d.barred, domain)
	return b.since
}

// aboutDomain returns the first of vs by which the upstream refused the sending domain. One without a code is our own,
// about a key that does not sign.
func aboutDomain(vs []message.Verdict) (message.Verdict, bool) {
	i := slices.IndexFunc(vs, func(v message.Verdict) bool {
		return v.Scope == message.ScopeDomain && v.Class != message.Accepted && v.Code != 0
	})
	if i < 0 {
		return message.Verdict{}, false
	}
	return vs[i], true
}

// learnDomain tells the breaker of domain what a hand-over with verdicts vs has shown; told is from ask.
func (p *pair) learnDomain(r *Relay, domain string, vs []message.Verdict, told func(error)) {
	if told == nil {
		told = func(error) {}
	}
	if v, refused := aboutDomain(vs); refused {
		told(errDomainRefused)
		if p.domains.bar(domain, v) {
			e := p.event(event.Paused, v)
			e.Data.HeaderFrom, e.Data.Alarm = domain, true
			e.Data.Text = "it does not take mail from " + domain + ", which goes to the other upstreams of the route or waits"
			r.spool.Record(e)
		}
		return
	}
	if !slices.ContainsFunc(vs, func(v message.Verdict) bool { return v.Class == message.Accepted }) {
		told(errDomainUntold)
		return
	}
	told(nil)
	if since := p.domains.free(domain); !since.IsZero() {
		e := p.event(event.Resumed, message.Verdict{})
		e.Data.HeaderFrom, e.Data.Scope, e.Data.Total = domain, message.ScopeDomain, event.Millis(time.Since(since))
		e.Data.Text = "it takes mail from " + domain + " again"
		r.spool.Record(e)
	}
}
