package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/mail"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gatepost/message"
)

// Hook is [hook.NAME]: how the requests of one caller become mail.
type Hook struct {
	Name           string
	Adapter        string // "logto", "zitadel", "supabase", "kratos", "novu" or "native": whose requests they are
	Client         string // who calls
	Stream         string // which mail becomes of it
	From           string // the sender, an address with or without a name; "" for no-reply@ the stream's first domain
	VerdictTimeout time.Duration
	SigningSecrets []Secret // of signed requests: two while one replaces the other; re-read when they change
	LinkBaseURL    string   // supabase: what links begin with
	LinkSchemes    []string // of links beside https
	RecipientLimit Rate     // of mail to one address …
	ClientLimit    Rate     // … of the caller
	NetworkLimit   Rate     // … of one network
	IPLimit        Rate     // … for one public address that the request names as the person's
}

// Rate is a limit: Count at once, and as many again in each Per. The zero Rate is no limit.
type Rate struct {
	Count int
	Per   time.Duration
}

func (r Rate) String() string {
	if r.Count == 0 {
		return "none"
	}
	return strconv.Itoa(r.Count) + "/" + formatDuration(r.Per)
}

// Signed reports whether requests of h are signed; others carry a token.
func (h *Hook) Signed() bool { return slices.Contains(signedAdapters, h.Adapter) }

var (
	adapters       = []string{"logto", "zitadel", "supabase", "kratos", "novu", "native"}
	signedAdapters = []string{"zitadel", "supabase", "novu"}
	hastyAdapters  = []string{"zitadel", "supabase"} // give up after 5 s
)

const (
	maxHastyWait   = 4 * time.Second  // verdict_timeout of hastyAdapters stays below
	maxVerdictWait = 10 * time.Second // … of others: the page of a person who signs in has given up then
	leastToken     = 16               // octets: shorter ones could be guessed
)

func (l *loader) hook(t *table, name string) *Hook {
	h := &Hook{Name: name}
	t.require("adapter", `write adapter = "logto", or whose requests they are`)
	h.Adapter = t.choice("adapter", "", adapters...)
	h.Client = t.needed("client", "name who calls: [client.NAME]")
	h.Stream = t.needed("stream", "name the stream of its mail: [stream.NAME]")
	h.From = l.mailbox(t, "from")
	h.VerdictTimeout = t.duration("verdict_timeout", 3*time.Second)
	h.SigningSecrets = l.signingSecrets(t, h)
	h.LinkSchemes = l.linkSchemes(t)
	h.LinkBaseURL = l.linkBase(t, h)
	h.RecipientLimit = t.rate("recipient_limit", Rate{10, 10 * time.Minute})
	h.ClientLimit = t.rate("client_limit", Rate{6000, 10 * time.Minute})
	h.NetworkLimit = t.rate("network_limit", Rate{6000, 10 * time.Minute})
	h.IPLimit = t.rate("ip_limit", Rate{})
	return h
}

// mailbox returns an address that may have a display name, in its canonical form; "" where it is absent.
func (l *loader) mailbox(t *table, key string) string {
	s := t.text(key)
	if s == "" {
		return ""
	}
	named, err := mail.ParseAddress(s)
	var a message.Address
	if err == nil {
		a, err = message.ParseAddress(named.Address)
	}
	if err != nil {
		t.bad(t.at(key), `write "no-reply@auth.example.com" or "Example <no-reply@auth.example.com>"`, "%q is not an address: %v", s, err)
		return ""
	}
	if named.Name == "" {
		return a.String()
	}
	if strings.ContainsFunc(named.Name, unicode.IsControl) || !utf8.ValidString(named.Name) {
		t.bad(t.at(key), "", "its name has a control character or invalid UTF-8")
		return ""
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(named.Name) + `" <` + a.String() + ">"
}

// signingSecrets reads the files of what signs requests.
func (l *loader) signingSecrets(t *table, h *Hook) []Secret {
	secrets := l.secrets(t, "signing_secret_files", "name the file of the secret that the caller shows: two while one replaces the other")
	switch {
	case h.Adapter == "":
	case h.Signed() && !t.has("signing_secret_files"):
		t.bad(t.at("signing_secret_files"), "put the secret that the caller shows into a file with mode 0600, and name that", "is missing: requests of adapter %q are known by their signature", h.Adapter)
	case !h.Signed() && t.has("signing_secret_files"):
		t.bad(t.at("signing_secret_files"), "remove it; requests carry a token, which the client has in token_files", "has no place where adapter is %q, whose requests are not signed", h.Adapter)
	}
	for i, s := range secrets {
		text, err := s.Read()
		if err != nil {
			continue
		}
		at := element(t.at("signing_secret_files"), i)
		if h.Adapter != "supabase" {
			if len(text) < leastToken {
				t.bad(at, "openssl rand -hex 32 makes a good one, where the caller does not make it", "%s holds a secret of less than %d octets", s.File, leastToken)
			}
		} else if _, err := ParseWebhookSecret(text); err != nil {
			t.bad(at, `Supabase shows it as "v1,whsec_…"`, "%s cannot be used: %v", s.File, err)
		}
	}
	return secrets
}

// secrets returns the one or two secrets whose files are named in the list at key.
func (l *loader) secrets(t *table, key, hint string) []Secret {
	names := t.optionalList(key, hint)
	if len(names) > 2 {
		t.bad(t.at(key), "name one file, or two while one secret replaces the other", "names %d files", len(names))
	}
	var found []Secret
	for i, name := range names {
		if name == "" {
			continue
		}
		path := element(t.at(key), i)
		file, looked := t.resolve(name)
		before := len(l.problems)
		l.checkPrivate(path, file, looked)
		s := Secret{file}
		if len(l.problems) == before {
			if _, err := s.Read(); err != nil {
				l.bad(path, "the first line is the secret", "%v", err)
			}
		}
		found = append(found, s)
	}
	return found
}

// ParseWebhookSecret decodes a secret of Standard Webhooks, "whsec_" and base64, with the "v1," that Supabase puts
// before it or without. Its errors do not tell it.
func ParseWebhookSecret(s string) ([]byte, error) {
	text, ok := strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(s), "v1,"), "whsec_")
	if !ok {
		return nil, errors.New("it does not begin with whsec_ or v1,whsec_")
	}
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(key) < leastToken {
		return nil, fmt.Errorf("what follows whsec_ is not base64 of %d octets or more", leastToken)
	}
	return key, nil
}

// never are schemes that no link in a mail may have: they run what they hold.
var never = []string{"javascript", "data", "vbscript", "file", "blob", "about", "http"}

func (l *loader) linkSchemes(t *table) []string {
	found := t.optionalList("link_schemes", `name those of your apps: link_schemes = ["com.example.app"]`)
	for i, s := range found {
		lower := strings.ToLower(s)
		path := element(t.at("link_schemes"), i)
		switch {
		case s == "":
		case slices.Contains(never, lower):
			t.bad(path, "", "%q is never a scheme of links in mail", s)
		case lower[0] < 'a' || lower[0] > 'z' || strings.Trim(lower, "abcdefghijklmnopqrstuvwxyz0123456789+.-") != "":
			t.bad(path, `write it without "://"`, "%q is not the scheme of a URL", s)
		}
		found[i] = lower
	}
	return found
}

// linkBase returns what the links begin with that h builds.
func (l *loader) linkBase(t *table, h *Hook) string {
	s := t.text("link_base_url")
	const hint = `write the URL of the API: link_base_url = "https://PROJECT.supabase.co/auth/v1"`
	switch {
	case h.Adapter == "supabase" && !t.has("link_base_url"):
		t.bad(t.at("link_base_url"), hint, "is missing: requests of Supabase hold tokens, and the link is built here")
	case h.Adapter != "" && h.Adapter != "supabase" && t.has("link_base_url"):
		t.bad(t.at("link_base_url"), "remove it", "has no place where adapter is %q, whose requests hold whole links", h.Adapter)
	}
	if s == "" {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		t.bad(t.at("link_base_url"), hint, "%q is not the beginning of a URL", s)
		return ""
	}
	if u.Scheme != "https" && !(u.Scheme == "http" && isLoopback(u.Hostname())) {
		t.bad(t.at("link_base_url"), hint, "%q is not https: whoever can listen on the way could sign in", s)
	}
	return strings.TrimRight(s, "/")
}

// rate returns the limit at key, or def.
func (t *table) rate(key string, def Rate) Rate {
	v, ok := t.m[key]
	if !ok {
		return def
	}
	const hint = `write "10/10m" for ten in ten minutes, or "none"`
	if _, ok := v.(string); !ok {
		t.wrongType(t.at(key), v, "a limit", hint)
		return def
	}
	s := t.text(key)
	switch s {
	case "":
		return def
	case "none":
		return Rate{}
	}
	count, per, ok := strings.Cut(s, "/")
	n, err := strconv.Atoi(count)
	d, errPer := parseDuration(per)
	if !ok || err != nil || errPer != nil || n < 1 || n > 1000000 || d < time.Second || d > day {
		t.bad(t.at(key), hint, "%q is not a number from 1 to 1000000 in 1s to 1d", s)
		return def
	}
	return Rate{n, d}
}

// tokens reads what a client shows over HTTP.
func (l *loader) tokens(t *table, c *Client) {
	c.Tokens = l.secrets(t, "token_files", "name the file of the token: openssl rand -hex 32 makes one")
	c.TokenHeader = textproto.CanonicalMIMEHeaderKey(t.text("token_header"))
	if c.TokenHeader != "" && !isFieldName(c.TokenHeader) {
		t.bad(t.at("token_header"), `write token_header = "X-Api-Key"`, "%q is not the name of a header field", c.TokenHeader)
	}
	if t.has("token_header") && !t.has("token_files") {
		t.bad(t.at("token_header"), "add token_files", "has no token_files")
	}
	for i, s := range c.Tokens {
		if token, err := s.Read(); err == nil && (len(token) < leastToken || len(token) > MaxPassword) {
			t.bad(element(t.at("token_files"), i), "openssl rand -hex 32 makes a good one", "%s holds a token that is not of %d to %d octets", s.File, leastToken, MaxPassword)
		}
	}
}

// checkHook looks at a hook together with what it names.
func (l *loader) checkHook(h *Hook) {
	path := join("hook", h.Name)
	l.referOne(path+".client", "client", h.Client, names(l.c.Client))
	l.referOne(path+".stream", "stream", h.Stream, names(l.c.Stream))
	l.checkHookTimes(h)
	if c := l.c.Client[h.Client]; c != nil {
		l.checkCaller(h, c)
	}
	s := l.c.Stream[h.Stream]
	if s == nil {
		return
	}
	from, _ := mail.ParseAddress(h.From)
	switch {
	case from != nil && l.owner(domainPart(from.Address)) != s:
		l.bad(path+".from", "use an address in "+quoted(s.Domains), "%q is in no domain of stream %q", from.Address, s.Name)
	case h.From == "" && !l.written(path+".from") && h.Sender(s) == "" && len(s.Domains) > 0:
		l.bad(path+".from", `write from = "no-reply@…"`, "is missing, and stream %q has neither default_from nor a domain without *", s.Name)
	}
}

// Sender returns the address, with or without a name, that mail of h is from where nothing else says it; "" where s has
// no domain to make one of.
func (h *Hook) Sender(s *Stream) string {
	i := slices.IndexFunc(s.Domains, func(d string) bool { return d != "" && !strings.HasPrefix(d, "*.") })
	if i < 0 {
		return cmp.Or(h.From, s.DefaultFrom)
	}
	return cmp.Or(h.From, s.DefaultFrom, "no-reply@"+s.Domains[i])
}

// checkHookTimes refuses to wait longer than the caller does.
func (l *loader) checkHookTimes(h *Hook) {
	path := join("hook", h.Name) + ".verdict_timeout"
	switch {
	case slices.Contains(hastyAdapters, h.Adapter) && h.VerdictTimeout >= maxHastyWait:
		l.bad(path, "leave it out for 3s", "%s is not below %s: %s gives up after 5s, and would not hear the answer", formatDuration(h.VerdictTimeout), formatDuration(maxHastyWait), h.Adapter)
	case h.VerdictTimeout > maxVerdictWait:
		l.bad(path, "leave it out for 3s", "%s is above %s: nobody waits that long for a page", formatDuration(h.VerdictTimeout), formatDuration(maxVerdictWait))
	}
}

// checkCaller refuses a client that could not call h, or whom nothing would tell from others.
func (l *loader) checkCaller(h *Hook, c *Client) {
	path := join("hook", h.Name)
	if h.Adapter != "" && !h.Signed() && !l.written(join("client", c.Name)+".token_files") {
		l.bad(path+".client", fmt.Sprintf("add token_files to [client.%s]: openssl rand -hex 32 makes a token", c.Name),
			"client %q has no token: whatever can connect could send mail", c.Name)
	}
	if h.Stream != "" && l.c.Stream[h.Stream] != nil && !slices.Contains(c.Streams, h.Stream) {
		l.bad(path+".stream", fmt.Sprintf("add it to streams of [client.%s]", c.Name), "%q is none of the streams of client %q", h.Stream, c.Name)
	}
	if !slices.ContainsFunc(l.listenersOf(c), func(s *Listen) bool { return s.HTTP() }) {
		l.bad(path+".client", `add [listen.http] with it in clients`, "no listener with protocol \"http\" serves client %q", c.Name)
	}
}

// listenersOf returns the listeners that serve c, in the order of the file.
func (l *loader) listenersOf(c *Client) []*Listen {
	return slices.DeleteFunc(inOrder(l, "listen", l.c.Listen), func(s *Listen) bool { return !slices.Contains(s.Clients, c.Name) })
}

// hooksOf returns the hooks that c may call, in the order of the file.
func (l *loader) hooksOf(c *Client) []*Hook {
	return slices.DeleteFunc(inOrder(l, "hook", l.c.Hook), func(h *Hook) bool { return h.Client != c.Name })
}

// checkHTTP looks at a listener that speaks HTTP, and who could call there.
func (l *loader) checkHTTP(s *Listen) {
	path := join("listen", s.Name)
	for _, key := range []string{"max_recipients", "auth", "mixed"} {
		if l.written(join(path, key)) {
			l.bad(join(path, key), "remove it", `has no place where protocol is "http"`)
		}
	}
	ip, _ := socket(s.Address)
	if s.TLS == "none" && !l.written(path+".tls") && !l.written(path+".tls_cert_file") && s.Address != "" && !named(s.Address) && !ip.IsLoopback() {
		l.bad(path+".tls", `add tls_cert_file and tls_key_file; or write tls = "none" if a proxy or a private network keeps it secret`,
			"is missing: tokens and codes would cross a network in clear text")
	}
	tokens := map[[sha256.Size]byte]*Client{}
	for i, name := range s.Clients {
		if c := l.c.Client[name]; c != nil {
			l.checkHTTPClient(element(path+".clients", i), c, s)
			l.checkSameToken(tokens, c, s)
		}
	}
}

// checkHTTPClient tells of a client that could not call, or would be known by too little.
func (l *loader) checkHTTPClient(path string, c *Client, s *Listen) {
	key := func(key string) bool { return l.written(join(join("client", c.Name), key)) }
	hooks := l.hooksOf(c)
	switch {
	case len(hooks) == 0:
		l.warn(path, fmt.Sprintf("add [hook.NAME] with client = %q", c.Name), "client %q can call nothing here: no hook names it", c.Name)
	case s.OnUnix() && key("networks"):
		l.bad(path, "remove its networks, or name its users in unix_users", "client %q cannot call on a unix socket: its peers have no address, and the client has networks", c.Name)
	case !named(s.Address) && key("unix_users"):
		l.bad(path, `serve it on a listener with address = "unix:PATH"`, "client %q is known by its user id, which only a unix socket tells", c.Name)
	case s.Address != "" && cannotConnect(c, s) && len(s.TrustedProxies) == 0:
		l.warn(path, "", "client %q cannot connect: %s is only reached from this machine, and its networks are elsewhere", c.Name, s.Address)
	}
	if ip, _ := socket(s.Address); s.Address != "" && !named(s.Address) && !ip.IsLoopback() && !key("networks") && !key("tls_names") &&
		slices.ContainsFunc(hooks, func(h *Hook) bool { return !h.Signed() }) {
		l.warn(join("client", c.Name)+".networks", "name where it calls from, if that is known", "is missing: whoever gets hold of its token can send mail from anywhere")
	}
	if key("tls_names") && !l.written(join("listen", s.Name)+".tls_client_ca_file") && !s.OnUnix() {
		l.bad(path, "add it with the certificates that signed those of clients", "client %q has tls_names, but the listener has no tls_client_ca_file", c.Name)
	}
}

// checkSameToken refuses a token that would be two clients on one listener.
func (l *loader) checkSameToken(seen map[[sha256.Size]byte]*Client, c *Client, s *Listen) {
	for i, secret := range c.Tokens {
		token, err := secret.Read()
		if err != nil {
			continue // told where the file is named
		}
		sum := sha256.Sum256([]byte(token))
		if before := seen[sum]; before != nil && before != c {
			l.bad(element(join("client", c.Name)+".token_files", i), "give each client its own", "holds the token of client %q on listener %q too", before.Name, s.Name)
		}
		seen[sum] = c
	}
}

func (h *Hook) values() (vs values) {
	files := make([]string, len(h.SigningSecrets))
	for i, s := range h.SigningSecrets {
		files[i] = s.File
	}
	vs.set("adapter", h.Adapter)
	vs.set("client", h.Client)
	vs.set("stream", h.Stream)
	vs.set("from", h.From)
	vs.set("verdict_timeout", h.VerdictTimeout)
	vs.set("signing_secret_files", files)
	vs.set("link_base_url", h.LinkBaseURL)
	vs.set("link_schemes", h.LinkSchemes)
	vs.set("recipient_limit", h.RecipientLimit.String())
	vs.set("client_limit", h.ClientLimit.String())
	vs.set("network_limit", h.NetworkLimit.String())
	vs.set("ip_limit", h.IPLimit.String())
	return vs
}
