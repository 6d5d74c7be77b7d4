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
	f := Finding{Level: OK, Check: "upstream", Subject: w.upstream.Name, Way: &Way{Type: w.upstream.Type, Egress: w.egress, Result: works}}
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	account, caps, err := reach(ctx, cfg, w)
	if w.upstream.Type != "capture" {
		f.Way.see(cfg.Egress[w.egress], account.Local)
	}
	from := "from egress " + w.egress
	f.Text = strings.Join(append([]string{"it let us in " + from}, account.Facts...), "; ")
	switch {
	case errors.Is(err, upstream.ErrUnproven):
		f.Level, f.Way.Result = Warn, notProven
		f.Text = "it can be reached " + from + ", but only a mail can show whether it lets us in"
		f.Hint = "gatepost send --upstream " + w.upstream.Name + " --to ADDRESS sends one, without the daemon"
	case err != nil:
		f.Level, f.Way.Result = Fail, fails
		f.Text, f.Hint = from+": "+strings.TrimPrefix(printable(err), "egress "+w.egress+": "), advice(cfg, w, f.Way, err)
	case len(account.Traps) > 0:
		f.Level, f.Text = Warn, f.Text+"; but "+strings.Join(account.Traps, "; ")
		f.Hint = "mend that at the service, or mail is lost there: docs/upstreams.md has what to set"
	case caps.Auth != "" && w.upstream.Username == "":
		f.Level, f.Text = Warn, "it let us in "+from+" without a login, but offers one: it may refuse mail"
		f.Hint = "set username and password_file of [upstream." + w.upstream.Name + "], unless the host knows us by address"
	}
	f.Text = plain(f.Text)
	return f
}

// reach logs in, or makes a connection that could send mail and gives it back unused. It returns what the service tells
// of the account, or the host offers.
func reach(ctx context.Context, cfg *config.Config, w way) (account upstream.Account, caps upstream.Caps, err error) {
	u, err := upstream.New(w.upstream, cfg.Hostname, upstream.NewEgress(cfg.Egress[w.egress]), []upstream.LaneKind{w.lane})
	if err != nil {
		return account, caps, err
	}
	if c, ok := u.(upstream.Checker); ok {
		account, err = c.Check(ctx)
	} else {
		var slot upstream.Slot
		if slot, err = u.Reserve(ctx, w.lane.Lane); err == nil {
			account.Local, caps = slot.Local(), slot.Caps()
			slot.Release()
		}
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return account, caps, errors.Join(err, u.Close(closing))
}

// printable returns what an upstream said, or what went wrong before it could. No mail was sent, so there is no code in it
// to hide.
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

func advice(cfg *config.Config, w way, seen *Way, err error) string {
	if upstream.NewEgress(cfg.Egress[w.egress]).Check() != nil {
		return "mend the egress first"
	}
	section := "[upstream." + w.upstream.Name + "]"
	secret, way := "the credentials", "endpoint"
	if w.upstream.Type == "smtp" {
		secret, way = "username and the secret", "address and tls"
	}
	switch p, ok := errors.AsType[*upstream.Paused](err); {
	case ok && p.Verdict.Alarm != "":
		return p.Verdict.Alarm
	case ok && p.Verdict.Class == message.Unauthorised && len(seen.Allow) > 0:
		return "check " + secret + " of " + section + ", and what the service allows this account; an allow-list of addresses must have " + strings.Join(seen.Allow, " and ")
	case ok && p.Verdict.Class == message.Unauthorised:
		return "check " + secret + " of " + section + ", and what the service allows this account"
	case ok && p.Verdict.Class == message.Throttled:
		return "the service asks for fewer connections: wait, or lower connections in " + section
	case ok && p.Verdict.Code >= 500 && w.upstream.Type != "smtp":
		return "the service is in trouble, or something between is: try again, and look at its status page"
	}
	return "check " + way + " of " + section + ", and whether DNS knows the host and a firewall lets egress " + w.egress + " out"
}
