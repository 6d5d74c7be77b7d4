package compose_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/language"

	"gatepost/compose"
	"gatepost/config"
	"gatepost/message"
	"gatepost/policy"
)

// locales are the built-in ones.
var locales = []string{"en", "ja", "zh-CN", "ko", "de", "fr", "es", "pt-BR"}

// branded is [templates] with everything set.
func branded() config.Templates {
	s := config.DefaultTemplates()
	s.SenderName, s.CompanyInformation, s.AppLogo = "Example & Söhne", "Example Ltd, 1 High Street", "https://example.com/logo.png"
	return s
}

// load makes templates of files by name, in a directory of their own.
func load(t testing.TB, files map[string]string) *compose.Templates {
	t.Helper()
	s := config.DefaultTemplates()
	s.Dir = writeFiles(t, files)
	all, err := compose.Load(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// request asks for a mail with the given variables.
func request(kind string, variables map[string]any, tags ...string) compose.Request {
	r := compose.Request{Type: kind, From: "no-reply@auth.example.com", To: "ann@example.org", MessageID: "m1@auth.example.com",
		Date: time.Unix(1790000000, 0), Variables: variables}
	for _, s := range tags {
		r.Locales = append(r.Locales, language.MustParse(s))
	}
	return r
}

func render(t testing.TB, all *compose.Templates, r compose.Request) *compose.Mail {
	t.Helper()
	m, err := all.Render(r)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEveryBuiltInTemplateIsAMailThatPolicyTakes(t *testing.T) {
	all, err := compose.Load(branded(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(compose.Types()) != 9 {
		t.Fatalf("%d types", len(compose.Types()))
	}
	p := gate(t)
	subjects := map[string]bool{}
	for _, kind := range compose.Types() {
		for _, locale := range locales {
			r := compose.Sample(kind.Name, language.MustParse(locale))
			r.From = "no-reply@auth.example.com"
			m := render(t, all, r)
			name := kind.Name + " in " + locale
			if m.Locale.String() != locale || m.Template != kind.Name || m.Unknown {
				t.Errorf("%s is %s in %s", name, m.Template, m.Locale)
			}
			needed := map[string]string{"code": "607596", "link": "https://app.example.com/invitation?token=4n1hp6"}[kind.Needs]
			text, markup := parts(t, m.Raw)
			if text != m.Text || markup != m.HTML {
				t.Errorf("%s: the parts on the wire differ from those told", name)
			}
			for _, part := range []string{text, markup} {
				if !strings.Contains(part, needed) || strings.Contains(part, "{{") || strings.Contains(part, "[[") {
					t.Errorf("%s: a part lacks %q or has what was not filled in:\n%s", name, needed, part)
				}
			}
			if !strings.Contains(markup, `<html lang="`+locale+`"`) {
				t.Errorf("%s does not say its language", name)
			}
			if strings.Contains(m.Subject, "607596") || m.Subject == "" || subjects[locale+m.Subject] {
				t.Errorf("%s has the subject %q", name, m.Subject)
			}
			subjects[locale+m.Subject] = true
			if kind.Purpose != "code" && kind.Lifetime != 24*time.Hour || kind.Purpose == "code" && kind.Lifetime != 10*time.Minute {
				t.Errorf("%s (%s) lives for %s", kind.Name, kind.Purpose, kind.Lifetime)
			}
			checkWire(t, name, m.Raw)
			checkPolicy(t, p, m)
		}
	}
}

// checkWire holds raw against RFC 5322 and our own promises: 7-bit, lines within bounds, each field once.
func checkWire(t testing.TB, name string, raw []byte) {
	t.Helper()
	if bytes.Contains(raw, []byte("Subject:\r\n")) {
		t.Errorf("%s: the subject begins with an empty line", name)
	}
	for line := range strings.SplitSeq(string(raw), "\r\n") {
		if len(line) > 78 {
			t.Errorf("%s: a line of %d octets: %s", name, len(line), line)
		}
		for _, c := range []byte(line) {
			if c >= 0x7f || c < ' ' && c != '\t' {
				t.Errorf("%s: the octet %#x in %q", name, c, line)
				return
			}
		}
	}
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	for _, field := range []string{"From", "To", "Subject", "Date", "Message-Id", "Mime-Version", "Content-Type", "Auto-Submitted", "Content-Language"} {
		if len(msg.Header[field]) != 1 {
			t.Errorf("%s has %s %d times", name, field, len(msg.Header[field]))
		}
	}
	if got := msg.Header.Get("Auto-Submitted"); got != "auto-generated" {
		t.Errorf("%s is Auto-Submitted: %s", name, got)
	}
	for field := range msg.Header {
		if !slices.Contains([]string{"From", "To", "Reply-To", "Subject", "Date", "Message-Id", "Mime-Version", "Content-Type", "Auto-Submitted", "Content-Language"}, field) &&
			!strings.HasPrefix(field, "Content-") {
			t.Errorf("%s has the field %s", name, field)
		}
	}
}

// parts returns the plain and the HTML part of a mail, decoded.
func parts(t testing.TB, raw []byte) (text, markup string) {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/alternative" {
		t.Fatalf("it is %s: %v", kind, err)
	}
	r := multipart.NewReader(msg.Body, params["boundary"])
	var all []string
	for _, want := range []string{"text/plain", "text/html"} {
		p, err := r.NextRawPart()
		if err != nil {
			t.Fatal(err)
		}
		if got, params, err := mime.ParseMediaType(p.Header.Get("Content-Type")); err != nil || got != want || params["charset"] != "UTF-8" {
			t.Errorf("a part of type %s %v where %s belongs: %v", got, params, want, err)
		}
		all = append(all, decode(t, p))
	}
	if _, err := r.NextRawPart(); err != io.EOF {
		t.Errorf("a third part: %v", err)
	}
	return all[0], all[1]
}

func decode(t testing.TB, p *multipart.Part) string {
	t.Helper()
	var r io.Reader = quotedprintable.NewReader(p)
	if p.Header.Get("Content-Transfer-Encoding") == "base64" {
		r = base64.NewDecoder(base64.StdEncoding, p)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(bytes.ReplaceAll(b, []byte("\r\n"), nil), []byte("\n")) && p.Header.Get("Content-Transfer-Encoding") == "base64" {
		t.Error("base64 of bare LF (RFC 2046 section 4.1.1)")
	}
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// gate is the policy of a stream that composed mail belongs to.
func gate(t testing.TB) *policy.Policy {
	t.Helper()
	p, err := policy.New(&config.Config{
		Hostname: "gw.example.com",
		Listen:   map[string]*config.Listen{},
		Client:   map[string]*config.Client{"logto": {Name: "logto", Streams: []string{"auth"}}},
		Stream:   map[string]*config.Stream{"auth": {Name: "auth", Kind: message.Auth, Domains: []string{"auth.example.com"}, TTL: time.Hour}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func checkPolicy(t testing.TB, p *policy.Policy, m *compose.Mail) {
	t.Helper()
	passed, err := p.Check(&message.Submission{Client: "logto", With: "HTTP", MailFrom: m.From.String(), To: []message.Address{m.To}, Raw: m.Raw}, 1, time.Now())
	if err != nil {
		t.Errorf("policy refuses it: %v\n%s", err, m.Raw.Header())
		return
	}
	if passed.SMTPUTF8 || passed.HeaderFrom != "auth.example.com" || !bytes.HasSuffix(passed.Raw, m.Raw) {
		t.Errorf("policy changes it: UTF8 %v, From %s\n%s", passed.SMTPUTF8, passed.HeaderFrom, passed.Raw)
	}
}

func TestTheSameRequestIsTheSameMail(t *testing.T) {
	all := load(t, nil)
	r := request("SignIn", map[string]any{"code": "1"}, "ja")
	if a, b := render(t, all, r), render(t, all, r); !bytes.Equal(a.Raw, b.Raw) {
		t.Errorf("composed again it is\n%s\nnot\n%s", b.Raw, a.Raw)
	}
}

func TestTheReadersLanguageIsFoundAndChineseScriptsAreNotMixed(t *testing.T) {
	for name, tt := range map[string]struct {
		files    map[string]string
		kind     string
		wanted   []string
		settings config.Templates
		want     string // template and locale
	}{
		"a language that is there":                     {nil, "SignIn", []string{"ja"}, config.Templates{}, "SignIn ja"},
		"a region of it":                               {nil, "SignIn", []string{"pt-PT"}, config.Templates{}, "SignIn pt-BR"},
		"a language without region":                    {nil, "SignIn", []string{"pt"}, config.Templates{}, "SignIn pt-BR"},
		"the first of a list":                          {nil, "SignIn", []string{"ko", "ja"}, config.Templates{}, "SignIn ko"},
		"the first of a list that is there":            {nil, "SignIn", []string{"sw", "th", "fr-CA", "ja"}, config.Templates{}, "SignIn fr"},
		"none of a list":                               {nil, "SignIn", []string{"sw", "th"}, config.Templates{}, "SignIn en"},
		"no list":                                      {nil, "SignIn", nil, config.Templates{}, "SignIn en"},
		"no list, another default":                     {nil, "SignIn", nil, config.Templates{DefaultLocale: "ja"}, "SignIn ja"},
		"Taiwan is not given Simplified":               {nil, "SignIn", []string{"zh-TW"}, config.Templates{}, "SignIn en"},
		"nor is Hong Kong":                             {nil, "SignIn", []string{"zh-HK"}, config.Templates{}, "SignIn en"},
		"nor Traditional by name":                      {nil, "SignIn", []string{"zh-Hant", "ja"}, config.Templates{}, "SignIn ja"},
		"unless it is asked for":                       {nil, "SignIn", []string{"zh-TW"}, config.Templates{ChineseFallback: true}, "SignIn zh-CN"},
		"Singapore reads Simplified":                   {nil, "SignIn", []string{"zh-SG"}, config.Templates{}, "SignIn zh-CN"},
		"Chinese without more is Simplified":           {nil, "SignIn", []string{"zh"}, config.Templates{}, "SignIn zh-CN"},
		"Traditional of one's own":                     {map[string]string{"SignIn/zh-TW.txt": "{{code}}", "SignIn/zh-TW.toml": "subject='x'"}, "SignIn", []string{"zh-HK"}, config.Templates{}, "SignIn zh-TW"},
		"a language that only Generic has":             {map[string]string{"Generic/sw.txt": "{{code}}", "Generic/sw.toml": "subject='x'"}, "SignIn", []string{"sw"}, config.Templates{}, "Generic sw"},
		"an invitation has no use for Generic's code":  {map[string]string{"Generic/sw.txt": "{{code}}", "Generic/sw.toml": "subject='x'"}, "OrganizationInvitation", []string{"sw"}, config.Templates{}, "OrganizationInvitation en"},
		"a type that is not known":                     {nil, "PasswordChanged", []string{"de"}, config.Templates{}, "Generic de"},
		"a type with a path in it":                     {nil, "../../etc/passwd", []string{"de"}, config.Templates{}, "Generic de"},
		"a type of one's own":                          {map[string]string{"PasswordChanged/en.txt": "x", "PasswordChanged/en.toml": "subject='x'"}, "PasswordChanged", []string{"de"}, config.Templates{}, "PasswordChanged en"},
		"a type of one's own, in another default":      {map[string]string{"PasswordChanged/fi.txt": "x", "PasswordChanged/fi.toml": "subject='x'"}, "PasswordChanged", []string{"de"}, config.Templates{}, "PasswordChanged fi"},
		"a Ukrainian reader is not written in Russian": {map[string]string{"SignIn/ru.txt": "{{code}}", "SignIn/ru.toml": "subject='x'"}, "SignIn", []string{"uk"}, config.Templates{}, "SignIn en"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := config.DefaultTemplates()
			s.ChineseFallback = tt.settings.ChineseFallback
			if tt.settings.DefaultLocale != "" {
				s.DefaultLocale = tt.settings.DefaultLocale
			}
			if tt.files != nil {
				s.Dir = writeFiles(t, tt.files)
			}
			all, err := compose.Load(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			m := render(t, all, request(tt.kind, map[string]any{"code": "1", "link": "https://x.example/"}, tt.wanted...))
			if got := m.Template + " " + m.Locale.String(); got != tt.want {
				t.Errorf("%s in %v is %s, want %s", tt.kind, tt.wanted, got, tt.want)
			}
			if _, own := tt.files[tt.kind+"/en.txt"]; m.Unknown != (!own && (tt.kind == "../../etc/passwd" || tt.kind == "PasswordChanged") && m.Template == "Generic") {
				t.Errorf("unknown is %v", m.Unknown)
			}
		})
	}
}

func TestListsOfLanguagesAreReadWithinBounds(t *testing.T) {
	for list, want := range map[string]string{
		"ja en-US":                               "[ja en-US]",
		"ja,en":                                  "[ja en]",
		"ja ja":                                  "[ja]",
		"../../etc/passwd de":                    "[de]",
		"de\x00 fr":                              "[fr]",
		"und":                                    "[]",
		strings.Repeat("a", 1<<20):               "[]",
		strings.Repeat("x-", 20) + "y de":        "[de]",
		"ar cs de en es fa fr it ja ko pl-PL pt": "[ar cs de en es fa fr it ja ko]",
		"en-u-" + strings.Repeat("aa-", 30) + "x": "[]",
		"zh_TW": "[zh-TW]",
		"<script> \r\nBcc:x@example.com pt-BR {{ x}}": "[pt-BR]",
	} {
		if got := compose.Locales(list); strings.Trim(strings.Join(strings.Fields(sprint(got)), " "), " ") != want {
			t.Errorf("%.40q is read as %v, want %s", list, got, want)
		}
	}
	if got := sprint(compose.Locales("ja ko", "fr")); got != "[ja ko fr]" {
		t.Errorf("two lists are read as %s", got)
	}
}

func sprint(tags []language.Tag) string {
	var all []string
	for _, tag := range tags {
		all = append(all, tag.String())
	}
	return "[" + strings.Join(all, " ") + "]"
}

func TestAFileOfOnesOwnWinsOverTheBuiltInOneOfItsTypeAndLanguage(t *testing.T) {
	all := load(t, map[string]string{
		"SignIn/ja.html":   "<html><body><p>コード <b>{{ code }}</b></p></body></html>",
		"SignIn/de.toml":   "subject = \"Code fuer {{ application.name }}\"\nfrom = \"{{ organization.name }}\"\nreply_to = \"Hilfe <hilfe@auth.example.com>\"",
		"Register/en.txt":  "Only text: {{code}}\n",
		"Register/en.toml": "preheader = \"not used\"",
	})
	v := map[string]any{"code": "607596", "application": map[string]any{"name": "Shop"}, "organization": map[string]any{"name": "Klub"}}
	ja := render(t, all, request("SignIn", v, "ja"))
	if ja.Text != "コード 607596\n" || ja.Subject != "サインイン用の認証コード" {
		t.Errorf("ja is %q, %q", ja.Subject, ja.Text)
	}
	de := render(t, all, request("SignIn", v, "de"))
	header := string(de.Raw.Header())
	if de.Subject != "Code fuer Shop" || !strings.Contains(de.Text, "Geben Sie diesen Code ein") ||
		!strings.Contains(header, `From: "Klub" <no-reply@auth.example.com>`) || !strings.Contains(header, `Reply-To: "Hilfe" <hilfe@auth.example.com>`) {
		t.Errorf("de is %q\n%s", de.Text, header)
	}
	en := render(t, all, request("Register", v, "en"))
	if en.Text != "Only text: 607596\n" || en.HTML != "" || !strings.Contains(string(en.Raw), "Content-Type: text/plain; charset=UTF-8") {
		t.Errorf("en is\n%s", en.Raw)
	}
	if w := all.Warnings; len(w) != 1 || !strings.Contains(w[0].Error(), "Register/en.toml:1: preheader is not used") {
		t.Errorf("warnings %v", w)
	}
	if other := render(t, all, request("SignIn", v, "fr")); other.Subject != "Votre code de connexion" {
		t.Errorf("fr is %q", other.Subject)
	}
}

func TestThePreheaderIsHiddenInFrontOfTheBody(t *testing.T) {
	all := load(t, map[string]string{
		"SignIn/en.html": `<html><body class="x"><p>{{ code }}</p></body></html>`,
		"SignIn/en.toml": `preheader = "{{ code }} <is> your code"`,
	})
	m := render(t, all, request("SignIn", map[string]any{"code": "607596"}))
	if !strings.Contains(m.HTML, `<body class="x">`+"\n"+`<div style="display:none`) || !strings.Contains(m.HTML, `>607596 &lt;is&gt; your code&#847;`) || m.Text != "607596\n" {
		t.Errorf("%s\n%q", m.HTML, m.Text)
	}
}

func TestTheBrandIsTheConfigsAndNoRequestChangesIt(t *testing.T) {
	all, err := compose.Load(branded(), nil)
	if err != nil {
		t.Fatal(err)
	}
	m := render(t, all, request("SignIn", map[string]any{"code": "1", "senderName": "Evil", "appLogo": "https://evil.example/x.png", "companyInformation": "Evil"}))
	if strings.Contains(m.HTML+m.Text+string(m.Raw), "vil") {
		t.Errorf("the request changed the brand:\n%s", m.HTML)
	}
	if !strings.Contains(m.HTML, `<img src="https://example.com/logo.png" alt="Example &amp; Söhne"`) || !strings.Contains(m.HTML, "Example Ltd, 1 High Street") ||
		!strings.Contains(m.Text, "--\nExample & Söhne\nExample Ltd") {
		t.Errorf("the brand is not shown:\n%s\n%s", m.HTML, m.Text)
	}
	from, err := mail.ParseAddress(headerOf(t, m.Raw, "From"))
	if err != nil || from.Name != "Example & Söhne" {
		t.Errorf("the sender is %v, %v", from, err)
	}
}

func headerOf(t testing.TB, raw []byte, field string) string {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return msg.Header.Get(field)
}

func variables(t *testing.T, p message.Provided) (v map[string]any) {
	t.Helper()
	if err := json.Unmarshal(p.Variables, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMoreVariablesThanATemplateOfTheUpstreamIsToHaveMeanTheLocalOne(t *testing.T) {
	all := load(t, map[string]string{"SignIn/en.toml": "[upstream.mailgun]\ntemplate = 'sign-in'\n"})
	many := map[string]any{"code": "607596"}
	for i := range 100 {
		many[fmt.Sprint("x", i)] = strings.Repeat("y", 1000)
	}
	m := render(t, all, request("SignIn", many))
	if m.Provided != nil || !slices.Equal(m.TooMuch, []string{"mailgun"}) || !strings.Contains(m.Text, "607596") {
		t.Errorf("%d templates are given it, too much it is for %q, and the text is %q", len(m.Provided), m.TooMuch, m.Text)
	}
}

func TestATemplateOfTheUpstreamIsGivenWhatCameAndWhatTheFileSays(t *testing.T) {
	all := load(t, map[string]string{"SignIn/en.toml": `[upstream.mailgun]
template  = "sign-in"
variables = { greeting = "Hello {{ user.name }}", deep = { list = ["{{ code }}", 7, true] } }
[upstream.postmark]
template = "sign-in-alias"
`})
	m := render(t, all, request("SignIn", map[string]any{"code": "607596", "user": map[string]any{"name": "A\r\nn{{ code }}"}, "x": strings.Repeat("y", 1<<20)}))
	mailgun := m.Provided["mailgun"]
	v := variables(t, mailgun)
	deep := v["deep"].(map[string]any)["list"].([]any)
	if mailgun.Template != "sign-in" || v["greeting"] != "Hello A n{{ code }}" || deep[0] != "607596" || deep[1] != 7.0 || v["code"] != "607596" || v["locale"] != "en" {
		t.Errorf("mailgun is given %.200v", mailgun)
	}
	if len(v["x"].(string)) > 1100 || v["user"].(map[string]any)["name"] != "A n{{ code }}" {
		t.Errorf("mailgun is given what is not bounded")
	}
	if p := m.Provided["postmark"]; p.Template != "sign-in-alias" || variables(t, p)["code"] != "607596" || variables(t, p)["greeting"] != nil {
		t.Errorf("postmark is given %.200v", p)
	}
	if len(m.Raw) == 0 || m.HTML == "" {
		t.Error("there is no local rendering for other upstreams")
	}
}

func TestALinkBesideACodeIsShownInEachLanguage(t *testing.T) {
	all := load(t, nil)
	const link = "https://project.supabase.co/auth/v1/verify?token=pkce_4n1hp6&type=magiclink"
	for _, l := range all.List() {
		if l.Type == "OrganizationInvitation" {
			continue
		}
		with := render(t, all, request(l.Type, map[string]any{"code": "607596", "link": link}, l.Locale))
		if !strings.Contains(with.Text, "607596") || strings.Count(with.Text, link) != 1 || strings.Count(with.HTML, `href="`+strings.ReplaceAll(link, "&", "&amp;")+`"`) != 1 {
			t.Errorf("%s in %s does not have code and link:\n%s", l.Type, l.Locale, with.Text)
		}
		checkWire(t, l.Type+" "+l.Locale, with.Raw)
		for _, none := range []any{nil, "javascript:alert(1)", "http://evil.example/"} {
			m := render(t, all, request(l.Type, map[string]any{"code": "607596", "link": none}, l.Locale))
			if strings.Contains(m.HTML, "href") || !strings.Contains(m.Text, "607596") || strings.Contains(m.Text, "://") {
				t.Errorf("%s in %s with the link %v:\n%s", l.Type, l.Locale, none, m.Text)
			}
		}
	}
}

func TestAReplyToMayBeTheReadersOwnAddressAndNoValueOfItStopsACode(t *testing.T) {
	all := load(t, map[string]string{"SignIn/en.toml": "reply_to = '{{ user.primaryEmail }}'"})
	for value, want := range map[string]string{"kim@example.net": "<kim@example.net>", "": "", "kim": "", "a@b.example, c@d.example": "", "x\r\nBcc: y@z.example": ""} {
		m := render(t, all, request("SignIn", map[string]any{"code": "1", "user": map[string]any{"primaryEmail": value}}))
		msg, err := mail.ReadMessage(bytes.NewReader(m.Raw))
		if err != nil || msg.Header.Get("Reply-To") != want {
			t.Errorf("%q became %q, %v", value, msg.Header.Get("Reply-To"), err)
		}
	}
}

func TestATemplateOfOnesOwnTakesTheLinkBesideACodeWhereItNamesIt(t *testing.T) {
	variables := map[string]any{"code": "607596", "link": "https://app.example.com/x"}
	own := load(t, map[string]string{"SignIn/en.txt": "Use {{ code }}.\n"})
	if m := render(t, own, request("SignIn", variables, "en")); m.Text != "Use 607596.\n" || m.HTML != "" {
		t.Errorf("%q, %q", m.Text, m.HTML)
	}
	settings := load(t, map[string]string{"SignIn/en.toml": "subject = \"Welcome\"\npreheader = \"Look\"\n"})
	if m := render(t, settings, request("SignIn", variables, "en")); m.Subject != "Welcome" || !strings.Contains(m.HTML, ">Look&#847;") || !strings.Contains(m.Text, "https://app.example.com/x") {
		t.Errorf("%q\n%s", m.Subject, m.Text)
	}
}
