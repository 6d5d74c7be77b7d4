package test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net/smtp"
	"strings"
	"testing"
	"time"

	smtpserver "github.com/emersion/go-smtp"
)

// zitadelMail is what Zitadel writes: raw 8-bit text in header and body, a Return-Path, an empty Cc, no Message-ID.
const zitadelMail = "Return-Path: no-reply@auth.example.com\r\n" +
	"Cc: \r\n" +
	"MIME-version: 1.0;\r\n" +
	"Content-Type: text/html; charset=\"UTF-8\";\r\n" +
	"Date: Sun, 22 Nov 2026 12:00:00 +0000\r\n" +
	"From: Zitädel <no-reply@auth.example.com>\r\n" +
	"Subject: =?utf-8?q?Bestätige deine E-Mail?=\r\n" +
	"To: user@example.net\r\n" +
	"\r\n" +
	"<html><body>Dein Code für Zürich: 246810</body></html>\r\n"

func TestZitadelsLoginIsAcceptedItsAddressDecidesAndItsMailIsRepaired(t *testing.T) {
	t.Parallel()
	needsPython(t, "dkim", "python3-dkim")
	d := newDoors(t)
	d.start()
	c, err := dial(d.any, authClient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.quit()
	if err := c.login(login{"whoever", "whatever"}); err != nil {
		t.Fatalf("a login that means nothing got %v", err)
	}
	if _, err := c.send(authStream.sender(), "user@example.net", zitadelMail); err != nil {
		t.Fatal(err)
	}
	got := d.auth.wait(1, 10*time.Second)[0]
	wantSigned(t, d.records, authDomain, got)
	all := fields(got.raw)
	for name, want := range map[string]int{"Message-ID": 1, "Date": 1, "From": 1, "MIME-Version": 1, "Return-Path": 0, "Cc": 0} {
		if n := count(all, name); n != want {
			t.Errorf("the mail has %d fields %s, want %d", n, name, want)
		}
	}
	if i := bytes.IndexFunc(got.raw.Header(), func(r rune) bool { return r >= 0x80 }); i >= 0 {
		t.Errorf("the header still has 8-bit text:\n%s", got.raw.Header())
	}
	if !bytes.Contains(got.raw.Body(), []byte("für Zürich: 246810")) {
		t.Errorf("the body was changed: %q", got.raw.Body())
	}
	t.Run("the address decides, not the login", func(t *testing.T) {
		c, err := dial(d.any, bulkClient)
		if err != nil {
			t.Fatal(err)
		}
		defer c.quit()
		if err := c.login(webLogin); err != nil {
			t.Fatal(err)
		}
		_, err = c.send(authStream.sender(), "user@example.net", zitadelMail)
		wantRefused(t, "auth mail from the marketing client's address", err, "550 5.7.1")
		_, err = dial(d.any, "127.0.9.9")
		wantRefused(t, "a stranger", err, "554 5.7.1")
	})
}

// gomailLogin is AUTH LOGIN as gomail's clients (Supabase Auth) and Auth0 speak it: the prompts are compared.
type gomailLogin struct{ login }

func (a gomailLogin) Start(*smtp.ServerInfo) (string, []byte, error) { return "LOGIN", nil, nil }

func (a gomailLogin) Next(prompt []byte, more bool) ([]byte, error) {
	switch {
	case !more:
		return nil, nil
	case string(prompt) == "Username:":
		return []byte(a.user), nil
	case string(prompt) == "Password:":
		return []byte(a.password), nil
	}
	return nil, fmt.Errorf("unexpected prompt %q", prompt)
}

// dialGo connects as programs in Go do that verify a host name.
func (d *doors) dialGo(t *testing.T, addr string) *smtp.Client {
	t.Helper()
	conn, err := connect(addr, authClient)
	if err != nil {
		t.Fatal(err)
	}
	trust := d.ca.trust()
	trust.ServerName = d.hostname()
	if addr == d.implicit {
		conn = tls.Client(conn, trust)
	}
	c, err := smtp.NewClient(conn, d.hostname())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if addr == d.starttls {
		if err := c.StartTLS(trust); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (d *doors) hostname() string { return "gw.auth.example.com" }

func TestSupabaseAuthAndAuth0LogInTheirWay(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.start()
	for name, addr := range map[string]string{"STARTTLS": d.starttls, "implicit TLS": d.implicit} {
		for mechanism, auth := range map[string]smtp.Auth{
			"PLAIN": smtp.PlainAuth("", webLogin.user, webLogin.password, d.hostname()),
			"LOGIN": gomailLogin{webLogin},
		} {
			t.Run(mechanism+", "+name, func(t *testing.T) {
				c := d.dialGo(t, addr)
				if offered, _ := c.Extension("AUTH"); !offered {
					t.Fatal("AUTH is not offered")
				}
				if _, list := c.Extension("AUTH"); strings.Contains(list, "CRAM") {
					t.Errorf("%s is offered, which gomail prefers and nobody can check without keeping passwords", list)
				}
				before := len(d.auth.all())
				if err := c.Auth(auth); err != nil {
					t.Fatal(err)
				}
				if err := mailNetSMTP(c, authStream.sender(), "user@example.net", bare(authStream)); err != nil {
					t.Fatal(err)
				}
				d.auth.wait(before+1, 10*time.Second)
			})
		}
	}
	t.Run("TLS 1.1 is refused", func(t *testing.T) {
		conn, err := connect(d.implicit, authClient)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		old := d.ca.trust()
		old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if err := tls.Client(conn, old).Handshake(); err == nil {
			t.Error("a handshake with TLS 1.1 succeeded")
		}
	})
}

func TestKeycloaksEnvelopeMayDifferFromItsHeaderWithinTheStream(t *testing.T) {
	t.Parallel()
	needsPython(t, "dkim", "python3-dkim")
	d := newDoors(t)
	d.start()
	v := visit{addr: d.starttls, tls: "starttls", ca: d.path("ca.crt"), trust: d, local: authClient, login: webLogin, stream: authStream, to: "user@example.net"}
	if err := sendJakarta(t, v, map[string]string{"mail.smtp.from": "bounces@" + authDomain}); err != nil {
		t.Fatal(err)
	}
	got := d.auth.wait(1, 10*time.Second)[0]
	if got.from != "bounces@"+authDomain {
		t.Errorf("the envelope sender is %s", got.from)
	}
	if !containsAll(string(got.raw), "multipart/alternative", "Reply-To: ", "From: Example <"+v.sender()+">") {
		t.Errorf("Keycloak's mail has lost something:\n%s", got.raw)
	}
	wantSigned(t, d.records, authDomain, got)
	err := sendJakarta(t, v, map[string]string{"mail.smtp.from": "bounces@" + bulkDomain})
	wantRefused(t, "an envelope sender of the other stream", err, "550 5.7.1")
}

// Kratos gives a mail up for good at a reply of 500 or more, and tries again at any other.
func TestKratosIsToldToGiveUpOnlyWhereTryingAgainIsInVain(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.configure("route   = [\"sink\"]", "route   = [\"sink\"]\nverdict_timeout = \"300ms\"")
	d.start()
	c, err := d.dialLogin(d.starttls, authClient, webLogin)
	if err != nil {
		t.Fatal(err)
	}
	defer c.quit()
	var waiting []string
	try := func(id string) (code string) {
		t.Helper()
		reply, err := c.send(authStream.sender(), id+"@example.net", authStream.letter(id, "246810"))
		if r, refused := errors.AsType[refusal](err); refused {
			return string(r)
		}
		if err != nil {
			t.Fatalf("%s: %v", id, err)
		}
		waiting = append(waiting, id)
		return reply
	}
	answer := func(code int, enhanced smtpserver.EnhancedCode) {
		d.auth.setAnswer(func(arrival) error {
			return &smtpserver.SMTPError{Code: code, EnhancedCode: enhanced, Message: "says the far end"}
		})
	}
	answer(550, smtpserver.EnhancedCode{5, 1, 1})
	if reply := try("nobody"); !strings.HasPrefix(reply, "550 ") {
		t.Errorf("an address that does not exist got %s, want 550", reply)
	}
	for name, broken := range map[string]func(){
		"busy":         func() { answer(450, smtpserver.EnhancedCode{4, 2, 1}) },
		"greylisting":  func() { answer(451, smtpserver.EnhancedCode{4, 7, 1}) },
		"overloaded":   func() { answer(421, smtpserver.EnhancedCode{4, 3, 2}) },
		"unauthorised": func() { d.auth.setPassword("changed") },
		"gone":         d.auth.stop,
	} {
		broken()
		if reply := try(name); reply[0] == '5' {
			t.Errorf("while the far end is %s the client got %s, want 250 or 4xx", name, reply)
		}
		d.auth.stop() // where it still runs
		d.auth.setAnswer(nil)
		d.auth.setPassword("")
		d.auth.start()
	}
	for _, id := range waiting {
		eventually(t, 45*time.Second, "mail "+id+" arrives once the far end is well", func() bool { return len(d.auth.copies()[id]) > 0 })
	}
}

func TestMailFromNobodyGetsTheStreamsDefaultSender(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.configure("domains = [\"auth.example.com\"]", "domains = [\"auth.example.com\"]\ndefault_from = \"no-reply@auth.example.com\"\nreturn_path = \"bounces@auth.example.com\"")
	d.start()
	c, err := dial(d.listen, authClient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.quit()
	// As Logto sends it where a template's sendFrom is a display name only.
	if _, err := c.send("", "user@example.net", "To: user@example.net\r\nSubject: x\r\nMessage-ID: <x@localhost>\r\n\r\n246810\r\n"); err != nil {
		t.Fatal(err)
	}
	got := d.auth.wait(1, 10*time.Second)[0]
	if got.from != "bounces@"+authDomain || !strings.Contains(string(got.raw.Header()), "\nFrom: no-reply@auth.example.com\r\n") && !strings.Contains(string(got.raw.Header()), "\nFrom: <no-reply@auth.example.com>\r\n") {
		t.Errorf("the mail left from %q with the header\n%s", got.from, got.raw.Header())
	}
	news, err := dial(d.listen, bulkClient)
	if err != nil {
		t.Fatal(err)
	}
	defer news.quit()
	_, err = news.send("", "user@example.net", "To: user@example.net\r\n\r\nx\r\n")
	wantRefused(t, "mail without From of a client without default_from", err, "550 5.6.0")
}
