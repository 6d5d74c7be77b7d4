package ingress

import (
	"bytes"
	"io"
	"net/smtp"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
)

// body has what a client must escape: dots at the start of lines, among them one alone.
const body = "Subject: x\r\n\r\n.\r\n..\r\n.x\r\nlast"

func TestTheStandardLibrarysClientIsServed(t *testing.T) {
	d := openTCP(t, nil)
	if err := smtp.SendMail(d.addr(), nil, "a@auth.example.com", []string{"b@example.net", "c@example.net"}, []byte(body)); err != nil {
		t.Fatal(err)
	}
	if got := d.relay.submissions()[0]; string(got.Raw) != body+"\r\n" || len(got.To) != 2 {
		t.Errorf("arrived as %q for %v", got.Raw, got.To)
	}
}

func TestGoSMTPsClientIsServed(t *testing.T) {
	d := openTCP(t, nil)
	c, err := gosmtp.Dial(d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3 {
		if err := c.Mail("ä@auth.example.com", &gosmtp.MailOptions{UTF8: true, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		if err := c.Rcpt("b@example.net", nil); err != nil {
			t.Fatal(err)
		}
		w, err := c.Data()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, strings.NewReader(body)); err != nil {
			t.Fatal(err)
		}
		if resp, err := w.CloseWithResponse(); err != nil || !strings.Contains(resp.StatusText, "queued as ") {
			t.Errorf("answered %v, %v", resp, err)
		}
	}
	if err := c.Quit(); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.relay.submissions() {
		if !bytes.Equal(s.Raw, []byte(body+"\r\n")) || !s.SMTPUTF8 {
			t.Errorf("arrived as %q", s.Raw)
		}
	}
}

func TestGoClientsLogInOverTLS(t *testing.T) {
	a := newAuthority(t)
	d := openTCP(t, withTLS(t, a, "starttls", byPassword))
	std, err := smtp.Dial(d.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer std.Close()
	for _, step := range []func() error{
		func() error { return std.StartTLS(a.trust(t)) },
		func() error { return std.Auth(smtp.PlainAuth("", "kratos", "swordfish", "127.0.0.1")) },
		func() error { return std.Mail("a@auth.example.com") },
		func() error { return std.Rcpt("b@example.net") },
		func() error {
			w, err := std.Data()
			if err != nil {
				return err
			}
			io.WriteString(w, body)
			return w.Close()
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}

	c, err := gosmtp.DialStartTLS(d.addr(), a.trust(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Auth(sasl.NewLoginClient("kratos", "swordfish")); err != nil {
		t.Fatal(err)
	}
	if err := c.SendMail("a@auth.example.com", []string{"b@example.net"}, strings.NewReader(body)); err != nil {
		t.Fatal(err)
	}
	for _, s := range d.relay.submissions() {
		if s.Client != "kratos" || !strings.HasSuffix(s.With, "SMTPSA") || string(s.Raw) != body+"\r\n" {
			t.Errorf("submission %+v", s)
		}
	}
	if n := len(d.relay.submissions()); n != 2 {
		t.Errorf("%d messages were accepted, want 2", n)
	}
}
