package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/upstream"
)

// How a paused pair is probed (engine.md rule 4).
const (
	probeAuth         = 500 * time.Millisecond
	probeOthers       = time.Second
	probeUnauthorised = 30 * time.Second
	probeTimeout      = 8 * time.Second // of one login; probes may overlap, so a hanging one delays nothing
	probesAtOnce      = 8
	maxRetryAfter     = 30 * time.Second // cap on what a throttling upstream asks for
	alarmEvery        = time.Minute      // an upstream that comes and goes does not alarm more often
)

// pair is one upstream as one lane sees it. An upstream-scope verdict pauses it: messages that wait keep their
// attempt counts and due times (the one that met with it steps back), and logins are tried until one succeeds. It is the
// circuit breaker of its upstream; domains holds those of the upstream and one sending domain.
type pair struct {
	lane    *lane
	hop     *hop
	places  *gate // hand-overs from check-out until what they sent is settled
	domains *domains
	caps    atomic.Pointer[upstream.Caps] // of its last connection; nil before the first
	retired chan struct{}                 // closed when no route goes through it any more

	mu        sync.Mutex
	paused    bool
	verdict   message.Verdict
	asked     time.Time // when the pause ends that the upstream asked for; zero where it named none
	downSince time.Time // of the first pause since anything was last accepted or judged here; zero when well
	resumedAt time.Time
	workedAt  time.Time
	proven    bool            // something got through since resumedAt
	ramp      int             // hand-overs allowed at once after a resume; doubles with each success
	open      context.Context // ends with the next pause
	shut      context.CancelFunc
	passedBy  int       // mails that began here and were taken by others since passedAt
	passedAt  time.Time // of the first of them; zero while it takes its own
	alarmedAt time.Time // of the last failover that alarmed
}

func newPair(l *lane, h *hop) *pair {
	p := &pair{lane: l, hop: h, places: newGate(h.connections), domains: newDomains(), ramp: h.connections, retired: make(chan struct{})}
	p.open, p.shut = context.WithCancel(context.Background())
	return p
}

// retire ends the probing of a pair that no route goes through any more.
func (p *pair) retire() { close(p.retired) }

// limit returns how many hand-overs may go through at once: none while paused.
func (p *pair) limit() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.allowed()
}

// allowed is limit with mu held.
func (p *pair) allowed() int {
	if p.paused {
		return 0
	}
	return min(p.ramp, p.hop.connections)
}

// trying reports that the pair is open again but has not shown yet that it bears all of its mail. Who finds no place
// then had better go elsewhere than wait for what may fail.
func (p *pair) trying() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.paused && p.ramp < p.hop.connections
}

// opened returns a context that ends when the pair pauses.
func (p *pair) opened() context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open
}

// worked notes that the upstream judged a message (whatever it said of it), so it is well.
func (p *pair) worked() {
	p.mu.Lock()
	grew := p.ramp < p.hop.connections
	if grew {
		p.ramp = min(2*p.ramp, p.hop.connections)
		p.places.setLimit(p.allowed())
	}
	if !p.paused {
		p.downSince = time.Time{}
	}
	p.workedAt, p.proven = time.Now(), true
	p.mu.Unlock()
	if grew {
		p.lane.adjust()
	}
}

// busy reports whether others got through since then, so that who did not was only waiting in line.
func (p *pair) busy(since time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workedAt.After(since)
}

// works reports whether anything got through since the pair last resumed.
func (p *pair) works() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proven
}

// turn returns how long who caused a pause with v stays behind the others: a little longer than the pause, so that
// whoever comes meanwhile goes first.
func (p *pair) turn(v message.Verdict) time.Duration {
	pause := max(p.interval(), min(v.RetryAfter, maxRetryAfter))
	return pause + pause/10
}

// down reports whether nothing should be promised through p: it refuses our credentials, or has been failing for after.
// One that lets in and yet has judged no mail since still fails, as long as the mail that shows it is under way.
func (p *pair) down(after time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.paused && p.verdict.Class == message.Unauthorised {
		return true
	}
	fails := p.paused || !p.proven && p.places.full()
	return fails && !p.downSince.IsZero() && time.Since(p.downSince) >= after
}

// pause stops the pair and starts its prober, unless it is paused already or has been resumed since began: then the
// verdict is yesterday's news.
func (p *pair) pause(r *Relay, v message.Verdict, retryAfter time.Duration, began time.Time) {
	p.mu.Lock()
	if p.paused || began.Before(p.resumedAt) {
		p.mu.Unlock()
		return
	}
	p.paused, p.verdict = true, v
	p.asked = after(max(v.RetryAfter, retryAfter))
	first := p.downSince.IsZero()
	if first {
		p.downSince = time.Now()
	}
	p.places.setLimit(0)
	p.shut()
	p.mu.Unlock()
	p.lane.adjust()
	e := p.event(event.Paused, v)
	e.Data.Alarm = first || v.Class == message.Unauthorised
	r.spool.Record(e)
	r.background.Go(func() { p.probe(r, min(max(v.RetryAfter, retryAfter), maxRetryAfter)) })
}

// after returns the time after a pause that was asked for; zero for none.
func after(pause time.Duration) time.Time {
	if pause <= 0 {
		return time.Time{}
	}
	return time.Now().Add(pause)
}

// interval is the time from one probe to the next.
func (p *pair) interval() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verdict.Class == message.Unauthorised {
		return probeUnauthorised
	}
	return p.shortly()
}

// shortly is interval where no operator is needed.
func (p *pair) shortly() time.Duration {
	if p.lane.kind == message.Auth {
		return probeAuth
	}
	return probeOthers
}

// probe logs in again and again, first after wait, until it succeeds or the relay stops.
func (p *pair) probe(r *Relay, wait time.Duration) {
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	results := make(chan error, probesAtOnce)
	var tries sync.WaitGroup
	defer tries.Wait()
	defer stop() // before the wait: it ends the tries still under way
	running := 0
	next := time.NewTimer(max(wait, p.interval()))
	defer next.Stop()
	credentials, look := p.credentials(), time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.retired:
			return
		case err := <-results:
			running--
			if err == nil {
				p.resume(r)
				return
			}
			p.noteFailure(r, err)
		case <-look.C:
			if c := p.credentials(); c != credentials {
				credentials = c
				next.Reset(0)
			}
		case <-next.C:
			next.Reset(p.interval())
			if running < probesAtOnce {
				running++
				tries.Go(func() { results <- p.login(ctx) })
			}
		}
	}
}

// login reserves a slot and gives it back unused: the connection stays warm for the first mail.
func (p *pair) login(ctx context.Context) error {
	ctx, stop := context.WithTimeout(ctx, probeTimeout)
	defer stop()
	slot, err := p.hop.upstream.Reserve(ctx, p.lane.name)
	if err != nil {
		return err
	}
	slot.Release()
	return nil
}

// credentials returns what the secret files hold now, to notice a rotation. Unreadable counts as empty.
func (p *pair) credentials() string {
	var all strings.Builder
	for _, s := range p.hop.config.Secrets() {
		c, _ := s.Read()
		all.WriteString(c + "\n")
	}
	return all.String()
}

// noteFailure keeps the newest reason, so that status and interval speak of what is wrong now.
func (p *pair) noteFailure(r *Relay, err error) {
	paused, ok := errors.AsType[*upstream.Paused](err)
	if !ok {
		return // a try that was cut short
	}
	p.mu.Lock()
	changed := p.verdict.Class != paused.Verdict.Class
	p.verdict, p.asked = paused.Verdict, after(max(paused.Verdict.RetryAfter, paused.RetryAfter))
	p.mu.Unlock()
	if changed {
		e := p.event(event.Paused, paused.Verdict)
		e.Data.Alarm = true
		r.spool.Record(e)
	}
	r.log.LogAttrs(r.ctx, slog.LevelDebug, "upstream probe failed", slog.String("upstream", p.hop.config.Name),
		slog.String("stream", p.lane.name), slog.String("reply", paused.Verdict.Reply()))
}

// resume opens the pair, ramped: one hand-over first, then twice as many with each success.
func (p *pair) resume(r *Relay) {
	p.mu.Lock()
	p.paused, p.ramp, p.resumedAt, p.proven = false, 1, time.Now(), false
	p.open, p.shut = context.WithCancel(context.Background())
	p.places.setLimit(p.allowed())
	since := p.downSince
	p.mu.Unlock()
	e := p.event(event.Resumed, message.Verdict{})
	e.Data.Total = event.Millis(time.Since(since))
	r.spool.Record(e)
	p.lane.adjust()
}

// passed notes that mail which began here was taken by another upstream, because of what is wrong here. The first since
// it was well is an alarm: a primary that is gone must not go unnoticed because another does its work.
func (p *pair) passed(r *Relay, to *hop, why string) {
	p.mu.Lock()
	p.passedBy++
	first := p.passedAt.IsZero()
	alarm := first && time.Since(p.alarmedAt) >= alarmEvery
	if first {
		p.passedAt = time.Now()
	}
	if alarm {
		p.alarmedAt = time.Now()
	}
	if p.paused {
		why = p.verdict.Reply()
	}
	p.mu.Unlock()
	if !first {
		return
	}
	e := p.event(event.FailedOver, message.Verdict{})
	e.Data.Egress, e.Data.Reply, e.Data.Alarm = "", why, alarm
	e.Data.Text = "its mail goes through upstream " + to.config.Name + " instead"
	r.spool.Record(e)
}

// tookOwn notes that the upstream has accepted a mail: what began here stays here again.
func (p *pair) tookOwn(r *Relay) {
	p.mu.Lock()
	n, since := p.passedBy, p.passedAt
	p.passedBy, p.passedAt = 0, time.Time{}
	p.mu.Unlock()
	if since.IsZero() {
		return
	}
	e := p.event(event.CameBack, message.Verdict{})
	e.Data.Total, e.Data.Text = event.Millis(time.Since(since)), fmt.Sprintf("others took %d of its mails meanwhile", n)
	r.spool.Record(e)
}

func (p *pair) event(kind event.Kind, v message.Verdict) event.Event {
	return event.Event{At: time.Now(), Kind: kind, Stream: p.lane.name, MailKind: p.lane.kind, Upstream: p.hop.config.Name,
		Data: event.Data{Egress: p.hop.egress, Class: v.Class, Scope: v.Scope, Code: v.Code, Reply: v.Reply()}}
}

func (p *pair) status() message.PairStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := message.PairStatus{Upstream: p.hop.config.Name, Egress: p.hop.egress, Paused: p.paused, Since: p.downSince,
		PassedBy: p.passedBy, Barred: p.domains.list()}
	if p.paused {
		s.Verdict, s.Reply, s.Asked = p.verdict.Class, p.verdict.Reply(), p.asked
	}
	return s
}
