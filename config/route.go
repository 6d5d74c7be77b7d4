package config

import (
	"fmt"
	"slices"
	"time"

	"gatepost/message"
)

// leg is one entry of a route as it is read.
type leg struct {
	upstream string
	weight   int  // percent; 0 for none
	weighted bool // it has the key, however wrong its value
}

// route reads the upstreams of a stream in order, and how much of its mail begins at each of them.
func (l *loader) route(t *table) (names []string, weights map[string]int) {
	const hint = `name the upstreams in order: route = ["NAME", "OTHER"]`
	t.require("route", hint)
	var values []any
	switch v := t.m["route"].(type) {
	case nil:
		return nil, nil
	case []any:
		values = v
	case []map[string]any:
		for _, m := range v {
			values = append(values, m)
		}
	case string:
		t.wrongType(t.at("route"), v, "a list", fmt.Sprintf("write [%q]", v))
		return nil, nil
	default:
		t.wrongType(t.at("route"), v, "a list", hint)
		return nil, nil
	}
	if len(values) == 0 {
		t.bad(t.at("route"), hint, "is empty")
	}
	legs := make([]leg, len(values))
	for i, v := range values {
		legs[i] = l.leg(element(t.at("route"), i), v)
		if name := legs[i].upstream; name != "" && slices.Contains(names, name) {
			t.bad(element(t.at("route"), i), "", "%q stands here twice", name)
			legs[i].upstream = ""
		}
		names = append(names, legs[i].upstream)
	}
	return names, l.weights(t.at("route"), legs)
}

// leg reads one entry: a name, or a table that has a weight too.
func (l *loader) leg(path string, v any) leg {
	m, ok := v.(map[string]any)
	if !ok {
		return leg{upstream: l.expand(path, v, "a name or a table")}
	}
	t := l.table(path, "route", m)
	return leg{t.needed("upstream", `write { upstream = "NAME", weight = 5 }`), t.count("weight", 0, 100), t.has("weight")}
}

// weights returns the percent of the mail that begins at each upstream, by name, those that none begins at left out; nil
// where all of it begins at the first. What stands first without a weight takes the rest.
func (l *loader) weights(path string, legs []leg) map[string]int {
	const rest = "the upstream that takes the rest stands first, without weight; others without weight only get what could not be delivered"
	sum, found := 0, map[string]int{}
	for _, g := range legs {
		if g.weighted && g.weight == 0 {
			return nil // told already
		}
		if sum += g.weight; g.weight > 0 {
			found[g.upstream] = g.weight
		}
	}
	switch {
	case sum == 0:
		return nil
	case len(legs) == 1:
		l.bad(path, fmt.Sprintf("write [%q], or add the upstream that takes the rest", legs[0].upstream), "has a weight, and nothing beside it to share with")
	case sum > 100:
		l.bad(path, "they are percent of the stream's mail", "the weights add up to %d, more than 100", sum)
	case legs[0].weighted && sum < 100:
		l.bad(path, rest, "the weights add up to %d, not 100, and nothing takes the rest", sum)
	case !legs[0].weighted && sum < 100:
		found[legs[0].upstream] = 100 - sum
	case !legs[0].weighted:
		l.warn(path, rest, "the weights leave nothing for %q, which only gets what the others could not deliver", legs[0].upstream)
	}
	if found[legs[0].upstream] == 100 {
		return nil // as without weights
	}
	return found
}

// checkHedge looks at the second copies of a stream together with an upstream of its route.
func (l *loader) checkHedge(s *Stream, u *Upstream) {
	path, after := join("stream", s.Name)+".hedge_after", s.HedgeAfter
	if u.HedgeAfter > 0 {
		path, after = join("upstream", u.Name)+".hedge_after", u.HedgeAfter
	}
	answer := s.AnswerTimeout
	if u.AnswerTimeout > 0 {
		answer = u.AnswerTimeout
	}
	switch {
	case after == 0:
	case s.Kind == message.Marketing:
		if u.HedgeAfter > 0 { // that of the stream is told by checkStream
			l.warn(path, "", "changes nothing for stream %q: only mail of kind \"auth\" is sent a second time", s.Name)
		}
	case after >= answer:
		l.bad(path, "lower it, or raise answer_timeout", "%s is not below the answer_timeout of upstream %q for stream %q (%s): the answer would count as lost first",
			formatDuration(after), u.Name, s.Name, formatDuration(answer))
	case len(s.Route) == 1:
		l.warn(path, "", "changes nothing for stream %q: its route has no other upstream for a second copy", s.Name)
	}
}

// warnCapture tells of mail that gets lost between upstreams which deliver it.
func (l *loader) warnCapture(s *Stream, u *Upstream) {
	if len(s.Route) > 1 && u.Type == "capture" {
		l.warn(join("stream", s.Name)+".route", "take it out of the route unless you are trying things out",
			"what goes to upstream %q, of type \"capture\", reaches nobody", u.Name)
	}
}

// checkHedging refuses second copies of what nobody waits for.
func (l *loader) checkHedging(s *Stream) {
	if s.HedgeAfter > 0 && s.Kind == message.Marketing {
		l.bad(join("stream", s.Name)+".hedge_after", "remove it", `has no place where kind is "marketing": newsletters are not sent twice`)
	}
}

// HedgeAfterOf returns how long after the commit of a hand-over to u a second copy of mail of s is sent through the next
// upstream; 0 for never. The upstream's own value wins over the stream's.
func HedgeAfterOf(s *Stream, u *Upstream) time.Duration {
	switch {
	case s.Kind != message.Auth:
		return 0
	case u.HedgeAfter > 0:
		return u.HedgeAfter
	}
	return s.HedgeAfter
}
