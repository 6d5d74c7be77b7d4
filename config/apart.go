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
			u := l.c.Upstream[name]
			if u == nil || account(u) == "" {
				continue
			}
			note(claim{join("upstream", u.Name), u.Shared, s}, "the account %s", account(u))
			if u.Type == "smtp" { // the reputation of a service's own addresses is not ours
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
	if e.Proxy != "" {
		note(c, "the proxy %s", e.Proxy)
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
		if account(u) == "" {
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

// account names what the service of u keeps a reputation for; "" where it keeps none, or where u is not complete.
func account(u *Upstream) string {
	switch {
	case u.Type == "smtp" && u.Host == "":
	case u.Type == "smtp" && u.Username == "":
		return u.Address
	case u.Type == "smtp":
		return u.Username + " at " + u.Address
	case u.Type == "ses":
		return sesAccount(u)
	case u.Type == "mailgun" && u.Domain != "":
		return u.Domain + " at Mailgun (" + u.Region + ")"
	case u.Type == "sendgrid" && u.APIKey.Set():
		return within("of the key "+target(u.APIKey.File)+" at SendGrid", "pool", u.IPPool)
	case u.Type == "postmark" && u.ServerToken.Set():
		return within("of the token "+target(u.ServerToken.File)+" at Postmark", "message stream", u.MessageStream)
	case u.Type == "aliyun" && u.AccountName != "":
		return u.AccountName + " at Aliyun DirectMail (" + u.Region + ")"
	case u.Type == "webhook" && u.URL != "":
		return "behind the url of [upstream." + u.Name + "]"
	}
	return ""
}

// sesAccount is account for Amazon SES, which keeps tenants apart, and else what configuration sets send over.
func sesAccount(u *Upstream) string {
	if u.Region == "" {
		return ""
	}
	key := "of this machine's role"
	if u.AccessKeyID.Set() {
		key = "of the key " + target(u.AccessKeyID.File)
	}
	account := key + " at Amazon SES in " + u.Region
	if u.Tenant != "" {
		return within(account, "tenant", u.Tenant)
	}
	return within(account, "configuration set", u.ConfigurationSet)
}

// within adds the part of an account that has a reputation of its own.
func within(account, what, name string) string {
	if name == "" {
		return account
	}
	return account + ", " + what + " " + name
}

// target returns the file that a path leads to in the end, so that a link does not hide a key that is used twice.
func target(file string) string {
	if real, err := filepath.EvalSymlinks(file); err == nil {
		return real
	}
	return file
}
