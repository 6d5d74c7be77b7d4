package policy

import (
	"net/mail"
	"slices"
	"strings"
	"testing"

	"gatepost/message"
)

func TestMailboxes(t *testing.T) {
	for name, tt := range map[string]struct{ value, want, refusal string }{
		"an address":                            {"a@example.com", "a@example.com", ""},
		"an address in angle brackets":          {"<a@example.com>", "a@example.com", ""},
		"a display name":                        {"Example App <a@example.com>", "a@example.com", ""},
		"a quoted display name":                 {`"Example, Inc. (EU): \"App\"" <a@example.com>`, "a@example.com", ""},
		"a display name with dots":              {"J. Doe <a@example.com>", "a@example.com", ""},
		"an encoded display name":               {"=?utf-8?B?56K66KqN?= =?utf-8?Q?_x?= <a@example.com>", "a@example.com", ""},
		"one in a charset we do not know":       {"=?iso-2022-jp?B?GyRCM05HJxsoQg==?= <a@example.com>", "a@example.com", ""},
		"a raw UTF-8 display name":              {"確認コード <a@example.com>", "a@example.com", ""},
		"the same in quotes":                    {`"確認, コード" <a@example.com>`, "a@example.com", ""},
		"two mailboxes":                         {"A <a@example.com>, b@example.org", "a@example.com b@example.org", ""},
		"white space around everything":         {" \tA \t<a@example.com> \t, \tb@example.org ", "a@example.com b@example.org", ""},
		"no space before the bracket":           {"A<a@example.com>", "a@example.com", ""},
		"nothing":                               {"", "", "empty entry"},
		"a display name alone":                  {"Example", "", "no local part"},
		"several words alone":                   {"Example App", "", "no address in angle brackets"},
		"a quoted name alone":                   {`"Example"`, "", "no address in angle brackets"},
		"empty brackets":                        {"Example <>", "", "no local part"},
		"an unquoted comma in the name":         {"Example, Inc. <a@example.com>", "", "no local part"},
		"a trailing comma":                      {"a@example.com,", "", "empty entry"},
		"a leading comma":                       {",a@example.com", "", "empty entry"},
		"two commas":                            {"a@example.com,,b@example.com", "", "empty entry"},
		"a group":                               {"Us: a@example.com, b@example.com;", "", "groups"},
		"an empty group":                        {"undisclosed-recipients:;", "", "groups"},
		"a comment behind the address":          {"a@example.com (Example)", "", "comment"},
		"a comment inside the address":          {"a@(evil.example)example.com", "", "comment"},
		"a comment with an address":             {"(<x@evil.example>) a@example.com", "", "comment"},
		"a source route":                        {"<@evil.example,@b.example:a@example.com>", "", "not allowed"},
		"an address in front of the brackets":   {"x@evil.example <a@example.com>", "", "looks like an address"},
		"two addresses in a row":                {"<x@evil.example> <a@example.com>", "", "text follows an address"},
		"text behind the address":               {"<a@example.com> Example", "", "text follows an address"},
		"two addresses in one pair of brackets": {"<x@evil.example,a@example.com>", "", "not allowed"},
		"brackets in brackets":                  {"<<a@example.com>>", "", "not allowed"},
		"an encoded-word for a local part":      {"=?utf-8?q?ceo=40evil.example=3e=20?=@example.com", "", "encoded-word"},
		"an open bracket":                       {"<a@example.com", "", "without a"},
		"a closing bracket alone":               {"a@example.com>", "", "outside of double quotes"},
		"an open quote":                         {`"Example <a@example.com>`, "", "not closed"},
		"a quote that ends in a backslash":      {`"Example\`, "", "not closed"},
		"a quoted local part":                   {`"a"@example.com`, "", "no address in angle brackets"},
		"a quoted local part in brackets":       {`<"x@evil.example> "@example.com>`, "", "not allowed"},
		"white space inside the address":        {"a @example.com", "", "no address in angle brackets"},
		"white space inside the brackets":       {"<a@ example.com>", "", "not allowed"},
		"two at signs":                          {"x@evil.example@example.com", "", "not allowed"},
		"an address literal":                    {"<a@[192.0.2.1]>", "", "not allowed"},
		"an IP address as domain":               {"a@192.0.2.1", "", "IP address"},
		"a control character":                   {"Ex\x01ample <a@example.com>", "", "control character"},
		"invalid UTF-8":                         {"Caf\xe9 <a@example.com>", "", "UTF-8"},
		"a backslash outside of quotes":         {`Ex\ample <a@example.com>`, "", "outside of double quotes"},
		"as many as are allowed":                {strings.Repeat("a@example.com,", maxMailboxes-1) + "a@example.com", strings.TrimSpace(strings.Repeat("a@example.com ", maxMailboxes)), ""},
		"one more":                              {strings.Repeat("a@example.com,", maxMailboxes) + "a@example.com", "", "more than 20"},
	} {
		t.Run(name, func(t *testing.T) {
			as, err := parseMailboxes(tt.value)
			var got []string
			for _, a := range as {
				got = append(got, a.String())
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("mailboxes %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.refusal == "") || err != nil && !strings.Contains(err.Error(), tt.refusal) {
				t.Errorf("error %v, want %q", err, tt.refusal)
			}
		})
	}
}

// What we take for the senders is what a full parser of RFC 5322 takes for them: nobody is let in by a gap between
// two readings.
func FuzzMailboxes(f *testing.F) {
	for _, s := range []string{
		"a@example.com", `"A, B" <a@example.com>, b@example.org`, "x@evil.example <a@example.com>", "a (b) <a@b>",
		"確認 <a@example.com>", "A.. <a@b>", "a@b, <c@d>", "\x00", `"\"" <a@b>`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ReplaceAll(s, "=?", "x?") // net/mail decodes names too, and refuses what it cannot decode
		got, err := parseMailboxes(s)
		if err != nil {
			return
		}
		list, err := mail.ParseAddressList(s)
		if err != nil {
			t.Fatalf("%q is %v to us and to net/mail %v", s, got, err)
		}
		var want []message.Address
		for _, a := range list {
			address, err := message.ParseAddress(a.Address)
			if err != nil {
				t.Fatalf("net/mail finds %q in %q: %v", a.Address, s, err)
			}
			want = append(want, address)
		}
		if !slices.EqualFunc(got, want, func(m mailbox, a message.Address) bool { return m.Address == a }) {
			t.Errorf("%q is %v to us and %v to net/mail", s, got, want)
		}
	})
}
