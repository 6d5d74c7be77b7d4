package config_test

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
	"a route of two upstreams": {
		[]edit{{`["sink"]`, `["sink", "bulk"]`}},
		[]string{
			"15: stream.auth.route: routes of more than one upstream are not supported yet: name one",
		},
	},
	"a route with weights": {
		[]edit{{`["sink"]`, `[{ upstream = "sink", weight = 1 }]`}},
		[]string{
			"15: stream.auth.route: routes of more than one upstream are not supported yet: name one",
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
