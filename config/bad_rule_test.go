package config_test

import (
	"strings"
	"testing"
	"time"
)

// rule appends a rule to the auth stream; its first line is 37.
func rule(lines string) edit { return edit{"", "[[stream.auth.match]]\n" + lines} }

// badRules is about rules, and what streams do with single mails.
var badRules = map[string]badConfig{
	"a rule for everything": {
		[]edit{rule("ttl = \"10m\"\n")},
		[]string{"36: stream.auth.match: fits everything: it has neither subject nor header"},
	},
	"a rule for nothing": {
		[]edit{rule("subject = \"code\"\n")},
		[]string{"36: stream.auth.match: changes nothing"},
	},
	"expressions that are none": {
		[]edit{rule("subject = \"(\"\nheader = \"X Y\"\nvalue = '(?<=x)'\nttl = \"10m\"\n")},
		[]string{
			"37: stream.auth.match[0].subject: is not a regular expression: missing closing ): `(`",
			`38: stream.auth.match[0].header: "X Y" is not the name of a header field`,
			"39: stream.auth.match[0].value: is not a regular expression: invalid named capture: `(?<=x)`",
		},
	},
	"an expression that is too long": {
		[]edit{rule("subject = \"" + strings.Repeat("x", 1025) + "\"\nttl = \"10m\"\n")},
		[]string{"37: stream.auth.match[0].subject: is longer than 1024 octets"},
	},
	"a value of nothing": {
		[]edit{rule("subject = \"x\"\nvalue = \"y\"\nttl = \"10m\"\n")},
		[]string{"38: stream.auth.match[0].value: has no header"},
	},
	"words in a rule that are not known": {
		[]edit{rule("subject = \"x\"\npurpose = \"sign-in\"\nverdict = \"now\"\n")},
		[]string{
			`38: stream.auth.match[0].purpose: "sign-in" is not "code", "invitation" or "notice"`,
			`39: stream.auth.match[0].verdict: "now" is not "queued" or "upstream"`,
		},
	},
	"lifetimes of a second rule": {
		[]edit{rule("subject = \"x\"\nttl = \"4s\"\n"), rule("subject = \"y\"\nttl = \"169h\"\n")},
		[]string{
			"38: stream.auth.match[0].ttl: 4s is not above commit_timeout and verdict_timeout (4s): nothing could be sent in time",
			"41: stream.auth.match[1].ttl: 7d1h is more than 7d",
		},
	},
	"a rule that is no table": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\nmatch = [1]"}},
		[]string{"14: stream.auth.match: is an integer, want a table"},
	},
	"no rules in brackets": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\nmatch = []"}},
		[]string{"14: stream.auth.match: is empty"},
	},
	"rules without end": {
		[]edit{rule(strings.Repeat("subject = \"x\"\nttl = \"1h\"\n[[stream.auth.match]]\n", 100))},
		[]string{"36: stream.auth.match: has more than 100 rules"},
	},
	"codes that nothing tells": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\nsupersede = true"}, rule("subject = \"x\"\npurpose = \"notice\"\n")},
		[]string{`14: stream.auth.supersede: does nothing: no rule of the stream sets purpose = "code"`},
	},
	"codes in a newsletter": {
		[]edit{{`kind    = "marketing"`, "kind = \"marketing\"\nsupersede = true"}, {"", "[[stream.marketing.match]]\nsubject = \"x\"\npurpose = \"code\"\n"}},
		[]string{`20: stream.marketing.supersede: has no place where kind is "marketing": only codes make older ones worthless`},
	},
	"a default sender of another stream": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\ndefault_from = \"a@marketing.example.com\""}},
		[]string{`14: stream.auth.default_from: "a@marketing.example.com" is in no exact domain of this stream`},
	},
	"a default sender below a wildcard": {
		[]edit{{`domains = ["auth.example.com"]`, "domains = [\"auth.example.com\", \"*.auth.example.com\"]\ndefault_from = \"a@x.auth.example.com\""}},
		[]string{`15: stream.auth.default_from: "a@x.auth.example.com" is in no exact domain of this stream`},
	},
	"a default sender that is no address": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\ndefault_from = \"My App\""}},
		[]string{`14: stream.auth.default_from: "My App" is not an address: the address has no local part or no domain`},
	},
	"bounces of sign-in mail": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\ndsn_upstream = \"sink\""}},
		[]string{`14: stream.auth.dsn_upstream: has no place where kind is "auth": nobody reads bounces of sign-in mail, and they would tell who has an account`},
	},
	"bounces through what does not exist": {
		[]edit{{`kind    = "marketing"`, "kind = \"marketing\"\ndsn_upstream = \"bukl\""}},
		[]string{`20: stream.marketing.dsn_upstream: there is no upstream "bukl"`},
	},
	"bounces through what sends nothing": {
		[]edit{{`kind    = "marketing"`, "kind = \"marketing\"\ndsn_upstream = \"keep\""}, {"", "[upstream.keep]\ntype = \"capture\"\n"}},
		[]string{`20: stream.marketing.dsn_upstream: "keep" is of type "capture": delivery status notifications leave by SMTP alone`},
	},
	"bounces through the account of sign-in mail": {
		[]edit{{`kind    = "marketing"`, "kind = \"marketing\"\ndsn_upstream = \"sink\""}},
		[]string{"29: upstream.sink: the account 127.0.0.1:2526 is used by streams of both kinds (auth: auth; marketing: marketing): complaints about one would stop the other"},
	},
	"sizes of a stream that memory does not allow": {
		[]edit{{`kind    = "auth"`, "kind = \"auth\"\nmax_size = \"1GB\""}},
		[]string{"14: stream.auth.max_size: 1GB is more than three eighths of limits.bytes_in_flight (128MB): such a mail could never be taken"},
	},
}

func TestRulesAreKeptInTheirOrder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	text := strings.Replace(show2, `kind    = "auth"`, "kind = \"auth\"\nsupersede = true\nmax_size = \"256KB\"\ndefault_from = \"App@AUTH.example.com\"", 1) +
		"[[stream.auth.match]]\nsubject = '(?i)\"invit\\w+\"$'\nttl = \"7d\"\npurpose = \"invitation\"\nverdict = \"queued\"\n" +
		"[[stream.auth.match]]\nheader = \"X-Template\"\nvalue = \"^Sign\"\npurpose = \"code\"\n"
	c := parse(t, dir, text)
	for range 2 { // as written, and in its effective form
		s := c.Stream["auth"]
		if len(s.Match) != 2 {
			t.Fatalf("rules %+v", s.Match)
		}
		one, two := s.Match[0], s.Match[1]
		if one.Subject.String() != `(?i)"invit\w+"$` || one.TTL != 7*24*time.Hour || one.Purpose != "invitation" || one.Verdict != "queued" || one.Value != nil {
			t.Errorf("the first rule is %+v", one)
		}
		if two.Subject != nil || two.Header != "X-Template" || two.Value.String() != "^Sign" || two.TTL != 0 || two.Purpose != "code" || two.Verdict != "" {
			t.Errorf("the second rule is %+v", two)
		}
		if !s.Supersede || s.MaxSize != 256<<10 || s.DefaultFrom != "App@auth.example.com" {
			t.Errorf("the stream is %+v", s)
		}
		c = parse(t, dir, c.Effective())
	}
}

func TestBouncesMayLeaveByAnUpstreamOfTheirOwn(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem")
	text := strings.Replace(show2, `kind    = "marketing"`, "kind = \"marketing\"\ndsn_upstream = \"dsn\"", 1) +
		"[upstream.dsn]\ntype = \"smtp\"\naddress = \"127.0.0.1:2528\"\ntls = \"none\"\n"
	c := parse(t, dir, text)
	if len(c.Warnings) > 0 || c.Stream["marketing"].DSNUpstream != "dsn" {
		t.Errorf("dsn_upstream is %q, warnings %v", c.Stream["marketing"].DSNUpstream, c.Warnings)
	}
}
