// Package config reads gatepost's one TOML file and the secret files it names into a validated Config. Every problem
// is reported at once, as file:line: key: text, with a hint. What it returns is complete: defaults are filled in,
// names resolve, addresses parse, keys that must agree do. It opens no sockets and asks no DNS.
package config

import (
	"net/netip"
	"regexp"
	"slices"
	"time"

	"gatepost/message"
)

// Any as an egress says that the host may choose the source address.
const Any = "any"

// Config is the whole configuration. Maps are keyed by the name in the section's header; each section also holds it.
type Config struct {
	File     string // as given
	Dir      string // relative paths in the file start here
	Hostname string // for EHLO, Received, Message-ID and the banner
	StateDir string // absolute
	Listen   map[string]*Listen
	Client   map[string]*Client
	Stream   map[string]*Stream
	Egress   map[string]*Egress
	Upstream map[string]*Upstream
	Hook     map[string]*Hook
	Store    Store
	History  History
	Log      Log
	Limits   Limits
	Warnings []*Problem // what works, but somebody should know

	Templates Templates
}

// Listen is [listen.NAME]: a door.
type Listen struct {
	Name            string
	Protocol        string         // "smtp" or "http"
	Address         string         // host:port, "unix:/path" or "systemd:NAME"
	Clients         []string       // those it serves
	MaxSize         int64          // octets of one message, or of one HTTP request
	MaxRecipients   int            // per message; not over HTTP
	MaxConnections  int            // in all
	MaxPerSource    int            // per client address
	TLS             string         // "none", "starttls" or "implicit"
	TLSCertFile     string         // absolute; PEM, with its chain; re-read when it changes
	TLSKeyFile      string         // absolute
	TLSClientCAFile string         // absolute; certificates signed by it identify clients; "" asks for none
	Auth            string         // "" : credentials decide; "any": every login is accepted and the address decides
	Mixed           bool           // clients by address and clients by login share this listener on purpose
	ProxyFrom       []netip.Prefix // balancers that speak the PROXY protocol to us; all others must not
	TrustedProxies  []netip.Prefix // proxies whose X-Forwarded-For is believed
	SocketMode      uint32         // permissions of a unix socket
	ReceivedFrom    string         // "public" (default): the Received field names the client's address unless it is private; "always"; "never"
}

// Client is [client.NAME]: who submits.
type Client struct {
	Name           string
	Networks       []netip.Prefix // where it may come from; with a login or certificate both must match; may be empty with other identities
	Streams        []string       // non-empty
	Username       string         // of its login; "" for none
	Password       Secret         // a file of one password or argon2id hash a line, two at most; re-read when it changes
	TLSNames       []string       // DNS names in a client certificate that make it this client
	UnixUsers      []int          // user ids that make a peer on a unix socket this client
	Tokens         []Secret       // one of which it shows over HTTP: two while one replaces the other; re-read when they change
	TokenHeader    string         // the header field that carries it; "" for Authorization
	MaxSize        int64          // octets of one message; 0 for the listener's
	MaxConnections int            // at once over all listeners; 0 for no limit of its own
}

// HTTP reports whether HTTP is spoken on s.
func (s *Listen) HTTP() bool { return s.Protocol == "http" }

// ByAddress reports whether an address in Networks is enough to be c. Where a login or a certificate makes the client,
// its networks only narrow down where that may come from.
func (c *Client) ByAddress() bool { return c.Username == "" && len(c.TLSNames) == 0 }

// Stream is [stream.NAME]: a class of mail.
type Stream struct {
	Name           string
	Kind           message.Kind
	Domains        []string       // lower case A-labels; exact, or "*.example.com"
	Route          []string       // names of upstreams, in order: what one cannot deliver goes to the others
	Weights        map[string]int // percent of the mail that begins at an upstream of Route; nil: all of it at the first
	Egress         string         // name, or Any
	DKIM           []DKIM
	ReturnPath     string // address, or "" for the null sender not being replaced
	TTL            time.Duration
	Retry          []time.Duration // waits between tries; the last one repeats
	Verdict        string          // "queued" or "upstream": when the client gets its answer
	VerdictTimeout time.Duration
	WhenDown       string // "refuse" or "queue"
	CommitTimeout  time.Duration
	AnswerTimeout  time.Duration
	HedgeAfter     time.Duration // from the commit to a second copy through the next upstream; 0 for none
	MaxSize        int64         // octets of one message; 0 for the listener's
	DefaultFrom    string        // header From for mail without one; "" refuses it
	DSNUpstream    string        // name of the smtp upstream that bounces to the sender leave by; "" sends none
	Supersede      bool          // a newer code takes the place of a queued older one
	Match          []Match
}

// Match is [[stream.NAME.match]]: what holds for mail whose subject or header field fits. The first that fits counts.
type Match struct {
	Subject *regexp.Regexp // on the decoded Subject; nil for any
	Header  string         // name of a header field; "" for none
	Value   *regexp.Regexp // on that field's decoded value; nil for any
	TTL     time.Duration  // 0 leaves the stream's
	Purpose string         // "code", "invitation", "notice" or ""
	Verdict string         // "queued", "upstream" or ""
}

// DKIM is one signature of a stream.
type DKIM struct {
	Selector string
	KeyFile  string // absolute
	Domain   string // d=; "" for the domain of the header From
	Shared   bool
}

// Egress is [egress.NAME]: a source address.
type Egress struct {
	Name       string
	IPv4       netip.Addr // invalid where not set
	IPv6       netip.Addr // invalid where not set
	PublicIPv4 netip.Addr // what the world sees behind NAT; invalid where not set
	Proxy      string     // host:port of a SOCKS5 proxy that owns the source address; "" for none
	Shared     bool
}

// Upstream is [upstream.NAME]: one account at a service. Which types have which keys, upstreamTypes says.
type Upstream struct {
	Name          string
	Type          string // "smtp", "capture", "ses", "mailgun", "sendgrid", "postmark", "aliyun" or "webhook"
	Connections   int    // hand-overs at once
	Rate          int    // hand-overs a second, at most; 0 for no limit
	Egress        string // name or Any; "" takes the stream's
	DKIM          string // "sign", "strip" or "none"
	Shared        bool
	CommitTimeout time.Duration // 0 takes the stream's
	AnswerTimeout time.Duration // 0 takes the stream's
	HedgeAfter    time.Duration // 0 takes the stream's

	// smtp
	Address       string // host:port
	Host          string
	Port          int
	TLS           string // "starttls", "implicit" or "none"
	TLSCAFile     string // absolute; "" for the system's roots; for services with an API too
	TLSServerName string // name to verify; Host by default
	Username      string
	Password      Secret // re-read at every login
	Auth          string // "plain", "login", "xoauth2"; "" without a username
	Token         Secret // for xoauth2; re-read at every login
	Chunking      string // whether small mail goes in one flight by BDAT: "probe", "always" or "never"

	// Services with an API. Their secrets are re-read for every request.
	Endpoint string   // scheme://host[:port] instead of the service's own; "" for that
	Region   string   // "" where the service needs none
	Tag      string   // postmark, aliyun
	Tags     []string // ses: "name=value"; mailgun: words
	Tracking string   // "on", "off", or "": off for auth mail, as the account has it for other mail

	// ses
	AccessKeyID         Secret // none of the three: the credential chain of the AWS SDK
	SecretAccessKey     Secret
	SessionToken        Secret // for temporary keys; may be absent
	ConfigurationSet    string
	Tenant              string
	IdentityARN         string // of the From identity, where another account owns it
	FeedbackAddress     string // where bounces and complaints are forwarded to
	FeedbackIdentityARN string // of its identity, where another account owns it

	// mailgun
	Domain      string // the sending domain of the account
	APIKey      Secret // sendgrid too
	ServiceDKIM string // the service's own signature: "yes", "no", or "" as the domain has it
	TestMode    bool   // accepted and thrown away

	// sendgrid
	IPPool     string // mailgun too
	Categories []string
	Sandbox    bool // checked and thrown away

	// postmark
	ServerToken   Secret
	MessageStream string
	Metadata      []string // "name=value"
	KeepID        bool     // our Message-ID instead of the service's

	// aliyun: AccessKeyID too
	AccountName     string // the sender address
	AccessKeySecret Secret
	FromAlias       string

	// webhook
	URL    string
	Format string // "raw" or "json"
	Secret Secret // that the requests are signed with; two lines while one replaces the other
}

// Secrets returns all credentials that u has files for.
func (u *Upstream) Secrets() []Secret {
	all := []Secret{u.Password, u.Token, u.AccessKeyID, u.SecretAccessKey, u.SessionToken, u.APIKey, u.ServerToken, u.AccessKeySecret, u.Secret}
	return slices.DeleteFunc(all, func(s Secret) bool { return !s.Set() })
}

// History is [history].
type History struct {
	Addresses string        // "hmac", "clear", or "" for hmac on auth and clear on marketing
	Keep      time.Duration // events older than this are deleted
}

// Log is [log].
type Log struct {
	Level     string // "debug", "info", "warn", "error"
	Format    string // "text", "json", or "" for json under systemd
	Addresses string // "masked", "clear", or "" for masked on auth and clear on marketing
}

// Limits is [limits].
type Limits struct {
	BytesInFlight int64         // octets of mail held in memory over all sessions and attempts
	Memory        int64         // octets of heap from which mail is refused: marketing at three quarters of it; 0 for no limit
	QueueAge      time.Duration // how long due mail may have waited until new mail of its stream is refused: auth at twice it; 0 for no limit
}

// Templates is [templates]: how the mail looks that gatepost composes itself.
type Templates struct {
	Dir                string // absolute; "" for the built-in templates alone
	DefaultLocale      string // BCP 47 tag of the language for readers whose own there is no template in
	ChineseFallback    bool   // readers of one Chinese script get the other where theirs is missing
	SenderName         string // who writes; "" shows no name
	CompanyInformation string // the line at the foot; "" shows none
	AppLogo            string // https URL of a picture; "" shows none
	Color              string // "#rrggbb" of buttons and the line at the top
}

// EgressOf returns the name of the egress that mail of stream s leaves by through upstream u: the upstream's own, else
// the stream's.
func EgressOf(s *Stream, u *Upstream) string {
	if u.Egress != "" {
		return u.Egress
	}
	return s.Egress
}
