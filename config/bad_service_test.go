package config_test

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
)

// withUpstream returns the edits that make the first upstream what lines say; the stream's own signature goes where the
// service would lose it.
func withUpstream(lines string, signed bool) []edit {
	edits := []edit{{smtpSink, lines + "\n"}}
	if !signed {
		edits = append(edits, edit{"dkim    = { selector = \"gp1\", key_file = \"auth.pem\" }\n", ""})
	}
	return edits
}

const (
	sesLines     = "type = \"ses\"\nregion = \"eu-central-1\"\naccess_key_id_file = \"p\"\nsecret_access_key_file = \"t\""
	mailgunLines = "type = \"mailgun\"\ndomain = \"mg.example.com\"\napi_key_file = \"p\""
)

// badAPIs is about upstreams at SES, Mailgun, SendGrid and Postmark, and about what they have in common.
var badAPIs = map[string]badConfig{
	"SES without a region and half a key": {
		withUpstream("type = \"ses\"\naccess_key_id_file = \"p\"", true),
		[]string{
			"28: upstream.sink.region: is missing",
			"30: upstream.sink.access_key_id_file: has no secret_access_key_file",
		},
	},
	"the other half of a key": {
		withUpstream("type = \"ses\"\nregion = \"eu-central-1\"\nsecret_access_key_file = \"p\"\nsession_token_file = \"t\"", true),
		[]string{
			"31: upstream.sink.secret_access_key_file: has no access_key_id_file",
		},
	},
	"a session token of no key": {
		withUpstream("type = \"ses\"\nregion = \"eu-central-1\"\nsession_token_file = \"t\"", true),
		[]string{
			"31: upstream.sink.session_token_file: belongs to a key of its own",
		},
	},
	"a key that is missing": {
		withUpstream(strings.Replace(sesLines, `"t"`, `"no"`, 1), true),
		[]string{
			"32: upstream.sink.secret_access_key_file: DIR/no does not exist",
		},
	},
	"names that SES does not take": {
		withUpstream(sesLines+"\nconfiguration_set = \"a b\"\ntenant = \"a/b\"\ntags = [\"app\", \"a=b c\", \"=x\"]\nidentity_arn = \"auth.example.com\"\nfeedback_identity_arn = \"arn:aws:ses:eu-central-1:123456789012:identity/x\"", true),
		[]string{
			`33: upstream.sink.configuration_set: "a b" is not 1 to 64 letters, digits and any of "-_"`,
			`34: upstream.sink.tenant: "a/b" is not 1 to 64 letters, digits and any of "-_"`,
			`35: upstream.sink.tags: "app" is not name=value of letters, digits, - and _`,
			`35: upstream.sink.tags: "a=b c" is not name=value of letters, digits, - and _`,
			`35: upstream.sink.tags: "=x" is not name=value of letters, digits, - and _`,
			`36: upstream.sink.identity_arn: "auth.example.com" is not the ARN of an identity`,
			"37: upstream.sink.feedback_identity_arn: is of the identity of feedback_address, which is not set",
		},
	},
	"Mailgun without what it needs": {
		withUpstream("type = \"mailgun\"\nregion = \"ap\"", true),
		[]string{
			"28: upstream.sink.domain: is missing",
			"28: upstream.sink.api_key_file: is missing",
			`30: upstream.sink.region: "ap" is not "us" or "eu"`,
		},
	},
	"mail that nobody would sign": {
		withUpstream(mailgunLines+"\ndkim = \"none\"\nservice_dkim = \"no\"", false),
		[]string{
			`32: upstream.sink.service_dkim: "no" does not go with dkim "none": nobody would sign`,
		},
	},
	"a signature that tracking would break": {
		withUpstream(mailgunLines+"\ntracking = \"on\"", true),
		[]string{
			`32: upstream.sink.tracking: does not go with dkim "sign": what the service changes in the body breaks the signature`,
			`32: upstream.sink.tracking: "sink" is used by stream "auth": links and opens of sign-in mail are never tracked`,
		},
	},
	"too many tags": {
		withUpstream(mailgunLines+"\ntags = [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\", \"j\", \"k\", \"é\"]", true),
		[]string{
			"32: upstream.sink.tags: has 12 entries; the service takes 10",
			`32: upstream.sink.tags: "é" is not 1 to 128 ASCII characters`,
		},
	},
	"SendGrid with a signature and a wrong region": {
		withUpstream("type = \"sendgrid\"\nregion = \"us\"\ndkim = \"sign\"", false),
		[]string{
			"27: upstream.sink.api_key_file: is missing",
			`29: upstream.sink.region: "us" is not "global" or "eu"`,
			`30: upstream.sink.dkim: "sign" has no place where type is "sendgrid": the service builds the message anew, so no signature of ours would arrive`,
		},
	},
	"Postmark with too much metadata": {
		withUpstream("type = \"postmark\"\nserver_token_file = \"p\"\nmessage_stream = \"a b\"\nkeep_id = \"yes\"\nmetadata = [\"1=1\", \"2=2\", \"3=3\", \"4=4\", \"5=5\", \"6=6\", \"7=7\", \"8=8\", \"9=9\", \"10=10\"]", false),
		[]string{
			`30: upstream.sink.message_stream: "a b" is not 1 to 64 letters, digits and any of "-_"`,
			"31: upstream.sink.keep_id: is a string, want true or false",
			"32: upstream.sink.metadata: has 10 entries; the service takes 9",
		},
	},
	"endpoints that are none": {
		append(withUpstream(mailgunLines+"\nendpoint = \"http://api.example.com\"", true),
			edit{"type    = \"smtp\"\naddress = \"127.0.0.1:2527\"\ntls     = \"none\"", "type = \"ses\"\nregion = \"eu-central-1\"\nendpoint = \"https://email.example.com/v2\""}),
		[]string{
			"32: upstream.sink.endpoint: would send mail and credentials in clear text to api.example.com",
			"36: upstream.bulk.endpoint: has more than a host and a port",
		},
	},
	"an endpoint without a host": {
		withUpstream(mailgunLines+"\nendpoint = \"https://0.0.0.0:8080\"\nrate = 0", true),
		[]string{
			"32: upstream.sink.endpoint: is not the URL of a web service",
			"33: upstream.sink.rate: 0 is not from 1 to 100000",
		},
	},
	"a proxy beside an address": {
		[]edit{{`ipv4 = "127.0.0.2"`, "ipv4 = \"127.0.0.2\"\nproxy = \"socks5://127.0.0.1:1080\""}},
		[]string{
			"26: egress.auth.proxy: does not go with ipv4 and ipv6: mail leaves from the proxy's address",
		},
	},
	"proxies that are none": {
		[]edit{{`ipv4 = "127.0.0.2"`, `proxy = "http://127.0.0.1:8080"`}, {`ipv4 = "127.0.0.3"`, `proxy = "socks5://user:password@127.0.0.1:1080"`}},
		[]string{
			`25: egress.auth.proxy: is not socks5://host:port`,
			`27: egress.bulk.proxy: is not socks5://host:port`,
		},
	},
	"one proxy for both kinds": {
		[]edit{{`ipv4 = "127.0.0.2"`, `proxy = "socks5://proxy.example.com:1080"`}, {`ipv4 = "127.0.0.3"`, `proxy = "socks5://proxy.example.com:1080/"`}},
		[]string{
			"26: egress.bulk: the proxy proxy.example.com:1080 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other",
		},
	},
}

// twoAccounts makes both upstreams of the small config accounts of one type, with what is told of each.
func twoAccounts(t *testing.T, one, two string) []string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "p", "t")
	text := strings.NewReplacer(smtpSink, one+"\n", strings.Replace(smtpSink, "2526", "2527", 1), two+"\n").Replace(show2)
	text = regexp.MustCompile(`(?m)^dkim += \{.*\n`).ReplaceAllString(text, "")
	return told(t, dir, text)
}

func TestAccountsAreKeptApartAsTheServiceKeepsTheirReputationsApart(t *testing.T) {
	const unsigned = "\ndkim = \"strip\""
	for name, tt := range map[string]struct {
		one, two string
		apart    bool
	}{
		"SES, one configuration set":   {sesLines + unsigned, sesLines + unsigned, false},
		"SES, two configuration sets":  {sesLines + unsigned + "\nconfiguration_set = \"a\"", sesLines + unsigned + "\nconfiguration_set = \"b\"", true},
		"SES, one tenant, two sets":    {sesLines + unsigned + "\ntenant = \"t\"\nconfiguration_set = \"a\"", sesLines + unsigned + "\ntenant = \"t\"\nconfiguration_set = \"b\"", false},
		"SES, two tenants, one set":    {sesLines + unsigned + "\ntenant = \"t\"", sesLines + unsigned + "\ntenant = \"u\"", true},
		"SES, two regions":             {sesLines + unsigned, strings.Replace(sesLines, "eu-central-1", "us-east-1", 1) + unsigned, true},
		"SES, the machine's role":      {"type = \"ses\"\nregion = \"eu-central-1\"" + unsigned, "type = \"ses\"\nregion = \"eu-central-1\"" + unsigned, false},
		"Mailgun, one domain":          {mailgunLines + unsigned, strings.Replace(mailgunLines, `"p"`, `"t"`, 1) + unsigned, false},
		"Mailgun, two domains":         {mailgunLines + unsigned, strings.Replace(mailgunLines, "mg.", "news.", 1) + unsigned, true},
		"SendGrid, one key":            {"type = \"sendgrid\"\napi_key_file = \"p\"", "type = \"sendgrid\"\napi_key_file = \"p\"", false},
		"SendGrid, two pools":          {"type = \"sendgrid\"\napi_key_file = \"p\"\nip_pool = \"aa\"", "type = \"sendgrid\"\napi_key_file = \"p\"\nip_pool = \"bb\"", true},
		"Postmark, one stream":         {"type = \"postmark\"\nserver_token_file = \"p\"", "type = \"postmark\"\nserver_token_file = \"p\"\nmessage_stream = \"outbound\"", false},
		"Postmark, two streams":        {"type = \"postmark\"\nserver_token_file = \"p\"", "type = \"postmark\"\nserver_token_file = \"p\"\nmessage_stream = \"broadcast\"", true},
		"SendGrid and Postmark":        {"type = \"sendgrid\"\napi_key_file = \"p\"", "type = \"postmark\"\nserver_token_file = \"p\"", true},
		"different egresses, one key":  {"type = \"sendgrid\"\napi_key_file = \"p\"\negress = \"auth\"", "type = \"sendgrid\"\napi_key_file = \"p\"\negress = \"bulk\"", false},
		"one egress, different domain": {mailgunLines + unsigned + "\negress = \"auth\"", strings.Replace(mailgunLines, "mg.", "news.", 1) + unsigned + "\negress = \"auth\"", true},
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(twoAccounts(t, tt.one, tt.two), "\n")
			if tt.apart && got != "" || !tt.apart && !strings.Contains(got, "is used by streams of both kinds") {
				t.Errorf("apart: %v, and told %q", tt.apart, got)
			}
			if marked := twoAccounts(t, tt.one+"\nshared = true", tt.two+"\nshared = true"); len(marked) > 0 {
				t.Errorf("marked as shared it is refused: %q", marked)
			}
		})
	}
}

func TestASwitchThatThrowsMailAwayIsWarnedOf(t *testing.T) {
	for lines, want := range map[string]string{
		mailgunLines + "\ntest_mode = true":                         "upstream.sink.test_mode: is on",
		"type = \"sendgrid\"\napi_key_file = \"p\"\nsandbox = true": "upstream.sink.sandbox: is on",
	} {
		dir, text := t.TempDir(), show2
		write(t, dir, "auth.pem", "marketing.pem", "p")
		for _, e := range withUpstream(lines, strings.Contains(lines, "mailgun")) {
			text = e.apply(t, text)
		}
		c := parse(t, dir, text)
		if !slices.ContainsFunc(c.Warnings, func(p *config.Problem) bool { return strings.Contains(p.Error(), want) }) {
			t.Errorf("warned %v, want %q", c.Warnings, want)
		}
	}
}

// TestTheServicesInTheExampleLoad takes the blocks of the example that stand behind "#   " for what they show.
func TestTheServicesInTheExampleLoad(t *testing.T) {
	dir, text := t.TempDir(), readExample(t)
	write(t, dir, exampleFiles...)
	blocks := regexp.MustCompile(`(?m)^#   (\[upstream\.\w+\]\n(?:#   .*\n)+)`).FindAllStringSubmatch(text, -1)
	if len(blocks) < 6 {
		t.Fatalf("the example shows %d services, want 6", len(blocks))
	}
	for _, b := range blocks {
		services := strings.ReplaceAll(b[1], "#   ", "")
		for _, file := range regexp.MustCompile(`_file += "([^"]+)"`).FindAllStringSubmatch(services, -1) {
			write(t, dir, file[1])
		}
		writeCertificate(t, dir, "ca", certificateFor("gw.example.com"))
		one := parse(t, dir, strings.Replace(text, "[upstream.esp-auth]", services+"\n[upstream.esp-auth]", 1))
		again := parse(t, dir, one.Effective())
		one.Warnings, again.Warnings = nil, nil
		if !reflect.DeepEqual(one, again) {
			t.Errorf("its effective form\n%s\nmeans\n%s", one.Effective(), again.Effective())
		}
	}
}
