package config

import (
	"cmp"
	"net/netip"
)

func (l *loader) upstream(t *table, name string) *Upstream {
	u := &Upstream{Name: name}
	t.require("type", `write type = "smtp", or "capture" to keep mail instead of sending it`)
	u.Type = t.choice("type", "", "smtp", "capture")
	switch u.Type {
	case "smtp":
		l.smtp(t, u)
	case "capture":
		l.capture(t)
	}
	u.Connections = t.count("connections", 20, 1000)
	u.Egress = t.text("egress")
	u.DKIM = t.choice("dkim", "sign", "sign", "strip", "none")
	u.Shared = t.flag("shared")
	u.CommitTimeout = t.duration("commit_timeout", 0)
	u.AnswerTimeout = t.duration("answer_timeout", 0)
	u.HedgeAfter = t.duration("hedge_after", 0)
	return u
}

// capture refuses the keys that mean nothing to an upstream that connects to nobody.
func (l *loader) capture(t *table) {
	for _, key := range []string{"address", "tls", "tls_ca_file", "tls_server_name", "username", "password_file", "auth", "token_file"} {
		if t.has(key) {
			t.bad(t.at(key), `remove it, or write type = "smtp"`, `has no place where type is "capture": it connects to nobody`)
		}
	}
}

func (l *loader) smtp(t *table, u *Upstream) {
	l.upstreamAddress(t, u)
	l.tls(t, u)
	l.login(t, u)
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
