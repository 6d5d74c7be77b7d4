package config

import (
	"regexp"
	"strings"

	"gatepost/message"
)

const (
	maxPattern  = 1024    // octets of a regular expression
	maxMatches  = 100     // rules of one stream
	longestRule = 7 * day // of a rule's ttl, where the stream's own is not longer: an invitation may wait a week
)

// matches reads [[stream.NAME.match]].
func (l *loader) matches(t *table) []Match {
	tables := t.tables("match", "a list of tables", "write [["+t.at("match")+"]]")
	if len(tables) > maxMatches {
		t.bad(t.at("match"), "", "has more than %d rules", maxMatches)
		return nil
	}
	var found []Match
	for i, m := range tables {
		found = append(found, l.match(l.table(element(t.at("match"), i), "match", m)))
	}
	return found
}

func (l *loader) match(t *table) (m Match) {
	m.Subject = l.pattern(t, "subject")
	m.Header = t.text("header")
	m.Value = l.pattern(t, "value")
	m.TTL = t.duration("ttl", 0)
	m.Purpose = t.choice("purpose", "", "code", "invitation", "notice")
	m.Verdict = t.choice("verdict", "", "queued", "upstream")
	if m.Header != "" && !isFieldName(m.Header) {
		t.bad(t.at("header"), `write header = "X-Template"`, "%q is not the name of a header field", m.Header)
	}
	switch {
	case !t.has("subject") && !t.has("header"):
		t.bad(t.path, `add subject = "code", or header = "X-Template"`, "fits everything: it has neither subject nor header")
	case t.has("value") && !t.has("header"):
		t.bad(t.at("value"), "add header, or use subject", "has no header")
	case !t.has("ttl") && !t.has("purpose") && !t.has("verdict"):
		t.bad(t.path, "add ttl, purpose or verdict", "changes nothing")
	}
	return m
}

// pattern compiles the regular expression at key; nil where it is absent or cannot be used.
func (l *loader) pattern(t *table, key string) *regexp.Regexp {
	s := t.text(key)
	if s == "" {
		return nil
	}
	if len(s) > maxPattern {
		t.bad(t.at(key), "", "is longer than %d octets", maxPattern)
		return nil
	}
	re, err := regexp.Compile(s)
	if err != nil {
		t.bad(t.at(key), "the syntax is RE2's; write it in single quotes, so that backslashes stay", "is not a regular expression: %s",
			strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return nil
	}
	return re
}

// isFieldName reports whether s may name a header field (RFC 5322 §2.2).
func isFieldName(s string) bool {
	return len(s) <= 76 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ':' })
}

// checkMatches looks at the lifetimes that rules set, and whether any mail is ever superseded.
func (l *loader) checkMatches(s *Stream) {
	path := join("stream", s.Name)
	codes := false
	for i, m := range s.Match {
		codes = codes || m.Purpose == "code"
		key := element(path+".match", i) + ".ttl"
		if least := max(s.CommitTimeout, s.VerdictTimeout); m.TTL != 0 && m.TTL <= least {
			l.bad(key, "", "%s is not above commit_timeout and verdict_timeout (%s): nothing could be sent in time", formatDuration(m.TTL), formatDuration(least))
		}
		if most := max(longestRule, s.TTL); m.TTL > most {
			l.bad(key, "", "%s is more than %s", formatDuration(m.TTL), formatDuration(most))
		}
	}
	if s.Supersede && s.Kind == message.Marketing {
		l.bad(path+".supersede", "remove it", `has no place where kind is "marketing": only codes make older ones worthless`)
	} else if s.Supersede && !codes {
		l.bad(path+".supersede", `give the rule that fits codes purpose = "code", in [[`+path+`.match]]`, `does nothing: no rule of the stream sets purpose = "code"`)
	}
}
