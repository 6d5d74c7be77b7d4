package ingress

import (
	"bytes"
	"io"
	"net/smtp"
	"strings"
	"testing"

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
