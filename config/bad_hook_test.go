package config_test

// aDoor adds to the small config a door for HTTP, a client with a token, and a hook that it may call.
const aDoor = `[listen.http]
address = "127.0.0.1:8025"
clients = ["web"]
[client.web]
networks    = ["127.0.0.9"]
token_files = ["token"]
streams     = ["auth"]
[hook.web]
adapter = "logto"
client  = "web"
stream  = "auth"
`

// rareHooks adds hooks with the keys that few need.
const rareHooks = `[listen.http]
address = "127.0.0.1:8025"
clients = ["web", "signed"]
trusted_proxies = ["127.0.0.1", "10.0.0.0/8"]
tls     = "none"
[client.web]
token_files  = ["token", "t.token"]
token_header = "x-api-key"
streams      = ["auth"]
[client.signed]
streams = ["auth"]
[hook.web]
adapter = "native"
client  = "web"
stream  = "auth"
from    = "\"Ex, \\\"ample\\\" ✉\" <No-Reply@AUTH.example.com>"
recipient_limit = "none"
ip_limit        = "5/1h30m"
verdict_timeout = "10s"
[hook.supabase]
adapter = "supabase"
client  = "signed"
stream  = "auth"
signing_secret_files = ["whsec"]
link_base_url = "http://127.0.0.1:9999/"
link_schemes  = ["COM.example.app"]
`

// hooked is the small config with aDoor, of which the first old becomes new.
func hooked(more ...edit) []edit { return append([]edit{{"", aDoor}}, more...) }

// badHooks is about the HTTP door and what comes through it.
var badHooks = map[string]badConfig{
	"an HTTP door that is good": {hooked(), nil},
	"a hook of nothing": {
		hooked(edit{"adapter = \"logto\"\nclient  = \"web\"\nstream  = \"auth\"\n", ""}),
		[]string{"43: hook.web.adapter: is missing", "43: hook.web.client: is missing", "43: hook.web.stream: is missing"},
	},
	"names that lead nowhere": {
		hooked(edit{"client  = \"web\"\nstream  = \"auth\"", "client  = \"wob\"\nstream  = \"out\""}),
		[]string{`45: hook.web.client: there is no client "wob"`, `46: hook.web.stream: there is no stream "out"`},
	},
	"a stream that the client may not use": {
		hooked(edit{"stream  = \"auth\"", "stream  = \"marketing\""}),
		[]string{`46: hook.web.stream: "marketing" is none of the streams of client "web"`},
	},
	"a client that no HTTP door serves": {
		hooked(edit{"client  = \"web\"", "client  = \"logto\""}),
		[]string{`45: hook.web.client: client "logto" has no token: whatever can connect could send mail`,
			`45: hook.web.client: no listener with protocol "http" serves client "logto"`},
	},
	"a caller that is not there": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"auth0\""}),
		[]string{`44: hook.web.adapter: "auth0" is not "logto", "zitadel", "supabase", "kratos", "novu" or "native"`},
	},
	"waiting longer than the caller does": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"zitadel\"\nverdict_timeout = \"4s\"\nsigning_secret_files = [\"token\"]"},
			edit{"", "[hook.b]\nadapter = \"logto\"\nclient = \"web\"\nstream = \"auth\"\nverdict_timeout = \"11s\"\n"}),
		[]string{
			"45: hook.web.verdict_timeout: 4s is not below 4s: zitadel gives up after 5s, and would not hear the answer",
			"53: hook.b.verdict_timeout: 11s is above 10s: nobody waits that long for a page",
		},
	},
	"requests that nothing proves": {
		hooked(edit{"token_files = [\"token\"]\n", ""}, edit{"", "[hook.b]\nadapter = \"novu\"\nclient = \"web\"\nstream = \"auth\"\n"}),
		[]string{
			`44: hook.web.client: client "web" has no token: whatever can connect could send mail`,
			`46: hook.b.signing_secret_files: is missing: requests of adapter "novu" are known by their signature`,
		},
	},
	"a signature where there is none": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"logto\"\nsigning_secret_files = [\"token\"]\nlink_base_url = \"https://x.example.com\""}),
		[]string{
			`45: hook.web.signing_secret_files: has no place where adapter is "logto", whose requests are not signed`,
			`46: hook.web.link_base_url: has no place where adapter is "logto", whose requests hold whole links`,
		},
	},
	"secrets that cannot be used": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"supabase\"\nsigning_secret_files = [\"token\", \"nowhere\", \"p\"]"}),
		[]string{
			`43: hook.web.link_base_url: is missing: requests of Supabase hold tokens, and the link is built here`,
			`45: hook.web.signing_secret_files: names 3 files`,
			`45: hook.web.signing_secret_files: DIR/nowhere does not exist`,
			`45: hook.web.signing_secret_files: DIR/token cannot be used: it does not begin with whsec_ or v1,whsec_`,
			`45: hook.web.signing_secret_files: DIR/p cannot be used: it does not begin with whsec_ or v1,whsec_`,
		},
	},
	"a secret that can be guessed": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"zitadel\"\nsigning_secret_files = [\"token\", \"p\"]"}),
		[]string{`45: hook.web.signing_secret_files: DIR/p holds a secret of less than 16 octets`},
	},
	"links that could be listened to": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"supabase\"\nsigning_secret_files = [\"whsec\"]\nlink_base_url = \"http://x.example.com/auth\"\nlink_schemes = [\"JavaScript\", \"com.example.app\", \"a://\"]"}),
		[]string{
			`46: hook.web.link_base_url: "http://x.example.com/auth" is not https: whoever can listen on the way could sign in`,
			`47: hook.web.link_schemes: "JavaScript" is never a scheme of links in mail`,
			`47: hook.web.link_schemes: "a://" is not the scheme of a URL`,
		},
	},
	"a link that is none": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"supabase\"\nsigning_secret_files = [\"whsec\"]\nlink_base_url = \"https://x.example.com/?a\""}),
		[]string{`46: hook.web.link_base_url: "https://x.example.com/?a" is not the beginning of a URL`},
	},
	"a sender of another stream": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"logto\"\nfrom = \"News <hi@marketing.example.com>\""}),
		[]string{`45: hook.web.from: "hi@marketing.example.com" is in no domain of stream "auth"`},
	},
	"a sender that is none": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"logto\"\nfrom = \"News\""}),
		[]string{`45: hook.web.from: "News" is not an address: mail: missing '@' or angle-addr`},
	},
	"no sender at all": {
		hooked(edit{`domains = ["auth.example.com"]`, `domains = ["*.example.org"]`}),
		[]string{`43: hook.web.from: is missing, and stream "auth" has neither default_from nor a domain without *`},
	},
	"limits that are none": {
		hooked(edit{"adapter = \"logto\"", "adapter = \"logto\"\nrecipient_limit = 10\nclient_limit = \"10\"\nnetwork_limit = \"0/1m\"\nip_limit = \"9/2d\""}),
		[]string{
			"45: hook.web.recipient_limit: is an integer, want a limit",
			`46: hook.web.client_limit: "10" is not a number from 1 to 1000000 in 1s to 1d`,
			`47: hook.web.network_limit: "0/1m" is not a number from 1 to 1000000 in 1s to 1d`,
			`48: hook.web.ip_limit: "9/2d" is not a number from 1 to 1000000 in 1s to 1d`,
		},
	},
	"tokens that cannot be used": {
		hooked(edit{`token_files = ["token"]`, `token_files = ["p", "nowhere"]` + "\ntoken_header = \"X Key\""},
			edit{"", "[client.b]\nstreams = [\"auth\"]\ntoken_header = \"X-Key\"\n"}),
		[]string{
			"41: client.web.token_files: DIR/nowhere does not exist",
			"41: client.web.token_files: DIR/p holds a token that is not of 16 to 1024 octets",
			`42: client.web.token_header: "X Key" is not the name of a header field`,
			"48: client.b.networks: is missing",
			"50: client.b.token_header: has no token_files",
		},
	},
	"one token for two clients": {
		hooked(edit{`clients = ["web"]`, `clients = ["web", "b"]`},
			edit{"", "[client.b]\nstreams = [\"auth\"]\ntoken_files = [\"token\"]\n[hook.b]\nadapter = \"native\"\nclient = \"b\"\nstream = \"auth\"\n"}),
		[]string{`49: client.b.token_files: holds the token of client "web" on listener "http" too`},
	},
	"a token where there is no HTTP": {
		[]edit{{logtoNetworks, "token_files = [\"token\"]\n"}},
		[]string{`5: listen.smtp.clients: client "logto" is known by a token, which SMTP does not carry`},
	},
	"clear text over a network": {
		hooked(edit{"127.0.0.1:8025", ":8025"}),
		[]string{"36: listen.http.tls: is missing: tokens and codes would cross a network in clear text"},
	},
	"what HTTP does not have": {
		hooked(edit{"clients = [\"web\"]", "clients = [\"web\"]\nauth = \"any\"\nmixed = true\nmax_recipients = 5\ntls = \"starttls\"\ntls_cert_file = \"p\"\ntls_key_file = \"p\""}),
		[]string{
			`39: listen.http.auth: has no place where protocol is "http"`,
			`40: listen.http.mixed: has no place where protocol is "http"`,
			`41: listen.http.max_recipients: has no place where protocol is "http"`,
			`42: listen.http.tls: "starttls" is not there in HTTP`,
			`43: listen.http.tls_cert_file: DIR/p and DIR/p are not a certificate and its key: tls: failed to find any PEM data in certificate input`,
		},
	},
	"proxies where they have no place": {
		[]edit{{"[listen.smtp]\n", "[listen.smtp]\ntrusted_proxies = [\"10.0.0.1\"]\n"},
			{"", "[listen.http]\naddress = \"unix:s\"\nclients = [\"web\"]\ntrusted_proxies = [\"0.0.0.0/0\"]\n[client.web]\nnetworks = [\"127.0.0.9\"]\ntoken_files = [\"token\"]\nstreams = [\"auth\"]\n[hook.web]\nadapter = \"logto\"\nclient = \"web\"\nstream = \"auth\"\n"}},
		[]string{
			`4: listen.smtp.trusted_proxies: has no place where protocol is not "http"`,
			`39: listen.http.clients: client "web" cannot call on a unix socket: its peers have no address, and the client has networks`,
			`40: listen.http.trusted_proxies: has no place on a unix socket, whose peers have no address`,
			`40: listen.http.trusted_proxies: strangers in "0.0.0.0/0" could claim to be any client`,
		},
	},
	"callers that cannot be told": {
		hooked(edit{"networks    = [\"127.0.0.9\"]", "unix_users = [\"0\"]\ntls_names = [\"web.internal\"]"}),
		[]string{
			`38: listen.http.clients: client "web" is known by its user id, which only a unix socket tells`,
			`38: listen.http.clients: client "web" has tls_names, but the listener has no tls_client_ca_file`,
		},
	},
}
