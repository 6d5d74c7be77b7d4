package ingress

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"gatepost/message"
	"gatepost/reply"
)

func TestADialogueIsAsTheRFCHasIt(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	for _, step := range []struct{ send, want string }{
		{"", "220 gw.example.com ESMTP Service Ready\r\n"},
		{"EHLO client.example", "250-gw.example.com\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n250-SMTPUTF8\r\n250 SIZE 1048576\r\n"},
		{"MAIL FROM:<a@auth.example.com> SIZE=70 BODY=8BITMIME", "250 2.0.0 Roger, accepting mail from <a@auth.example.com>\r\n"},
		{"RCPT TO:<b@example.net>", "250 2.0.0 I'll make sure <b@example.net> gets this\r\n"},
		{"DATA", "354 Go ahead. End your data with <CR><LF>.<CR><LF>\r\n"},
		{mail + "..dot\r\n.", "250 2.0.0 queued as 0000000000002\r\n"},
		{"QUIT", "221 2.0.0 Bye\r\n"},
	} {
		if step.send != "" {
			c.send(step.send + "\r\n")
		}
		if got := c.reply(); got != step.want {
			t.Fatalf("after %.50q: reply %q, want %q", step.send, got, step.want)
		}
	}
	if rest := c.rest(); rest != "" {
		t.Errorf("after QUIT came %q", rest)
	}
	got := d.relay.submissions()
	if len(got) != 1 {
		t.Fatalf("%d messages were accepted, want 1", len(got))
	}
	s := got[0]
	if string(s.Raw) != mail+".dot\r\n" || cap(s.Raw) != len(s.Raw) {
		t.Errorf("Raw is %q in a buffer of %d octets", s.Raw, cap(s.Raw))
	}
	local := netip.MustParseAddrPort(c.LocalAddr().String())
	if s.Client != "logto" || s.Listener != "smtp" || s.Remote != local || s.Helo != "client.example" || s.With != "ESMTP" ||
		s.MailFrom != "a@auth.example.com" || len(s.To) != 1 || s.To[0].String() != "b@example.net" || s.SMTPUTF8 || s.StartedAt.IsZero() {
		t.Errorf("submission %+v", s)
	}
}

func TestWhatIsSaidOfTheProtocolFollowsTheSession(t *testing.T) {
	for name, tt := range map[string]struct{ hello, parameter, want string }{
		"HELO":     {"HELO x", "", "SMTP"},
		"EHLO":     {"EHLO x", "", "ESMTP"},
		"SMTPUTF8": {"EHLO x", " SMTPUTF8", "UTF8SMTP"},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, nil)
			c := d.dial(t)
			c.want("220 ")
			c.do(tt.hello, "250")
			c.do("MAIL FROM:<>"+tt.parameter, "250 ")
			c.do("RCPT TO:<b@example.net>", "250 ")
			c.do("DATA", "354 ")
			c.do(mail+".", "250 ")
			s := d.relay.submissions()[0]
			if s.With != tt.want || s.MailFrom != "" || s.SMTPUTF8 != (tt.parameter != "") {
				t.Errorf("With %q, MailFrom %q, SMTPUTF8 %v", s.With, s.MailFrom, s.SMTPUTF8)
			}
		})
	}
}

func TestOddNamesMayGreet(t *testing.T) {
	d := openTCP(t, nil)
	for _, name := range []string{"My App", "私のアプリ", "[127.0.0.1]", "localhost", "a_b", strings.Repeat("x", 255)} {
		c := d.dial(t)
		c.want("220 ")
		if got := c.do("EHLO "+name, "250-gw.example.com\r\n"); strings.Contains(got, "Hello") {
			t.Errorf("EHLO %s is echoed: %q", name, got)
		}
		c.do("HELO "+name, "250 gw.example.com\r\n")
		c.toData()
		c.do(mail+".", "250 ")
		if all := d.relay.submissions(); all[len(all)-1].Helo != name {
			t.Errorf("%q arrived as %q", name, all[len(all)-1].Helo)
		}
	}
	c := d.dial(t)
	c.want("220 ")
	c.do("EHLO "+strings.Repeat("x", 256), "501 5.5.4 ")
	c.do("EHLO", "501 5.5.2 ")
	c.do("EHLO ", "501 5.5.2 ")
	c.do("EHLO  \u00a0", "501 5.5.2 ")
	c.do("EHLOx", "501 5.5.2 ")
	c.do("MAIL FROM:<>", "503 5.5.1 ")
	c.do("HELO x", "250 ")
}

func TestCommandsAreRefusedWithTheRightCode(t *testing.T) {
	for name, tt := range map[string]struct{ before, send, want string }{
		"a second MAIL":                         {"MAIL FROM:<>", "MAIL FROM:<c@auth.example.com>", "503 5.5.1 "},
		"a declared size over the limit":        {"", "MAIL FROM:<> SIZE=1048577", "552 5.3.4 "},
		"a declared size beyond 32 bits":        {"", "MAIL FROM:<> SIZE=4294967296", "552 5.3.4 "},
		"a declared size beyond 64 bits":        {"", "mail from:<> body=8bitmime size=99999999999999999999", "552 5.3.4 "},
		"a size that is no number":              {"", "MAIL FROM:<> SIZE=big", "501 5.5.4 "},
		"a quoted sender that needs its quotes": {"", `MAIL FROM:<"a b"@auth.example.com>`, "553 5.1.7 "},
		"a sender without a domain":             {"", "MAIL FROM:<a>", "501 "},
		"a sender at an address literal":        {"", "MAIL FROM:<a@[127.0.0.1]>", "553 5.1.7 "},
		"a UTF-8 sender without SMTPUTF8":       {"", "MAIL FROM:<ä@auth.example.com>", "553 5.6.7 "},
		"a quoted recipient":                    {"MAIL FROM:<>", `RCPT TO:<"b c"@example.net>`, "553 5.1.3 "},
		"a parameter smuggled in quotes":        {"MAIL FROM:<>", `RCPT TO:<"x> NOTIFY=NEVER"@example.net>`, "553 5.1.3 "},
		"a mailbox smuggled in quotes":          {"MAIL FROM:<>", `RCPT TO:<"ceo@evil.example> "@example.net>`, "553 5.1.3 "},
		"a mailbox smuggled in an encoded-word": {"MAIL FROM:<>", "RCPT TO:<=?utf-8?q?ceo=40evil.example=3e=20?=@example.net>", "553 5.1.3 "},
		"two recipients in one":                 {"MAIL FROM:<>", "RCPT TO:b@example.net,c@example.net", "553 5.1.3 "},
		"a UTF-8 recipient without SMTPUTF8":    {"MAIL FROM:<>", "RCPT TO:<ü@example.net>", "553 5.6.7 "},
		"RCPT before MAIL":                      {"", "RCPT TO:<b@example.net>", "503 5.5.1 "},
		"DATA without a recipient":              {"MAIL FROM:<>", "DATA", "503 5.5.1 "},
		"a parameter nobody knows":              {"", "MAIL FROM:<> X=Y", "555 5.5.4 "},
		"a parameter without a value":           {"", "MAIL FROM:<a@auth.example.com> REQUIRETLS", "555 5.5.4 "},
		"a parameter of DSN":                    {"", "MAIL FROM:<> RET=HDRS", "555 5.5.4 "},
		"a parameter of MAIL at RCPT":           {"MAIL FROM:<>", "RCPT TO:<b@example.net> SIZE=1", "555 5.5.4 "},
		"a sender with a source route":          {"", "MAIL FROM:<@relay.example:a@auth.example.com>", "553 5.1.7 "},
		"a recipient with a source route":       {"MAIL FROM:<>", "RCPT TO:<@one.example,@two.example:b@example.net>", "553 5.1.3 "},
		"a source route without brackets":       {"MAIL FROM:<>", "RCPT TO:@one.example:b@example.net", "553 5.1.3 "},
		"a source route after a blank":          {"MAIL FROM:<>", "RCPT TO: <@one.example:b@example.net>", "553 5.1.3 "},
		"a percent that hides a route":          {"MAIL FROM:<>", "RCPT TO:<b%example.org@example.net@example.com>", "553 5.1.3 "},
		"a quoted angle bracket":                {"MAIL FROM:<>", `RCPT TO:<"a>b"@example.net>`, "553 5.1.3 "},
		"a quote that does not end":             {"MAIL FROM:<>", `RCPT TO:<"a@example.net> NOTIFY=NEVER`, "501 5.5.2 "},
		"a NUL":                                 {"", "MAIL FROM:<a\x00@auth.example.com>", "501 5.5.2 "},
		"a bare CR":                             {"", "NOOP\rMAIL FROM:<>", "501 5.5.2 "},
		"octets that are not UTF-8":             {"", "MAIL FROM:<\xff@auth.example.com>", "501 5.5.2 "},
		"AUTH":                                  {"", "AUTH PLAIN AGEAYg==", "502 5.5.1 "},
		"STARTTLS":                              {"", "STARTTLS", "502 5.5.1 "},
		"BINARYMIME":                            {"", "MAIL FROM:<> BODY=BINARYMIME", "504 5.5.4 "},
		"DSN":                                   {"MAIL FROM:<>", "RCPT TO:<b@example.net> NOTIFY=NEVER", "555 5.5.4 "},
	} {
		t.Run(name, func(t *testing.T) {
			c := openTCP(t, nil).dial(t)
			c.hello()
			if tt.before != "" {
				c.do(tt.before, "250 ")
			}
			c.do(tt.send, tt.want)
			c.do("NOOP", "250 ") // and the session goes on
		})
	}
}

func TestARefusedMailLeavesAPipeliningClientItsConnection(t *testing.T) {
	c := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.ready = func(string) error { return reply.New(451, "4.4.1", "later") }
	}).dial(t)
	c.hello()
	c.send("MAIL FROM:<>\r\n" + strings.Repeat("RCPT TO:<b@example.net>\r\n", 50) + "DATA\r\nRSET\r\n")
	c.want("451 4.4.1 ")
	for range 51 {
		c.want("503 5.5.1 ")
	}
	c.want("250 ")
}

func TestParametersMayBeWrittenInAnyCase(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.do("mail from:<a@auth.example.com> body=8BITMIME size=100 smtputf8 auth=<>", "250 ")
	c.do("rcpt to:<b@example.net>", "250 ")
	c.do("data", "354 ")
	c.do(mail+".", "250 ")
	if s := d.relay.submissions()[0]; !s.SMTPUTF8 || s.MailFrom != "a@auth.example.com" {
		t.Errorf("submission %+v", s)
	}
}

func TestAddressesArriveAsParsed(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.do(`MAIL FROM:<"joe"@AUTH.example.com> SMTPUTF8`, "250 ")
	c.do("RCPT TO:<ü@example.net>", "250 ")
	c.do("RCPT TO:<B@bücher.example>", "250 ")
	c.do("RCPT TO:<B@bücher.example>", "250 ") // policy removes copies
	c.do("DATA", "354 ")
	c.do(mail+".", "250 ")
	s := d.relay.submissions()[0]
	want := []message.Address{{Local: "ü", Domain: "example.net"}, {Local: "B", Domain: "xn--bcher-kva.example"}, {Local: "B", Domain: "xn--bcher-kva.example"}}
	if s.MailFrom != "joe@auth.example.com" || fmt.Sprint(s.To) != fmt.Sprint(want) {
		t.Errorf("from %q to %v, want %v", s.MailFrom, s.To, want)
	}
}

func TestRecipientsAreLimitedAndTheRestMayFollow(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.do("MAIL FROM:<>", "250 ")
	go func() {
		for i := range 10_000 {
			fmt.Fprintf(c, "RCPT TO:<u%d@example.net>\r\n", i)
		}
	}()
	for i := range 10_000 {
		if i < 100 {
			c.want("250 2.0.0 ")
		} else {
			c.want("452 4.5.3 ")
		}
	}
	c.do("DATA", "354 ")
	c.do(mail+".", "250 ")
	if n := len(d.relay.submissions()[0].To); n != 100 {
		t.Errorf("%d recipients, want 100", n)
	}
	c.toData()
	c.do(mail+".", "250 ")
	if n := strings.Count(d.log.String(), "recipient refused"); n != 1 {
		t.Errorf("the log tells %d times of refused recipients, want once", n)
	}
}

func TestASecondMailHasNothingOfTheFirst(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	c.do("MAIL FROM:<one@auth.example.com> SMTPUTF8", "250 ")
	c.do("RCPT TO:<one@example.net>", "250 ")
	c.do("RSET", "250 ")
	c.do("MAIL FROM:<two@auth.example.com> SMTPUTF8", "250 ")
	c.do("RCPT TO:<two@example.net>", "250 ")
	c.do("DATA", "354 ")
	c.do(mail+"two\r\n.", "250 ")
	c.do("MAIL FROM:<three@auth.example.com>", "250 ")
	c.do("EHLO again", "250-")
	c.do("RCPT TO:<three@example.net>", "503 5.5.1 ")
	c.do("MAIL FROM:<four@auth.example.com>", "250 ")
	c.do("RCPT TO:<four@example.net>", "250 ")
	c.do("DATA", "354 ")
	c.do(mail+"four\r\n.", "250 ")

	var got []string
	for _, s := range d.relay.submissions() {
		got = append(got, fmt.Sprintf("%s %v %v %q", s.MailFrom, s.To, s.SMTPUTF8, s.Raw[len(mail):]))
	}
	want := []string{`two@auth.example.com [two@example.net] true "two\r\n"`, `four@auth.example.com [four@example.net] false "four\r\n"`}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("accepted %q, want %q", got, want)
	}
}

func TestErrorsBecomeRepliesAndTheCauseGoesToTheLog(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"a verdict":                     {reply.New(550, "5.7.1", "not yours"), "550 5.7.1 not yours\r\n"},
		"a wrapped verdict":             {fmt.Errorf("policy: %w", reply.New(452, "4.3.1", "disk is full")), "452 4.3.1 disk is full\r\n"},
		"any other error is temporary":  {errors.New("cause: disk"), "451 4.3.0 Temporary failure, please try again later\r\n"},
		"a verdict of more than a line": {reply.New(554, "5.0.0", "a\r\n250 b"), "554 5.0.0 a 250 b\r\n"},
		"a verdict that is none":        {reply.New(250, "2.0.0", "no"), "451 4.0.0 no\r\n"},
		"a code that contradicts":       {reply.New(451, "5.7.1", "later"), "451 4.0.0 later\r\n"},
		"a cause for the log only":      {&reply.Error{Code: 451, Enhanced: "4.3.0", Text: "later", Err: errors.New("cause: x")}, "451 4.3.0 later\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
				f.accept = func(context.Context, *message.Submission) error { return tt.err }
			})
			c := d.dial(t)
			c.hello()
			c.toData()
			if got := c.do(mail+".", ""); got != tt.want {
				t.Errorf("reply %q, want %q", got, tt.want)
			}
			c.do("NOOP", "250 ")
			if strings.Contains(tt.err.Error(), "cause: ") && strings.Count(d.log.String(), "cause: ") != 1 {
				t.Errorf("the log does not hold the cause once:\n%s", d.log)
			}
		})
	}
}

func TestClientsAreTurnedAwayAtMAILWhileTheRelayIsNotReady(t *testing.T) {
	ready := make(chan error, 2)
	c := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.ready = func(string) error { return <-ready }
	}).dial(t)
	c.hello()
	ready <- reply.New(451, "4.4.1", "every upstream is down")
	c.do("MAIL FROM:<>", "451 4.4.1 every upstream is down\r\n")
	ready <- nil
	c.do("MAIL FROM:<>", "250 ")
}

func TestAPanicEndsNothingButItsOwnCommand(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.ready = func(string) error {
			if len(f.submissions()) == 1 {
				panic("at MAIL")
			}
			return nil
		}
		f.accept = func(context.Context, *message.Submission) error { panic("at DATA") }
	})
	c := d.dial(t)
	c.hello()
	c.toData()
	c.do(mail+".", "451 4.3.0 ")
	c.do("MAIL FROM:<>", "451 4.3.0 ")
	c.do("NOOP", "250 ")
	if log := d.log.String(); strings.Count(log, "level=ERROR") != 2 || !strings.Contains(log, "session.go") {
		t.Errorf("the log does not hold two panics with their stack:\n%s", log)
	}
}

func TestTheLogHoldsNoSubjectBodyOrLocalPart(t *testing.T) {
	d := openTCP(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.accept = func(_ context.Context, s *message.Submission) error {
			if len(s.To) > 1 {
				return reply.New(550, "5.7.1", "no")
			}
			return nil
		}
	})
	secrets := []string{"alicelocal", "boblocal", "482913", "swordfish"}
	c := d.dial(t)
	c.hello()
	for range 2 {
		c.do("MAIL FROM:<alicelocal@auth.example.com>", "250 ")
		c.do("RCPT TO:<boblocal@example.net>", "250 ")
		c.do("RCPT TO:<boblocal swordfish@example.net>", "501 ")
		c.do("DATA", "354 ")
		c.do("Subject: 482913\r\n\r\nswordfish\r\n.", "250 ")
		c.do("AUTH PLAIN swordfish", "502 ")
		c.do("swordfish", "501 ")
	}
	c.do("MAIL FROM:<alicelocal@auth.example.com>", "250 ")
	c.do("RCPT TO:<boblocal@example.net>", "250 ")
	c.do("RCPT TO:<boblocal@example.org>", "250 ")
	c.do("DATA", "354 ")
	c.do("Subject: 482913\r\n\r\nswordfish\r\n.", "550 ")
	log := d.log.String()
	for _, s := range secrets {
		if strings.Contains(log, s) {
			t.Errorf("the log holds %q:\n%s", s, log)
		}
	}
	if !strings.Contains(log, "msg_id=") || !strings.Contains(log, "listener=smtp client=logto remote=127.0.0.1:") {
		t.Errorf("the log lacks its keys:\n%s", log)
	}
}
