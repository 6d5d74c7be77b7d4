package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"gatepost/message"
)

// claim is the use that a stream makes of something with a reputation.
type claim struct {
	path   string // of the section or table that names it, where the mark shared = true stands
	shared bool
	stream *Stream
}

// checkApart refuses whatever would let complaints about marketing mail stop sign-in mail: an upstream account, a source
// address, a DKIM key or its domain that streams of both kinds use, unless it is marked.
func (l *loader) checkApart() {
	claims := map[string][]claim{}
	note := func(c claim, format string, a ...any) {
		what := fmt.Sprintf(format, a...)
		claims[what] = append(claims[what], c)
	}
	for _, s := range inOrder(l, "stream", l.c.Stream) {
		for i, d := range s.DKIM {
			l.claimSignature(s, d, claim{l.signaturePath(s, i), d.Shared, s}, note)
		}
		for _, name := range s.upstreams() {
			if u := l.c.Upstream[name]; u != nil && u.Type == "smtp" && u.Host != "" {
				note(claim{join("upstream", u.Name), u.Shared, s}, "the account %s", account(u))
				l.claimEgress(s, u, note)
			}
		}
	}
	told := map[string]bool{} // one problem for each section, however many of its parts are concerned
	for _, what := range names(claims) {
		l.checkClaims(what, claims[what], told)
	}
	l.warnSameAccount()
	l.warnAny()
}

// claimSignature notes the key and the domain, on which receivers keep the reputation of what it signs.
func (l *loader) claimSignature(s *Stream, d DKIM, c claim, note func(claim, string, ...any)) {
	if d.KeyFile != "" {
		note(c, "the DKIM key %s", target(d.KeyFile))
	}
	if d.Domain != "" {
		note(c, "the DKIM domain %s", d.Domain)
		return
	}
	for _, domain := range s.Domains {
		if l.owner(domain) == s { // else two streams claim it, which is told already
			note(c, "the DKIM domain %s", domain)
		}
	}
}

// claimEgress notes the addresses that mail of s leaves from through u: those of this host, and what the world sees of
// them.
func (l *loader) claimEgress(s *Stream, u *Upstream, note func(claim, string, ...any)) {
	e := l.c.Egress[EgressOf(s, u)]
	if e == nil {
		return
	}
	c := claim{join("egress", e.Name), e.Shared, s}
	for _, a := range []netip.Addr{e.IPv4, e.PublicIPv4, e.IPv6} {
		if a.IsValid() {
			note(c, "the source address %s", a)
		}
	}
}

func (l *loader) checkClaims(what string, claims []claim, told map[string]bool) {
	var auth, marketing, marks, unmarked []string
	for _, c := range claims {
		switch c.stream.Kind {
		case message.Auth:
			auth = append(auth, c.stream.Name)
		case message.Marketing:
			marketing = append(marketing, c.stream.Name)
		}
		marks = append(marks, c.path)
		if !c.shared {
			unmarked = append(unmarked, c.path)
		}
	}
	if len(auth) == 0 || len(marketing) == 0 || len(unmarked) == 0 {
		return
	}
	path := slices.MaxFunc(unmarked, func(a, b string) int { return l.at.line(a) - l.at.line(b) })
	if told[path] {
		return
	}
	told[path] = true
	slices.Sort(marks)
	l.bad(path, fmt.Sprintf("give each kind its own, or set shared = true on %s if you mean it", strings.Join(slices.Compact(marks), " and ")),
		"%s is used by streams of both kinds (auth: %s; marketing: %s): complaints about one would stop the other",
		what, strings.Join(auth, ", "), strings.Join(marketing, ", "))
}

// warnSameAccount tells of two sections for one account: each would count connections by itself.
func (l *loader) warnSameAccount() {
	first := map[string]*Upstream{}
	for _, u := range inOrder(l, "upstream", l.c.Upstream) {
		if u.Type != "smtp" || u.Host == "" {
			continue
		}
		if before := first[account(u)]; before != nil {
			l.warn(join("upstream", u.Name), "name one of them in both routes, or keep connections low in each",
				"is the same account as upstream %q; connections are counted for each by itself", before.Name)
			continue
		}
		first[account(u)] = u
	}
}

// warnAny tells of streams of both kinds that leave from an address nobody chose, which is the same one for both.
func (l *loader) warnAny() {
	by := map[message.Kind]*Stream{}
	for _, s := range inOrder(l, "stream", l.c.Stream) {
		for _, name := range s.Route {
			if u := l.c.Upstream[name]; u != nil && u.Type == "smtp" && EgressOf(s, u) == Any {
				by[s.Kind] = s
			}
		}
	}
	auth, marketing := by[message.Auth], by[message.Marketing]
	if auth != nil && marketing != nil {
		l.warn(join("stream", marketing.Name)+".egress", "give each kind an egress of its own",
			"mail of streams %q and %q leaves from one address, the host's: complaints about one can stop the other", auth.Name, marketing.Name)
	}
}

// account names what an SMTP host keeps a reputation for: its address and the login.
func account(u *Upstream) string {
	if u.Username == "" {
		return u.Address
	}
	return u.Username + " at " + u.Address
}

// target returns the file that a path leads to in the end, so that a link does not hide a key that is used twice.
func target(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}
