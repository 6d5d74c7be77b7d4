package config_test

import (
	"reflect"
	"strings"
	"testing"

	"gatepost/config"
)

const (
	smtpSink = "type    = \"smtp\"\naddress = \"127.0.0.1:2526\"\ntls     = \"none\"\n"

	aliyunSink = `type = "aliyun"
account_name = "no-reply@Auth.example.com"
access_key_id_file = "p"
access_key_secret_file = "t"
region = "ap-southeast-1"
from_alias = "サンプル"
tag = "sign-in_1"
rate = 50
`
	webhookSink = `type = "webhook"
url = "https://mail.example.com/deliver?tenant=1"
format = "json"
secret_file = "p"
`
)

// aliyun returns the edits that make the first upstream one at Aliyun, with old replaced by new.
func aliyun(old, new string) []edit {
	return []edit{{smtpSink, aliyunSink}, {"dkim    = { selector = \"gp1\", key_file = \"auth.pem\" }\n", ""}, {old, new}}
}

func webhook(old, new string) []edit { return []edit{{smtpSink, webhookSink}, {old, new}} }

// badServices is about upstreams with an API.
var badServices = map[string]badConfig{
	"an Aliyun account without its keys": {
		aliyun("account_name = \"no-reply@Auth.example.com\"\naccess_key_id_file = \"p\"\naccess_key_secret_file = \"t\"\n", ""),
		[]string{
			"27: upstream.sink.account_name: is missing",
			"27: upstream.sink.access_key_id_file: is missing",
			"27: upstream.sink.access_key_secret_file: is missing",
		},
	},
	"a region that DirectMail does not have": {
		aliyun(`"ap-southeast-1"`, `"eu-west-1"`),
		[]string{`32: upstream.sink.region: "eu-west-1" is not "cn-hangzhou", "ap-southeast-1", "us-east-1" or "eu-central-1"`},
	},
	"a display name that DirectMail does not take": {
		aliyun(`"サンプル"`, `"Example Example"`),
		[]string{"33: upstream.sink.from_alias: has 15 characters; the service takes less than 15"},
	},
	"a tag with a space": {
		aliyun(`"sign-in_1"`, `"sign in"`),
		[]string{`34: upstream.sink.tag: "sign in" is not 1 to 128 letters, digits and any of "-_"`},
	},
	"a sender that is no address": {
		aliyun(`"no-reply@Auth.example.com"`, `"no-reply"`),
		[]string{`29: upstream.sink.account_name: "no-reply" is not an address: the address has no local part or no domain`},
	},
	"a sender in the domain of another stream": {
		aliyun(`"no-reply@Auth.example.com"`, `"no-reply@marketing.example.com"`),
		[]string{`29: upstream.sink.account_name: "no-reply@marketing.example.com" is not in domains of stream "auth": the service would take none of its mail`},
	},
	"a signature that DirectMail would lose": {
		aliyun("rate = 50", `dkim = "sign"`),
		[]string{`35: upstream.sink.dkim: "sign" has no place where type is "aliyun": the service builds the message anew, so no signature of ours would arrive`},
	},
	"links of sign-in mail that are tracked": {
		aliyun("rate = 50", `tracking = "on"`),
		[]string{`35: upstream.sink.tracking: "sink" is used by stream "auth": links and opens of sign-in mail are never tracked`},
	},
	"keys of another type": {
		aliyun("rate = 50", "username = \"joe\"\nurl = \"https://mail.example.com\""),
		[]string{
			`35: upstream.sink.username: has no place where type is "aliyun"`,
			`36: upstream.sink.url: has no place where type is "aliyun"`,
		},
	},
	"a webhook that leads nowhere": {
		webhook("url = \"https://mail.example.com/deliver?tenant=1\"\nformat = \"json\"\nsecret_file = \"p\"\n", ""),
		[]string{
			"28: upstream.sink.url: is missing",
			"28: upstream.sink.secret_file: is missing",
		},
	},
	"a webhook in clear text": {
		webhook("https://", "http://"),
		[]string{"30: upstream.sink.url: would send mail and credentials in clear text to mail.example.com"},
	},
	"a webhook's URL with a password": {
		webhook("mail.example.com", "joe:hunter2@mail.example.com"),
		[]string{"30: upstream.sink.url: has credentials"},
	},
	"a webhook's URL that is none": {
		webhook("https://mail.example.com", "mail.example.com"),
		[]string{"30: upstream.sink.url: is not the URL of a web service"},
	},
	"a format that is not known": {
		webhook(`"json"`, `"xml"`),
		[]string{`31: upstream.sink.format: "xml" is not "raw" or "json"`},
	},
	"an endpoint beside the URL": {
		webhook(`format = "json"`, `endpoint = "https://mail.example.com"`),
		[]string{`31: upstream.sink.endpoint: has no place where type is "webhook"`},
	},
}

func TestServicesAreReadAsTheyAreWritten(t *testing.T) {
	for name, tt := range map[string]struct {
		edits []edit
		want  config.Upstream
	}{
		"aliyun": {aliyun("", ""), config.Upstream{Type: "aliyun", AccountName: "no-reply@auth.example.com", Region: "ap-southeast-1",
			FromAlias: "サンプル", Tag: "sign-in_1", Rate: 50, DKIM: "none", Connections: 20}},
		"webhook": {webhook("", ""), config.Upstream{Type: "webhook", URL: "https://mail.example.com/deliver?tenant=1", Format: "json", DKIM: "sign", Connections: 20}},
		"a webhook on this machine": {webhook("https://mail.example.com", "http://127.0.0.1:8080"),
			config.Upstream{Type: "webhook", URL: "http://127.0.0.1:8080/deliver?tenant=1", Format: "json", DKIM: "sign", Connections: 20}},
		"the defaults": {[]edit{{smtpSink, strings.Replace(webhookSink, "format = \"json\"\n", "", 1)}},
			config.Upstream{Type: "webhook", URL: "https://mail.example.com/deliver?tenant=1", Format: "raw", DKIM: "sign", Connections: 20}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem", "p", "t")
			text := show2
			for _, e := range tt.edits {
				text = e.apply(t, text)
			}
			c := parse(t, dir, text)
			got := *c.Upstream["sink"]
			secrets := got.Secrets()
			got.Name, got.AccessKeyID, got.AccessKeySecret, got.Secret = "", config.Secret{}, config.Secret{}, config.Secret{}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("read as\n%+v\nwant\n%+v", got, tt.want)
			}
			if again := parse(t, dir, c.Effective()); !reflect.DeepEqual(again.Upstream["sink"], c.Upstream["sink"]) || len(secrets) == 0 {
				t.Errorf("its effective form gives\n%+v\nwant\n%+v", again.Upstream["sink"], c.Upstream["sink"])
			}
		})
	}
}
