package relay

import (
	"context"
	"errors"
	"fmt"
	"maps"
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
	upstreams []upstream.Upstream
}

// plan is what a stream's mail needs on its way out.
type plan struct {
	stream *config.Stream
	signer *dkim.Signer // nil where no key is set
	route  []*hop
	need   string // the egress names of the route, sorted, comma-joined; without "any"
}

// hop is one upstream of a route, as one stream uses it.
type hop struct {
	config        *config.Upstream
	upstream      upstream.Upstream
	egress        string
	commitTimeout time.Duration
	answerTimeout time.Duration
	connections   int // of the account that this stream's lane may use
}

// account is the key of an upstream: what leaves by another address has connections of its own.
type account struct{ upstream, egress string }

// connector makes an upstream; upstream.New outside tests.
type connector func(c *config.Upstream, hostname string, egress *upstream.Egress, lanes []upstream.LaneKind) (upstream.Upstream, error)

// newGeneration does all that can fail.
func newGeneration(cfg *config.Config, connect connector) (*Generation, error) {
	g := &Generation{config: cfg, plans: map[string]*plan{}}
	var errs []error
	var err error
	if g.policy, err = policy.New(cfg); err != nil {
		errs = append(errs, err)
	}
	accounts, err := g.connect(cfg, connect)
	if err != nil {
		errs = append(errs, err)
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		p, err := newPlan(cfg, cfg.Stream[name], accounts)
		if err != nil {
			errs = append(errs, fmt.Errorf("stream %s: %w", name, err))
			continue
		}
		g.plans[name] = p
	}
	return g, errors.Join(errs...)
}

// connect makes the upstreams that streams use; no connection is opened yet.
func (g *Generation) connect(cfg *config.Config, connect connector) (map[account]upstream.Upstream, error) {
	lanes := map[account][]upstream.LaneKind{}
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		s := cfg.Stream[name]
		for _, up := range s.Route {
			a := account{up, config.EgressOf(s, cfg.Upstream[up])}
			lanes[a] = append(lanes[a], upstream.LaneKind{Lane: s.Name, Kind: s.Kind})
		}
	}
	made := map[account]upstream.Upstream{}
	var errs []error
	for a, ls := range lanes {
		u, err := connect(cfg.Upstream[a.upstream], cfg.Hostname, upstream.NewEgress(cfg.Egress[a.egress]), ls)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		made[a] = u
		g.upstreams = append(g.upstreams, u)
	}
	return made, errors.Join(errs...)
}

func newPlan(cfg *config.Config, s *config.Stream, accounts map[account]upstream.Upstream) (*plan, error) {
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
		h := &hop{config: u, upstream: accounts[account{name, egress}], egress: egress,
			commitTimeout: s.CommitTimeout, answerTimeout: s.AnswerTimeout, connections: share(cfg, s, u)}
		if u.CommitTimeout > 0 {
			h.commitTimeout = u.CommitTimeout
		}
		if u.AnswerTimeout > 0 {
			h.answerTimeout = u.AnswerTimeout
		}
		p.route = append(p.route, h)
	}
	slices.Sort(egresses)
	p.need = strings.Join(slices.Compact(egresses), ",")
	return p, nil
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

// close ends all connections; slots in use may finish until ctx ends.
func (g *Generation) close(ctx context.Context) error {
	var errs []error
	for _, u := range g.upstreams {
		errs = append(errs, u.Close(ctx))
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
