package config

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
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
	case []string:
		if len(v) == 0 {
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

// size is set for octets; 0 stands for a limit that is not set.
func (vs *values) size(key string, octets int64) {
	if octets > 0 {
		vs.set(key, formatSize(octets))
	}
}

// flag is set for a switch that only some sections have.
func (vs *values) flag(key string, on bool) {
	if on {
		vs.set(key, on)
	}
}

func (vs *values) pattern(key string, re *regexp.Regexp) {
	if re != nil {
		vs.set(key, re.String())
	}
}

func (c *Config) sections() []section {
	var top values
	top.set("hostname", c.Hostname)
	top.set("state_dir", c.StateDir)
	all := []section{
		{nil, top},
		{[]string{"store"}, c.Store.values()},
		{[]string{"limits"}, c.Limits.values()},
		{[]string{"log"}, c.Log.values()},
		{[]string{"history"}, c.History.values()},
		{[]string{"templates"}, c.Templates.values()},
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
	for _, h := range pick(c.Hook, names(c.Hook)) {
		all = append(all, section{[]string{"hook", h.Name}, h.values()})
	}
	return all
}

func (s Store) values() (vs values) {
	vs.set("engine", s.Engine)
	vs.set("dsn_file", s.DSN.File)
	vs.set("key_file", s.KeyFile)
	vs.set("node", s.Node)
	return vs
}

func (m Limits) values() (vs values) {
	vs.size("bytes_in_flight", m.BytesInFlight)
	vs.size("memory", m.Memory)
	vs.set("queue_age", m.QueueAge)
	return vs
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

func (p Templates) values() (vs values) {
	vs.set("dir", p.Dir)
	vs.set("default_locale", p.DefaultLocale)
	vs.set("chinese_fallback", p.ChineseFallback)
	vs.set("sender_name", p.SenderName)
	vs.set("company_information", p.CompanyInformation)
	vs.set("app_logo", p.AppLogo)
	vs.set("color", p.Color)
	return vs
}

func (s *Listen) values() (vs values) {
	vs.set("protocol", s.Protocol)
	vs.set("address", s.Address)
	vs.set("clients", s.Clients)
	vs.size("max_size", s.MaxSize)
	if !s.HTTP() {
		vs.set("max_recipients", s.MaxRecipients)
	}
	vs.set("max_connections", s.MaxConnections)
	vs.set("max_per_source", s.MaxPerSource)
	vs.set("tls", s.TLS)
	vs.set("tls_cert_file", s.TLSCertFile)
	vs.set("tls_key_file", s.TLSKeyFile)
	vs.set("tls_client_ca_file", s.TLSClientCAFile)
	vs.set("auth", s.Auth)
	if !s.HTTP() {
		vs.set("mixed", s.Mixed)
	}
	vs.set("proxy_from", texts(s.ProxyFrom))
	vs.set("trusted_proxies", texts(s.TrustedProxies))
	if s.OnUnix() {
		vs.set("socket_mode", fmt.Sprintf("%04o", s.SocketMode))
	}
	vs.set("received_from", s.ReceivedFrom)
	return vs
}

func (c *Client) values() (vs values) {
	users := make([]string, len(c.UnixUsers))
	for i, id := range c.UnixUsers {
		users[i] = strconv.Itoa(id)
	}
	vs.set("networks", texts(c.Networks))
	vs.set("username", c.Username)
	vs.set("password_file", c.Password.File)
	vs.set("tls_names", c.TLSNames)
	vs.set("unix_users", users)
	files := make([]string, len(c.Tokens))
	for i, s := range c.Tokens {
		files[i] = s.File
	}
	vs.set("token_files", files)
	vs.set("token_header", c.TokenHeader)
	vs.set("streams", c.Streams)
	vs.size("max_size", c.MaxSize)
	if c.MaxConnections > 0 {
		vs.set("max_connections", c.MaxConnections)
	}
	return vs
}

func texts(ps []netip.Prefix) []string {
	ts := make([]string, len(ps))
	for i, p := range ps {
		ts[i] = p.String()
	}
	return ts
}

func (s *Stream) values() (vs values) {
	vs.set("kind", string(s.Kind))
	vs.set("domains", s.Domains)
	vs.set("route", s.legs())
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
	vs.set("hedge_after", s.HedgeAfter)
	vs.size("max_size", s.MaxSize)
	vs.set("default_from", s.DefaultFrom)
	vs.set("dsn_upstream", s.DSNUpstream)
	vs.set("supersede", s.Supersede)
	if len(s.Match) > 0 {
		rules := make([]values, len(s.Match))
		for i, m := range s.Match {
			rules[i] = m.values()
		}
		vs.set("match", rules)
	}
	return vs
}

// legs returns the route as it is written: names alone where nothing is weighted.
func (s *Stream) legs() any {
	if s.Weights == nil {
		return s.Route
	}
	legs := make([]values, len(s.Route))
	for i, name := range s.Route {
		legs[i].set("upstream", name)
		if w := s.Weights[name]; w > 0 {
			legs[i].set("weight", w)
		}
	}
	return legs
}

func (m Match) values() (vs values) {
	vs.pattern("subject", m.Subject)
	vs.set("header", m.Header)
	vs.pattern("value", m.Value)
	vs.set("ttl", m.TTL)
	vs.set("purpose", m.Purpose)
	vs.set("verdict", m.Verdict)
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
	if e.Proxy != "" {
		vs.set("proxy", "socks5://"+e.Proxy)
	}
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
	vs.set("chunking", u.Chunking)
	u.serviceValues(&vs)
	vs.set("connections", u.Connections)
	if u.Rate > 0 {
		vs.set("rate", u.Rate)
	}
	vs.set("egress", u.Egress)
	vs.set("dkim", u.DKIM)
	vs.set("shared", u.Shared)
	vs.set("commit_timeout", u.CommitTimeout)
	vs.set("answer_timeout", u.AnswerTimeout)
	vs.set("hedge_after", u.HedgeAfter)
	return vs
}

// serviceValues adds what only services with an API have.
func (u *Upstream) serviceValues(vs *values) {
	vs.set("endpoint", u.Endpoint)
	vs.set("region", u.Region)
	vs.set("access_key_id_file", u.AccessKeyID.File)
	vs.set("secret_access_key_file", u.SecretAccessKey.File)
	vs.set("session_token_file", u.SessionToken.File)
	vs.set("access_key_secret_file", u.AccessKeySecret.File)
	vs.set("configuration_set", u.ConfigurationSet)
	vs.set("tenant", u.Tenant)
	vs.set("identity_arn", u.IdentityARN)
	vs.set("feedback_address", u.FeedbackAddress)
	vs.set("feedback_identity_arn", u.FeedbackIdentityARN)
	vs.set("domain", u.Domain)
	vs.set("api_key_file", u.APIKey.File)
	vs.set("server_token_file", u.ServerToken.File)
	vs.set("account_name", u.AccountName)
	vs.set("from_alias", u.FromAlias)
	vs.set("message_stream", u.MessageStream)
	vs.set("ip_pool", u.IPPool)
	vs.set("tag", u.Tag)
	vs.set("tags", u.Tags)
	vs.set("categories", u.Categories)
	vs.set("metadata", u.Metadata)
	vs.set("tracking", u.Tracking)
	vs.set("service_dkim", u.ServiceDKIM)
	vs.set("url", u.URL)
	vs.set("format", u.Format)
	vs.set("secret_file", u.Secret.File)
	vs.flag("test_mode", u.TestMode)
	vs.flag("sandbox", u.Sandbox)
	if u.Type == "postmark" {
		vs.set("keep_id", u.KeepID)
	}
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
