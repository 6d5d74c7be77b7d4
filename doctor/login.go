package doctor

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
)

// way is an upstream as it is reached from one egress.
type way struct {
	upstream *config.Upstream
	egress   string
	lane     upstream.LaneKind // one of those that use it
}

// Logins logs in to every upstream that a stream uses, from the egress that it uses, and leaves again. No mail is sent.
func Logins(ctx context.Context, cfg *config.Config) []Finding {
	return together(waysOf(cfg), func(w way) Finding { return login(ctx, cfg, w) })
}

// waysOf returns each combination of upstream and egress that mail can take, once.
func waysOf(cfg *config.Config) []way {
	var ways []way
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		s := cfg.Stream[name]
		for _, up := range outOf(s) {
			w := way{cfg.Upstream[up], config.EgressOf(s, cfg.Upstream[up]), upstream.LaneKind{Lane: name, Kind: s.Kind}}
			if !slices.ContainsFunc(ways, func(o way) bool { return o.upstream == w.upstream && o.egress == w.egress }) {
				ways = append(ways, w)
			}
		}
	}
	return ways
}

// outOf returns the upstreams that mail of s may leave by: its route, and the one for bounces.
func outOf(s *config.Stream) []string {
	if s.DSNUpstream == "" || slices.Contains(s.Route, s.DSNUpstream) {
		return s.Route
	}
	return append(slices.Clone(s.Route), s.DSNUpstream)
}

func login(ctx context.Context, cfg *config.Config, w way) Finding {
	f := Finding{Level: OK, Check: "upstream", Subject: w.upstream.Name, Text: "it let us in from egress " + w.egress}
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	caps, err := reach(ctx, cfg, w)
	switch {
	case err != nil:
		f.Level, f.Text, f.Hint = Fail, "from egress "+w.egress+": "+strings.TrimPrefix(printable(err), "egress "+w.egress+": "), advice(cfg, w, err)
	case caps.Auth != "" && w.upstream.Username == "":
		f.Level, f.Text = Warn, "it let us in from egress "+w.egress+" without a login, but offers one: it may refuse mail"
		f.Hint = "set username and password_file of [upstream." + w.upstream.Name + "], unless the host knows us by address"
	}
	return f
}

// reach makes a connection that could send mail, and gives it back unused. It returns what the host offers.
func reach(ctx context.Context, cfg *config.Config, w way) (upstream.Caps, error) {
	u, err := upstream.New(w.upstream, cfg.Hostname, upstream.NewEgress(cfg.Egress[w.egress]), []upstream.LaneKind{w.lane})
	if err != nil {
		return upstream.Caps{}, err
	}
	var caps upstream.Caps
	slot, err := u.Reserve(ctx, w.lane.Lane)
	if err == nil {
		caps = slot.Caps()
		slot.Release()
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return caps, errors.Join(err, u.Close(closing))
}

// printable returns what an upstream said, or what went wrong before it could, without what a terminal would obey. No
// mail was sent, so there is no code in it to hide.
func printable(err error) string {
	text := err.Error()
	if p, ok := errors.AsType[*upstream.Paused](err); ok {
		v := p.Verdict
		text = strings.TrimSpace(strings.TrimSuffix(v.Reply(), message.Mask(v.Text)) + v.Text)
	}
	return plain(text)
}

// plain returns text without what a terminal would obey.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

func advice(cfg *config.Config, w way, err error) string {
	if upstream.NewEgress(cfg.Egress[w.egress]).Check() != nil {
		return "mend the egress first"
	}
	switch p, ok := errors.AsType[*upstream.Paused](err); {
	case ok && p.Verdict.Class == message.Unauthorised:
		return "check username and the secret of [upstream." + w.upstream.Name + "], and what the service allows this account"
	case ok && p.Verdict.Class == message.Throttled:
		return "the service asks for fewer connections: wait, or lower connections in [upstream." + w.upstream.Name + "]"
	}
	return "check address and tls of [upstream." + w.upstream.Name + "], and whether DNS knows the host and a firewall lets egress " + w.egress + " out"
}
