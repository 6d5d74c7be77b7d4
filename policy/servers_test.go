package policy

import (
	"strings"
	"testing"

	"gatepost/message"
)

// What auth servers really send, header for header. The bodies are short; they are not policy's to look at.

// logtoNameOnly is what Logto's SMTP connector sends for a stored template whose sendFrom is a display name: the null
// sender and no From.
const logtoNameOnly = "To: user@example.net\r\n" +
	"Subject: Your code is 123456\r\n" +
	"Message-ID: <5a0f6f2e-92f4-4c5b-8a51-0f1c5b7f7a3e@localhost>\r\n" +
	"Content-Transfer-Encoding: 7bit\r\n" +
	"Date: Sun, 22 Nov 2026 08:59:59 +0000\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/html; charset=utf-8\r\n" +
	"\r\n" +
	"<p>123456</p>\r\n"

// keycloak is what its Jakarta Mail writes with envelopeFrom and a display name.
const keycloak = "Date: Sun, 22 Nov 2026 08:59:59 +0000 (UTC)\r\n" +
	"From: =?UTF-8?Q?Anmeldung_f=C3=BCr_Alle?= <no-reply@auth.example.com>\r\n" +
	"Reply-To: =?UTF-8?Q?Anmeldung_f=C3=BCr_Alle?= <no-reply@auth.example.com>\r\n" +
	"To: user@example.net\r\n" +
	"Message-ID: <1513041926.1.1795337999000@keycloak-0>\r\n" +
	"Subject: Verify email\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: multipart/alternative; \r\n" +
	"\tboundary=\"----=_Part_0_1391942103.1795337999000\"\r\n" +
	"\r\n" +
	"------=_Part_0_1391942103.1795337999000\r\n" +
	"Content-Type: text/plain; charset=UTF-8\r\n" +
	"\r\n" +
	"Someone has created an account\r\n" +
	"------=_Part_0_1391942103.1795337999000--\r\n"

// zitadel writes its header in random order, without Message-ID and without encoding.
const zitadel = "Subject: =?utf-8?q?Dein Bestätigungscode?=\r\n" +
	"MIME-version: 1.0;\r\n" +
	"To: user@example.net\r\n" +
	"Return-Path: no-reply@auth.example.com\r\n" +
	"Cc: \r\n" +
	"Date: Sun, 22 Nov 2026 08:59:59 +0000\r\n" +
	"From: Müller & Söhne <no-reply@auth.example.com>\r\n" +
	"Content-Type: text/html; charset=\"UTF-8\";\r\n" +
	"\r\n" +
	"<!doctype html><html>Bestätigen</html>\r\n"

// kratos is what gomail writes for a recovery code.
const kratos = "Mime-Version: 1.0\r\n" +
	"Date: Sun, 22 Nov 2026 08:59:59 +0000\r\n" +
	"From: \"Ory\" <no-reply@auth.example.com>\r\n" +
	"To: user@example.net\r\n" +
	"Subject: Recover access to your account\r\n" +
	"Content-Type: multipart/alternative;\r\n" +
	" boundary=9e7ba5a1c8aff3fd5ce01b6bbc91bfa38c6d9ac0b0da8a3c1a9a3b9a0d6e\r\n" +
	"\r\n" +
	"--9e7ba5a1c8aff3fd5ce01b6bbc91bfa38c6d9ac0b0da8a3c1a9a3b9a0d6e--\r\n"

// superTokens puts its display name in front of the address without quotes.
const superTokens = "From: My App (beta) <no-reply@auth.example.com>\r\n"

func mailOf(sender, raw string) *message.Submission {
	s := submission("logto", sender)
	s.Raw = message.Raw(raw)
	return s
}

func newPolicyWithDefaultFrom(t *testing.T) *Policy {
	t.Helper()
	c := testConfig()
	c.Stream["auth"].DefaultFrom, c.Stream["auth"].ReturnPath = "no-reply@auth.example.com", "bounces@auth.example.com"
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLogtoWithADisplayNameForASender(t *testing.T) {
	_, err := newPolicy(t).Check(mailOf("", logtoNameOnly), testID, testTime)
	checkRefusal(t, err, "550 5.6.0 The message has no From field; set the sender to an address in auth.example.com")
	checkRefusal(t, err, "sendFrom must hold an address, not only a name")
	checkRefusal(t, err, `set default_from for a stream of client "logto"`)

	m, err := newPolicyWithDefaultFrom(t).Check(mailOf("", logtoNameOnly), testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	raw := string(m.Raw)
	if strings.Count(raw, "\r\nFrom: no-reply@auth.example.com\r\n") != 1 || !strings.HasSuffix(raw, logtoNameOnly) {
		t.Errorf("repaired it is %q", raw)
	}
	if m.Stream != "auth" || m.HeaderFrom != "auth.example.com" || m.MailFrom != "bounces@auth.example.com" {
		t.Errorf("it goes into stream %s from %s with From in %s", m.Stream, m.MailFrom, m.HeaderFrom)
	}
}

func TestADefaultFromBringsAMessageIDOfItsDomain(t *testing.T) {
	m, err := newPolicyWithDefaultFrom(t).Check(mailOf("", "Subject: x\r\n\r\nb"), testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	want := "Message-ID: <" + testID.String() + "@auth.example.com>\r\nDate: Sun, 22 Nov 2026 09:00:00 +0000\r\nFrom: no-reply@auth.example.com\r\nSubject: x\r\n\r\nb"
	if !strings.HasSuffix(string(m.Raw), want) {
		t.Errorf("repaired it is %q", m.Raw)
	}
}

func TestADefaultFromIsOnlyForMailWithoutOne(t *testing.T) {
	p := newPolicyWithDefaultFrom(t)
	for name, tt := range map[string]struct{ client, header, refusal string }{
		"an empty From":                         {"logto", "From:", "550 5.6.0 The From field cannot be read"},
		"a From that cannot be read":            {"logto", "From: <>", "550 5.6.0"},
		"a From of another stream":              {"logto", "From: a@news.example.com", "550 5.7.1"},
		"a client of another stream":            {"news", "Subject: x", "550 5.6.0"},
		"a client of two streams, one with one": {"both", "Subject: x", ""},
		"a Sender of another stream beside it":  {"both", "Sender: a@news.example.com", "550 5.7.1 Sender domain"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Check(submission(tt.client, "", tt.header), testID, testTime)
			checkRefusal(t, err, tt.refusal)
		})
	}
	c := testConfig()
	c.Stream["auth"].DefaultFrom, c.Stream["marketing"].DefaultFrom = "a@auth.example.com", "a@news.example.com"
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Check(submission("both", "", "Subject: x"), testID, testTime)
	checkRefusal(t, err, `550 5.6.0 The message has no From field, and 2 streams of client "both" have a default_from`)
}

func TestKeycloakWithAnEnvelopeOfItsOwn(t *testing.T) {
	m, err := newPolicy(t).Check(mailOf("bounces@k.login.example.com", keycloak), testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	if m.MailFrom != "bounces@k.login.example.com" || m.HeaderFrom != "auth.example.com" || !strings.HasSuffix(string(m.Raw), "\r\n"+keycloak) {
		t.Errorf("envelope %s, From in %s, message %q", m.MailFrom, m.HeaderFrom, m.Raw)
	}
}

func TestZitadelsHeaderIsRepairedWhereItMust(t *testing.T) {
	m, err := newPolicy(t).Check(mailOf("no-reply@auth.example.com", zitadel), testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	raw := string(m.Raw)
	for _, gone := range []string{"Return-Path:", "Cc:"} {
		if strings.Contains(raw, gone) {
			t.Errorf("%s is still there", gone)
		}
	}
	for _, there := range []string{"Message-ID: <" + testID.String() + "@auth.example.com>\r\n", "MIME-version: 1.0;\r\n", "From: Müller & Söhne <no-reply@auth.example.com>\r\n", "Subject: =?utf-8?q?Dein Bestätigungscode?=\r\n"} {
		if strings.Count(raw, there) != 1 {
			t.Errorf("%q is not there once", there)
		}
	}
	if m.SMTPUTF8 {
		t.Error("8-bit text that was not declared asks for SMTPUTF8 at the next hop, which could refuse it; it can be encoded")
	}
}

func TestKratosGetsAMessageIDAndKeepsTheRest(t *testing.T) {
	m, err := newPolicy(t).Check(mailOf("no-reply@auth.example.com", kratos), testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	if want := "Message-ID: <" + testID.String() + "@auth.example.com>\r\n" + kratos; !strings.HasSuffix(string(m.Raw), want) {
		t.Errorf("message %q", m.Raw)
	}
}

func TestADisplayNameInParenthesesIsToldWhatToDo(t *testing.T) {
	_, err := newPolicy(t).Check(mailOf("no-reply@auth.example.com", superTokens+"\r\nx"), testID, testTime)
	checkRefusal(t, err, "put the display name in double quotes")
}
