package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Effective returns the config as TOML with every default filled in, paths absolute and domains in canonical form.
// Loading it gives the same Config. Of secrets it has the paths of their files.
func (c *Config) Effective() string {
	var b strings.Builder
	for i, s := range c.sections() {
		if i > 0 {
			b.WriteString("\n")
		}
		if len(s.path) > 0 {
			fmt.Fprintf(&b, "[%s]\n", strings.Join(s.path, "."))
		}
		for _, v := range s.values {
			fmt.Fprintf(&b, "%s = %s\n", v.key, literal(v.value))
		}
	}
	return b.String()
}

// MarshalJSON returns what Effective does, as JSON: same names, same values.
func (c *Config) MarshalJSON() ([]byte, error) {
	top := map[string]any{}
	for _, s := range c.sections() {
		m := top
		for _, name := range s.path {
			inner, ok := m[name].(map[string]any)
			if !ok {
				inner = map[string]any{}
				m[name] = inner
			}
			m = inner
		}
		s.values.fill(m)
	}
	return json.Marshal(top)
}

// section is one table of the effective config; values are strings, integers, booleans and lists of strings or values.
type section struct {
	path   []string // none for the top
	values values
}

type values []value

type value struct {
	key   string
	value any
}

func (vs values) fill(m map[string]any) {
	for _, v := range vs {
		list, ok := v.value.([]values)
		if !ok {
			m[v.key] = v.value
			continue
		}
		tables := make([]map[string]any, len(list))
		for i, inner := range list {
			tables[i] = map[string]any{}
			inner.fill(tables[i])
		}
		m[v.key] = tables
	}
}

// set adds a value; one that is not set has no line, since its absence is the only way to say so.
func (vs *values) set(key string, v any) {
	switch v := v.(type) {
	case string:
		if v == "" {
			return
		}
	case time.Duration:
		if v != 0 {
			*vs = append(*vs, value{key, formatDuration(v)})
		}
		return
	case netip.Addr:
		if v.IsValid() {
			*vs = append(*vs, value{key, v.String()})
		}
		return
	}
	*vs = append(*vs, value{key, v})
}

func (c *Config) sections() []section {
	var top values
	top.set("hostname", c.Hostname)
	top.set("state_dir", c.StateDir)
	all := []section{
		{nil, top},
		{[]string{"store"}, values{{"engine", c.Store.Engine}}},
		{[]string{"limits"}, values{{"bytes_in_flight", formatSize(c.Limits.BytesInFlight)}}},
		{[]string{"log"}, c.Log.values()},
		{[]string{"history"}, c.History.values()},
	}
	for _, s := range pick(c.Listen, names(c.Listen)) {
		all = append(all, section{[]string{"listen", s.Name}, s.values()})
	}
	for _, s := range pick(c.Client, names(c.Client)) {
		all = append(all, section{[]string{"client", s.Name}, s.values()})
	}
	for _, s := range pick(c.Stream, names(c.Stream)) {
		all = append(all, section{[]string{"stream", s.Name}, s.values()})
	}
	for _, s := range pick(c.Egress, names(c.Egress)) {
		all = append(all, section{[]string{"egress", s.Name}, s.values()})
	}
	for _, s := range pick(c.Upstream, names(c.Upstream)) {
		all = append(all, section{[]string{"upstream", s.Name}, s.values()})
	}
	return all
}

func (g Log) values() (vs values) {
	vs.set("level", g.Level)
	vs.set("format", g.Format)
	vs.set("addresses", g.Addresses)
	return vs
}

func (h History) values() (vs values) {
	vs.set("addresses", h.Addresses)
	vs.set("keep", h.Keep)
	return vs
}

func (s *Listen) values() (vs values) {
	vs.set("protocol", s.Protocol)
	vs.set("address", s.Address)
	vs.set("clients", s.Clients)
	vs.set("max_size", formatSize(s.MaxSize))
	vs.set("max_recipients", s.MaxRecipients)
	vs.set("max_connections", s.MaxConnections)
	vs.set("max_per_source", s.MaxPerSource)
	vs.set("received_from", s.ReceivedFrom)
	return vs
}

func (c *Client) values() (vs values) {
	networks := make([]string, len(c.Networks))
	for i, p := range c.Networks {
		networks[i] = p.String()
	}
	vs.set("networks", networks)
	vs.set("streams", c.Streams)
	return vs
}

func (s *Stream) values() (vs values) {
	vs.set("kind", string(s.Kind))
	vs.set("domains", s.Domains)
	vs.set("route", s.Route)
	vs.set("egress", s.Egress)
	if len(s.DKIM) > 0 {
		signatures := make([]values, len(s.DKIM))
		for i, d := range s.DKIM {
			signatures[i] = d.values()
		}
		vs.set("dkim", signatures)
	}
	vs.set("return_path", s.ReturnPath)
	vs.set("ttl", s.TTL)
	retry := make([]string, len(s.Retry))
	for i, d := range s.Retry {
		retry[i] = formatDuration(d)
	}
	vs.set("retry", retry)
	vs.set("verdict", s.Verdict)
	vs.set("verdict_timeout", s.VerdictTimeout)
	vs.set("when_down", s.WhenDown)
	vs.set("commit_timeout", s.CommitTimeout)
	vs.set("answer_timeout", s.AnswerTimeout)
	return vs
}

func (d DKIM) values() (vs values) {
	vs.set("selector", d.Selector)
	vs.set("key_file", d.KeyFile)
	vs.set("domain", d.Domain)
	vs.set("shared", d.Shared)
	return vs
}

func (e *Egress) values() (vs values) {
	vs.set("ipv4", e.IPv4)
	vs.set("ipv6", e.IPv6)
	vs.set("public_ipv4", e.PublicIPv4)
	vs.set("shared", e.Shared)
	return vs
}

func (u *Upstream) values() (vs values) {
	vs.set("type", u.Type)
	vs.set("address", u.Address)
	vs.set("tls", u.TLS)
	vs.set("tls_ca_file", u.TLSCAFile)
	vs.set("tls_server_name", u.TLSServerName)
	vs.set("username", u.Username)
	vs.set("password_file", u.Password.File)
	vs.set("auth", u.Auth)
	vs.set("token_file", u.Token.File)
	vs.set("connections", u.Connections)
	vs.set("egress", u.Egress)
	vs.set("dkim", u.DKIM)
	vs.set("shared", u.Shared)
	vs.set("commit_timeout", u.CommitTimeout)
	vs.set("answer_timeout", u.AnswerTimeout)
	return vs
}

// literal writes a value as TOML.
func literal(v any) string {
	switch v := v.(type) {
	case string:
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"` // Load lets no control characters through
	case []string:
		texts := make([]string, len(v))
		for i, s := range v {
			texts[i] = literal(s)
		}
		return "[" + strings.Join(texts, ", ") + "]"
	case []values:
		tables := make([]string, len(v))
		for i, inner := range v {
			tables[i] = inner.inline()
		}
		return "[" + strings.Join(tables, ", ") + "]"
	default: // an integer or a boolean
		return fmt.Sprint(v)
	}
}

func (vs values) inline() string {
	pairs := make([]string, len(vs))
	for i, v := range vs {
		pairs[i] = v.key + " = " + literal(v.value)
	}
	return "{ " + strings.Join(pairs, ", ") + " }"
}
