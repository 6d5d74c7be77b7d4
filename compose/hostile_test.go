package compose_test

import (
	"mime"
	"net/mail"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	nethtml "golang.org/x/net/html"

	"gatepost/compose"
	"gatepost/message"
)

// everywhere has a placeholder in each place that a value may stand in.
const everywhere = `<!DOCTYPE html><html><head><title>{{ name }}</title><style>p { color: {{ name }}; background: url({{ name }}) }</style></head>
<body><!-- {{ name }} --><!--[if mso]><v:rect href="{{ name }}" title='{{ name }}'>{{ name }}</v:rect><![endif]-->
<p title="{{ name }}" lang='{{ name }}' class={{name}} style="color:{{ name }}">{{ name }}</p>
<a href="{{ name }}">a</a><a href='{{name}}/x'>b</a><a href={{name}}>c</a><a href="https://example.com/{{ name }}?q={{ name }}#{{ name }}">d</a>
<a href="https://example.com{{ name }}">e</a><a href="mailto:{{ name }}">f</a><img src="{{ name }}" alt="{{ name }}"><textarea>{{ name }}</textarea>
<p>{{ code }} {{{ name }}} {{ name.x }} {{ toString }} {{ __proto__ }} {{ constructor.name }}</p></body></html>`

// hostileValues are what somebody may call himself.
var hostileValues = map[string]string{
	"a header field":            "x\r\nBcc: victim@example.org\r\n\r\nhello",
	"a header field after LF":   "x\nBcc: victim@example.org",
	"an element":                `<script>alert(1)</script>`,
	"an attribute":              `" onmouseover="alert(1)" x='`,
	"an attribute in no quotes": `x onmouseover=alert(1)`,
	"the end of a comment":      `--><script>x</script><!--`,
	"the end of a condition":    `<![endif]--><script>x</script>`,
	"the end of a style":        `</style><script>x</script>`,
	"the end of a title":        `</title></textarea><script>x</script>`,
	"another declaration":       `red;background:url(https://evil.example/x)`,
	"CSS that runs":             `expression(alert(1))`,
	"a placeholder":             `{{ code }}{{ secret }}`,
	"half a placeholder":        `{{ co`,
	"a script link":             `javascript:alert(1)`,
	"a script link in disguise": "java\tscript:alert(1)",
	"a script link with blanks": "  JaVaScRiPt:alert(1)",
	"data":                      `data:text/html,<script>alert(1)</script>`,
	"another host":              `@evil.example/`,
	"a link of its own":         `http://evil.example/`,
	"an encoded-word":           `=?utf-8?q?=0D=0ABcc:_victim@example.org?=`,
	"an address":                `Boss <boss@auth.example.com>`,
	"two addresses":             `a@b.example, c@d.example`,
	"a megabyte":                strings.Repeat("long name ", 1<<17),
	"NUL":                       "a\x00b",
	"not UTF-8":                 "a\xff\xfe\xc0b",
	"right to left":             "\u202egnp.exe\u202d\u2066x\u2069",
	"controls":                  "\x1b[31mred\x7f\u0085\u2028\u2029",
	"tags that nobody sees":     "a\U000e0041\ufeffb",
	"marks that nobody sees":    "\u200fa\u200b\u00ad\u061cb\u2060",
	"ampersands":                `&lt;script&gt;&amp;&#60;b&#62;`,
	"a backslash":               `\`,
	"nothing":                   "",
}

func TestNoValueLeavesItsPlace(t *testing.T) {
	all := load(t, map[string]string{
		"SignIn/en.html": everywhere,
		"SignIn/en.txt":  "Hello {{ name }}, {{ code }} {{ secret }}\n",
		"SignIn/en.toml": "subject = \"For {{ name }}\"\nfrom = \"{{ name }} via Example <no-reply@auth.example.com>\"\nreply_to = \"{{ name }} <help@auth.example.com>\"\npreheader = \"{{ name }}\"",
	})
	p := gate(t)
	plain := render(t, all, request("SignIn", map[string]any{"code": "607596", "name": "Ann"}))
	want := shape(t, plain.HTML)
	for what, value := range hostileValues {
		t.Run(what, func(t *testing.T) {
			m := render(t, all, request("SignIn", map[string]any{"code": "607596", "name": value, "secret": "hunter2"}))
			if got := shape(t, m.HTML); got != want {
				t.Errorf("the HTML is\n%s\nnot of the shape\n%s\n%s", got, want, m.HTML)
			}
			checkWire(t, what, m.Raw)
			checkPolicy(t, p, m)
			checkBounded(t, m)
			if strings.Count(m.Text, "hunter2") != 1 || strings.Contains(m.HTML, "hunter2") || strings.Contains(m.Subject, "607596") {
				t.Errorf("a value was filled in again:\n%s\n%s", m.Subject, m.Text)
			}
			from, err := mail.ParseAddressList(headerOf(t, m.Raw, "From"))
			if err != nil || len(from) != 1 || from[0].Address != "no-reply@auth.example.com" || strings.Contains(from[0].Name, "@") {
				t.Errorf("the sender is %v, %v", from, err)
			}
			for _, link := range links(t, m.HTML) {
				if link != "" && link != "https://example.com" && !strings.HasPrefix(link, "https://example.com/") && !strings.HasPrefix(link, "mailto:") {
					t.Errorf("a link leads to %q", link)
				}
			}
		})
	}
}

// checkBounded holds that a mail is of bearable size and free of what changes how the rest is read.
func checkBounded(t testing.TB, m *compose.Mail) {
	t.Helper()
	if len(m.Text) > 10_000 || len(m.HTML) > 200_000 || utf8.RuneCountInString(m.Subject) > 260 {
		t.Errorf("a subject of %d, a text of %d and HTML of %d octets", len(m.Subject), len(m.Text), len(m.HTML))
	}
	for _, s := range []string{m.Subject, m.Text, m.HTML} {
		if !utf8.ValidString(s) {
			t.Errorf("%.100q is not UTF-8", s)
		}
		for _, r := range s {
			if unicode.IsControl(r) && r != '\n' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069' || r == '\u2028' || r == '\u2029' || r >= 0xe0000 && r < 0xe0080 ||
				r == '\u200f' || r == '\u200b' || r == '\u2060' {
				t.Errorf("%q in %.100q", r, s)
				break
			}
		}
	}
}

// shape returns the elements and attributes of a document, without texts and values.
func shape(t testing.TB, src string) string {
	t.Helper()
	root, err := nethtml.Parse(strings.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range root.Descendants() {
		switch n.Type {
		case nethtml.ElementNode:
			b.WriteString("<" + n.Data)
			for _, a := range n.Attr {
				b.WriteString(" " + a.Key)
			}
			b.WriteString(">")
		case nethtml.CommentNode:
			b.WriteString("<!>")
		}
	}
	for _, inner := range conditions(src) {
		b.WriteString(shape(t, inner))
	}
	return b.String()
}

// conditions returns what Outlook reads of the comments in src.
func conditions(src string) (all []string) {
	z := nethtml.NewTokenizer(strings.NewReader(src))
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		if inner, ok := strings.CutPrefix(string(z.Raw()), "<!--[if mso]>"); ok && kind == nethtml.CommentToken {
			all = append(all, strings.TrimSuffix(inner, "<![endif]-->"))
		}
	}
	return all
}

// links returns the values of all attributes that lead somewhere.
func links(t testing.TB, src string) (all []string) {
	t.Helper()
	root, err := nethtml.Parse(strings.NewReader(src))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		for _, a := range n.Attr {
			if a.Key == "href" || a.Key == "src" {
				all = append(all, strings.TrimSpace(a.Val))
			}
		}
	}
	for _, inner := range conditions(src) {
		all = append(all, links(t, inner)...)
	}
	return all
}

func TestWhatAMailCannotDoWithoutIsNamedWhereItIsMissing(t *testing.T) {
	all := load(t, map[string]string{
		"OrganizationInvitation/de.toml": "[upstream.x]\ntemplate = \"t\"",
		"Welcome/en.txt":                 "Open {{ link }}\n", "Welcome/en.toml": "subject = \"Welcome\"",
		"Hello/en.txt": "Hello\n", "Hello/en.toml": "subject = \"Hello\"",
	})
	const link = "is not an https URL, nor one of a scheme in link_schemes, of up to 4000 octets"
	for name, tt := range map[string]struct {
		kind      string
		variables map[string]any
		want      string
	}{
		"no code":                                       {"SignIn", nil, "code is missing: a mail of type SignIn is of no use without it"},
		"a code that is null":                           {"Generic", map[string]any{"code": nil}, "code is missing: a mail of type Generic is of no use without it"},
		"a code that is an object":                      {"Generic", map[string]any{"code": map[string]any{"toString": "x"}}, "code is missing: a mail of type Generic is of no use without it"},
		"a code for an unknown type":                    {"Nothing", nil, "code is missing: a mail of type Generic is of no use without it"},
		"a code of two lines":                           {"SignIn", map[string]any{"code": "1\n2"}, "code is longer than 64 octets or has control characters"},
		"a code as long as a book":                      {"SignIn", map[string]any{"code": strings.Repeat("1", 65)}, "code is longer than 64 octets or has control characters"},
		"a code of blanks":                              {"SignIn", map[string]any{"code": " \u00a0\u200b"}, "code is missing: a mail of type SignIn is of no use without it"},
		"a code with something that nobody sees":        {"SignIn", map[string]any{"code": "607\u200b596"}, "code is longer than 64 octets or has control characters"},
		"a code with a joiner":                          {"SignIn", map[string]any{"code": "607\u200d596"}, "code is longer than 64 octets or has control characters"},
		"a code that is a number":                       {"SignIn", map[string]any{"code": float64(607596)}, ""},
		"no link":                                       {"OrganizationInvitation", map[string]any{"code": "1"}, "link is missing: a mail of type OrganizationInvitation is of no use without it"},
		"a link that is a script":                       {"OrganizationInvitation", map[string]any{"link": "javascript:alert(1)"}, "link " + link},
		"a link that anybody can read":                  {"OrganizationInvitation", map[string]any{"link": "http://app.example.com/"}, "link " + link},
		"a link with a user in it":                      {"OrganizationInvitation", map[string]any{"link": "https://bank.example@evil.example/"}, "link " + link},
		"a link with quotes":                            {"OrganizationInvitation", map[string]any{"link": `https://app.example.com/"x`}, "link " + link},
		"a link without a host":                         {"OrganizationInvitation", map[string]any{"link": "https:///x"}, "link " + link},
		"a link that goes on":                           {"OrganizationInvitation", map[string]any{"link": "https://app.example.com/ x"}, "link " + link},
		"a link as long as a book":                      {"OrganizationInvitation", map[string]any{"link": "https://app.example.com/" + strings.Repeat("x", 4000)}, "link " + link},
		"a link with a long token":                      {"OrganizationInvitation", map[string]any{"link": "https://app.example.com/?t=" + strings.Repeat("x", 3900)}, ""},
		"a code that nobody asked for":                  {"Hello", map[string]any{"code": strings.Repeat("x", 3900)}, ""},
		"a relative link":                               {"OrganizationInvitation", map[string]any{"link": "/invitation"}, "link " + link},
		"a link to an app":                              {"OrganizationInvitation", map[string]any{"link": "com.example.app://invitation?t=1"}, ""},
		"a link to another app":                         {"OrganizationInvitation", map[string]any{"link": "com.other.app://invitation?t=1"}, "link " + link},
		"a link to a script, allowed":                   {"OrganizationInvitation", map[string]any{"link": "vbscript:x"}, "link " + link},
		"a link to this machine":                        {"OrganizationInvitation", map[string]any{"link": "http://127.0.0.1:3000/x"}, ""},
		"a link to this machine, by v6":                 {"OrganizationInvitation", map[string]any{"link": "http://[::1]:3000/x"}, ""},
		"a link to this machine by name":                {"OrganizationInvitation", map[string]any{"link": "http://localhost:3000/x"}, ""},
		"a link with a query":                           {"OrganizationInvitation", map[string]any{"link": "https://app.example.com/a?b=c&d=%20e#f"}, ""},
		"no link for a type of one's own that names it": {"Welcome", nil, "link is missing: a mail of type Welcome is of no use without it"},
		"nothing for a type of one's own":               {"Hello", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(tt.kind, tt.variables, "de")
			r.LinkSchemes = []string{"com.example.app", "vbscript"}
			m, err := all.Render(r)
			if tt.want == "" {
				if err != nil || m == nil {
					t.Error(err)
				}
				return
			}
			refused, ok := err.(*compose.Error)
			if !ok || err.Error() != tt.want || refused.Field != strings.Fields(tt.want)[0] || m != nil {
				t.Errorf("told %v (mail %v), want %s", err, m != nil, tt.want)
			}
		})
	}
}

func TestARequestThatCannotBecomeMailSaysWhichFieldIsWrong(t *testing.T) {
	all := load(t, nil)
	for name, tt := range map[string]struct {
		change func(*compose.Request)
		want   string
	}{
		"no reader":                   {func(r *compose.Request) { r.To = "" }, "to cannot be used"},
		"two readers":                 {func(r *compose.Request) { r.To = "a@example.org,b@example.org" }, "to cannot be used"},
		"a reader with a field":       {func(r *compose.Request) { r.To = "a@example.org\r\nBcc: b@example.org" }, "to cannot be used"},
		"no sender":                   {func(r *compose.Request) { r.From = "" }, "from has no address"},
		"a sender without an address": {func(r *compose.Request) { r.From = "Example" }, "from is not an address"},
		"a sender that is none":       {func(r *compose.Request) { r.From = "Example <x>" }, "from is not an address"},
		"two senders":                 {func(r *compose.Request) { r.From = "a@b.example, c@d.example" }, "from "},
		"replies to nowhere":          {func(r *compose.Request) { r.ReplyTo = "x@" }, "reply_to "},
		"no Message-ID":               {func(r *compose.Request) { r.MessageID = "" }, "message_id is not"},
		"a Message-ID with a field":   {func(r *compose.Request) { r.MessageID = "a@b>\r\nBcc: x@y" }, "message_id is not"},
	} {
		t.Run(name, func(t *testing.T) {
			r := request("SignIn", map[string]any{"code": "1"})
			tt.change(&r)
			if m, err := all.Render(r); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("told %v, want %s (%v)", err, tt.want, m)
			}
		})
	}
}

func TestTheNameOfTheCallersSenderIsANameAndNoAddress(t *testing.T) {
	all := load(t, nil)
	for from, want := range map[string]string{
		`"Acme @ Home" <no-reply@auth.example.com>`:               "Acme at Home",
		`"boss@evil.example" <no-reply@auth.example.com>`:         "boss at evil.example",
		`=?utf-8?q?J=C3=BCrgen?= <no-reply@auth.example.com>`:     "Jürgen",
		`"Hi {{ code }} there" <no-reply@auth.example.com>`:       "Hi {{ code }} there",
		"\"a\u202eb\u200b\" <no-reply@auth.example.com>":          "ab",
		`"Acme, Inc. \"x\"" <no-reply@auth.example.com>`:          `Acme, Inc. "x"`,
		strings.Repeat("日", 300) + ` <no-reply@auth.example.com>`: strings.Repeat("日", 250) + "…",
		`"=?utf-8?q?=0ABcc:_x=40y?=" <no-reply@auth.example.com>`: "= ?utf-8?q?=0ABcc:_x=40y?=",
	} {
		r := request("SignIn", map[string]any{"code": "1"})
		r.From, r.ReplyTo = from, from
		m := render(t, all, r)
		for _, field := range []string{"From", "Reply-To"} {
			got, err := mail.ParseAddress(headerOf(t, m.Raw, field))
			if err != nil || got.Name != want || got.Address != "no-reply@auth.example.com" {
				t.Errorf("%s: %s became %v, %v", field, from, got, err)
			}
		}
		checkWire(t, from, m.Raw)
	}
}

func TestASubjectIsReadAsItWasWritten(t *testing.T) {
	all := load(t, nil)
	for _, subject := range []string{"Hello", "サインイン用の認証コード", strings.Repeat("日本語", 40), "Ihr Code für " + strings.Repeat("Größe ", 20) + "x",
		"日本語の件名 then many words in ASCII that need no encoding at all by themselves", strings.Repeat("x", 200), strings.Repeat("👩\u200d👩", 30),
		"Short words, but so many of them that a line is not long enough to hold them all at once", "ü", "Votre code d’inscription"} {
		m, err := all.Rendered(request("", nil, "en"), subject, "x", "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := new(mime.WordDecoder).DecodeHeader(headerOf(t, m.Raw, "Subject"))
		if err != nil || got != subject {
			t.Errorf("%q is read as %q, %v", subject, got, err)
		}
		checkWire(t, subject, m.Raw)
	}
}

func TestPlaceholdersReadAsLogtoReadsThem(t *testing.T) {
	all := load(t, map[string]string{"SignIn/en.txt": "{{code}}|{{ user.name }}|{{user.tags.0}}|{{user.tags}}|{{ n }}|{{ b }}|{{ user }}|{{ no.thing }}|{{{code}}}|{{a-b}}|{{#if x}}|{{ big }}|{{user.name.x}}|{{ user.tags.7 }}\n"})
	m := render(t, all, request("SignIn", map[string]any{"code": "607596", "n": 1.5, "b": true, "big": 1e21,
		"user": map[string]any{"name": "Ann", "tags": []any{"x", "y", nil}}}))
	const want = "607596|Ann|x|x,y,|1.5|true|||{607596}|{{a-b}}|{{#if x}}|1000000000000000000000||\n"
	if m.Text != want {
		t.Errorf("the text is %q, want %q", m.Text, want)
	}
	if len(all.Warnings) == 0 {
		t.Error("nobody is told of {{a-b}} and {{#if x}}")
	}
}

func TestMailThatTheCallerRenderedIsTakenAsItIsWithinBounds(t *testing.T) {
	all := load(t, nil)
	p := gate(t)
	r := request("", nil, "de")
	m, err := all.Rendered(r, "Grüße\r\nBcc: x@example.org", "a\r\n\x00b {{ code }}\xff", "<p>a &amp; {{ code }}</p>")
	if err != nil {
		t.Fatal(err)
	}
	if m.Subject != "Grüße Bcc: x@example.org" || m.Text != "a\nb {{ code }}" || m.HTML != "<p>a &amp; {{ code }}</p>" {
		t.Errorf("%q, %q, %q", m.Subject, m.Text, m.HTML)
	}
	checkWire(t, "rendered mail", m.Raw)
	checkPolicy(t, p, m)
	if m, err = all.Rendered(request("", nil), "x", "", "<p>only <b>HTML</b></p>"); err != nil || m.Text != "only HTML\n" || headerOf(t, m.Raw, "Content-Language") != "" {
		t.Errorf("%+v, %v", m, err)
	}
	for want, parts := range map[string][3]string{
		"neither text nor HTML": {"x", " \n", "\x00"},
		"subject is missing":    {"\r\n", "x", ""},
		"longer than":           {"x", "x", strings.Repeat("x", 1<<20)},
	} {
		if m, err := all.Rendered(r, parts[0], parts[1], parts[2]); err == nil || !strings.Contains(err.Error(), want) || m != nil {
			t.Errorf("told %v, want %s", err, want)
		}
	}
}

func TestAnAddressThatIsNotASCIIIsWrittenAsItIs(t *testing.T) {
	r := request("SignIn", map[string]any{"code": "1"})
	r.To = "アン@例え.jp"
	m := render(t, load(t, nil), r)
	passed, err := gate(t).Check(&message.Submission{Client: "logto", With: "HTTP", MailFrom: m.From.String(), To: []message.Address{m.To}, SMTPUTF8: true, Raw: m.Raw}, 1, time.Now())
	if err != nil || !passed.SMTPUTF8 || m.To.String() != "アン@xn--r8jz45g.jp" || !strings.Contains(string(m.Raw), "To: <アン@xn--r8jz45g.jp>") {
		t.Errorf("%v: to %s\n%s", err, m.To, m.Raw.Header())
	}
}

func TestALongLinkIsWhole(t *testing.T) {
	all := load(t, nil)
	link := "https://app.example.com/?t=" + strings.Repeat("x", 3900)
	m := render(t, all, request("OrganizationInvitation", map[string]any{"link": link}))
	if !strings.Contains(m.Text, link+"\n") || strings.Count(m.HTML, link) != 2 {
		t.Errorf("the link was cut:\n%s", m.Text)
	}
	checkWire(t, "a long link", m.Raw)
}

func TestATemplatesOwnLinkIsLedNowhereElse(t *testing.T) {
	for name, tt := range map[string]struct{ href, value, want string }{
		"a host":                      {"https://{{ v }}/x", "eu.example.com:8443", "https://eu.example.com:8443/x"},
		"a host with a path":          {"https://{{ v }}/x", "evil.example/", ""},
		"part of a host":              {"https://{{ v }}.example.com/", "eu", "https://eu.example.com/"},
		"more of a host":              {"https://example.com{{ v }}", ".evil.example", ""},
		"a path behind a host":        {"https://example.com{{ v }}", "/welcome", "https://example.com/welcome"},
		"a slash and another":         {"/{{ v }}", "/evil.example/", ""},
		"an app's link":               {"com.example.app://open?code={{ v }}", "1 2", "com.example.app://open?code=1%202"},
		"an address with a parameter": {"mailto:{{ v }}", "a@b.example?bcc=c@d.example", "mailto:a@b.example%3Fbcc%3Dc@d.example"},
		"a fragment":                  {"#{{ v }}", "x", "#x"},
	} {
		all := load(t, map[string]string{"SignIn/en.html": `<body>{{ code }}<a href="` + tt.href + `">x</a></body>`})
		m := render(t, all, request("SignIn", map[string]any{"code": "1", "v": tt.value}))
		if got := links(t, m.HTML); len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: %s with %q leads to %q, want %q", name, tt.href, tt.value, got, tt.want)
		}
	}
}

func TestAValueInALinkIsEscapedOnceAndNeverTwice(t *testing.T) {
	all := load(t, map[string]string{"SignIn/en.html": `<body>{{ code }}<a href="https://app.example.com/{{ v }}/?v={{ v }}&amp;w=1">x</a><a href="{{ link }}&amp;v={{ v }}">y</a><img src="{{ logo }}"></body>`})
	for value, want := range map[string][]string{
		"a b&c=d": {"https://app.example.com/a%20b&c=d/?v=a%20b%26c%3Dd&w=1", "https://app.example.com/?t=1&v=a%20b%26c%3Dd", "https://cdn.example.com/l.png"},
		"a%20b":   {"https://app.example.com/a%20b/?v=a%20b&w=1", "https://app.example.com/?t=1&v=a%20b", "https://cdn.example.com/l.png"},
		"100%":    {"https://app.example.com/100%25/?v=100%25&w=1", "https://app.example.com/?t=1&v=100%25", "https://cdn.example.com/l.png"},
		"é":       {"https://app.example.com/%C3%A9/?v=%C3%A9&w=1", "https://app.example.com/?t=1&v=%C3%A9", "https://cdn.example.com/l.png"},
	} {
		m := render(t, all, request("SignIn", map[string]any{"code": "1", "v": value, "link": "https://app.example.com/?t=1", "logo": "https://cdn.example.com/l.png"}))
		if got := links(t, m.HTML); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%q becomes\n%q\nwant\n%q", value, got, want)
		}
	}
}
