package config

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"gatepost/message"
)

// check looks at what only several sections together can get wrong. A zero value in the Config stands for what has been
// refused already.
func (l *loader) check() {
	if len(l.c.Listen) == 0 {
		l.bad("listen", `add [listen.smtp] with address = "127.0.0.1:2525"`, "there is no listener: no mail could come in")
	}
	for _, s := range inOrder(l, "listen", l.c.Listen) {
		l.checkListen(s)
	}
	for _, c := range inOrder(l, "client", l.c.Client) {
		l.checkClient(c)
	}
	for _, s := range inOrder(l, "stream", l.c.Stream) {
		l.checkStream(s)
	}
	for _, h := range inOrder(l, "hook", l.c.Hook) {
		l.checkHook(h)
	}
	for _, u := range inOrder(l, "upstream", l.c.Upstream) {
		l.checkEgress(join("upstream", u.Name)+".egress", u.Egress)
	}
	l.checkListenAddresses()
	l.checkDomains()
	l.checkApart()
	l.checkUnused()
}

// inOrder returns the sections of one kind as they stand in the file: where two clash, the second is told.
func inOrder[S any](l *loader, kind string, sections map[string]S) []S {
	line := func(name string) int { return l.at.line(join(kind, name)) }
	order := names(sections)
	slices.SortStableFunc(order, func(a, b string) int { return line(a) - line(b) })
	return pick(sections, order)
}

// pick returns the sections with the given names.
func pick[S any](sections map[string]S, names []string) []S {
	all := make([]S, len(names))
	for i, name := range names {
		all[i] = sections[name]
	}
	return all
}

func names[S any](sections map[string]S) []string { return slices.Sorted(maps.Keys(sections)) }

// refer notes the names in the list at path for which there is no section.
func (l *loader) refer(path, kind string, list, known []string) {
	for i, name := range list {
		l.referOne(element(path, i), kind, name, known)
	}
}

func (l *loader) referOne(path, kind, name string, known []string) {
	if name == "" || slices.Contains(known, name) {
		return
	}
	hint := fmt.Sprintf("add [%s.%s]", kind, name)
	if near := nearest(name, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	} else if len(known) > 0 {
		hint += ", or name " + quoted(known)
	}
	l.bad(path, hint, "there is no %s %q", kind, name)
}

func (l *loader) checkEgress(path, name string) {
	if name != Any {
		l.referOne(path, "egress", name, names(l.c.Egress))
	}
}

func (l *loader) checkStream(s *Stream) {
	path := join("stream", s.Name)
	l.refer(path+".route", "upstream", s.Route, names(l.c.Upstream))
	l.checkEgress(path+".egress", s.Egress)
	l.checkAlignment(s)
	l.checkTimes(s)
	l.checkMatches(s)
	l.checkDSN(s)
	l.checkHedging(s)
	l.checkSize(path+".max_size", s.MaxSize)
	for _, name := range s.upstreams() {
		if u := l.c.Upstream[name]; u != nil {
			l.checkPair(s, u)
		}
	}
	for _, name := range s.Route {
		if u := l.c.Upstream[name]; u != nil {
			l.checkHedge(s, u)
			l.warnCapture(s, u)
		}
	}
}

// upstreams names all that mail of s leaves through: its route, and the upstream of its delivery status notifications.
func (s *Stream) upstreams() []string {
	if s.DSNUpstream == "" || slices.Contains(s.Route, s.DSNUpstream) {
		return s.Route
	}
	return append(slices.Clip(s.Route), s.DSNUpstream)
}

// checkDSN refuses notifications for sign-in mail, whose senders are machines, and upstreams that rebuild mail.
func (l *loader) checkDSN(s *Stream) {
	path := join("stream", s.Name) + ".dsn_upstream"
	l.referOne(path, "upstream", s.DSNUpstream, names(l.c.Upstream))
	u := l.c.Upstream[s.DSNUpstream]
	switch {
	case s.DSNUpstream == "":
	case s.Kind == message.Auth:
		l.bad(path, "remove it; bounces are in the log and in gatepost trace", "has no place where kind is \"auth\": nobody reads bounces of sign-in mail, and they would tell who has an account")
	case u != nil && u.Type != "smtp" && u.Type != "":
		l.bad(path, "name an upstream of type \"smtp\"", "%q is of type %q: delivery status notifications leave by SMTP alone", u.Name, u.Type)
	}
}

// checkSize refuses a size that marketing mail could never fill: it has three quarters of the memory for mail, and a mail
// is in memory twice for a moment.
func (l *loader) checkSize(path string, size int64) {
	if most := l.c.Limits.BytesInFlight / 8 * 3; size > most {
		l.bad(path, "raise bytes_in_flight under [limits], or lower max_size",
			"%s is more than three eighths of limits.bytes_in_flight (%s): such a mail could never be taken",
			formatSize(size), formatSize(l.c.Limits.BytesInFlight))
	}
}

// needsSignature reports whether mail of s through u must carry a signature that s does not make.
func needsSignature(s *Stream, u *Upstream) bool { return u.DKIM == "sign" && len(s.DKIM) == 0 }

// checkPair looks at a stream together with an upstream of its route.
func (l *loader) checkPair(s *Stream, u *Upstream) {
	path := join("stream", s.Name)
	if needsSignature(s, u) && !l.written(path+".dkim") {
		l.bad(path+".dkim", fmt.Sprintf(`add dkim = { selector = …, key_file = … }, or dkim = "none" on [upstream.%s] if the service signs`, u.Name),
			"is missing: mail through upstream %q would leave unsigned", u.Name)
	}
	if s.Kind == message.Auth && u.Tracking == "on" {
		l.bad(join("upstream", u.Name)+".tracking", "give marketing mail an upstream of its own", "%q is used by stream %q: links and opens of sign-in mail are never tracked", u.Name, s.Name)
	}
	if len(s.DKIM) > 0 && u.mapped() {
		l.warn(path+".dkim", "have this service's own DKIM records in DNS, as docs/upstreams.md says; take dkim out where no upstream of the route signs here", "is not used for upstream %q: %s builds the message anew and signs it itself", u.Name, u.Type)
	} else if len(s.DKIM) > 0 && u.DKIM != "sign" {
		l.warn(path+".dkim", fmt.Sprintf(`set dkim = "sign" on [upstream.%s] if it should be`, u.Name), "is not used for upstream %q, whose dkim is %q", u.Name, u.DKIM)
	}
	if _, domain, ok := strings.Cut(u.AccountName, "@"); ok && l.owner(domain) != s {
		l.bad(join("upstream", u.Name)+".account_name", "name a sender address in one of its domains", "%q is not in domains of stream %q: the service would take none of its mail", u.AccountName, s.Name)
	}
	if u.CommitTimeout >= s.TTL {
		l.bad(join("upstream", u.Name)+".commit_timeout", "", "%s is not below the ttl of stream %q (%s): nothing could be sent in time",
			formatDuration(u.CommitTimeout), s.Name, formatDuration(s.TTL))
	}
	if e := l.c.Egress[EgressOf(s, u)]; e != nil && e.Proxy == "" && l.cannotReach(e, u.Host) {
		l.bad(join("upstream", u.Name)+".address", "add an address of that family to the egress, or name the upstream by its host name",
			"%s cannot be reached from egress %q, which has no address of its family", u.Host, e.Name)
	}
}

// cannotReach reports whether host is an IP address of a family that e has none of.
func (l *loader) cannotReach(e *Egress, host string) bool {
	ip, err := netip.ParseAddr(host)
	key, source := "ipv4", e.IPv4
	if ip.Is6() {
		key, source = "ipv6", e.IPv6
	}
	return err == nil && !source.IsValid() && (e.IPv4.IsValid() || e.IPv6.IsValid()) && !l.written(join(join("egress", e.Name), key))
}

// written reports whether the file has a key at path, however wrong its value.
func (l *loader) written(path string) bool { _, ok := l.at[path]; return ok }

// checkTimes refuses a lifetime in which nothing could be tried.
func (l *loader) checkTimes(s *Stream) {
	path := join("stream", s.Name)
	if s.CommitTimeout >= s.TTL {
		l.bad(path+".commit_timeout", "", "%s is not below ttl (%s): nothing could be sent in time", formatDuration(s.CommitTimeout), formatDuration(s.TTL))
	}
	if s.VerdictTimeout >= s.TTL {
		l.bad(path+".verdict_timeout", "", "%s is not below ttl (%s)", formatDuration(s.VerdictTimeout), formatDuration(s.TTL))
	}
	if s.Retry[0] >= s.TTL {
		l.warn(path+".retry", "", "the first wait (%s) is not below ttl (%s): there is only one try", formatDuration(s.Retry[0]), formatDuration(s.TTL))
	}
}

// checkAlignment refuses a d= or a return path that DMARC would not count for the From domains of the stream (RFC 7489 §3.1).
func (l *loader) checkAlignment(s *Stream) {
	path := join("stream", s.Name)
	for i, d := range s.DKIM {
		key := l.signaturePath(s, i)
		for _, domain := range s.Domains {
			if d.Domain != "" && domain != "" && !isAbove(d.Domain, domain) {
				l.bad(key+".domain", "leave it out to sign with the domain of the header From", "%q is not %q or above it, so DMARC would not count the signature", d.Domain, domain)
			}
		}
		for _, before := range s.DKIM[:i] {
			if d.Selector != "" && d.Selector == before.Selector && d.Domain == before.Domain {
				l.bad(key+".selector", "give each key a selector of its own", "%q stands for two keys", d.Selector)
			}
		}
	}
	if domain := domainPart(s.DefaultFrom); domain != "" && !slices.Contains(s.Domains, domain) {
		l.bad(path+".default_from", "use an address in "+quoted(s.Domains), "%q is in no exact domain of this stream", s.DefaultFrom)
	}
	domain := domainPart(s.ReturnPath)
	if owner := l.owner(domain); domain != "" && owner != s {
		l.bad(path+".return_path", "use an address in one of its domains", "%q is in no domain of this stream, so SPF would not align", s.ReturnPath)
	}
}

func domainPart(address string) string { _, domain, _ := strings.Cut(address, "@"); return domain }

// isAbove reports whether d is the domain, or for a wildcard its base, or a parent of it below the top level.
func isAbove(d, domain string) bool {
	domain = strings.TrimPrefix(domain, "*.")
	return d == domain || strings.Contains(d, ".") && strings.HasSuffix(domain, "."+d)
}

// owner returns the stream that a domain belongs to: the one that names it, else the longest wildcard above it.
func (l *loader) owner(domain string) (owner *Stream) {
	longest := ""
	for _, s := range inOrder(l, "stream", l.c.Stream) {
		for _, d := range s.Domains {
			if d == domain {
				return s
			}
			if base, wild := strings.CutPrefix(d, "*"); wild && strings.HasSuffix(domain, base) && len(d) > len(longest) {
				longest, owner = d, s
			}
		}
	}
	return owner
}

// signaturePath returns the path of the i-th dkim table of a stream, which may be a table of its own or in a list.
func (l *loader) signaturePath(s *Stream, i int) string {
	path := join("stream", s.Name) + ".dkim"
	if l.written(element(path, i)) {
		return element(path, i)
	}
	return path
}

// checkDomains refuses a From domain that two streams claim.
func (l *loader) checkDomains() {
	taken := map[string]*Stream{}
	for _, s := range inOrder(l, "stream", l.c.Stream) {
		for i, domain := range s.Domains {
			if before := taken[domain]; before != nil && domain != "" {
				l.bad(element(join("stream", s.Name)+".domains", i), "a From domain belongs to exactly one stream; give each a subdomain of its own",
					"%q belongs to stream %q already", domain, before.Name)
			}
			taken[domain] = s
		}
	}
}

// checkUnused warns of sections that nothing names.
func (l *loader) checkUnused() {
	used := map[string]bool{}
	use := func(kind string, names ...string) {
		for _, name := range names {
			used[join(kind, name)] = true
		}
	}
	for _, s := range l.c.Listen {
		use("client", s.Clients...)
	}
	for _, c := range l.c.Client {
		use("stream", c.Streams...)
	}
	for _, s := range l.c.Stream {
		use("upstream", s.upstreams()...)
		use("egress", s.Egress)
	}
	for _, u := range l.c.Upstream {
		use("egress", u.Egress)
	}
	unused := func(kind, by string, names []string) {
		for _, name := range names {
			if path := join(kind, name); !used[path] {
				l.warn(path, "", "is not used: no %s names it", by)
			}
		}
	}
	unused("client", "listener", names(l.c.Client))
	unused("stream", "client", names(l.c.Stream))
	unused("upstream", "stream", names(l.c.Upstream))
	unused("egress", "stream or upstream", names(l.c.Egress))
}
