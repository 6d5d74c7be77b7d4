package policy

import (
	"strings"
	"testing"
)

// What people and machines take for the sender is of the stream, however From is written.
func TestFromTricks(t *testing.T) {
	p := newPolicy(t)
	const name, other = "550 5.7.1 The display name in ", "550 5.7.1"
	for trick, tt := range map[string]struct{ header, refusal string }{
		"a plain From":      {"From: Kim <a@auth.example.com>", ""},
		"a brand":           {"From: Example, Inc. <a@auth.example.com>", "550 5.6.0"},
		"a brand in quotes": {`From: "Example, Inc." <a@auth.example.com>`, ""},
		"a domain without an address in the name":  {"From: shop.example <a@auth.example.com>", ""},
		"the stream's own address for a name":      {`From: "a@auth.example.com" <a@auth.example.com>`, ""},
		"another address of the stream for a name": {`From: "b@x.login.example.com" <a@auth.example.com>`, ""},
		"a handle":                                   {`From: "@example" <a@auth.example.com>`, ""},
		"an at in a sentence":                        {`From: "Meet us @ example.org" <a@auth.example.com>`, ""},
		"somebody else's address for a name":         {`From: "ceo@evil.example" <a@auth.example.com>`, name + "From"},
		"one in a sentence":                          {`From: "The boss (ceo@evil.example) says" <a@auth.example.com>`, name},
		"one beside our own":                         {`From: "a@auth.example.com via ceo@evil.example" <a@auth.example.com>`, name},
		"one in angle brackets":                      {`From: "<ceo@evil.example>" <a@auth.example.com>`, name},
		"one with escapes":                           {`From: "ceo\@evil\.example" <a@auth.example.com>`, name},
		"one in pieces":                              {`From: "ceo@"evil.example <a@auth.example.com>`, name},
		"one without quotes":                         {"From: ceo@evil.example <a@auth.example.com>", "550 5.6.0"},
		"one as an encoded word":                     {"From: =?utf-8?q?ceo=40evil=2Eexample?= <a@auth.example.com>", name},
		"one as base64":                              {"From: =?utf-8?b?Y2VvQGV2aWwuZXhhbXBsZQ==?= <a@auth.example.com>", name},
		"one over two encoded words":                 {"From: =?utf-8?q?ceo=40?=\r\n =?utf-8?q?evil.example?= <a@auth.example.com>", name},
		"one in a charset we do not know":            {"From: =?iso-2022-jp?q?ceo=40evil.example?= <a@auth.example.com>", name},
		"an encoded word in quotes":                  {`From: "=?utf-8?q?ceo=40evil.example?=" <a@auth.example.com>`, name},
		"one with a wide at":                         {`From: "ceo＠evil.example" <a@auth.example.com>`, name},
		"one with wide dots":                         {`From: "ceo@evil．example" <a@auth.example.com>`, name},
		"one with what cannot be seen":               {"From: \"ceo\u200b@\u200devil\u200b.example\" <a@auth.example.com>", name},
		"a homograph of our own":                     {"From: \"a@\u0430uth.example.com\" <a@auth.example.com>", name},
		"a lookalike of our own":                     {`From: "a@auth.example.com.evil.example" <a@auth.example.com>`, name},
		"one of the client's other stream":           {`From: "hi@news.example.com" <a@auth.example.com>`, name},
		"in the second mailbox":                      {`From: a@auth.example.com, "ceo@evil.example" <b@auth.example.com>`, name},
		"in Sender":                                  {"From: a@auth.example.com\r\nSender: \"ceo@evil.example\" <a@auth.example.com>", name + "Sender"},
		"in Resent-From":                             {"From: a@auth.example.com\r\nResent-From: \"ceo@evil.example\" <a@auth.example.com>", name + "Resent-From"},
		"a From domain with a Cyrillic letter":       {"From: a@\u0430uth.example.com", other},
		"the same as an A-label":                     {"From: a@xn--uth-7cd.example.com", other},
		"a From domain in wide letters is our own":   {"From: a@\uff41uth.example.com", ""},
		"a From domain with a soft hyphen is ours":   {"From: a@au\u00adth.example.com", ""},
		"a From domain with a dot of another script": {"From: a@auth\u3002example.com", ""},
		"a From domain and what cannot be seen":      {"From: a@auth.example.com\u202e", "550 5.6.0"},
		"two From fields":                            {"From: a@auth.example.com\r\nFrom: ceo@evil.example", "550 5.6.0"},
		"a list":                                     {"From: a@auth.example.com, ceo@evil.example", other},
		"a group":                                    {"From: Us: a@auth.example.com;", "550 5.6.0"},
		"a comment":                                  {"From: a@auth.example.com (ceo@evil.example)", "550 5.6.0"},
		"none":                                       {"Subject: x", "550 5.6.0"},
	} {
		t.Run(trick, func(t *testing.T) {
			_, err := p.Check(submission("both", "", tt.header), testID, testTime)
			checkRefusal(t, err, tt.refusal)
		})
	}
}

func FuzzNoForeignAddressIsShown(f *testing.F) {
	f.Add("ceo@evil.example")
	f.Add("@@a.b@")
	f.Add("=?utf-8?q?=40a.b?=")
	f.Add("\u200b＠．")
	f.Fuzz(func(t *testing.T, name string) {
		for _, d := range shownDomains(name) {
			if !strings.Contains(d, ".") || strings.ContainsAny(d, "@ ") {
				t.Errorf("%q shows domain %q", name, d)
			}
		}
	})
}
