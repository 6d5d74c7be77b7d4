package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/dkim"
	"gatepost/message"
	"gatepost/policy"
	"gatepost/upstream"
)

// Generation is everything that one configuration decides, made whole before it is used and never changed after. An
// accept or attempt pins the one it began with.
type Generation struct {
	config    *config.Config
	policy    *policy.Policy
	plans     map[string]*plan // by stream
	upstreams map[account]*connected
}

// plan is what a stream's mail needs on its way out.
type plan struct {
	lane   *lane
	stream *config.Stream
	signer *dkim.Signer // nil where no key is set
	route  []*hop       // in the order of the config
	need   string       // the egress names of the route, sorted, comma-joined; without "any"
}

// hop is one upstream of a route, as one stream uses it.
type hop struct {
	config        *config.Upstream
	upstream      upstream.Upstream
	pair          *pair
	egress        string
	commitTimeout time.Duration
	answerTimeout time.Duration
	hedgeAfter    time.Duration // 0 for no second copy beside a hand-over
	share         int           // percent of the mail that begins here
	connections   int           // of the account that this stream's lane may use
}

// account is the key of an upstream: what leaves by another address has connections of its own.
type account struct{ upstream, egress string }

// connected is an upstream with all that it was made from: where that stays the same over a reload, so does it, with
// its connections and whatever it has learnt.
type connected struct {
	upstream.Upstream
	from made
}

// made is what an upstream is made from.
type made struct {
	hostname string
	config   config.Upstream
	egress   config.Egress
	lanes    []upstream.LaneKind
}

// connector makes an upstream; upstream.New outside tests.
type connector func(c *config.Upstream, hostname string, egress *upstream.Egress, lanes []upstream.LaneKind) (upstream.Upstream, error)

// newGeneration does all that can fail. What old has and cfg leaves as it was is taken over from it; old may be nil.
func newGeneration(cfg *config.Config, old *Generation, connect connector) (*Generation, error) {
	g := &Generation{config: cfg, plans: map[string]*plan{}, upstreams: map[account]*connected{}}
	var errs []error
	var err error
	if g.policy, err = old.renewPolicy(cfg); err != nil {
		errs = append(errs, err)
	}
	if err := g.connect(cfg, old, connect); err != nil {
		errs = append(errs, err)
	}
	streams := streamsOf(cfg)
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		p, err := g.newPlan(cfg, streams[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("stream %s: %w", name, err))
			continue
		}
		g.plans[name] = p
	}
	if err := errors.Join(errs...); err != nil {
		_ = g.closeBut(context.Background(), old) // no connection was opened yet
		return nil, err
	}
	for name, p := range g.plans {
		p.inherit(old.plan(name))
	}
	return g, nil
}

// renewPolicy makes the policy of cfg. What g's remembers of logins stays in force; g may be nil.
func (g *Generation) renewPolicy(cfg *config.Config) (*policy.Policy, error) {
	if g == nil {
		return policy.New(cfg)
	}
	return g.policy.Renew(cfg)
}

// provided returns what the upstream makes m of with a template of its own; nil where it is sent m as it is. It may be
// another one by now than when m was accepted; and where mail is to be signed here, only what is made here can be.
func (h *hop) provided(m *message.Message) *message.Provided {
	p, ok := m.Provided[h.config.Name]
	if t := h.upstream.Traits(); !ok || !t.Templates || t.DKIM == "sign" {
		return nil
	}
	return &p
}

// plan returns the plan of stream; nil where g is nil or has none.
func (g *Generation) plan(stream string) *plan {
	if g == nil {
		return nil
	}
	return g.plans[stream]
}

// connect takes over or makes the upstreams that streams use; no connection is opened yet.
func (g *Generation) connect(cfg *config.Config, old *Generation, connect connector) error {
	lanes := map[account][]upstream.LaneKind{}
	streams := streamsOf(cfg)
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		s := streams[name]
		for _, up := range s.Route {
			a := account{up, config.EgressOf(s, cfg.Upstream[up])}
			lanes[a] = append(lanes[a], upstream.LaneKind{Lane: s.Name, Kind: s.Kind})
		}
	}
	var errs []error
	for a, ls := range lanes {
		from := made{hostname: cfg.Hostname, config: *cfg.Upstream[a.upstream], lanes: ls}
		if e := cfg.Egress[a.egress]; e != nil {
			from.egress = *e
		}
		if old != nil && old.upstreams[a] != nil && reflect.DeepEqual(old.upstreams[a].from, from) {
			g.upstreams[a] = old.upstreams[a]
			continue
		}
		u, err := connect(cfg.Upstream[a.upstream], cfg.Hostname, upstream.NewEgress(cfg.Egress[a.egress]), ls)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.upstreams[a] = &connected{u, from}
	}
	return errors.Join(errs...)
}

func (g *Generation) newPlan(cfg *config.Config, s *config.Stream) (*plan, error) {
	p := &plan{stream: s}
	if len(s.DKIM) > 0 {
		signer, err := dkim.NewSigner(s.DKIM)
		if err != nil {
			return nil, err
		}
		p.signer = signer
	}
	var egresses []string
	for _, name := range s.Route {
		u := cfg.Upstream[name]
		egress := config.EgressOf(s, u)
		if egress != config.Any {
			egresses = append(egresses, egress)
		}
		h := &hop{config: u, egress: egress, connections: share(cfg, s, u), commitTimeout: s.CommitTimeout, answerTimeout: s.AnswerTimeout,
			hedgeAfter: config.HedgeAfterOf(s, u), share: s.Weights[name]}
		if c := g.upstreams[account{name, egress}]; c != nil {
			h.upstream = c.Upstream
		}
		if u.CommitTimeout > 0 {
			h.commitTimeout = u.CommitTimeout
		}
		if u.AnswerTimeout > 0 {
			h.answerTimeout = u.AnswerTimeout
		}
		p.route = append(p.route, h)
	}
	if s.Weights == nil {
		p.route[0].share = 100
	}
	slices.Sort(egresses)
	p.need = strings.Join(slices.Compact(egresses), ",")
	return p, nil
}

// inherit gives p the lane of the plan before, if there was one of the same kind, and each hop the pair that has the
// same upstream; the rest is new.
func (p *plan) inherit(old *plan) {
	if old != nil && old.stream.Kind == p.stream.Kind {
		p.lane = old.lane
	} else {
		p.lane = newLane(p.stream.Name, p.stream.Kind)
		old = nil
	}
	for _, h := range p.route {
		h.pair = newPair(p.lane, h)
		if before := old.hop(h); before != nil {
			h.pair = before.pair
		}
	}
}

// verdict says when the client of m gets its answer: as a match rule has it, else as the stream does.
func (p *plan) verdict(m *message.Message) string { return cmp.Or(m.Verdict, p.stream.Verdict) }

// patience says how long a client waits for the upstream's word.
func (p *plan) patience(o *message.Order) time.Duration {
	if o != nil && o.Wait > 0 {
		return o.Wait
	}
	return p.stream.VerdictTimeout
}

// recordWithin says how much longer it waits for a refusal to be recorded. Callers over HTTP give up after 5 s; a client
// over SMTP has minutes.
func recordWithin(o *message.Order) time.Duration {
	if o != nil {
		return time.Second
	}
	return math.MaxInt64
}

// hop returns the hop of p that goes the same way as h, or nil.
func (p *plan) hop(h *hop) *hop {
	if p == nil {
		return nil
	}
	i := slices.IndexFunc(p.route, func(o *hop) bool { return o.upstream == h.upstream && o.connections == h.connections })
	if i < 0 {
		return nil
	}
	return p.route[i]
}

// share returns how many of u's connections the lane of s may use at once: all of them, less what auth lanes that use
// the same account keep in reserve.
func share(cfg *config.Config, s *config.Stream, u *config.Upstream) int {
	n := u.Connections
	if s.Kind != message.Auth {
		for _, other := range cfg.Stream {
			if other.Kind == message.Auth && slices.Contains(other.Route, u.Name) {
				n -= min(4, u.Connections/4)
			}
		}
	}
	return max(1, n)
}

// closeBut ends all connections but those of upstreams that keep has too; slots in use may finish until ctx ends.
func (g *Generation) closeBut(ctx context.Context, keep *Generation) error {
	var errs []error
	for a, u := range g.upstreams {
		if keep == nil || keep.upstreams[a] != u {
			errs = append(errs, u.Close(ctx))
		}
	}
	return errors.Join(errs...)
}

// can returns those of needs that this host can serve: with at least one name left in the config. Whether the address
// is there right now is the upstream's to find out: it pauses the pair until it is.
func (g *Generation) can(needs []string) []string {
	return slices.DeleteFunc(needs, func(need string) bool {
		return need != "" && !slices.ContainsFunc(strings.Split(need, ","), func(name string) bool {
			return g.config.Egress[name] != nil
		})
	})
}
