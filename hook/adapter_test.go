package hook

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
)

func adapter(name string) Adapter {
	return New(&config.Hook{Adapter: name, LinkBaseURL: "https://x.supabase.co/auth/v1", LinkSchemes: []string{"com.example.app"}})
}

// parse reads a body that must be good.
func parse(t *testing.T, name, body string) []Mail {
	t.Helper()
	ms, err := adapter(name).Parse([]byte(body))
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, body)
	}
	return ms
}

func TestLogtosRequestsBecomeMailOfTheirTypeAndLanguage(t *testing.T) {
	m := parse(t, "logto", `{"to":"person@example.net","type":"SignIn","payload":{"code":"607596","locale":"en","uiLocales":"fr-CA pt",
		"application":{"id":"app1","name":"<b>"},"later":{"is":["ignored"]}},"ip":"203.0.113.7","later":1}`)[0]
	if m.To.String() != "person@example.net" || m.Type != "SignIn" || m.Application != "app1" || m.IP.String() != "203.0.113.7" ||
		text(m.Variables, "code") != "607596" || !slices.Equal(m.Locales, []string{"fr-CA", "pt", "en"}) {
		t.Errorf("got %+v", m)
	}
	for ip, want := range map[string]bool{"10.0.0.1": false, "127.0.0.1": false, "::1": false, "fe80::1": false, "100.64.1.1": false, "x": false,
		"": false, "203.0.113.7": true, "2001:db8::1": true} {
		m := parse(t, "logto", fmt.Sprintf(`{"to":"a@example.net","type":"Later","payload":{},"ip":%q}`, ip))[0]
		if m.IP.IsValid() != want || m.Type != "Later" {
			t.Errorf("ip %q: %+v", ip, m)
		}
	}
}

func TestLanguagesAreReadAsCallersWriteThem(t *testing.T) {
	for text, want := range map[string]string{
		"ja":                          "ja",
		"fr, ja":                      "fr ja",
		"fr-CA,ja":                    "fr-CA ja",
		"fr-CH;q=0.9, ja;q=0.8, *":    "fr-CH ja",
		"ja_JP.UTF-8 ca_ES@valencia":  "ja-JP ca-ES",
		"zz !! ../../ja en/../ko":     "zz",
		strings.Repeat("xx ", 50):     "xx",
		"\tko\n":                      "ko",
		"a b c d e f g h i j k l":     "a b c d e f g h i j",
		strings.Repeat("j", 36) + " ": "",
		";q=1 .x @y":                  "",
	} {
		if got := strings.Join(locales(text), " "); got != want {
			t.Errorf("%q is read as %q, want %q", text, got, want)
		}
	}
}

func TestZitadelsTextsGetAFormAndAreEscaped(t *testing.T) {
	const request = `{"contextInfo":{"eventType":%q,"recipientEmailAddress":"kim@example.net"},
		"templateData":{"title":"T&lt;script&gt;","preHeader":"P","subject":"S\r\nBcc: x@example.net","greeting":"Hi \"K\u202e\"","text":"Use 123456<br/>\n<b>now</b> O&#39;Brien &amp; &lt;b&gt;",
		"url":%q,"buttonText":"Go","primaryColor":"red;}","fontColor":"#333","footerText":"F"},"args":{"code":"123456"}}`
	m := parse(t, "zitadel", fmt.Sprintf(request, "user.human.password.code.added", "https://login.example.com/?a=1&amp;b=2"))[0]
	r := m.Rendered
	if m.Type != "ForgotPassword" || m.Purpose != "code" || m.TTL != 10*time.Minute || r.Subject != "S Bcc: x@example.net" {
		t.Errorf("got %+v, %+v", m, r)
	}
	if strings.Contains(r.HTML, "<script>") || strings.Contains(r.HTML, "<b>") || strings.Contains(r.HTML, "red;") ||
		!strings.Contains(r.HTML, "<p>now O&#39;Brien &amp; &lt;b&gt;</p>") || !strings.Contains(r.HTML, `href="https://login.example.com/?a=1&amp;b=2"`) {
		t.Errorf("the form lets things through:\n%s", r.HTML)
	}
	if !strings.Contains(r.Text, "Hi \"K\"\n\nUse 123456\n\nnow O'Brien & <b>\n\nhttps://login.example.com/?a=1&b=2") {
		t.Errorf("the text is %q", r.Text)
	}
	for event, want := range map[string]string{"user.human.initialization.code.added": "invitation", "user.human.invite.code.added": "invitation",
		"user.human.mfa.otp.email.code.added": "code", "session.otp.email.challenged": "code", "user.human.email.code.added": "code",
		"user.human.password.changed": "notice", "user.domain.claimed": "notice", "": "notice"} {
		if m := parse(t, "zitadel", fmt.Sprintf(request, event, "com.example.app://x"))[0]; m.Purpose != want {
			t.Errorf("%s is a %s, want %s", event, m.Purpose, want)
		}
	}
}

// supabaseBody is a request of Supabase Auth.
func supabaseBody(action, data string) string {
	return fmt.Sprintf(`{"metadata":{"uuid":"u","name":"send-email","ip_address":"203.0.113.9"},
		"user":{"id":"1","email":"old@example.net","new_email":"new@example.net","user_metadata":{"locale":"ja"}},
		"email_data":{"email_action_type":%q,"redirect_to":"https://app.example.com/?x=1&y=2","site_url":"https://x"%s}}`, action, data)
}

func TestSupabasesTokensBecomeCodesAndLinks(t *testing.T) {
	m := parse(t, "supabase", supabaseBody("recovery", `,"token":"305805","token_hash":"7d5b&"`))[0]
	if m.To.String() != "old@example.net" || m.Type != "ForgotPassword" || text(m.Variables, "code") != "305805" || m.Locales[0] != "ja" || m.IP.String() != "203.0.113.9" ||
		text(m.Variables, "link") != "https://x.supabase.co/auth/v1/verify?redirect_to=https%3A%2F%2Fapp.example.com%2F%3Fx%3D1%26y%3D2&token=7d5b%26&type=recovery" {
		t.Errorf("got %+v", m)
	}
	if m := parse(t, "supabase", supabaseBody("reauthentication", `,"token":"1","token_hash":""`))[0]; text(m.Variables, "link") != "" {
		t.Errorf("a link was made of nothing: %+v", m)
	}
	if m := parse(t, "supabase", supabaseBody("reauthentication", `,"token":"1","token_hash":"7d5b"`))[0]; text(m.Variables, "link") != "" {
		t.Errorf("a code that is for no link got one: %+v", m)
	}
	m = parse(t, "supabase", supabaseBody("password_changed_notification", ""))[0]
	if m.Purpose != "notice" || m.TTL != 24*time.Hour || m.Variables == nil || !strings.Contains(m.Rendered.Text, "password") || m.Rendered.Language != "en" || m.Locales[0] != "ja" {
		t.Errorf("a notice became %+v", m)
	}
	m = parse(t, "supabase", supabaseBody("email_changed_notification", `,"old_email":"older@example.net"`))[0]
	if m.To.String() != "older@example.net" {
		t.Errorf("the owner of the old address is not told, %v is", m.To)
	}
}

func TestAnEmailChangeAtSupabaseIsOneMailForEachAddressWithItsOwnToken(t *testing.T) {
	for name, tt := range map[string]struct {
		data string
		want []string
	}{
		"both confirm": {`,"token":"111111","token_hash":"hash-of-new","token_new":"222222","token_hash_new":"hash-of-old"`,
			[]string{"old@example.net 111111 hash-of-old", "new@example.net 222222 hash-of-new"}},
		"only the new one confirms": {`,"token":"111111","token_hash":"hash","token_new":"","token_hash_new":""`, []string{"new@example.net 111111 hash"}},
	} {
		var got []string
		for _, m := range parse(t, "supabase", supabaseBody("email_change", tt.data)) {
			link := text(m.Variables, "link")
			_, hash, _ := strings.Cut(link, "token=")
			hash, action, _ := strings.Cut(hash, "&type=")
			if action != "email_change" || m.Type != "BindNewIdentifier" {
				t.Errorf("%s: type %s, link %s", name, m.Type, link)
			}
			got = append(got, m.To.String()+" "+text(m.Variables, "code")+" "+hash)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func TestKratosMailIsTakenRenderedOrByItsCode(t *testing.T) {
	m := parse(t, "kratos", `{"recipient":"a@example.net","template_type":"recovery_code_valid","to":"a@example.net","recovery_code":"123456","recovery_url":null,
		"verification_url":null,"verification_code":null,"subject":"Recover","body":"Use 123456","html_body":"<p>123456</p>"}`)[0]
	if m.Type != "ForgotPassword" || m.TTL != 10*time.Minute || *m.Rendered != (Rendered{Subject: "Recover", Text: "Use 123456", HTML: "<p>123456</p>"}) {
		t.Errorf("got %+v, %+v", m, m.Rendered)
	}
	m = parse(t, "kratos", `{"recipient":"a@example.net","template_type":"login_code_valid","template_data":{"login_code":"654321","identity":{"traits":{"locale":"de"}}}}`)[0]
	if m.Type != "SignIn" || text(m.Variables, "code") != "654321" || m.Locales[0] != "de" {
		t.Errorf("got %+v", m)
	}
	m = parse(t, "kratos", `{"to":"a@example.net","template_type":"verifiable_address_changed","subject":"S","body":"B"}`)[0]
	if m.Purpose != "notice" || m.TTL != 24*time.Hour {
		t.Errorf("got %+v", m)
	}
}

func TestNovusMailKeepsItsSenderAndName(t *testing.T) {
	m := parse(t, "novu", `{"to":["a@example.net"],"from":"no-reply@auth.example.com","senderName":"A \"B\"","subject":"S","html":"<p>x","text":"x","cc":[],"bcc":"","attachments":[],"replyTo":"r@example.com"}`)[0]
	if m.From != `"A \"B\"" <no-reply@auth.example.com>` || m.ReplyTo != "r@example.com" || m.Purpose != "notice" {
		t.Errorf("got %+v", m)
	}
}

func TestNativeMailIsATypeRenderedOrWhole(t *testing.T) {
	m := parse(t, "native", `{"to":"a@example.net","type":"SignIn","locale":"pt_BR","locales":["en","../x",""],"variables":{"code":123456},"application":"app","ttl":"2m"}`)[0]
	if m.Type != "SignIn" || m.TTL != 2*time.Minute || text(m.Variables, "code") != "123456" || !slices.Equal(m.Locales, []string{"pt-BR", "en"}) || m.Application != "app" {
		t.Errorf("got %+v", m)
	}
	m = parse(t, "native", `{"to":"a@example.net","subject":"S","text":"T","purpose":"code","ttl":"72h"}`)[0]
	if m.Purpose != "code" || m.TTL != 10*time.Minute || m.Rendered.Text != "T" {
		t.Errorf("got %+v", m)
	}
	raw := "From: a@auth.example.com\nSubject: x\n\nbody"
	m = parse(t, "native", `{"to":"a@example.net","raw":"`+base64.StdEncoding.EncodeToString([]byte(raw))+`"}`)[0]
	if string(m.Raw) != strings.ReplaceAll(raw, "\n", "\r\n")+"\r\n" || m.Purpose != "notice" {
		t.Errorf("got %q", m.Raw)
	}
}

func TestWhatIsWrongWithARequestIsToldByItsField(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	deep := strings.Repeat("[", 10000) + strings.Repeat("]", 10000)
	for _, tt := range []struct{ adapter, body, field string }{
		{"logto", ``, ""}, {"logto", `[]`, ""}, {"logto", `null`, "to"}, {"logto", `{"to":1}`, "to"}, {"logto", `{} {}`, ""}, {"logto", "{\"to\":\"\xff\"}", ""},
		{"logto", `{"payload":` + deep + `}`, ""}, {"logto", `{"to":"a@example.net","payload":{}}`, "type"}, {"logto", `{"to":"a@example.net","type":"SignIn"}`, "payload"},
		{"logto", `{"to":"a@example.net","type":"\u0000\n","payload":{}}`, "type"}, {"logto", `{"to":"a@example.net","type":"SignIn","payload":"x"}`, "payload"},
		{"logto", `{"to":"a@example.net, b@example.net","type":"SignIn","payload":{}}`, "to"}, {"logto", `{"to":["a@example.net"],"type":"SignIn","payload":{}}`, "to"},
		{"logto", `{"to":"a@example.net\r\nBcc: b@example.net","type":"SignIn","payload":{}}`, "to"},
		{"logto", `{"to":"A <a@example.net>","type":"SignIn","payload":{}}`, "to"}, {"logto", `{"to":"a\u0000@example.net","type":"SignIn","payload":{}}`, "to"},
		{"zitadel", `{"templateData":{"subject":"s","text":"t"}}`, "contextInfo.recipientEmailAddress"},
		{"zitadel", `{"contextInfo":{"recipientEmailAddress":"a@example.net"},"templateData":{"text":"t"}}`, "templateData.subject"},
		{"zitadel", `{"contextInfo":{"recipientEmailAddress":"a@example.net"},"templateData":{"subject":"s"}}`, "templateData.text"},
		{"zitadel", `{"contextInfo":{"recipientEmailAddress":"a@example.net"},"templateData":{"subject":"s","text":"t","url":"javascript:alert(1)"}}`, "templateData.url"},
		{"zitadel", `{"contextInfo":{"recipientEmailAddress":"a@example.net"},"templateData":{"subject":"s","text":"t","url":"http://login.example.com/"}}`, "templateData.url"},
		{"zitadel", `{"contextInfo":{"recipientEmailAddress":"a@example.net"},"templateData":{"subject":"s","text":"t","url":"https://user@evil.example/"}}`, "templateData.url"},
		{"supabase", `{"user":{"email":"a@example.net"}}`, "email_data.email_action_type"}, {"supabase", supabaseBody("signup", ""), "email_data.token"},
		{"supabase", supabaseBody("email_change", `,"token":"1","token_hash_new":"h"`), "email_data.token_new"},
		{"kratos", `{"template_type":"x"}`, "recipient"}, {"kratos", `{"recipient":"a@example.net"}`, "template_type"},
		{"kratos", `{"recipient":"a@example.net","template_type":"login_code_valid"}`, "subject"},
		{"kratos", `{"recipient":"a@example.net","template_type":"recovery_code_valid","recovery_code":"1","recovery_url":"data:x"}`, "recovery_url or verification_url"},
		{"novu", `{"to":[],"subject":"s","html":"h"}`, "to"}, {"novu", `{"to":["a@example.net","b@example.net"],"subject":"s","html":"h"}`, "to"},
		{"novu", `{"to":["a@example.net"],"subject":"s","html":"h","bcc":["x@example.net"]}`, "cc or bcc"},
		{"novu", `{"to":["a@example.net"],"subject":"s","html":"h","attachments":[{}]}`, "attachments"}, {"novu", `{"to":["a@example.net"],"html":"h"}`, "subject"},
		{"native", `{"to":"a@example.net"}`, "type"}, {"native", `{"to":"a@example.net","type":"SignIn","subject":"s"}`, "type"},
		{"native", `{"to":"a@example.net","type":"SignIn","text":"t"}`, "text"}, {"native", `{"to":"a@example.net","subject":"s"}`, "text"},
		{"native", `{"to":"a@example.net","subject":"\n","text":"t"}`, "subject"}, {"native", `{"to":"a@example.net","raw":"%"}`, "raw"},
		{"native", `{"to":"a@example.net","raw":"` + b64("A: b\r\n\r\nx\ny") + `"}`, "raw"}, {"native", `{"to":"a@example.net","raw":"` + b64("A: b\n\n\x00") + `"}`, "raw"},
		{"native", `{"to":"a@example.net","raw":"` + b64("A: b\rC: d\n\n") + `"}`, "raw"}, {"native", `{"to":"a@example.net","subject":"s","text":"t","purpose":"x"}`, "purpose"},
		{"native", `{"to":"a@example.net","subject":"s","text":"t","ttl":"soon"}`, "ttl"}, {"native", `{"to":"a@example.net","subject":"s","text":"t","ttl":"-5m"}`, "ttl"},
		{"native", `{"to":"a@example.net","type":"SignIn","purpose":"notice"}`, "purpose"},
	} {
		_, err := adapter(tt.adapter).Parse([]byte(tt.body))
		if bad, ok := errors.AsType[*Invalid](err); !ok || bad.Field != tt.field {
			t.Errorf("%s: %.100s gave %v, want a word about %q", tt.adapter, tt.body, err, tt.field)
		} else if strings.Contains(bad.Error(), "example.net") || strings.ContainsAny(bad.Error(), "\r\n\x00") {
			t.Errorf("%s: the error tells what stood there: %q", tt.adapter, bad.Error())
		}
	}
}

func TestEachCallerIsAnsweredAsItExpects(t *testing.T) {
	id := message.ID(1)
	ok, refused := Answer{Status: 200, ID: id}, Answer{Status: 422, Text: "No.", Refused: true}
	later, many, bad := Answer{Status: 503, Text: "Later."}, Answer{Status: 429, Text: "Slow."}, Answer{Status: 400, Text: "Bad."}
	idJSON := `{"id":"` + id.String() + `"}`
	for name, want := range map[string][]string{
		"logto":    {"200 " + idJSON, "422 No.", "503 Later.", "429 Slow.", "400 Bad."},
		"zitadel":  {"200 " + idJSON, "422 No.", "503 Later.", "429 Slow.", "400 Bad."},
		"novu":     {"200 " + idJSON, "422 No.", "503 Later.", "429 Slow.", "400 Bad."},
		"kratos":   {"200 " + idJSON, `200 {"refused":"No."}`, "503 Later.", "429 Slow.", "400 Bad."},
		"native":   {"200 " + idJSON, `422 {"error":"No."}`, `503 {"error":"Later."}`, `429 {"error":"Slow."}`, `400 {"error":"Bad."}`},
		"supabase": {"200 {}", `200 {"error":{"http_code":422,"message":"No."}}`, `200 {"error":{"http_code":503,"message":"Later."}}`, `200 {"error":{"http_code":429,"message":"Slow."}}`, `400 {"error":{"http_code":400,"message":"Bad."}}`},
	} {
		for i, a := range []Answer{ok, refused, later, many, bad} {
			r := adapter(name).Answer(a)
			text := r.Text
			if r.JSON != nil {
				b, err := json.Marshal(r.JSON)
				if err != nil {
					t.Fatal(err)
				}
				text = string(b)
			}
			if got := fmt.Sprintf("%d %s", r.Status, text); got != want[i] {
				t.Errorf("%s answers %s, want %s", name, got, want[i])
			}
		}
	}
	if retries := adapter("logto").Retries(); retries {
		t.Error("two requests of Logto that are alike pass for one: its test button would work once")
	}
	if Unauthorised.Status != http.StatusUnauthorized || Unauthorised.Text == "" {
		t.Errorf("Unauthorised is %+v", Unauthorised)
	}
}

func TestHostileWordsStayOneLineWhereTheyAreOne(t *testing.T) {
	for subject, want := range map[string]string{
		"Hi\r\nBcc: x@example.net":               "Hi Bcc: x@example.net",
		"\x00\u2028x\u202e":                      "x",
		"日本語の件名 👩\u200d👩":                        "日本語の件名 👩\u200d👩",
		strings.Repeat("é\u202e", 500000):        strings.Repeat("é", 499),
		"=?utf-8?q?=0D=0ABcc:_x=40example.net?=": "=?utf-8?q?=0D=0ABcc:_x=40example.net?=",
	} {
		body, err := json.Marshal(map[string]string{"to": "a@example.net", "subject": subject, "text": "x"})
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, "native", string(body))[0].Rendered.Subject; got != want {
			t.Errorf("%.40q became %.60q, want %.60q", subject, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	names := []string{"logto", "zitadel", "supabase", "kratos", "novu", "native"}
	for i, body := range []string{
		`{"to":"a@example.net","type":"SignIn","payload":{"code":"1","uiLocales":"a b"},"ip":"::1"}`,
		`{"contextInfo":{"eventType":"x","recipientEmailAddress":"a@example.net"},"templateData":{"subject":"s","text":"t","url":"https://x/","primaryColor":"#fff"}}`,
		supabaseBody("email_change", `,"token":"1","token_hash":"a","token_new":"2","token_hash_new":"b"`),
		`{"recipient":"a@example.net","template_type":"login_code_valid","template_data":{"login_code":1}}`,
		`{"to":["a@example.net"],"from":"b@example.net","senderName":"\"","subject":"s","html":"<p>"}`,
		`{"to":"a@example.net","raw":"QTogYgoKeA==","ttl":"1m"}`,
	} {
		f.Add(i, []byte(body))
	}
	f.Fuzz(func(t *testing.T, n int, body []byte) {
		ms, err := adapter(names[((n%len(names))+len(names))%len(names)]).Parse(body)
		if err != nil {
			if _, ok := errors.AsType[*Invalid](err); !ok {
				t.Fatalf("an error of another kind: %v", err)
			}
			return
		}
		for i := range ms {
			m := &ms[i]
			if m.Raw == nil && m.Variables == nil && m.Rendered == nil || m.To.Domain == "" || m.Type == "" {
				t.Fatalf("a mail of nothing: %+v", m)
			}
			if m.Rendered != nil && (m.Rendered.Subject != clean(m.Rendered.Subject, maxSubject) || m.Rendered.Text+m.Rendered.HTML == "") {
				t.Fatalf("words of no mail: %+v", m.Rendered)
			}
		}
	})
}
