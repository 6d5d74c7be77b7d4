package config_test

// badTemplates is about [templates].
var badTemplates = map[string]badConfig{
	"templates whose directory is not there": {
		[]edit{{"", "[templates]\ndir = \"nowhere\"\n"}},
		[]string{
			"37: templates.dir: DIR/nowhere does not exist",
		},
	},
	"templates whose directory is a file": {
		[]edit{{"", "[templates]\ndir = \"auth.pem\"\n"}},
		[]string{
			"37: templates.dir: DIR/auth.pem is not a directory",
		},
	},
	"a default locale that is no language": {
		[]edit{{"", "[templates]\ndefault_locale = \"english please\"\n"}},
		[]string{
			`37: templates.default_locale: "english please" is not a language`,
		},
	},
	"a default locale that leaves the language open": {
		[]edit{{"", "[templates]\ndefault_locale = \"und\"\n"}},
		[]string{
			`37: templates.default_locale: "und" is not a language`,
		},
	},
	"a logo that mail programs would warn of, a colour by name and an empty sender": {
		[]edit{{"", "[templates]\napp_logo = \"http://example.com/logo.png\"\ncolor = \"blue\"\nsender_name = \"\"\n"}},
		[]string{
			`37: templates.app_logo: "http://example.com/logo.png" is not an https URL`,
			`38: templates.color: "blue" is not a colour`,
			"39: templates.sender_name: is empty",
		},
	},
	"a sender that passes for an address": {
		[]edit{{"", "[templates]\nsender_name = \"Help ﹫ bank.example\"\n"}},
		[]string{
			`37: templates.sender_name: "Help ﹫ bank.example" looks like an address, which no display name may`,
		},
	},
	"a logo with a script": {
		[]edit{{"", "[templates]\napp_logo = \"javascript:alert(1)\"\n"}},
		[]string{
			`37: templates.app_logo: "javascript:alert(1)" is not an https URL`,
		},
	},
}
