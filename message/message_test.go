package message

import (
	"strings"
	"testing"
	"time"
)

func TestIDsGrowWithTimeAndSurviveTheirText(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	a, b := NewID(at, 3, 7), NewID(at.Add(time.Millisecond), 0, 0)
	if a >= b || a.String() >= b.String() {
		t.Errorf("%v and %v do not grow", a, b)
	}
	if !a.Time().Equal(at) || a.Node() != 3 {
		t.Errorf("%v tells %v and node %d", a, a.Time(), a.Node())
	}
	back, err := ParseID(strings.ToUpper(a.String()))
	if err != nil || back != a {
		t.Errorf("%s parses to %v, %v", a, back, err)
	}
	for _, s := range []string{"", "0000000000000", "06b7v2c80g00", "../../etc/pass", "uuuuuuuuuuuuu", "zzzzzzzzzzzzz"} {
		if id, err := ParseID(s); err == nil {
			t.Errorf("%q parses to %d", s, id)
		}
	}
}

func TestOnlyPlainMailboxesAreAddresses(t *testing.T) {
	for name, tt := range map[string]struct{ in, want string }{
		"a mailbox":                     {"Kim.Lee+x@Example.NET", "Kim.Lee+x@example.net"},
		"an internationalised domain":   {"kim@b\u00fccher.example", "kim@xn--bcher-kva.example"},
		"letters beyond ASCII":          {"\u30ad\u30e0@example.net", "\u30ad\u30e0@example.net"},
		"no domain":                     {"kim", ""},
		"no local part":                 {"@example.net", ""},
		"a quoted local part":           {`"kim lee"@example.net`, ""},
		"what was unquoted":             {"x> NOTIFY=NEVER@example.net", ""},
		"a source route":                {"@a.example:kim@example.net", ""},
		"an address literal":            {"kim@[127.0.0.1]", ""},
		"an address for a domain":       {"kim@127.0.0.1", ""},
		"two at signs":                  {"a@b@example.net", ""},
		"a line end":                    {"kim@example.net\r\nRCPT TO:<x@y>", ""},
		"a NUL":                         {"kim\x00@example.net", ""},
		"octets that are not UTF-8":     {"k\xffm@example.net", ""},
		"a line separator":              {"kim\u2028x@example.net", ""},
		"a space of another script":     {"kim\u00a0@example.net", ""},
		"a space that nobody sees":      {"kim\u200b@example.net", ""},
		"a byte order mark":             {"\ufeffkim@example.net", ""},
		"a turn of direction":           {"kim\u202e@example.net", ""},
		"what is left of broken text":   {"kim\ufffd@example.net", ""},
		"a joiner inside a word":        {"\u0646\u0627\u0645\u0647\u200c\u0647\u0627@example.net", "\u0646\u0627\u0645\u0647\u200c\u0647\u0627@example.net"},
		"an encoded word":               {"=?utf-8?q?kim?=@example.net", ""},
		"empty pieces":                  {"kim..lee@example.net", ""},
		"a local part over 64 octets":   {strings.Repeat("k", 65) + "@example.net", ""},
		"a label over 63 octets":        {"kim@" + strings.Repeat("a", 64) + ".net", ""},
		"a label that begins with a -":  {"kim@-a.net", ""},
		"an address over 254 octets":    {"kim@" + strings.Repeat("a.", 130) + "net", ""},
		"a domain that is not UTF-8":    {"kim@ex\xc3.net", ""},
		"a display name":                {"Kim <kim@example.net>", ""},
		"a trailing dot":                {"kim@example.net.", ""},
		"a percent hack is one mailbox": {"kim%other.example@example.net", "kim%other.example@example.net"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := ParseAddress(tt.in)
			if got := a.String(); err == nil && got != tt.want || err != nil && tt.want != "" {
				t.Errorf("ParseAddress(%q) = %q, %v, want %q", tt.in, got, err, tt.want)
			}
		})
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"kim@example.net", "\u30ad@b\u00fccher.example", `"a b"@c`, "a@b@c", "x@[::1]", "a..b@c", "\xff@x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err != nil {
			return
		}
		if b, err := ParseAddress(a.String()); err != nil || b != a {
			t.Errorf("%q parsed to %#v, which parses to %#v, %v", s, a, b, err)
		}
		if strings.ContainsAny(a.String(), " <>\"\\,;:()[]\r\n\t\x00") || strings.Count(a.String(), "@") != 1 {
			t.Errorf("%q lets %q through", s, a)
		}
	})
}

func TestFieldsAreFoundAsTheyStand(t *testing.T) {
	raw := Raw("Subject: a\r\n b\r\nX: y\r\nbroken\r\n\r\nbody\r\n\r\nmore")
	var names, values []string
	var joined strings.Builder
	for f := range Fields(raw.Header()) {
		names = append(names, f.Name())
		values = append(values, f.Value())
		joined.WriteString(string(f))
	}
	if got := strings.Join(names, "|"); got != "Subject|X|" {
		t.Errorf("names %q", got)
	}
	if values[0] != "a b" || joined.String() != string(raw.Header()) || string(raw.Body()) != "body\r\n\r\nmore" {
		t.Errorf("values %q, header %q, body %q", values, joined.String(), raw.Body())
	}
}

func TestMaskHidesCodesAndLinksAndKeepsWords(t *testing.T) {
	for in, want := range map[string]string{
		"5.1.1 no such user":                   "5.1.1 no such user",
		"code 482913 refused":                  "code \u2026 refused",
		"see https://example.net/?t=abc now":   "see \u2026 now",
		"a\r\nb\x00c\u2028d\xff":               "a  b c d",
		strings.Repeat("\u00e9", 400) + "tail": strings.Repeat("\u00e9", 256),
	} {
		if got := Mask(in); got != want {
			t.Errorf("Mask(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"kim@example.net": "k\u2026@example.net", "k@example.net": "\u2026@example.net", "\u30ad\u30e0@x": "\u30ad\u2026@x", "none": "none",
	} {
		if got := MaskAddress(in); got != want {
			t.Errorf("MaskAddress(%q) = %q, want %q", in, got, want)
		}
	}
}
