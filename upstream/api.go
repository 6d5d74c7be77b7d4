package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// service is what one type of upstream with an API has of its own: what it can carry, its requests, and what the answers
// to them mean. Everything else is done for all types alike: connections from the egress, slots and pace, the commit
// gate, and what is the case where there is no answer.
type service interface {
	// endpoint returns scheme://host[:port] that all requests go to.
	endpoint() string
	traits() Traits
	caps() Caps
	// calls makes the requests that hand wire to e.To: every recipient is in exactly one. The pieces of wire are shared
	// and not to be changed. An error that holds a permanent *reply.Error says that this service cannot carry the mail;
	// any other one that it cannot be asked now (a secret cannot be read).
	calls(e message.Envelope, wire net.Buffers) ([]call, error)
	// check reads something of the account that shows whether its credentials work, and sends nothing. Its error is
	// *Paused; ErrUnproven where the credentials may not read; or do's.
	check(ctx context.Context, do doer) (Account, error)
}

// selective is a service that cannot express every mail.
type selective interface {
	// carries returns what of m it has no place for, as Carrier has it.
	carries(m *message.Message) error
}

// keeper is a service that keeps templates and makes mail of them.
type keeper interface {
	// provided makes the request for e's one recipient that names the template e.Provided. What else the mail has, its
	// sender and its header, is in wire. Errors are those of calls.
	provided(e message.Envelope, wire net.Buffers) (call, error)
	// keeps reads whether there is a template of that name. Its errors are check's.
	keeps(ctx context.Context, do doer, template string) (bool, error)
}

// acquaintance is a service that says only in a check call whether it delivers mail at all. It is asked once before its
// first mail, for meetTime; what it says, or that it says nothing, keeps no mail waiting.
type acquaintance interface{ toMeet() bool }

const meetTime = 500 * time.Millisecond

// call is one request to a service.
type call struct {
	to []int // positions in the envelope's recipients
	// ask makes the request and passes it to x.Do, once. Where the answer did not come, its error is x.Do's.
	ask func(ctx context.Context, x *exchange) error
	// meaning says what a complete or cut answer means: one verdict for all of to, or one for each in order.
	meaning func(a answer) []message.Verdict
	// alone makes the same call for one of to, nil where that is of no use. It is asked where one verdict refuses all for
	// the sake of a recipient: nothing was taken then, and the others are to get their mail.
	alone func(to int) call
}

// oneRefused reports whether vs refuses the whole call because of one of its recipients.
func (c call) oneRefused(vs []message.Verdict) bool {
	return c.alone != nil && len(c.to) > 1 && len(vs) == 1 && vs[0].Class == message.Permanent && vs[0].Scope == message.ScopeRecipient
}

// perCall splits the positions of e's recipients: one for each call of auth mail, else at most so many.
func perCall(e message.Envelope, most int) [][]int {
	if e.Kind == message.Auth {
		most = 1
	}
	all := make([]int, len(e.To))
	for i := range all {
		all[i] = i
	}
	return slices.Collect(slices.Chunk(all, most))
}

// splittable makes the calls for what perCall says, each of which can be made again for every recipient alone.
func splittable(e message.Envelope, most int, one func(to []int) call) (calls []call) {
	for _, to := range perCall(e, most) {
		c := one(to)
		c.alone = func(at int) call { return one([]int{at}) }
		calls = append(calls, c)
	}
	return calls
}

// doer makes one request that nothing depends on: to read, not to send.
type doer func(req *http.Request) (answer, error)

// Account is what a service tells of an account to who logs in.
type Account struct {
	Local string   // the local IP address that the service was reached from; "" through a proxy
	Facts []string // in a few words each: "production access", "50000 mails a day"
	Traps []string // what will keep mail from arriving: "in the sandbox: only verified recipients get mail"
}

// Checker is an Upstream that can tell more of its account than Reserve does, which connects and, over SMTP, logs in.
type Checker interface {
	// Check logs in from the egress and reads what the account may. Its error is *Paused; ErrUnproven where the service
	// knows the credentials, but does not let them read anything; or ctx's.
	Check(ctx context.Context) (Account, error)
}

// TemplateKeeper is an Upstream whose service may keep templates that mail can be made of.
type TemplateKeeper interface {
	// Keeps reads whether the service has a template of that name. Its errors are those of Checker.
	Keeps(ctx context.Context, template string) (bool, error)
}

// ErrUnproven is Check's error where only a mail can show whether the account works: its credentials may send but not
// read, as they should where least privilege is wanted.
var ErrUnproven = errors.New("the credentials may not read: only sending a mail can show whether they work")

// apiUpstream hands mail to a service with an HTTP API.
type apiUpstream struct {
	cfg       *config.Upstream
	service   service
	transport *http.Transport
	lines     *lines
	slots     *slots
	health    health
	met       sync.Once
}

// newAPI makes the upstream that c describes over a service of its type.
func newAPI(c *config.Upstream, s service, egress *Egress, lanes []LaneKind) (*apiUpstream, error) {
	to, err := url.Parse(s.endpoint())
	if err != nil {
		return nil, fmt.Errorf("upstream %s: endpoint: %w", c.Name, err)
	}
	l, err := newLines(c, to, egress)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	return &apiUpstream{cfg: c, service: s, transport: l.transport(), lines: l, slots: newSlots(c.Connections, c.Rate, lanes)}, nil
}

// Traits implements Upstream.
func (u *apiUpstream) Traits() Traits {
	t := u.service.traits()
	t.DKIM = u.cfg.DKIM
	_, t.Templates = u.service.(keeper)
	return t
}

// Carries implements Carrier.
func (u *apiUpstream) Carries(m *message.Message) error {
	for _, r := range m.Recipients {
		if _, err := path(r.Address, u.service.caps().SMTPUTF8); err != nil {
			return reply.New(550, "5.6.7", "the mail service does not take a recipient's address")
		}
	}
	if s, ok := u.service.(selective); ok {
		return s.carries(m)
	}
	return nil
}

// Reserve implements Upstream. Where the last verdicts were about the account, it looks at that before it gives a slot.
func (u *apiUpstream) Reserve(ctx context.Context, lane string) (Slot, error) {
	if err := u.slots.take(ctx, lane); err != nil {
		return nil, u.named(err)
	}
	local, err := u.ready(ctx)
	if err != nil {
		u.slots.give(lane)
		return nil, u.named(err)
	}
	return &apiSlot{upstream: u, lane: lane, local: local}, nil
}

// ready makes sure of the account and of a connection for one more request.
func (u *apiUpstream) ready(ctx context.Context) (local string, err error) {
	u.lines.use()
	local, err = u.lines.ready(ctx)
	if err == nil {
		err = u.health.prove(ctx, func(ctx context.Context) error {
			_, err := u.service.check(ctx, u.get)
			return err
		})
	}
	if err != nil {
		u.lines.leave()
		return local, err
	}
	u.met.Do(func() { u.meet(ctx) })
	return local, nil
}

// meet asks the service what only it knows of the account.
func (u *apiUpstream) meet(ctx context.Context) {
	if a, ok := u.service.(acquaintance); !ok || !a.toMeet() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, meetTime)
	defer cancel()
	_, _ = u.service.check(ctx, u.get) // a mail shows what is wrong
}

// named adds the upstream's name to errClosed.
func (u *apiUpstream) named(err error) error {
	if errors.Is(err, errClosed) {
		return fmt.Errorf("upstream %s: %w", u.cfg.Name, err)
	}
	return err
}

// Check implements Checker.
func (u *apiUpstream) Check(ctx context.Context) (Account, error) {
	u.lines.use()
	defer u.lines.leave()
	local, err := u.lines.ready(ctx)
	if err != nil {
		return Account{}, err
	}
	a, err := u.service.check(ctx, u.get)
	a.Local = local
	return a, err
}

// Keeps implements TemplateKeeper.
func (u *apiUpstream) Keeps(ctx context.Context, template string) (bool, error) {
	k, ok := u.service.(keeper)
	if !ok {
		return false, nil
	}
	u.lines.use()
	defer u.lines.leave()
	if _, err := u.lines.ready(ctx); err != nil {
		return false, err
	}
	return k.keeps(ctx, u.get, template)
}

// get is the doer of check calls. Its error is *Paused, or ctx's.
func (u *apiUpstream) get(req *http.Request) (answer, error) {
	a, err := ask(u.transport, req)
	if err != nil && req.Context().Err() != nil {
		return a, req.Context().Err()
	}
	if err != nil {
		return a, &Paused{Verdict: upstreamDown(message.Temporary, "check call: "+u.explain(err))}
	}
	return a, nil
}

// Close implements Upstream. Its error is ctx's, where slots were still in use when it ended.
func (u *apiUpstream) Close(ctx context.Context) error {
	u.slots.close()
	err := u.slots.drain(ctx)
	u.lines.close()
	u.transport.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("close upstream %s: mail was still being handed over: %w", u.cfg.Name, err)
	}
	return nil
}

// apiSlot is the right to one hand-over, which may take several requests.
type apiSlot struct {
	upstream *apiUpstream
	lane     string
	local    string
}

// Caps implements Slot.
func (s *apiSlot) Caps() Caps { return s.upstream.service.caps() }

// Local implements Slot.
func (s *apiSlot) Local() string { return s.local }

// Release implements Slot.
func (s *apiSlot) Release() {
	s.upstream.lines.leave()
	s.upstream.slots.give(s.lane)
}

// Send implements Slot.
func (s *apiSlot) Send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	vs := s.send(ctx, e, wire, commit)
	if e.Provided == nil || len(vs) == 0 || !refusesMessage(vs[0]) || ctx.Err() != nil {
		return vs
	}
	template, refusal := e.Provided.Template, vs[0].Reply()
	e.Provided = nil
	vs = s.send(ctx, e, wire, commit)
	for i := range vs {
		if vs[i].Class == message.Accepted {
			vs[i].Alarm = fmt.Sprintf("the service refused its template %q (%s) and was sent the local one: mend it there, or take it out of the templates here", template, refusal)
		}
	}
	return vs
}

// refusesMessage reports whether v says that the service does not want the message as it is, and has taken nothing.
func refusesMessage(v message.Verdict) bool {
	return v.Scope == message.ScopeMessage && (v.Class == message.Permanent || v.Class == message.Temporary)
}

// send makes the requests for e. After a call whose recipients have their verdicts, the others are put off rather than
// given up with them.
func (s *apiSlot) send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	u := s.upstream
	if v, ok := s.unfit(e, wire); !ok {
		return v.Verdicts(len(e.To))
	}
	calls, err := u.calls(e, wire)
	if err != nil {
		v := uncarried(err)
		if v.Scope == message.ScopeUpstream {
			u.health.ill(v)
		}
		return v.Verdicts(len(e.To))
	}
	verdicts := make([]message.Verdict, len(e.To))
	var rest []message.Verdict // of those whose calls are not made
	for i := 0; i < len(calls); i++ {
		c, vs := calls[i], rest
		if rest == nil {
			vs = u.hand(ctx, c, commit)
		}
		switch {
		case rest != nil:
		case vs == nil && i == 0:
			return nil
		case c.oneRefused(vs):
			for _, to := range c.to {
				calls = append(calls, c.alone(to))
			}
			continue
		default:
			rest = u.endedBy(ctx, vs)
		}
		if vs == nil {
			vs = rest
		}
		for n, at := range c.to {
			verdicts[at] = vs[min(n, len(vs)-1)]
		}
	}
	return verdicts
}

// calls makes the requests that hand e over.
func (u *apiUpstream) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	if k, ok := u.service.(keeper); ok && e.Provided != nil {
		c, err := k.provided(e, wire)
		return []call{c}, err
	}
	return u.service.calls(e, wire)
}

// endedBy takes in the verdicts on a call, nil where commit said no, and returns the verdict on those whose calls are left
// where these should not be made; else nil.
func (u *apiUpstream) endedBy(ctx context.Context, vs []message.Verdict) []message.Verdict {
	if vs == nil || ctx.Err() != nil {
		return []message.Verdict{putOff} // which says nothing of the account
	}
	if v := u.note(vs); v != nil {
		return []message.Verdict{*v}
	}
	return nil
}

// putOff is the verdict on recipients whose turn did not come any more, after others of the same mail had theirs.
var putOff = refusal(message.Temporary, message.ScopeMessage, 0, "", "put off: the time was over before the rest of the mail's recipients had their turn")

// unfit reports what need not be asked of the service.
func (s *apiSlot) unfit(e message.Envelope, wire net.Buffers) (message.Verdict, bool) {
	caps := s.Caps()
	if n := octets(wire); caps.Size > 0 && n > caps.Size {
		return refusal(message.Permanent, message.ScopeMessage, 552, "5.3.4", fmt.Sprintf("the mail has %d octets, the service takes %d", n, caps.Size)), false
	}
	for _, to := range e.To {
		if _, err := path(to, caps.SMTPUTF8); err != nil {
			return refusal(message.Permanent, message.ScopeMessage, 550, "5.6.7", "the service does not take a recipient's address: "+err.Error()), false
		}
	}
	return message.Verdict{}, true
}

// uncarried is the verdict on a mail that the service cannot be asked to take.
func uncarried(err error) message.Verdict {
	if e, ok := errors.AsType[*reply.Error](err); ok && !e.Temporary() {
		return refusal(message.Permanent, message.ScopeMessage, e.Code, e.Enhanced, e.Text)
	}
	return upstreamDown(message.Unauthorised, err.Error())
}

// hand makes one call, again over a new connection where the first turns out to be one that the service had closed. It
// returns nil where commit said no.
func (u *apiUpstream) hand(ctx context.Context, c call, commit func() error) []message.Verdict {
	x := &exchange{transport: u.transport, commit: commit}
	err := c.ask(ctx, x)
	if x.stale() && ctx.Err() == nil {
		u.transport.CloseIdleConnections()
		x, err = u.again(ctx, c, commit)
	}
	switch {
	case x.refused != nil:
		return nil
	case !x.answered:
		return []message.Verdict{u.lost(ctx, x, err)}
	}
	vs := c.meaning(x.answer)
	if x.answer.early {
		for i, v := range vs {
			vs[i] = early(v)
		}
	}
	return vs
}

// againTime is how long a mail that a kept connection has declined may take to be on its way over another: the timer that
// ran until the first commit has stopped by then, and the next upstream waits.
const againTime = 1500 * time.Millisecond

// again is one more try of c, over a new connection.
func (u *apiUpstream) again(ctx context.Context, c call, commit func() error) (x *exchange, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(againTime, cancel)
	defer late.Stop()
	x = &exchange{transport: u.transport, commit: func() error {
		if !late.Stop() {
			return context.Canceled
		}
		return commit()
	}}
	return x, c.ask(ctx, x)
}

// early is what a verdict means that came before the service could have the whole mail: a refusal is one, but nothing
// was taken.
func early(v message.Verdict) message.Verdict {
	if v.Class == message.Accepted || v.Class == message.Unknown {
		return upstreamDown(message.Temporary, "the service answered before it had the mail: "+v.Reply())
	}
	return v
}

// lost is the verdict on a call without an answer.
func (u *apiUpstream) lost(ctx context.Context, x *exchange, err error) message.Verdict {
	text := u.explain(err)
	if ctx.Err() != nil {
		text += fmt.Sprintf(" (stopped: %v)", context.Cause(ctx))
	}
	if x.unsent() {
		return upstreamDown(message.Temporary, text)
	}
	return upstreamDown(message.Unknown, text)
}

// note keeps in mind what verdicts say of the account, and returns the one that ends the use of it for now.
func (u *apiUpstream) note(vs []message.Verdict) *message.Verdict {
	i := slices.IndexFunc(vs, func(v message.Verdict) bool {
		return v.Scope == message.ScopeUpstream && v.Class != message.Accepted && v.Class != message.Unknown
	})
	if i < 0 {
		if !slices.ContainsFunc(vs, func(v message.Verdict) bool { return v.Class == message.Unknown }) {
			u.health.well()
		}
		return nil
	}
	if vs[i].Class == message.Throttled {
		u.slots.throttled()
	}
	u.health.ill(vs[i])
	return &vs[i]
}
