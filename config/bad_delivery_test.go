package config_test

// badDelivery is about egresses and upstreams, and what must be kept apart.
var badDelivery = map[string]badConfig{
	"an egress without address": {
		[]edit{{`ipv4 = "127.0.0.2"`, ""}},
		[]string{
			"24: egress.auth: has no address",
		},
	},
	"an egress that pins nothing": {
		[]edit{{`ipv4 = "127.0.0.2"`, "ipv4 = \"0.0.0.0\"\nipv6 = \"::\""}},
		[]string{
			`25: egress.auth.ipv4: "0.0.0.0" pins nothing: it stands for every address`,
			`26: egress.auth.ipv6: "::" pins nothing: it stands for every address`,
		},
	},
	"egress addresses that are none": {
		[]edit{{`ipv4 = "127.0.0.2"`, "ipv4 = \"127.0.0.256\"\nipv6 = \"127.0.0.2\"\npublic_ipv4 = \"2001:db8::1\""}, {`ipv4 = "127.0.0.3"`, "ipv4 = \"224.0.0.1\"\nipv6 = \"fe80::1\"\npublic_ipv4 = \"255.255.255.255\""}},
		[]string{
			`25: egress.auth.ipv4: "127.0.0.256" is not an IP address`,
			`26: egress.auth.ipv6: "127.0.0.2" is not an IPv6 address`,
			`27: egress.auth.public_ipv4: "2001:db8::1" is not an IPv4 address`,
			`29: egress.bulk.ipv4: "224.0.0.1" is a multicast or broadcast address and sends nothing`,
			`30: egress.bulk.ipv6: "fe80::1" is link-local and reaches no upstream`,
			`31: egress.bulk.public_ipv4: "255.255.255.255" is a multicast or broadcast address and sends nothing`,
		},
	},
	"an egress with IPv4 in IPv6": {
		[]edit{{`ipv4 = "127.0.0.2"`, "ipv4 = \"127.0.0.2\"\nipv6 = \"::ffff:127.0.0.2\""}},
		[]string{
			`26: egress.auth.ipv6: "::ffff:127.0.0.2" is not an IPv6 address`,
		},
	},
	"a public address without one of the host": {
		[]edit{{`ipv4 = "127.0.0.2"`, "ipv6 = \"2001:db8::2\"\npublic_ipv4 = \"203.0.113.2\""}},
		[]string{
			"26: egress.auth.public_ipv4: is what the world sees of ipv4, which is not set",
			`31: upstream.sink.address: 127.0.0.1 cannot be reached from egress "auth", which has no address of its family`,
		},
	},
	"an egress called any": {
		[]edit{{"[egress.auth]", "[egress.any]"}, {`egress  = "auth"`, `egress  = "any"`}},
		[]string{
			`24: egress.any: "any" is the word for no egress at all`,
		},
	},
	"an egress of the wrong family": {
		[]edit{{`ipv4 = "127.0.0.2"`, `ipv6 = "::1"`}},
		[]string{
			`30: upstream.sink.address: 127.0.0.1 cannot be reached from egress "auth", which has no address of its family`,
		},
	},
	"an upstream without a type": {
		[]edit{{"type    = \"smtp\"\n", ""}},
		[]string{
			"28: upstream.sink.type: is missing",
		},
	},
	"an upstream's address without a port": {
		[]edit{{"127.0.0.1:2526", "smtp.example.com"}},
		[]string{
			`30: upstream.sink.address: "smtp.example.com" is not host:port`,
		},
	},
	"an upstream's address that is none": {
		[]edit{{"127.0.0.1:2526", "smtp_example,com:25"}, {"127.0.0.1:2527", "0.0.0.0:25"}},
		[]string{
			`30: upstream.sink.address: "smtp_example,com:25" is not host:port: the domain has a character that is not allowed`,
			`34: upstream.bulk.address: "0.0.0.0" is not the address of a host`,
		},
	},
	"an upstream's port that is none": {
		[]edit{{"127.0.0.1:2526", "127.0.0.1:0"}},
		[]string{
			"30: upstream.sink.address: port 0 cannot be connected to",
		},
	},
	"a password without a user": {
		[]edit{{`tls     = "none"`, `password_file = "p"`}},
		[]string{
			"31: upstream.sink.password_file: has no username",
		},
	},
	"a user without a password": {
		[]edit{{`tls     = "none"`, `username = "u"`}},
		[]string{
			"31: upstream.sink.username: has no password_file",
		},
	},
	"xoauth2 without a token": {
		[]edit{{`tls     = "none"`, "username = \"u\"\nauth = \"xoauth2\""}},
		[]string{
			"31: upstream.sink.username: has no token_file",
		},
	},
	"xoauth2 with a password": {
		[]edit{{`tls     = "none"`, "username = \"u\"\nauth = \"xoauth2\"\npassword_file = \"p\"\ntoken_file = \"t\""}},
		[]string{
			`33: upstream.sink.password_file: does not go with auth "xoauth2"`,
		},
	},
	"a token without a user": {
		[]edit{{`tls     = "none"`, `token_file = "t"`}},
		[]string{
			"31: upstream.sink.token_file: has no username",
		},
	},
	"a mechanism without a user": {
		[]edit{{`tls     = "none"`, `auth = "login"`}},
		[]string{
			"31: upstream.sink.auth: has no username",
		},
	},
	"a mechanism that is not known": {
		[]edit{{`tls     = "none"`, "auth = \"cram-md5\"\nusername = \"u\"\npassword_file = \"p\""}},
		[]string{
			`31: upstream.sink.auth: "cram-md5" is not "plain", "login" or "xoauth2"`,
		},
	},
	"a password in clear text over the network": {
		[]edit{{"127.0.0.1:2526", "smtp.example.com:25"}, {`tls     = "none"`, "tls = \"none\"\nusername = \"u\"\npassword_file = \"p\""}},
		[]string{
			`31: upstream.sink.tls: "none" would send the password in clear text to smtp.example.com`,
		},
	},
	"certificates where there is no TLS": {
		[]edit{{`tls     = "none"`, "tls = \"none\"\ntls_ca_file = \"p\"\ntls_server_name = \"x.example\""}},
		[]string{
			`32: upstream.sink.tls_ca_file: has no meaning where tls is "none"`,
			`33: upstream.sink.tls_server_name: has no meaning where tls is "none"`,
		},
	},
	"certificates that are missing": {
		[]edit{{`tls     = "none"`, "tls_ca_file = \"ca.pem\"\ntls_server_name = \"x y\""}},
		[]string{
			"31: upstream.sink.tls_ca_file: DIR/ca.pem does not exist",
			`32: upstream.sink.tls_server_name: "x y" cannot be used: the domain has a character that is not allowed`,
		},
	},
	"a capture upstream that connects": {
		[]edit{{`type    = "smtp"`, `type = "capture"`}},
		[]string{
			`30: upstream.sink.address: has no place where type is "capture": it connects to nobody`,
			`31: upstream.sink.tls: has no place where type is "capture": it connects to nobody`,
		},
	},
	"an upstream that takes longer than mail lives": {
		[]edit{{`tls     = "none"`, "tls = \"none\"\ncommit_timeout = \"1h\""}},
		[]string{
			`32: upstream.sink.commit_timeout: 1h is not below the ttl of stream "auth" (1h): nothing could be sent in time`,
		},
	},
	"one upstream for both kinds": {
		[]edit{{`["bulk"]`, `["sink"]`}},
		[]string{
			"28: upstream.sink: the account 127.0.0.1:2526 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one account under two names": {
		[]edit{{"127.0.0.1:2527", "127.0.0.1:2526"}},
		[]string{
			"32: upstream.bulk: the account 127.0.0.1:2526 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one egress for both kinds": {
		[]edit{{`egress  = "bulk"`, `egress  = "auth"`}},
		[]string{
			"24: egress.auth: the source address 127.0.0.2 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one source address under two names": {
		[]edit{{`"127.0.0.3"`, `"127.0.0.2"`}},
		[]string{
			"26: egress.bulk: the source address 127.0.0.2 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one public address behind NAT": {
		[]edit{{`"127.0.0.3"`, "\"127.0.0.3\"\npublic_ipv4 = \"203.0.113.9\""}, {`"127.0.0.2"`, "\"127.0.0.2\"\npublic_ipv4 = \"203.0.113.9\""}},
		[]string{
			"27: egress.bulk: the source address 203.0.113.9 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one DKIM key for both kinds": {
		[]edit{{`"marketing.pem"`, `"auth.pem"`}},
		[]string{
			"23: stream.marketing.dkim: the DKIM key DIR/auth.pem is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
	"one DKIM domain for both kinds": {
		[]edit{{`"auth.pem" }`, `"auth.pem", domain = "example.com" }`}, {`"marketing.pem" }`, `"marketing.pem", domain = "example.com", shared = true }`}},
		[]string{
			"17: stream.auth.dkim: the DKIM domain example.com is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
}
