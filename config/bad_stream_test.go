package config_test

// What a route of several upstreams needs.
var (
	spare = edit{"", "[upstream.spare]\ntype = \"smtp\"\naddress = \"127.0.0.1:2528\"\ntls = \"none\"\n"}
	third = edit{"", "[upstream.third]\ntype = \"smtp\"\naddress = \"127.0.0.1:2529\"\ntls = \"none\"\n"}
)

// withSpare makes the auth stream's route another one.
func withSpare(route string) edit { return edit{`["sink"]`, route} }

// badStreams is about streams.
var badStreams = map[string]badConfig{
	"a stream without anything": {
		[]edit{{"", "[stream.empty]\n"}},
		[]string{
			"36: stream.empty.kind: is missing",
			"36: stream.empty.domains: is missing",
			"36: stream.empty.route: is missing",
			"36: stream.empty.egress: is missing",
		},
	},
	"a kind that does not exist": {
		[]edit{{`kind    = "auth"`, `kind    = "transactional"`}},
		[]string{
			`13: stream.auth.kind: "transactional" is not "auth" or "marketing"`,
		},
	},
	"domains that are none": {
		[]edit{{`["auth.example.com"]`, `["auth example.com", "*", "*.com", "a@b.example", "127.0.0.1"]`}},
		[]string{
			`14: stream.auth.domains: "auth example.com" is not a domain: the domain has a character that is not allowed`,
			`14: stream.auth.domains: "*" is not a domain: the domain has a character that is not allowed`,
			`14: stream.auth.domains: "*.com" holds a whole top-level domain`,
			`14: stream.auth.domains: "a@b.example" is not a domain: the domain has a character that is not allowed`,
			`14: stream.auth.domains: "127.0.0.1" is not a domain: the domain is an IP address`,
		},
	},
	"a domain of two streams": {
		[]edit{{`["marketing.example.com"]`, `["marketing.example.com", "AUTH.example.com"]`}},
		[]string{
			`20: stream.marketing.domains: "auth.example.com" belongs to stream "auth" already`,
		},
	},
	"a domain that stands twice in two spellings": {
		[]edit{{`["auth.example.com"]`, `["auth.example.com", "Auth.Example.com"]`}},
		[]string{
			`14: stream.auth.domains: "auth.example.com" belongs to stream "auth" already`,
		},
	},
	"a second upstream that is the other kind's": {
		[]edit{{`["sink"]`, `["sink", "bulk"]`}},
		[]string{
			"32: upstream.bulk: the account 127.0.0.1:2527 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"an upstream that stands twice in a route": {
		[]edit{{`["sink"]`, `["sink", { upstream = "sink", weight = 5 }]`}},
		[]string{
			`15: stream.auth.route: "sink" stands here twice`,
		},
	},
	"a route of no upstream": {
		[]edit{{`["sink"]`, `[]`}},
		[]string{
			"15: stream.auth.route: is empty",
		},
	},
	"a route that is a name": {
		[]edit{{`["sink"]`, `"sink"`}},
		[]string{
			"15: stream.auth.route: is a string, want a list",
		},
	},
	"a weight with nothing beside it": {
		[]edit{{`["sink"]`, `[{ upstream = "sink", weight = 100 }]`}},
		[]string{
			"15: stream.auth.route: has a weight, and nothing beside it to share with",
		},
	},
	"weights over 100": {
		[]edit{withSpare(`["sink", { upstream = "spare", weight = 50 }, { upstream = "third", weight = 51 }]`), spare, third},
		[]string{
			"15: stream.auth.route: the weights add up to 101, more than 100",
		},
	},
	"weights under 100 and nothing that takes the rest": {
		[]edit{withSpare(`[{ upstream = "sink", weight = 60 }, { upstream = "spare", weight = 30 }, "third"]`), spare, third},
		[]string{
			"15: stream.auth.route: the weights add up to 90, not 100, and nothing takes the rest",
		},
	},
	"weights that are none": {
		[]edit{withSpare("[\n\"sink\",\n{ upstream = \"spare\", weight = 0 },\n{ upstream = \"third\", weight = -5 },\n{ upstream = \"fourth\", weight = 2.5 },\n{ upstream = \"fifth\", weight = 101 },\n{ weight = \"5\" },\n5 ]")},
		[]string{
			"17: stream.auth.route[1].weight: 0 is not from 1 to 100",
			"17: stream.auth.route: there is no upstream \"spare\"",
			"18: stream.auth.route[2].weight: -5 is not from 1 to 100",
			"18: stream.auth.route: there is no upstream \"third\"",
			"19: stream.auth.route[3].weight: is a number with a fraction, want an integer",
			"19: stream.auth.route: there is no upstream \"fourth\"",
			"20: stream.auth.route[4].weight: 101 is not from 1 to 100",
			"20: stream.auth.route: there is no upstream \"fifth\"",
			"21: stream.auth.route[5].upstream: is missing",
			"21: stream.auth.route[5].weight: is a string, want an integer",
			"22: stream.auth.route: is an integer, want a name or a table",
		},
	},
	"a second copy after the answer counts as lost": {
		[]edit{withSpare(`["sink", "spare"]`), spare, {`kind    = "auth"`, "kind = \"auth\"\nhedge_after = \"10s\"\nanswer_timeout = \"10s\""}, {"", "hedge_after = \"11s\"\n"}},
		[]string{
			`14: stream.auth.hedge_after: 10s is not below the answer_timeout of upstream "sink" for stream "auth" (10s): the answer would count as lost first`,
			`42: upstream.spare.hedge_after: 11s is not below the answer_timeout of upstream "spare" for stream "auth" (10s): the answer would count as lost first`,
		},
	},
	"second copies of a newsletter": {
		[]edit{{`kind    = "marketing"`, "kind = \"marketing\"\nhedge_after = \"2s\""}},
		[]string{
			`20: stream.marketing.hedge_after: has no place where kind is "marketing": newsletters are not sent twice`,
		},
	},
	"an upstream that does not exist": {
		[]edit{{`["sink"]`, `["snik"]`}},
		[]string{
			`15: stream.auth.route: there is no upstream "snik"`,
		},
	},
	"a stream without egress": {
		[]edit{{"egress  = \"auth\"\n", ""}},
		[]string{
			"12: stream.auth.egress: is missing",
		},
	},
	"an egress that does not exist": {
		[]edit{{"egress  = \"auth\"\n", "egress = \"vpn\"\n"}, {"", "egress = \"tunnel\"\n"}},
		[]string{
			`16: stream.auth.egress: there is no egress "vpn"`,
			`36: upstream.bulk.egress: there is no egress "tunnel"`,
		},
	},
	"a stream that would leave unsigned": {
		[]edit{{"dkim    = { selector = \"gp1\", key_file = \"auth.pem\" }\n", ""}},
		[]string{
			`12: stream.auth.dkim: is missing: mail through upstream "sink" would leave unsigned`,
		},
	},
	"a DKIM table that is not complete": {
		[]edit{{`{ selector = "gp1", key_file = "auth.pem" }`, `{ selektor = "gp1" }`}},
		[]string{
			"17: stream.auth.dkim.selektor: unknown key",
			"17: stream.auth.dkim.selector: is missing",
			"17: stream.auth.dkim.key_file: is missing",
		},
	},
	"a DKIM key that is missing": {
		[]edit{{`"auth.pem"`, `"none.pem"`}},
		[]string{
			"17: stream.auth.dkim.key_file: DIR/none.pem does not exist",
		},
	},
	"a DKIM domain that does not align": {
		[]edit{{`key_file = "auth.pem" }`, `key_file = "auth.pem", domain = "uth.example.com" }`}},
		[]string{
			`17: stream.auth.dkim.domain: "uth.example.com" is not "auth.example.com" or above it, so DMARC would not count the signature`,
		},
	},
	"a DKIM domain below the From domain": {
		[]edit{{`key_file = "auth.pem" }`, `key_file = "auth.pem", domain = "mail.auth.example.com" }`}},
		[]string{
			`17: stream.auth.dkim.domain: "mail.auth.example.com" is not "auth.example.com" or above it, so DMARC would not count the signature`,
		},
	},
	"a DKIM domain that is a top-level domain": {
		[]edit{{`key_file = "auth.pem" }`, `key_file = "auth.pem", domain = "com" }`}},
		[]string{
			`17: stream.auth.dkim.domain: "com" is not "auth.example.com" or above it, so DMARC would not count the signature`,
		},
	},
	"one selector for two keys": {
		[]edit{{`{ selector = "gp1", key_file = "auth.pem" }`, "[\n  { selector = \"gp1\", key_file = \"auth.pem\" },\n  { selector = \"gp1\", key_file = \"p\" },\n]"}},
		[]string{
			`19: stream.auth.dkim[1].selector: "gp1" stands for two keys`,
		},
	},
	"an empty list of signatures": {
		[]edit{{`{ selector = "gp1", key_file = "auth.pem" }`, "[]"}},
		[]string{
			"17: stream.auth.dkim: is empty",
		},
	},
	"a return path of another stream": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nreturn_path = \"bounce@marketing.example.com\""}},
		[]string{
			`14: stream.auth.return_path: "bounce@marketing.example.com" is in no domain of this stream, so SPF would not align`,
		},
	},
	"a return path that is no address": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nreturn_path = \"bounce\""}},
		[]string{
			`14: stream.auth.return_path: "bounce" is not an address: the address has no local part or no domain`,
		},
	},
	"durations that are none": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nttl = 3600\nretry = [\"1s\", \"soon\", 5]\nverdict_timeout = \"-4s\"\ncommit_timeout = \"0s\"\nanswer_timeout = \"9999d\""}},
		[]string{
			"14: stream.auth.ttl: 3600 has no unit",
			`15: stream.auth.retry: "soon" is not a duration`,
			"15: stream.auth.retry: 5 has no unit",
			`16: stream.auth.verdict_timeout: "-4s" is not a duration`,
			`17: stream.auth.commit_timeout: "0s" is not from 1ms to 3650d`,
			`18: stream.auth.answer_timeout: "9999d" is not a duration`,
		},
	},
	"a lifetime in which nothing can be sent": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nttl = \"1s\""}},
		[]string{
			"12: stream.auth.commit_timeout: 1.5s is not below ttl (1s): nothing could be sent in time",
			"12: stream.auth.verdict_timeout: 4s is not below ttl (1s)",
		},
	},
	"words that are not known": {
		[]edit{{`kind    = "auth"`, "kind    = \"auth\"\nverdict = \"now\"\nwhen_down = \"drop\""}, {"", "[store]\nengine = \"mysql\"\n[log]\nlevel = \"loud\"\nformat = \"xml\"\naddresses = \"all\"\n[history]\naddresses = \"all\"\nkeep = \"\"\n"}},
		[]string{
			`14: stream.auth.verdict: "now" is not "queued" or "upstream"`,
			`15: stream.auth.when_down: "drop" is not "refuse" or "queue"`,
			`39: store.engine: "mysql" is not "sqlite" or "postgres"`,
			`41: log.level: "loud" is not "debug", "info", "warn" or "error"`,
			`42: log.format: "xml" is not "text" or "json"`,
			`43: log.addresses: "all" is not "masked" or "clear"`,
			`45: history.addresses: "all" is not "hmac" or "clear"`,
			"46: history.keep: is empty",
		},
	},
}
