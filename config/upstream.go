package config

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
)

// upstreamTypes are the types of upstream in the order they are named, each with the keys that it has beside those that
// all have.
var upstreamTypes = []struct {
	name string
	keys []string
}{
	{"smtp", []string{"address", "tls", "tls_ca_file", "tls_server_name", "username", "password_file", "auth", "token_file", "chunking"}},
	{"ses", []string{"endpoint", "tls_ca_file", "region", "access_key_id_file", "secret_access_key_file", "session_token_file", "configuration_set",
		"tenant", "tags", "identity_arn", "feedback_address", "feedback_identity_arn"}},
	{"mailgun", []string{"endpoint", "tls_ca_file", "region", "domain", "api_key_file", "tags", "tracking", "service_dkim", "test_mode", "ip_pool"}},
	{"sendgrid", []string{"endpoint", "tls_ca_file", "region", "api_key_file", "ip_pool", "categories", "tracking", "sandbox"}},
	{"postmark", []string{"endpoint", "tls_ca_file", "server_token_file", "message_stream", "tag", "metadata", "keep_id", "tracking"}},
	{"aliyun", []string{"endpoint", "tls_ca_file", "region", "account_name", "access_key_id_file", "access_key_secret_file", "from_alias", "tag", "tracking"}},
	{"webhook", []string{"url", "tls_ca_file", "format", "secret_file"}},
	{"capture", nil},
}

// everyUpstream are the keys that upstreams of all types have.
var everyUpstream = []string{"type", "connections", "rate", "egress", "dkim", "shared", "commit_timeout", "answer_timeout", "hedge_after"}

func (l *loader) upstream(t *table, name string) *Upstream {
	u := &Upstream{Name: name}
	t.require("type", `write type = "smtp", or "capture" to keep mail instead of sending it`)
	u.Type = t.choice("type", "", upstreamTypesWith("")...)
	l.checkKeys(t, u.Type)
	switch u.Type {
	case "smtp":
		l.smtp(t, u)
	case "capture", "":
	default:
		l.service(t, u)
	}
	u.Connections = t.count("connections", 20, 1000)
	u.Rate = t.count("rate", 0, 100000)
	u.Egress = t.text("egress")
	u.DKIM = l.upstreamDKIM(t, u)
	u.Shared = t.flag("shared")
	u.CommitTimeout = t.duration("commit_timeout", 0)
	u.AnswerTimeout = t.duration("answer_timeout", 0)
	u.HedgeAfter = t.duration("hedge_after", 0)
	return u
}

// upstreamTypesWith names the types that have key; all of them for "".
func upstreamTypesWith(key string) (names []string) {
	for _, t := range upstreamTypes {
		if key == "" || slices.Contains(t.keys, key) {
			names = append(names, t.name)
		}
	}
	return names
}

// checkKeys refuses the keys that mean nothing to an upstream of that type.
func (l *loader) checkKeys(t *table, kind string) {
	for _, key := range slices.Sorted(maps.Keys(t.m)) {
		types := upstreamTypesWith(key)
		if kind == "" || len(types) == 0 || slices.Contains(types, kind) {
			continue
		}
		why := ""
		if kind == "capture" {
			why = ": it connects to nobody"
		}
		t.bad(t.at(key), "remove it, or write type = "+quoted(types), "has no place where type is %q%s", kind, why)
	}
}

// TemplateTypes returns the types of upstream whose services keep templates.
func TemplateTypes() []string { return []string{"ses", "mailgun", "sendgrid", "postmark"} }

// KeepsTemplates reports whether the service of u keeps templates that mail can be made of.
func (u *Upstream) KeepsTemplates() bool { return slices.Contains(TemplateTypes(), u.Type) }

// mapped reports whether the service of u builds the message anew from its parts, so that no signature would survive.
func (u *Upstream) mapped() bool {
	return u.Type == "sendgrid" || u.Type == "postmark" || u.Type == "aliyun"
}

// upstreamDKIM returns what becomes of signatures, and refuses what would never arrive.
func (l *loader) upstreamDKIM(t *table, u *Upstream) string {
	def := "sign"
	if u.mapped() {
		def = "none"
	}
	mode := t.choice("dkim", def, "sign", "strip", "none")
	switch {
	case u.mapped() && mode == "sign":
		t.bad(t.at("dkim"), `remove it: the service signs, with the keys that its console shows`, `"sign" has no place where type is %q: the service builds the message anew, so no signature of ours would arrive`, u.Type)
		return def
	case mode == "sign" && u.Tracking == "on":
		t.bad(t.at("tracking"), `turn it off, or write dkim = "strip" and let the service sign`, "does not go with dkim \"sign\": what the service changes in the body breaks the signature")
	case mode != "sign" && u.ServiceDKIM == "no":
		t.bad(t.at("service_dkim"), `write dkim = "sign", or let the service sign`, `"no" does not go with dkim %q: nobody would sign`, mode)
	}
	return mode
}

func (l *loader) smtp(t *table, u *Upstream) {
	l.upstreamAddress(t, u)
	l.tls(t, u)
	l.login(t, u)
	u.Chunking = t.choice("chunking", "probe", "probe", "always", "never")
	if u.TLS == "none" && (t.has("username") || u.Auth != "") && u.Host != "" && !isLoopback(u.Host) {
		t.bad(t.at("tls"), `use "starttls" or "implicit"`, `"none" would send the password in clear text to %s`, u.Host)
	}
}

func (l *loader) tls(t *table, u *Upstream) {
	def := "starttls"
	if u.Port == 465 {
		def = "implicit"
	}
	u.TLS = t.choice("tls", def, "starttls", "implicit", "none")
	if u.TLS == "none" {
		for _, key := range []string{"tls_ca_file", "tls_server_name"} {
			if t.has(key) {
				t.bad(t.at(key), `remove it, or tls = "none"`, `has no meaning where tls is "none"`)
			}
		}
		return
	}
	u.TLSCAFile = t.certificates("tls_ca_file")
	u.TLSServerName = cmp.Or(l.serverName(t), u.Host)
}

func (l *loader) serverName(t *table) string {
	s := t.text("tls_server_name")
	if ip, err := netip.ParseAddr(s); err == nil {
		return ip.String()
	}
	return l.domainAt(t, "tls_server_name", s)
}

// login reads the credentials. Which of them belong together depends on the mechanism.
func (l *loader) login(t *table, u *Upstream) {
	u.Username = t.text("username")
	u.Password = t.secret("password_file")
	u.Token = t.secret("token_file")
	def := ""
	switch {
	case t.has("token_file"):
		def = "xoauth2"
	case t.has("username"):
		def = "plain"
	}
	u.Auth = t.choice("auth", def, "plain", "login", "xoauth2")

	want, other := "password_file", "token_file"
	if u.Auth == "xoauth2" {
		want, other = other, want
	}
	switch {
	case t.has(other) && u.Auth != "":
		t.bad(t.at(other), "remove it, or change auth", "does not go with auth %q", u.Auth)
	case t.has("username") && !t.has(want):
		t.bad(t.at("username"), "put it into a file with mode 0600 and name that in "+want, "has no %s", want)
	case t.has(want) && !t.has("username"):
		t.bad(t.at(want), "add username", "has no username")
	case t.has("auth") && !t.has("username"):
		t.bad(t.at("auth"), "add username and "+want, "has no username")
	}
}
