package ingress

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// byPassword knows "kratos" with "swordfish" and nobody by address.
func byPassword(_ *SMTPOptions, f *fakeRelay) {
	f.identify = func(string, message.Peer) (string, error) { return "", nil }
	f.login = func(_ message.Peer, user, password string) (string, error) {
		if user == "kratos" && password == "swordfish" {
			return "kratos", nil
		}
		return "", reply.New(535, "5.7.8", "a text that tells more")
	}
}

const right = "\x00kratos\x00swordfish"

func TestLoginsMakeTheClient(t *testing.T) {
	for name, exchange := range map[string][][2]string{
		"PLAIN with an initial response":  {{"AUTH PLAIN " + b64(right), "235 2.7.0 "}},
		"PLAIN after a prompt":            {{"AUTH PLAIN", "334 \r\n"}, {b64(right), "235 2.7.0 "}},
		"PLAIN that names the user twice": {{"auth plain " + b64("kratos\x00kratos\x00swordfish"), "235 2.7.0 "}},
		"LOGIN":                           {{"AUTH LOGIN", "334 VXNlcm5hbWU6\r\n"}, {b64("kratos"), "334 UGFzc3dvcmQ6\r\n"}, {b64("swordfish"), "235 2.7.0 "}},
		"LOGIN with an initial response":  {{"AUTH LOGIN " + b64("kratos"), "334 UGFzc3dvcmQ6\r\n"}, {b64("swordfish"), "235 2.7.0 "}},
		"the second try":                  {{"AUTH PLAIN " + b64("\x00kratos\x00wrong"), "535 5.7.8 "}, {"AUTH PLAIN " + b64(right), "235 2.7.0 "}},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, byPassword)
			c := d.dial(t)
			c.want("220 ")
			if offer := c.do("EHLO x", "250-"); !strings.Contains(offer, "250-AUTH PLAIN LOGIN\r\n") {
				t.Errorf("offered %q", offer)
			}
			c.do("MAIL FROM:<>", "530 5.7.0 Authentication required\r\n")
			for _, step := range exchange {
				c.do(step[0], step[1])
			}
			c.do("AUTH PLAIN "+b64(right), "503 5.5.1 ")
			c.toData()
			c.do(mail+".", "250 ")
			if s := d.relay.submissions()[0]; s.Client != "kratos" || s.With != "ESMTPA" {
				t.Errorf("client %q with %s", s.Client, s.With)
			}
		})
	}
}

func TestLoginsAreRefusedWithTheRightCode(t *testing.T) {
	failed := "535 5.7.8 Authentication failed\r\n"
	for name, exchange := range map[string][][2]string{
		"a wrong password":                   {{"AUTH PLAIN " + b64("\x00kratos\x00wrong"), failed}},
		"an unknown user":                    {{"AUTH LOGIN " + b64("nobody"), "334 "}, {b64("swordfish"), failed}},
		"nothing at all":                     {{"AUTH PLAIN =", "501 5.5.2 "}},
		"an empty user and password":         {{"AUTH LOGIN =", "334 UGFzc3dvcmQ6\r\n"}, {"", failed}},
		"in the name of another":             {{"AUTH PLAIN " + b64("admin\x00kratos\x00swordfish"), failed}},
		"cancelled at PLAIN":                 {{"AUTH PLAIN", "334 "}, {"*", "501 5.7.0 "}},
		"cancelled at the password":          {{"AUTH LOGIN", "334 "}, {b64("kratos"), "334 "}, {"*", "501 5.7.0 "}},
		"no base64":                          {{"AUTH PLAIN !", "501 5.5.2 "}},
		"no base64 after a prompt":           {{"AUTH LOGIN", "334 "}, {"kratos!", "501 5.5.2 "}},
		"a CR in the base64":                 {{"AUTH LOGIN", "334 "}, {"a3Jh\rdG9z", "501 5.5.2 "}},
		"base64 with bits behind its end":    {{"AUTH LOGIN", "334 "}, {"QR==", "501 5.5.2 "}},
		"a NUL in the user name":             {{"AUTH LOGIN " + b64("kra\x00tos"), "334 "}, {b64("x"), "501 5.5.2 "}},
		"a NUL in the password":              {{"AUTH PLAIN " + b64(right+"\x00"), "501 5.5.2 "}},
		"PLAIN without its NULs":             {{"AUTH PLAIN " + b64("kratos"), "501 5.5.2 "}},
		"a password that is too long":        {{"AUTH PLAIN " + b64("\x00kratos\x00"+strings.Repeat("x", maxCredential+1)), "501 5.5.2 "}},
		"no mechanism":                       {{"AUTH", "501 5.5.4 "}},
		"too many words":                     {{"AUTH LOGIN a b", "501 5.5.4 "}},
		"another verb":                       {{"AUTHX PLAIN", "501 5.5.4 "}},
		"CRAM-MD5":                           {{"AUTH CRAM-MD5", "504 5.5.4 "}},
		"XOAUTH2":                            {{"AUTH XOAUTH2 " + b64("x"), "504 5.5.4 "}},
		"a command in place of the password": {{"AUTH LOGIN " + b64("kratos"), "334 "}, {"MAIL FROM:<>", "501 5.5.2 "}},
	} {
		t.Run(name, func(t *testing.T) {
			c := openTCP(t, byPassword).dial(t)
			c.hello()
			for _, step := range exchange {
				c.do(step[0], step[1])
			}
			c.do("MAIL FROM:<>", "530 5.7.0 ")
			c.do("NOOP", "250 ")
		})
	}
}

func TestAUTHHasItsPlaceInTheSession(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		byPassword(o, f)
		f.identify = nil // a mixed listener
	})
	c := d.dial(t)
	c.want("220 ")
	c.do("AUTH PLAIN "+b64(right), "503 5.5.1 ")
	c.do("HELO x", "250 ")
	c.do("AUTH PLAIN "+b64(right), "503 5.5.1 ")
	c.do("EHLO x", "250-")
	c.do("MAIL FROM:<>", "250 ")
	c.do("AUTH PLAIN "+b64(right), "503 5.5.1 ")
	c.do("RCPT TO:<b@example.net>", "250 ")
	c.do("DATA", "354 ")
	c.do(mail+".", "250 ")
	c.do("AUTH PLAIN "+b64(right), "235 ")
	c.toData()
	c.do(mail+".", "250 ")
	c.do("EHLO again", "250-")
	c.toData()
	c.do(mail+".", "250 ")
	var got []string
	for _, s := range d.relay.submissions() {
		got = append(got, s.Client+" "+s.With)
	}
	if fmt.Sprint(got) != "[logto ESMTP kratos ESMTPA kratos ESMTPA]" {
		t.Errorf("clients %q: a login replaces the address, and EHLO does not undo it", got)
	}
}

func TestAUTHIsOfferedWhereNobodyCanListen(t *testing.T) {
	a := newAuthority(t)
	elsewhere := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1000}
	d := open(t, newConnListener(), withTLS(t, a, "starttls", byPassword))
	c := d.ln.(*connListener).from(t, elsewhere)
	c.want("220 ")
	if offer := c.do("EHLO x", "250-"); strings.Contains(offer, "AUTH") {
		t.Errorf("offered in clear: %q", offer)
	}
	c.do("AUTH PLAIN "+b64(right), "538 5.7.11 ")
	c.do("MAIL FROM:<>", "530 5.7.0 Authentication required, it is offered after STARTTLS\r\n")
	c.startTLS(a.trust(t))
	if offer := c.do("EHLO x", "250-"); !strings.Contains(offer, "250-AUTH PLAIN LOGIN\r\n") {
		t.Errorf("offered over TLS: %q", offer)
	}
	c.do("AUTH PLAIN "+b64(right), "235 ")
	c.do("MAIL FROM:<> SMTPUTF8", "250 ")
	c.do("RCPT TO:<b@example.net>", "250 ")
	c.do("DATA", "354 ")
	c.do(mail+".", "250 ")
	if s := d.relay.submissions()[0]; s.With != "UTF8SMTPSA" {
		t.Errorf("with %s", s.With)
	}
}

func TestALoginInClearIsForgottenAtSTARTTLS(t *testing.T) {
	a := newAuthority(t)
	c := openTCP(t, withTLS(t, a, "starttls", byPassword)).dial(t)
	c.hello()
	c.do("AUTH PLAIN "+b64(right), "235 ")
	c.startTLS(a.trust(t))
	c.do("EHLO x", "250-")
	c.do("MAIL FROM:<>", "530 5.7.0 ")
	c.do("AUTH PLAIN "+b64(right), "235 ")
	c.do("MAIL FROM:<>", "250 ")
}

func TestAnyLoginLeavesTheAddressToDecide(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		o.Listen.Auth = "any"
		f.login = func(message.Peer, string, string) (string, error) { return "logto", nil }
	})
	c := d.dial(t)
	c.hello()
	c.do("AUTH LOGIN "+b64("zitadel"), "334 ")
	c.do(b64("whatever"), "235 ")
	c.toData()
	c.do(mail+".", "250 ")
	if s := d.relay.submissions()[0]; s.Client != "logto" || s.With != "ESMTP" {
		t.Errorf("client %q with %s: nobody was authenticated", s.Client, s.With)
	}
}

func TestTenFailedLoginsEndTheConnection(t *testing.T) {
	tries := 0
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		byPassword(o, f)
		login := f.login
		f.login = func(p message.Peer, user, password string) (string, error) { tries++; return login(p, user, password) }
	})
	c := d.dial(t)
	c.hello()
	c.send(strings.Repeat("AUTH PLAIN "+b64("\x00kratos\x00wrong")+"\r\n", 30))
	for range maxFailures {
		c.want("535 5.7.8 Authentication failed\r\n")
	}
	c.want("421 4.7.0 ")
	if rest := c.rest(); rest != "" || tries != 10 {
		t.Errorf("then came %q, after %d tries", rest, tries)
	}
}

func TestTheReasonOfAFailedLoginGoesToTheLogWithoutTheCredentials(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"a refusal":       {&reply.Error{Code: 535, Enhanced: "5.7.8", Text: "no", Err: errors.New("cause: the network")}, "535 5.7.8 Authentication failed\r\n"},
		"too many tries":  {&reply.Error{Code: 454, Enhanced: "4.7.0", Text: "wait\r\n235", Err: errors.New("cause: tries")}, "454 4.7.0 wait 235\r\n"},
		"something broke": {errors.New("cause: a file"), "454 4.7.0 Temporary authentication failure, please try again later\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
				f.login = func(message.Peer, string, string) (string, error) { return "", tt.err }
			})
			c := d.dial(t)
			c.hello()
			c.do("AUTH PLAIN "+b64("\x00alice\x00482913"), tt.want)
			c.do("AUTH PLAIN 482913!", "501 ")
			c.do("AUTH LOGIN alice", "501 ")
			log := d.log.String()
			if !strings.Contains(log, "cause: ") {
				t.Errorf("the log lacks the cause:\n%s", log)
			}
			for _, s := range []string{"alice", "482913", b64("\x00alice\x00482913")} {
				if strings.Contains(log, s) {
					t.Errorf("the log holds %q:\n%s", s, log)
				}
			}
		})
	}
}

func TestAPanicInALoginIsATemporaryFailure(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.login = func(message.Peer, string, string) (string, error) { panic("at AUTH") }
	})
	c := d.dial(t)
	c.hello()
	c.do("AUTH PLAIN "+b64(right), "454 4.7.0 ")
	c.do("NOOP", "250 ")
	if !strings.Contains(d.log.String(), "level=ERROR") {
		t.Errorf("the log does not tell:\n%s", d.log)
	}
}

func TestClientsThatMustLogInHaveHalfAMinute(t *testing.T) {
	inBubble(t, byPassword, func(t *testing.T, _ *door, l *connListener) {
		late := l.from(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		late.hello()
		late.drip(strings.Repeat("NOOP ", 100), 1, time.Second)
		inTime := l.from(t, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		inTime.hello()
		inTime.do("AUTH PLAIN "+b64(right), "235 ")
		if d := took(func() { late.want("421 4.4.2 ") }); d != 30*time.Second {
			t.Errorf("after %v", d)
		}
		synctest.Wait()
		inTime.do("NOOP", "250 ")
	})
}

func TestSwaksLogsIn(t *testing.T) {
	if _, err := exec.LookPath("swaks"); err != nil {
		t.Fatal("swaks is not installed (Debian: swaks)")
	}
	a := newAuthority(t)
	for _, mode := range []string{"starttls", "implicit"} {
		for _, mechanism := range []string{"PLAIN", "LOGIN"} {
			t.Run(mode+" "+mechanism, func(t *testing.T) {
				d := openTCP(t, withTLS(t, a, mode, byPassword))
				host, port, _ := net.SplitHostPort(d.addr())
				option := map[string]string{"starttls": "-tls", "implicit": "-tlsc"}[mode]
				out, err := exec.CommandContext(t.Context(), "swaks", "--server", host, "--port", port, option, "--tls-verify", "--tls-ca-path", a.file,
					"--auth", mechanism, "--auth-user", "kratos", "--auth-password", "swordfish", "--from", "a@auth.example.com", "--to", "b@example.net").CombinedOutput()
				if err != nil || len(d.relay.submissions()) != 1 || d.relay.submissions()[0].With != "ESMTPSA" {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}
