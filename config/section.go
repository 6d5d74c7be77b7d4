package config

import (
	"net"
	"strconv"
	"strings"
	"time"

	"gatepost/message"
)

func (l *loader) hostname(top *table) string {
	s := top.needed("hostname", `the full name of this host: hostname = "gw.example.com"`)
	if s == "" {
		return ""
	}
	name, err := message.ParseDomain(s)
	if err != nil {
		top.bad("hostname", "", "%q is not a host name: %v", s, err)
	} else if !strings.Contains(name, ".") {
		top.warn("hostname", "many receivers want a full name, as in gw.example.com", "%q has no dot", s)
	}
	return name
}

func (l *loader) stream(t *table, name string) *Stream {
	s := &Stream{Name: name}
	t.require("kind", `write kind = "auth" for sign-in mail, "marketing" for what may wait`)
	s.Kind = message.Kind(t.choice("kind", "", string(message.Auth), string(message.Marketing)))
	s.Domains = l.domains(t)
	s.Route, s.Weights = l.route(t)
	s.Egress = t.needed("egress", `name an egress, or write egress = "any" to let the host choose the address`)
	s.DKIM = l.dkim(t)
	s.ReturnPath = l.address(t, "return_path")
	d := defaultsOf(s.Kind)
	s.TTL = t.duration("ttl", d.TTL)
	s.Retry = t.durations("retry", d.Retry...)
	s.Verdict = t.choice("verdict", d.Verdict, "queued", "upstream")
	s.VerdictTimeout = t.duration("verdict_timeout", d.VerdictTimeout)
	s.WhenDown = t.choice("when_down", d.WhenDown, "refuse", "queue")
	s.CommitTimeout = t.duration("commit_timeout", d.CommitTimeout)
	s.AnswerTimeout = t.duration("answer_timeout", d.AnswerTimeout)
	s.HedgeAfter = t.duration("hedge_after", 0)
	s.MaxSize = t.size("max_size", 0)
	s.DefaultFrom = l.address(t, "default_from")
	s.DSNUpstream = t.text("dsn_upstream")
	s.Supersede = t.flag("supersede")
	s.Match = l.matches(t)
	return s
}

// defaultsOf returns the settings that a stream's kind decides: codes are worthless late, newsletters are not.
func defaultsOf(kind message.Kind) Stream {
	if kind == message.Marketing {
		return Stream{
			TTL:            3 * day,
			Retry:          []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour},
			Verdict:        "queued",
			VerdictTimeout: 4 * time.Second,
			WhenDown:       "queue",
			CommitTimeout:  time.Minute,
			AnswerTimeout:  2 * time.Minute,
		}
	}
	return Stream{
		TTL:            time.Hour,
		Retry:          []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 20 * time.Second, 30 * time.Second},
		Verdict:        "upstream",
		VerdictTimeout: 4 * time.Second,
		WhenDown:       "refuse",
		CommitTimeout:  1500 * time.Millisecond,
		AnswerTimeout:  10 * time.Second,
	}
}

// domains returns the From domains of a stream in their canonical form.
func (l *loader) domains(t *table) []string {
	found := t.list("domains", `name the domains of the header From: domains = ["auth.example.com"]`)
	for i, s := range found {
		if s == "" {
			continue
		}
		base, wild := strings.CutPrefix(s, "*.")
		domain, err := message.ParseDomain(base)
		switch {
		case err != nil:
			t.bad(element(t.at("domains"), i), "", "%q is not a domain: %v", s, err)
		case wild && !strings.Contains(domain, "."):
			t.bad(element(t.at("domains"), i), "name the domain below it", "%q holds a whole top-level domain", s)
			domain = ""
		case wild:
			domain = "*." + domain
		}
		found[i] = domain
	}
	return found
}

// dkim reads one table or a list of them.
func (l *loader) dkim(t *table) []DKIM {
	if m, ok := t.m["dkim"].(map[string]any); ok {
		return []DKIM{l.signature(l.table(t.at("dkim"), "dkim", m))}
	}
	const want, hint = "a table or a list of tables", `write dkim = { selector = "gp1", key_file = "gp1.pem" }`
	return l.signatures(t.at("dkim"), t.tables("dkim", want, hint))
}

func (l *loader) signatures(path string, tables []map[string]any) []DKIM {
	if tables == nil {
		return nil
	}
	found := make([]DKIM, len(tables))
	for i, m := range tables {
		found[i] = l.signature(l.table(element(path, i), "dkim", m))
	}
	return found
}

func (l *loader) signature(t *table) DKIM {
	d := DKIM{Shared: t.flag("shared")}
	d.Selector = l.domainAt(t, "selector", t.needed("selector", `name it as in gp1._domainkey: selector = "gp1"`))
	t.require("key_file", "gatepost dkim generate makes one")
	d.KeyFile = t.privateMade("key_file", "gatepost dkim generate FILE --domain DOMAIN")
	d.Domain = l.domainAt(t, "domain", t.text("domain"))
	return d
}

// domainAt returns the canonical form of the domain, or of the labels below one, that stands at key.
func (l *loader) domainAt(t *table, key, s string) string { return l.domainOf(t.at(key), s) }

// domainOf is domainAt by path; s may be empty.
func (l *loader) domainOf(path, s string) string {
	if s == "" {
		return ""
	}
	domain, err := message.ParseDomain(s)
	if err != nil {
		l.bad(path, "", "%q cannot be used: %v", s, err)
	}
	return domain
}

// address returns the mailbox at key, "" where it is absent.
func (l *loader) address(t *table, key string) string {
	s := t.text(key)
	if s == "" {
		return ""
	}
	a, err := message.ParseAddress(s)
	if err != nil {
		t.bad(t.at(key), "", "%q is not an address: %v", s, err)
		return ""
	}
	return a.String()
}

func (l *loader) egress(t *table, name string) *Egress {
	e := &Egress{Name: name, Shared: t.flag("shared")}
	if name == Any {
		t.bad(t.path, "give it another name", "%q is the word for no egress at all", Any)
	}
	e.IPv4 = l.sourceAddress(t, "ipv4", false)
	e.IPv6 = l.sourceAddress(t, "ipv6", true)
	e.PublicIPv4 = l.sourceAddress(t, "public_ipv4", false)
	e.Proxy = l.proxy(t)
	switch {
	case t.has("proxy") && (t.has("ipv4") || t.has("ipv6")):
		t.bad(t.at("proxy"), "remove one of them: what the world sees of a proxy is public_ipv4", "does not go with ipv4 and ipv6: mail leaves from the proxy's address")
	case t.has("proxy"):
	case !t.has("ipv4") && !t.has("ipv6"):
		t.bad(t.path, `write ipv4 = "203.0.113.10", ipv6 or both, or proxy = "socks5://10.0.0.9:1080"`, "has no address")
	case t.has("public_ipv4") && !t.has("ipv4"):
		t.bad(t.at("public_ipv4"), "add ipv4, the address on this host", "is what the world sees of ipv4, which is not set")
	}
	return e
}

// proxy returns host:port of the SOCKS5 proxy that mail leaves through.
func (l *loader) proxy(t *table) string {
	s := t.text("proxy")
	if s == "" {
		return ""
	}
	address, ok := strings.CutPrefix(s, "socks5://")
	host, port, err := splitHostPort(strings.TrimSuffix(address, "/"))
	if !ok || err != nil || port == 0 || !isHost(host) {
		t.bad(t.at("proxy"), `write proxy = "socks5://10.0.0.9:1080"`, "is not socks5://host:port") // it may hold a secret
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

func (l *loader) history(t *table) History {
	return History{
		Addresses: t.choice("addresses", "", "hmac", "clear"),
		Keep:      t.duration("keep", 30*day),
	}
}

// limits reads [limits]. Memory has to have room for the mail in flight and for the program around it.
func (l *loader) limits(t *table) (m Limits) {
	m.BytesInFlight = t.size("bytes_in_flight", 128*megabyte)
	m.Memory = t.size("memory", max(512*megabyte, 4*m.BytesInFlight))
	m.QueueAge = t.duration("queue_age", 0)
	if m.Memory < 2*m.BytesInFlight {
		t.bad(t.at("memory"), "raise it, or lower bytes_in_flight",
			"%s is less than twice bytes_in_flight (%s): mail in flight alone could close the doors", formatSize(m.Memory), formatSize(m.BytesInFlight))
	}
	return m
}

func (l *loader) log(t *table) Log {
	return Log{
		Level:     t.choice("level", "info", "debug", "info", "warn", "error"),
		Format:    t.choice("format", "", "text", "json"),
		Addresses: t.choice("addresses", "", "masked", "clear"),
	}
}
