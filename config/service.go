package config

import (
	"net/netip"
	"net/url"
	"strings"

	"gatepost/message"
)

// service reads what an upstream with an API is reached and paid by.
func (l *loader) service(t *table, u *Upstream) {
	u.Endpoint = l.endpoint(t)
	u.TLSCAFile = t.certificates("tls_ca_file")
	u.Tracking = t.choice("tracking", "", "on", "off")
	switch u.Type {
	case "ses":
		l.ses(t, u)
	case "mailgun":
		l.mailgun(t, u)
	case "sendgrid":
		l.sendgrid(t, u)
	case "postmark":
		l.postmark(t, u)
	case "aliyun":
		l.aliyun(t, u)
	case "webhook":
		l.webhook(t, u)
	}
}

func (l *loader) ses(t *table, u *Upstream) {
	u.Region = t.word("region", `name it as AWS does: region = "eu-central-1"`, "-", 32, true)
	u.AccessKeyID = t.secret("access_key_id_file")
	u.SecretAccessKey = t.secret("secret_access_key_file")
	u.SessionToken = t.secret("session_token_file")
	switch id, secret := t.has("access_key_id_file"), t.has("secret_access_key_file"); {
	case id && !secret:
		t.bad(t.at("access_key_id_file"), "add secret_access_key_file, or leave both out for the role of this machine", "has no secret_access_key_file")
	case secret && !id:
		t.bad(t.at("secret_access_key_file"), "add access_key_id_file", "has no access_key_id_file")
	case !id && t.has("session_token_file"):
		t.bad(t.at("session_token_file"), "add access_key_id_file and secret_access_key_file", "belongs to a key of its own")
	}
	u.ConfigurationSet = t.word("configuration_set", "", "-_", 64, false)
	u.Tenant = t.word("tenant", "", "-_", 64, false)
	u.Tags = t.pairs("tags", 50, 256)
	u.IdentityARN = t.arn("identity_arn")
	u.FeedbackAddress = l.address(t, "feedback_address")
	u.FeedbackIdentityARN = t.arn("feedback_identity_arn")
	if t.has("feedback_identity_arn") && !t.has("feedback_address") {
		t.bad(t.at("feedback_identity_arn"), "add feedback_address", "is of the identity of feedback_address, which is not set")
	}
}

func (l *loader) mailgun(t *table, u *Upstream) {
	u.Domain = l.domainAt(t, "domain", t.needed("domain", `name the domain as Mailgun has it: domain = "mg.example.com"`))
	u.APIKey = t.neededSecret("api_key_file")
	u.Region = t.choice("region", "us", "us", "eu")
	u.Tags = t.labels("tags", 10, 128)
	u.ServiceDKIM = t.choice("service_dkim", "", "yes", "no")
	u.IPPool = t.word("ip_pool", "", "-_", 64, false)
	if u.TestMode = t.flag("test_mode"); u.TestMode {
		t.warnCaptures("test_mode")
	}
}

func (l *loader) sendgrid(t *table, u *Upstream) {
	u.APIKey = t.neededSecret("api_key_file")
	u.Region = t.choice("region", "global", "global", "eu")
	if u.IPPool = t.label("ip_pool", 64); len(u.IPPool) == 1 {
		t.bad(t.at("ip_pool"), "", "%q has one character; SendGrid's pools have 2 to 64", u.IPPool)
	}
	u.Categories = t.labels("categories", 10, 255)
	if u.Sandbox = t.flag("sandbox"); u.Sandbox {
		t.warnCaptures("sandbox")
	}
}

// PostmarkTestToken is the server token with which Postmark looks at mail and throws it away.
const PostmarkTestToken = "POSTMARK_API_TEST"

func (l *loader) postmark(t *table, u *Upstream) {
	u.ServerToken = t.neededSecret("server_token_file")
	if token, err := u.ServerToken.Read(); err == nil && token == PostmarkTestToken {
		t.warn(t.at("server_token_file"), "put the token of a server there before real users wait for mail",
			"holds %s: Postmark takes mail and delivers none of it", PostmarkTestToken)
	}
	u.MessageStream = t.word("message_stream", "", "-_", 64, false)
	if u.MessageStream == "" {
		u.MessageStream = "outbound"
	}
	u.Tag = t.label("tag", 1000)
	u.Metadata = t.pairs("metadata", 9, 80) // ten, one of which is our id
	for i, pair := range u.Metadata {
		if strings.HasPrefix(pair, "gid=") {
			t.bad(element(t.at("metadata"), i), "choose another name", "gid is the name of our own id in the metadata")
		}
	}
	u.KeepID = t.flagOr("keep_id", true)
}

func (l *loader) aliyun(t *table, u *Upstream) {
	u.AccountName = l.address(t, "account_name")
	t.require("account_name", `name the sender address as DirectMail has it: account_name = "no-reply@auth.example.com"`)
	u.AccessKeyID = t.neededSecret("access_key_id_file")
	u.AccessKeySecret = t.neededSecret("access_key_secret_file")
	u.Region = t.choice("region", "cn-hangzhou", "cn-hangzhou", "ap-southeast-1", "us-east-1", "eu-central-1")
	u.FromAlias = t.text("from_alias")
	if n := len([]rune(u.FromAlias)); n >= 15 {
		t.bad(t.at("from_alias"), "shorten it", "has %d characters; the service takes less than 15", n)
	}
	u.Tag = t.word("tag", "", "-_", 128, false)
}

func (l *loader) webhook(t *table, u *Upstream) {
	u.URL = l.webURL(t, "url", t.needed("url", `write url = "https://mail.example.com/deliver"`), true)
	u.Format = t.choice("format", "raw", "raw", "json")
	u.Secret = t.neededSecret("secret_file")
}

// warnCaptures tells of a switch that makes the service take mail and throw it away.
func (t *table) warnCaptures(key string) {
	t.warn(t.at(key), "remove it before real users wait for mail", "is on: the service takes mail and delivers none of it")
}

// neededSecret is secret for a key that must be there.
func (t *table) neededSecret(key string) Secret {
	t.require(key, "put the secret into a file with mode 0600 and name that")
	return t.secret(key)
}

// endpoint returns the URL that takes the place of the service's own.
func (l *loader) endpoint(t *table) string {
	return l.webURL(t, "endpoint", t.text("endpoint"), false)
}

// webURL returns the URL at key, which leads over https unless it stays on this machine; "" where it cannot be used.
func (l *loader) webURL(t *table, key, s string, path bool) string {
	if s == "" {
		return ""
	}
	const hint = `write "https://host" or "https://host:port"`
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || !isHost(u.Hostname()) {
		t.bad(t.at(key), hint, "is not the URL of a web service") // it may hold a secret: never shown
		return ""
	}
	switch {
	case u.User != nil:
		t.bad(t.at(key), "remove them: credentials have files of their own", "has credentials")
	case u.Fragment != "" || !path && (strings.Trim(u.Path, "/") != "" || u.RawQuery != ""):
		t.bad(t.at(key), hint, "has more than a host and a port")
	case u.Scheme == "http" && !isLoopback(u.Hostname()):
		t.bad(t.at(key), "use https", "would send mail and credentials in clear text to %s", u.Host)
	case path:
		return u.String()
	default:
		return u.Scheme + "://" + u.Host
	}
	return ""
}

// isHost reports whether s is a name or an address that can be connected to.
func isHost(s string) bool {
	if ip, err := netip.ParseAddr(s); err == nil {
		return !ip.IsUnspecified() && !ip.IsMulticast() && ip.Zone() == ""
	}
	_, err := message.ParseDomain(s)
	return err == nil
}

// word returns the string at key, which may have ASCII letters, digits and the marks given.
func (t *table) word(key, hint, marks string, most int, required bool) string {
	if required {
		t.require(key, hint)
	}
	s := t.text(key)
	if s != "" && (!isWord(s, marks) || len(s) > most) {
		t.bad(t.at(key), hint, "%q is not 1 to %d letters, digits and any of %q", s, most, marks)
		return ""
	}
	return s
}

func isWord(s, marks string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(marks, rune(c)) {
			return false
		}
	}
	return s != ""
}

// label returns the string at key, which must be printable ASCII of at most so many octets.
func (t *table) label(key string, most int) string {
	s := t.text(key)
	if s != "" && !isLabel(s, most) {
		t.bad(t.at(key), "", "%q is not 1 to %d ASCII characters", s, most)
		return ""
	}
	return s
}

func isLabel(s string, most int) bool {
	return len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// labels returns the list at key, of at most n labels.
func (t *table) labels(key string, n, most int) []string {
	found := t.optionalList(key, `write `+key+` = ["sign-in"]`)
	if len(found) > n {
		t.bad(t.at(key), "", "has %d entries; the service takes %d", len(found), n)
	}
	for i, s := range found {
		if !isLabel(s, most) {
			t.bad(element(t.at(key), i), "", "%q is not 1 to %d ASCII characters", s, most)
		}
	}
	return found
}

// pairs returns the list at key, of at most n entries "name=value" of words that have at most so many octets.
func (t *table) pairs(key string, n, most int) []string {
	hint := `write ` + key + ` = ["app=sign-in"]`
	found := t.optionalList(key, hint)
	if len(found) > n {
		t.bad(t.at(key), "", "has %d entries; the service takes %d", len(found), n)
	}
	for i, s := range found {
		name, value, ok := strings.Cut(s, "=")
		if s != "" && (!ok || !isWord(name, "-_") || !isWord(value, "-_.@") || max(len(name), len(value)) > most) {
			t.bad(element(t.at(key), i), hint, "%q is not name=value of letters, digits, - and _", s)
		}
	}
	return found
}

// arn returns the Amazon resource name at key.
func (t *table) arn(key string) string {
	s := t.text(key)
	if s != "" && (!strings.HasPrefix(s, "arn:") || strings.Count(s, ":") < 5 || !isLabel(s, 1011)) {
		t.bad(t.at(key), `it looks like "arn:aws:ses:eu-central-1:123456789012:identity/example.com"`, "%q is not the ARN of an identity", s)
		return ""
	}
	return s
}
