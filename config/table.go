package config

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// keys lists what may stand in each kind of section. A key that is not here is an error in the file.
var keys = map[string][]string{
	"":      {"hostname", "state_dir", "store", "listen", "client", "stream", "egress", "upstream", "hook", "history", "log", "limits", "templates"},
	"store": {"engine", "dsn_file", "key_file", "node"},
	"listen": {"protocol", "address", "clients", "max_size", "max_recipients", "max_connections", "max_per_source", "tls", "tls_cert_file",
		"tls_key_file", "tls_client_ca_file", "auth", "mixed", "proxy_from", "trusted_proxies", "socket_mode", "received_from"},
	"client": {"networks", "username", "password_file", "tls_names", "unix_users", "token_files", "token_header", "streams", "max_size",
		"max_connections"},
	"stream": {"kind", "domains", "route", "egress", "dkim", "return_path", "ttl", "retry", "verdict", "verdict_timeout",
		"when_down", "commit_timeout", "answer_timeout", "hedge_after", "max_size", "default_from", "dsn_upstream", "supersede", "match"},
	"route":  {"upstream", "weight"},
	"match":  {"subject", "header", "value", "ttl", "purpose", "verdict"},
	"dkim":   {"selector", "key_file", "domain", "shared"},
	"egress": {"ipv4", "ipv6", "public_ipv4", "proxy", "shared"},
	"upstream": {"type", "address", "tls", "tls_ca_file", "tls_server_name", "username", "password_file", "auth", "token_file",
		"chunking", "endpoint", "region", "access_key_id_file", "secret_access_key_file", "session_token_file", "configuration_set", "tenant",
		"identity_arn", "feedback_address", "feedback_identity_arn", "domain", "api_key_file", "service_dkim", "test_mode", "ip_pool",
		"categories", "sandbox", "server_token_file", "message_stream", "metadata", "keep_id", "account_name",
		"access_key_secret_file", "from_alias", "tag", "tags", "tracking", "url", "format", "secret_file",
		"connections", "rate", "egress", "dkim", "shared", "commit_timeout", "answer_timeout", "hedge_after"},
	"hook": {"adapter", "client", "stream", "from", "verdict_timeout", "signing_secret_files", "link_base_url", "link_schemes",
		"recipient_limit", "client_limit", "network_limit", "ip_limit"},
	"history": {"addresses", "keep"},
	"log":     {"level", "format", "addresses"},
	"limits":  {"bytes_in_flight", "memory", "queue_age"},

	"templates": {"dir", "default_locale", "chinese_fallback", "sender_name", "company_information", "app_logo", "color"},
}

// table is one TOML table while it is read. Where a value cannot be used its getters note the problem and return the
// default, or for lists a zero element in its place, so that one mistake is told once.
type table struct {
	*loader
	path string // "stream.auth"; "" for the top
	m    map[string]any
}

func (t *table) at(key string) string { return join(t.path, key) }

func (t *table) has(key string) bool { _, ok := t.m[key]; return ok }

// sub returns the table at key as one of the given kind; an empty one where there is none.
func (t *table) sub(key, kind string) *table {
	m, ok := t.m[key].(map[string]any)
	if !ok && t.has(key) {
		t.wrongType(t.at(key), t.m[key], "a table", "")
	}
	return t.table(t.at(key), kind, m)
}

// table makes a table and notes the keys that its kind does not have.
func (l *loader) table(path, kind string, m map[string]any) *table {
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if slices.Contains(keys[kind], key) {
			continue
		}
		hint := "known here: " + strings.Join(keys[kind], ", ")
		if near := nearest(key, keys[kind]); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		l.bad(join(path, key), hint, "unknown key")
	}
	return &table{l, path, m}
}

// tables returns the tables of the list at key, written [{ … }] or [[key]]; nil where there are none.
func (t *table) tables(key, want, hint string) []map[string]any {
	switch v := t.m[key].(type) {
	case nil:
	case []map[string]any:
		return v
	case []any:
		return t.inlineTables(key, v)
	default:
		t.wrongType(t.at(key), v, want, hint)
	}
	return nil
}

func (t *table) inlineTables(key string, list []any) []map[string]any {
	if len(list) == 0 {
		t.bad(t.at(key), "leave the key out for none", "is empty")
		return nil
	}
	found := make([]map[string]any, len(list))
	for i, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			t.wrongType(element(t.at(key), i), v, "a table", "")
			return nil
		}
		found[i] = m
	}
	return found
}

// text returns the string at key, or "" where it is absent or cannot be used.
func (t *table) text(key string) string {
	v, ok := t.m[key]
	if !ok {
		return ""
	}
	return t.expand(t.at(key), v, "a string")
}

// require notes where key is missing.
func (t *table) require(key, hint string) {
	if !t.has(key) {
		t.bad(t.at(key), hint, "is missing")
	}
}

// needed returns the string at key, which must be there.
func (t *table) needed(key, hint string) string {
	t.require(key, hint)
	return t.text(key)
}

// choice returns the word at key, which must be one of words, or def.
func (t *table) choice(key, def string, words ...string) string {
	s := t.text(key)
	if s == "" {
		return def
	}
	if !slices.Contains(words, s) {
		t.bad(t.at(key), "", "%q is not %s", s, quoted(words))
		return def
	}
	return s
}

// list returns the strings at key, which must be there, and notes where there are none or one stands twice.
func (t *table) list(key, hint string) []string {
	t.require(key, hint)
	return t.optionalList(key, hint)
}

// optionalList is list for a key that may be absent.
func (t *table) optionalList(key, hint string) []string {
	if !t.has(key) {
		return nil
	}
	values, ok := t.m[key].([]any)
	if !ok {
		if s, isText := t.m[key].(string); isText {
			hint = fmt.Sprintf("write [%q]", s)
		}
		t.wrongType(t.at(key), t.m[key], "a list of strings", hint)
		return nil
	}
	if len(values) == 0 {
		t.bad(t.at(key), hint, "is empty")
	}
	found := make([]string, len(values))
	for i, v := range values {
		s := t.expand(element(t.at(key), i), v, "a string")
		if s != "" && slices.Contains(found, s) {
			t.bad(element(t.at(key), i), "", "%q stands here twice", s)
			continue
		}
		found[i] = s
	}
	return found
}

func (t *table) flag(key string) bool { return t.flagOr(key, false) }

// flagOr returns the boolean at key, or def.
func (t *table) flagOr(key string, def bool) bool {
	v, ok := t.m[key]
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		t.wrongType(t.at(key), v, "true or false", "")
	}
	return b
}

// count returns the integer at key, which must be from 1 to most, or def.
func (t *table) count(key string, def, most int) int {
	v, ok := t.m[key]
	if !ok {
		return def
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.wrongType(t.at(key), v, "an integer", "")
	case n < 1 || n > int64(most):
		t.bad(t.at(key), "", "%d is not from 1 to %d", n, most)
	default:
		return int(n)
	}
	return def
}

// size returns the octets at key, or def.
func (t *table) size(key string, def int64) int64 {
	const hint = `write "25MB", "512KB" or a number of octets; MB is 1024*1024`
	var n int64
	switch v := t.m[key].(type) {
	case nil:
		return def
	case int64:
		n = v
	case string:
		s := t.text(key)
		if s == "" {
			return def
		}
		var err error
		if n, err = parseSize(s); err != nil {
			t.bad(t.at(key), hint, "%q %v", s, err)
			return def
		}
	default:
		t.wrongType(t.at(key), v, "a size", hint)
		return def
	}
	if n < kilobyte {
		t.bad(t.at(key), hint, "%d octets is too small for mail", n)
		return def
	}
	return n
}

// duration returns the duration at key, or def.
func (t *table) duration(key string, def time.Duration) time.Duration {
	v, ok := t.m[key]
	if !ok {
		return def
	}
	if d := t.wait(t.at(key), v); d > 0 {
		return d
	}
	return def
}

// durations returns the list of durations at key, or def.
func (t *table) durations(key string, def ...time.Duration) []time.Duration {
	v, ok := t.m[key]
	if !ok {
		return def
	}
	values, ok := v.([]any)
	if !ok {
		t.wrongType(t.at(key), v, "a list of durations", `write ["1s", "5s", "30s"]`)
		return def
	}
	if len(values) == 0 {
		t.bad(t.at(key), "leave the key out for the default", "is empty")
		return def
	}
	found := make([]time.Duration, len(values))
	for i, v := range values {
		found[i] = t.wait(element(t.at(key), i), v)
	}
	return found
}

// wait reads one duration above zero; 0 where it cannot.
func (l *loader) wait(path string, v any) time.Duration {
	const hint = `write "90s", "1h30m" or "3d"`
	if n, ok := v.(int64); ok {
		l.bad(path, fmt.Sprintf(`write "%ds" if seconds are meant`, n), "%d has no unit", n)
		return 0
	}
	s := l.expand(path, v, "a duration")
	if s == "" {
		return 0
	}
	d, err := parseDuration(s)
	switch {
	case err != nil:
		l.bad(path, hint, "%q %v", s, err)
	case d < time.Millisecond || d > longest:
		l.bad(path, hint, "%q is not from 1ms to %s", s, formatDuration(longest))
	default:
		return d
	}
	return 0
}

var variable = regexp.MustCompile(`\$\{([^}]*)\}`)

// expand returns the string v with each ${NAME} replaced by the environment's value; "" where it cannot be used.
func (l *loader) expand(path string, v any, want string) string {
	s, ok := v.(string)
	if !ok {
		l.wrongType(path, v, want, "")
		return ""
	}
	missing := false
	s = variable.ReplaceAllStringFunc(s, func(m string) string {
		name := m[2 : len(m)-1]
		value, ok := os.LookupEnv(name)
		if !ok {
			missing = true
			l.bad(path, "set it, or write the value here", "the environment variable %q is not set", name)
		}
		return value
	})
	switch {
	case missing:
		return ""
	case s == "":
		l.bad(path, "leave the key out for the default", "is empty")
		return ""
	case strings.Contains(s, "${"):
		l.bad(path, "write ${NAME}", "has ${ without a variable's name and }")
		return ""
	case len(s) > 4096:
		l.bad(path, "", "is longer than 4096 octets")
		return ""
	case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
		l.bad(path, "", "has a control character or invalid UTF-8")
		return ""
	}
	return s
}

func (l *loader) wrongType(path string, v any, want, hint string) {
	l.bad(path, hint, "is %s, want %s", typeName(v), want)
}

// typeName names the type of a decoded value in words.
func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a number with a fraction"
	case bool:
		return "true or false"
	case time.Time:
		return "a date or time"
	case []any, []map[string]any:
		return "a list"
	}
	return "a table"
}

// quoted writes words for a message: "a", "b" or "c".
func quoted(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", w)
	}
	return b.String()
}
