// Package relay is the engine: it takes submissions that policy lets through, answers for them as early as is honest,
// and carries each to an upstream within its lifetime, once as far as that can be known. It keeps three promises above
// all: nothing that got a 250 is lost, nothing is handed over before it is durable, and nothing leaves unsigned where
// signing is set. It does not speak SMTP or SQL; doors, spool and upstreams are behind interfaces.
package relay

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

const (
	refuseAfter = 30 * time.Second       // down for this long: when_down = "refuse" refuses
	leaseMargin = 500 * time.Millisecond // what the spool's lease must have left at a hand-over
	drainTime   = 6 * time.Second        // what hand-overs under way get when gatepost stops
)

// Options is what a Relay is made of.
type Options struct {
	Config *config.Config
	Spool  Spool
	Log    *slog.Logger
}

// Relay accepts and delivers. Its methods may be called from any goroutine.
type Relay struct {
	spool      Spool
	log        *slog.Logger
	connect    connector
	generation atomic.Pointer[Generation]
	processors *processors // for those who sign
	clock      *clock
	pressure   pressure
	expiry     *expiry
	orders     orders

	mu      sync.Mutex      // of Reload, Run and its end: one changes generations at a time
	running context.Context // of the lanes' loops; nil while Run does not run
	loops   sync.WaitGroup

	ctx        context.Context // of hand-overs: ends when the drain does
	stop       context.CancelCauseFunc
	sends      sync.WaitGroup // hand-overs
	background sync.WaitGroup // probers
}

// New makes a relay that is ready to accept. It opens no connection.
func New(o Options) (*Relay, error) { return newRelay(o, upstream.New) }

func newRelay(o Options, connect connector) (*Relay, error) {
	g, err := newGeneration(o.Config, nil, connect)
	if err != nil {
		return nil, err
	}
	r := &Relay{spool: o.Spool, log: o.Log, connect: connect, clock: newClock(), expiry: newExpiry(), processors: newProcessors()}
	r.ctx, r.stop = context.WithCancelCause(context.Background())
	r.swap(g)
	return r, nil
}

// Run delivers until ctx ends, then lets hand-overs under way come to their end, puts back what had not begun, and
// closes the upstreams. No Accept may begin once ctx has ended.
func (r *Relay) Run(ctx context.Context) error {
	r.mu.Lock()
	r.running = ctx
	for _, p := range r.generation.Load().plans {
		r.turn(p.lane)
	}
	r.mu.Unlock()
	r.loops.Go(func() { r.expiry.run(ctx, r) })
	r.loops.Go(func() { r.clock.watch(ctx, r.clockJumped) })
	r.loops.Go(func() { r.pressure.watch(ctx, r) })
	<-ctx.Done()
	r.mu.Lock() // a reload under way comes to its end, and starts no loop after
	r.running = nil
	r.mu.Unlock()
	r.loops.Wait()
	return r.drain()
}

// turn starts the loop of l, if Run runs and it does not turn yet. mu is held.
func (r *Relay) turn(l *lane) {
	if r.running == nil || l.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(r.running)
	l.stop = stop
	r.loops.Go(func() { l.run(ctx, r) })
}

// drain waits for hand-overs, for drainTime at most; then they are cut: what was not committed goes back to the queue,
// what was is unknown.
func (r *Relay) drain() error {
	cut := time.AfterFunc(drainTime, func() { r.stop(errStopping) })
	r.sends.Wait()
	cut.Stop()
	r.stop(errStopping)
	r.background.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return r.generation.Load().closeBut(ctx, nil)
}

// Identify implements ingress.Acceptor.
func (r *Relay) Identify(listener string, p message.Peer) (client string, err error) {
	return r.generation.Load().policy.Identify(listener, p)
}

// Login implements ingress.Acceptor.
func (r *Relay) Login(ctx context.Context, listener string, p message.Peer, user, password string) (client string, err error) {
	return r.generation.Load().policy.Login(ctx, listener, p, user, password)
}

// Offers implements ingress.Acceptor.
func (r *Relay) Offers(listener string) bool { return r.generation.Load().policy.Offers(listener) }

// Limit implements ingress.Acceptor.
func (r *Relay) Limit(client string, header []byte) int64 {
	return r.generation.Load().policy.Limit(client, header)
}

// Ready implements ingress.Acceptor: nil if any stream of client would take mail now.
func (r *Relay) Ready(client, from string) error {
	g := r.generation.Load()
	err := error(reply.New(550, "5.7.1", "this client is not known"))
	c := g.config.Client[client]
	if c == nil {
		return err
	}
	expects, taken := g.policy.ExpectsAuth(client, from), false
	for _, s := range c.Streams {
		p := g.plans[s]
		if e := r.ready(p, ""); e != nil {
			err = e
			continue
		}
		taken = true
		if !expects {
			break
		}
		if p.stream.Kind == message.Auth {
			r.processors.announce()
			break
		}
	}
	if taken {
		return nil
	}
	return err
}

// ready says whether mail of p's stream, from domain where that is known, is taken now.
func (r *Relay) ready(p *plan, domain string) error {
	if p.refuses(domain) {
		return reply.New(451, "4.4.1", "the mail service cannot be reached at the moment, please try again later")
	}
	if err := r.pressure.refuses(p.lane); err != nil {
		return err
	}
	return r.spool.Ready(p.stream.Kind)
}

// refuses says whether new mail from domain, or from any where it is "", is refused because no upstream could take it.
func (p *plan) refuses(domain string) bool {
	return p.stream.WhenDown == "refuse" && p.lane.down(domain)
}

// Accept implements ingress.Acceptor. Its answer follows engine.md rule 3. Submissions that repeat others, as the key of
// their order tells, get the answer of the first: they wait for it where that has not come yet.
func (r *Relay) Accept(ctx context.Context, subs []*message.Submission) ([]message.Receipt, error) {
	if len(subs) > 0 && subs[0].Order != nil && len(subs[0].Order.Key) > 0 {
		return r.orders.once(ctx, string(subs[0].Order.Key), subs[0].Order.Fingerprint, func() ([]message.Receipt, error) { return r.accept(ctx, subs) })
	}
	return r.accept(ctx, subs)
}

func (r *Relay) accept(ctx context.Context, subs []*message.Submission) ([]message.Receipt, error) {
	g := r.generation.Load()
	now := time.Now()
	ms := make([]*message.Message, len(subs))
	receipts := make([]message.Receipt, len(subs))
	for i, s := range subs {
		m, err := r.admit(g, s, now)
		if err != nil {
			r.refused(s, err)
			return nil, err
		}
		ms[i], receipts[i] = m, message.Receipt{ID: m.ID}
		if i > 0 && ms[0].Key != nil {
			m.SetKeyOf(ms[0].ID)
		}
		s.Raw, s.Room = nil, nil // m has it, and two of a big mail are more than need be in memory
	}
	answers := r.await(g, subs, ms)
	defer r.forget(g, ms)
	w := r.put(g, ms)
	<-w.Done()
	if _, err := w.Result(); err != nil {
		return repeated(err, ms[0].Print, len(ms))
	}
	for _, m := range ms {
		r.expiry.consider(m.ExpiresAt)
		p := g.plans[m.Stream]
		p.lane.stats.began(p.arm(m.ID))
	}
	return receipts, r.answered(ctx, g, subs, ms, answers)
}

// admit asks policy and completes what it let through.
func (r *Relay) admit(g *Generation, s *message.Submission, now time.Time) (*message.Message, error) {
	m, err := g.policy.Check(s, r.spool.NewID(), now)
	if err != nil {
		return nil, err
	}
	p := g.plans[m.Stream]
	if err := r.ready(p, m.HeaderFrom); err != nil {
		return nil, err
	}
	if err := p.carriers(m); err != nil {
		return nil, err
	}
	if m.Kind == message.Auth {
		r.processors.came()
	}
	for i := range m.Recipients {
		m.Recipients[i].Need = p.need
	}
	p.wantsNotifications(m, s.MailFrom)
	return m, nil
}

// put writes ms. A single message whose lane has room is born ours, and its first hand-over begins beside the write.
func (r *Relay) put(g *Generation, ms []*message.Message) Write {
	l := g.plans[ms[0].Stream].lane
	t := newTry(r, l, g, &message.Delivery{Message: ms[0]})
	if len(ms) > 1 || r.spool.StreamHeld(l.name) || !l.take(t) {
		for _, m := range ms {
			g.plans[m.Stream].lane.queued()
		}
		return r.spool.Put(ms, false)
	}
	w := r.spool.Put(ms, true)
	t.put = w
	r.sends.Go(t.deliver)
	return w
}

// await prepares to be told the outcome of the first try of each of ms whose stream answers with it. One of several
// cannot be refused alone, so a sender who gets notifications is told by one, unless an order ends with the refusal.
func (r *Relay) await(g *Generation, subs []*message.Submission, ms []*message.Message) []<-chan *reply.Error {
	answers := make([]<-chan *reply.Error, len(ms))
	for i, m := range ms {
		if g.plans[m.Stream].verdict(m) == "upstream" && (len(ms) == 1 || m.NotifyTo() == "" || subs[i].Order != nil) {
			answers[i] = g.plans[m.Stream].lane.await(m.ID)
		}
	}
	return answers
}

func (r *Relay) forget(g *Generation, ms []*message.Message) {
	for _, m := range ms {
		g.plans[m.Stream].lane.forget(m.ID)
	}
}

// answered waits for the first tries, each until its verdict_timeout. All refused for good is an error; anything else
// is ours to finish. The mails of an order belong together: one that is refused is an error.
func (r *Relay) answered(ctx context.Context, g *Generation, subs []*message.Submission, ms []*message.Message, answers []<-chan *reply.Error) error {
	var refusal *reply.Error
	for i, m := range ms {
		if answers[i] == nil {
			return nil
		}
		t := time.NewTimer(time.Until(subs[i].StartedAt.Add(g.plans[m.Stream].patience(subs[i].Order))))
		select {
		case refusal = <-answers[i]:
		case <-t.C:
			refusal = g.plans[m.Stream].lane.late(m.ID, answers[i], recordWithin(subs[i].Order))
		case <-ctx.Done():
			refusal = nil
		}
		t.Stop()
		if ordered := subs[i].Order != nil; ordered == (refusal != nil) {
			break
		}
	}
	if refusal == nil {
		return nil
	}
	return refusal
}

// settle writes what became of a message, until it is durable or gatepost gives up: then the rows stay owned, and the
// next start finds them. It reports whether it was written and the rows were still ours.
func (r *Relay) settle(m *message.Message, ss []message.Settlement) bool {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		lost, err := r.spool.Settle(context.Background(), ss)
		if err == nil {
			if slices.ContainsFunc(ss, func(s message.Settlement) bool { return s.Outcome == message.None }) {
				r.expiry.consider(m.ExpiresAt)
			}
			for _, id := range lost {
				r.log.LogAttrs(r.ctx, slog.LevelWarn, "recipient was no longer ours to settle",
					slog.String("msg_id", id.Message.String()), slog.Int("n", id.N))
			}
			return len(lost) == 0
		}
		r.log.LogAttrs(r.ctx, slog.LevelError, "cannot record what became of a message, trying again",
			slog.String("msg_id", m.ID.String()), slog.Any("err", err))
		select {
		case <-r.ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// Status tells how each lane stands.
func (r *Relay) Status() []message.LaneStatus {
	var ss []message.LaneStatus
	plans := r.generation.Load().plans
	for _, name := range slices.Sorted(maps.Keys(plans)) {
		s := plans[name].lane.status(r.spool.StreamHeld(name))
		s.Refuses = plans[name].refuses("")
		ss = append(ss, s)
	}
	return ss
}

// Stats tells how each upstream of each stream's route has done since the process began.
func (r *Relay) Stats() []message.ArmStats {
	all := []message.ArmStats{}
	plans := r.generation.Load().plans
	for _, name := range slices.Sorted(maps.Keys(plans)) {
		for _, h := range plans[name].route {
			all = append(all, plans[name].lane.stats.of(h))
		}
	}
	return all
}

// Captured returns what capture upstreams hold, by upstream in no order, each oldest first.
func (r *Relay) Captured() []upstream.Captured {
	var all []upstream.Captured
	for _, u := range r.generation.Load().upstreams {
		if c, ok := u.Upstream.(upstream.Capture); ok {
			all = append(all, c.Captured()...)
		}
	}
	return all
}

// Alive returns nil once every lane has shown that it still turns, or ctx's error. It works only while Run does.
func (r *Relay) Alive(ctx context.Context) error {
	for name, p := range r.generation.Load().plans {
		l := p.lane
		pong := make(chan struct{})
		select {
		case l.ping <- pong:
		case <-ctx.Done():
			return fmt.Errorf("lane %s does not turn: %w", name, ctx.Err())
		}
		<-pong
	}
	return nil
}
