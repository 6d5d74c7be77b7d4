package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// badMapped is about services that build the message themselves.
var badMapped = map[string]badConfig{
	"a SendGrid upstream without a key": {
		[]edit{{"", "[upstream.sg]\ntype = \"sendgrid\"\n"}},
		[]string{
			`36: upstream.sg.api_key_file: is missing`,
		},
	},
	"SendGrid's keys with values it does not take": {
		[]edit{{"", "[upstream.sg]\ntype = \"sendgrid\"\napi_key_file = \"p\"\nregion = \"us\"\nip_pool = \"a\"\ncategories = [\"a\", \"é\", \"a\"]\ntracking = \"no\"\nsandbox = \"yes\"\n"}},
		[]string{
			`39: upstream.sg.region: "us" is not "global" or "eu"`,
			`40: upstream.sg.ip_pool: "a" has one character; SendGrid's pools have 2 to 64`,
			`41: upstream.sg.categories: "a" stands here twice`,
			`41: upstream.sg.categories: "é" is not 1 to 255 ASCII characters`,
			`42: upstream.sg.tracking: "no" is not "on" or "off"`,
			`43: upstream.sg.sandbox: is a string, want true or false`,
		},
	},
	"too many categories": {
		[]edit{{"", "[upstream.sg]\ntype = \"sendgrid\"\napi_key_file = \"p\"\ncategories = [\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\",\"i\",\"j\",\"k\"]\n"}},
		[]string{
			`39: upstream.sg.categories: has 11 entries; the service takes 10`,
		},
	},
	"a signature that would not arrive": {
		[]edit{{"", "[upstream.sg]\ntype = \"sendgrid\"\napi_key_file = \"p\"\ndkim = \"sign\"\n[upstream.pm]\ntype = \"postmark\"\nserver_token_file = \"p\"\ndkim = \"sign\"\n"}},
		[]string{
			`39: upstream.sg.dkim: "sign" has no place where type is "sendgrid": the service builds the message anew, so no signature of ours would arrive`,
			`43: upstream.pm.dkim: "sign" has no place where type is "postmark": the service builds the message anew, so no signature of ours would arrive`,
		},
	},
	"keys of another service": {
		[]edit{{"", "[upstream.pm]\ntype = \"postmark\"\nserver_token_file = \"p\"\ncategories = [\"a\"]\nregion = \"eu\"\napi_key_file = \"p\"\n"}},
		[]string{
			`39: upstream.pm.categories: has no place where type is "postmark"`,
			`40: upstream.pm.region: has no place where type is "postmark"`,
			`41: upstream.pm.api_key_file: has no place where type is "postmark"`,
		},
	},
	"a Postmark upstream without a token": {
		[]edit{{"", "[upstream.pm]\ntype = \"postmark\"\n"}},
		[]string{
			`36: upstream.pm.server_token_file: is missing`,
		},
	},
	"Postmark's keys with values it does not take": {
		[]edit{{"", "[upstream.pm]\ntype = \"postmark\"\nserver_token_file = \"p\"\nmessage_stream = \"my stream\"\ntag = \"é\"\nmetadata = [\"gid=1\", \"x\"]\nkeep_id = \"yes\"\nendpoint = \"http://example.com\"\n"}},
		[]string{
			`39: upstream.pm.message_stream: "my stream" is not 1 to 64 letters, digits and any of "-_"`,
			`40: upstream.pm.tag: "é" is not 1 to 1000 ASCII characters`,
			`41: upstream.pm.metadata: "x" is not name=value of letters, digits, - and _`,
			`41: upstream.pm.metadata: gid is the name of our own id in the metadata`,
			`42: upstream.pm.keep_id: is a string, want true or false`,
			`43: upstream.pm.endpoint: would send mail and credentials in clear text to example.com`,
		},
	},
}

func TestATestTokenOfPostmarkIsWarnedOf(t *testing.T) {
	for token, want := range map[string]bool{"POSTMARK_API_TEST": true, "1b2c3d": false} {
		dir := t.TempDir()
		write(t, dir, "auth.pem", "marketing.pem")
		if err := os.WriteFile(filepath.Join(dir, "pm"), []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c := parse(t, dir, show2+"[upstream.pm]\ntype = \"postmark\"\nserver_token_file = \"pm\"\n")
		warned := false
		for _, w := range c.Warnings {
			warned = warned || strings.Contains(w.Text, "delivers none of it")
		}
		if warned != want {
			t.Errorf("with the token %s the warnings are %v", token, c.Warnings)
		}
	}
}
