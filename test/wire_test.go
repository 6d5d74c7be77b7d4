package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/smtp"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/dkim"
	"gatepost/message"
)

// wantIntact checks that got is sent with nothing changed but what gatepost says it changes: a signature and a Received
// field on top, Message-ID and Date where they were missing.
func wantIntact(t *testing.T, got, sent message.Raw) {
	t.Helper()
	if !bytes.Equal(got.Body(), sent.Body()) {
		t.Errorf("the body was changed\n got: %q\nsent: %q", got.Body(), sent.Body())
	}
	want, has := fields(sent), fields(got)
	for _, name := range []string{"DKIM-Signature", "Received"} {
		if len(has) == 0 || !message.Field(has[0]).Is(name) {
			t.Fatalf("the first header fields are not DKIM-Signature and Received:\n%s", got.Header())
		}
		has = has[1:]
	}
	for _, name := range []string{"Message-ID", "Date"} {
		if count(want, name) == 0 && len(has) > 0 && message.Field(has[0]).Is(name) {
			has = has[1:]
		}
		if count(fields(got), name) != 1 {
			t.Errorf("the mail has %d fields %s, want one", count(fields(got), name), name)
		}
	}
	if strings.Join(has, "") != strings.Join(want, "") {
		t.Errorf("the header was changed\n got: %q\nsent: %q", has, want)
	}
}

func fields(raw message.Raw) (all []string) {
	for f := range message.Fields(raw.Header()) {
		all = append(all, string(f))
	}
	return all
}

func count(fields []string, name string) (n int) {
	for _, f := range fields {
		if message.Field(f).Is(name) {
			n++
		}
	}
	return n
}

// wantSigned checks that go-msgauth and dkimpy both find each mail signed by domain, with the keys that gatepost said to
// publish.
func wantSigned(t *testing.T, records []dkim.Record, domain string, mails ...arrival) {
	t.Helper()
	zone := make(map[string]string)
	for _, r := range records {
		zone[r.Name] = r.Value
	}
	var raws [][]byte
	for _, m := range mails {
		raws = append(raws, m.raw)
		results, err := dkim.Verify(bytes.NewReader(m.raw), dkim.Published(records...))
		if err != nil || len(results) != 1 || results[0].Err != nil || results[0].Domain != domain || !results[0].Aligned {
			t.Errorf("go-msgauth finds %+v, %v, want one good signature with d=%s\n%s", results, err, domain, m.raw)
		}
	}
	out, err := peer(t, jsonArg(t, object{"zone": zone, "mails": raws}), python, "peers/dkimpy_verify.py")
	if want := fmt.Sprintf("%d good\n", len(mails)); err != nil || out != want {
		t.Errorf("dkimpy says %q, %v, want %q", out, err, want)
	}
}

// peer runs a program of another make and returns what it printed; a failure is an error that holds what it said.
func peer(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), nil
}

func jsonArg(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// object is a JSON object of some other program's making.
type object = map[string]any

func hostPort(t *testing.T, addr string) (string, int) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return host, n
}

// templates are as an admin of Logto fills them in: all four that the connector demands, of the same content.
func templates(contentType, subject, content string) (all []object) {
	for _, usage := range []string{"Register", "SignIn", "ForgotPassword", "Generic"} {
		all = append(all, object{"usageType": usage, "contentType": contentType, "subject": subject, "content": content})
	}
	return all
}

// sender sends one mail of the stream to addr with a client of some make.
type sender func(t *testing.T, s stream, addr string) error

// logto sends a sign-in code with Logto's published connector.
func logto(contentType, subject, content string) sender {
	return func(t *testing.T, s stream, addr string) error {
		host, port := hostPort(t, addr)
		_, err := peer(t, "", "node", "peers/logto.mjs", jsonArg(t, object{
			"config": object{"host": host, "port": port, "auth": object{}, "fromEmail": `"Example" <` + s.sender() + ">",
				"templates": templates(contentType, subject, content)},
			"message": object{"to": "user@example.net", "type": "SignIn", "payload": object{"code": "246810"}},
		}))
		return err
	}
}

// nodemailer sends with the client below that connector. auth is what goes into its config, nil for nothing.
func nodemailer(auth object, mail object) sender {
	return func(t *testing.T, s stream, addr string) error {
		host, port := hostPort(t, addr)
		config := object{"host": host, "port": port, "secure": false, "tls": object{}}
		if auth != nil {
			config["auth"] = auth
		}
		all := object{"from": `"Example" <` + s.sender() + ">", "to": "user@example.net"}
		maps.Copy(all, mail)
		_, err := peer(t, "", "node", "peers/nodemailer.mjs", jsonArg(t, object{"config": config, "mail": all}))
		return err
	}
}

// bare is a mail as small programs send it: without Date and Message-ID, with dots where SMTP has to double them.
func bare(s stream) string {
	return "From: " + s.sender() + "\r\nTo: user@example.net\r\nSubject: dots\r\n\r\n.\r\n..two\r\nend.\r\n"
}

func swaks(t *testing.T, s stream, addr string) error {
	needs(t, "swaks", "swaks")
	_, err := peer(t, "", "swaks", "--server", addr, "--from", s.sender(), "--to", "user@example.net", "--h-From", s.sender(), "--silent", "2")
	return err
}

func curl(t *testing.T, s stream, addr string) error {
	needs(t, "curl", "curl")
	_, err := peer(t, bare(s), "curl", "--silent", "--show-error", "smtp://"+addr+"/client.example.com", "--mail-from", s.sender(),
		"--mail-rcpt", "user@example.net", "--upload-file", "-")
	return err
}

func smtplib(t *testing.T, s stream, addr string) error {
	host, port := hostPort(t, addr)
	_, err := peer(t, bare(s), python, "peers/smtplib_send.py", jsonArg(t, object{"host": host, "port": port, "from": s.sender(), "to": "user@example.net"}))
	return err
}

func netSMTP(_ *testing.T, s stream, addr string) error {
	return smtp.SendMail(addr, nil, s.sender(), []string{"user@example.net"}, []byte(bare(s)))
}

// senders are the clients that gatepost has to get along with.
var senders = map[string]sender{
	"Logto's connector, English text":      logto("text/plain", "Your code is {{code}}", "Use {{code}} to sign in.\n.\nIt ends in 10 minutes."),
	"Logto's connector, English HTML":      logto("text/html", "Your code is {{code}}", "<h1>{{code}}</h1><p>Use it to sign in.</p>"),
	"Logto's connector, Japanese text":     logto("text/plain", "認証コード：{{code}}", "サインインするには、認証コード {{code}} を入力してください。\n"),
	"Logto's connector, Japanese HTML":     logto("text/html", "認証コード：{{code}}", "<h1>{{code}}</h1><p>サインインするには、上の認証コードを入力してください。</p>"),
	"nodemailer without auth, English":     nodemailer(nil, object{"subject": "Your code", "text": "Use 246810 to sign in."}),
	"nodemailer without auth, Japanese":    nodemailer(nil, object{"subject": "認証コード", "html": "<p>認証コード 246810</p>"}),
	"nodemailer with auth {}, English":     nodemailer(object{}, object{"subject": "Your code", "html": "<p>Use 246810 to sign in.</p>"}),
	"nodemailer with auth {}, Japanese":    nodemailer(object{}, object{"subject": "認証コード", "text": "認証コード 246810"}),
	"nodemailer, custom headers, reply to": nodemailer(nil, object{"subject": "x", "text": "y", "replyTo": "help@example.com", "headers": object{"X-Tenant": "a\tb"}}),
	"swaks":                                swaks,
	"curl":                                 curl,
	"Python's smtplib":                     smtplib,
	"Go's net/smtp":                        netSMTP,
}

func TestMailOfEveryClientArrivesIntactSignedAndFromThePinnedAddress(t *testing.T) {
	t.Parallel()
	needsNode(t)
	needsPython(t, "dkim", "python3-dkim")
	s := newSite(t)
	s.start()
	for _, via := range []struct {
		stream stream
		far    *sink
		egress string
	}{
		{authStream, s.auth, authEgress},
		{bulkStream, s.bulk, bulkEgress},
	} {
		for name, send := range senders {
			t.Run(via.stream.domain+", "+name, func(t *testing.T) {
				before := len(via.far.all())
				tap := newWiretap(t, s.listen, via.stream.client)
				if err := send(t, via.stream, tap.ln.Addr().String()); err != nil {
					t.Fatal(err)
				}
				got := via.far.wait(before+1, 10*time.Second)[before]
				wantIntact(t, got.raw, tap.mail())
				if got.peer.source.String() != via.egress {
					t.Errorf("the mail came from %s, want %s", got.peer.source, via.egress)
				}
				if got.from != via.stream.sender() || len(got.to) != 1 || got.to[0] != "user@example.net" {
					t.Errorf("the envelope is %s to %v", got.from, got.to)
				}
				if got.helo != "gw.auth.example.com" {
					t.Errorf("gatepost calls itself %q", got.helo)
				}
				if bytes.Contains(got.raw.Header(), []byte("127.0.")) {
					t.Errorf("the header tells the client's private address:\n%s", got.raw.Header())
				}
			})
		}
		if n := len(via.far.all()); n != len(senders) {
			t.Errorf("%d mails arrived, want %d", n, len(senders))
		}
		wantSigned(t, s.records, via.stream.domain, via.far.all()...)
	}
}

func TestTheOtherStreamsSenderIsRefusedWhateverTheEnvelopeSays(t *testing.T) {
	t.Parallel()
	needsNode(t)
	s := newSite(t)
	s.start()
	for name, tt := range map[string]struct {
		client   stream
		envelope string
		from     string
	}{
		"auth client, marketing sender":                          {authStream, bulkStream.sender(), bulkStream.sender()},
		"auth client, marketing sender behind an auth envelope":  {authStream, authStream.sender(), bulkStream.sender()},
		"auth client, marketing sender behind the null sender":   {authStream, "", bulkStream.sender()},
		"auth client, both senders":                              {authStream, authStream.sender(), authStream.sender() + ", " + bulkStream.sender()},
		"marketing client, auth sender":                          {bulkStream, authStream.sender(), authStream.sender()},
		"marketing client, auth sender behind its own envelope":  {bulkStream, bulkStream.sender(), authStream.sender()},
		"auth client, a sender that only looks like auth":        {authStream, authStream.sender(), "x@evil-" + authDomain},
		"auth client, a sender below the auth domain":            {authStream, authStream.sender(), "x@sub." + authDomain},
		"auth client, its own sender behind a foreign envelope":  {authStream, "x@example.org", authStream.sender()},
		"auth client, its own sender behind a marketing address": {authStream, bulkStream.sender(), authStream.sender()},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(s.listen, tt.client.client)
			if err != nil {
				t.Fatal(err)
			}
			defer c.quit()
			reply, err := c.send(tt.envelope, "user@example.net", "From: "+tt.from+"\r\nSubject: x\r\n\r\nx\r\n")
			if err == nil || !strings.HasPrefix(err.Error(), "550 5.7.1 ") {
				t.Errorf("the mail was answered %q, %v, want 550 5.7.1", reply, err)
			}
		})
	}
	t.Run("Logto's connector tells its admin the rule", func(t *testing.T) {
		err := logto("text/plain", "x", "{{code}}")(t, bulkStream, s.listen)
		if err == nil || !containsAll(err.Error(), "550 5.7.1", bulkDomain) {
			t.Errorf("the connector says %v, want 550 5.7.1 and the domain", err)
		}
	})
	t.Run("a stranger is refused", func(t *testing.T) {
		if _, err := dial(s.listen, "127.0.9.9"); err == nil || !strings.HasPrefix(err.Error(), "554 5.7.1 ") {
			t.Errorf("a stranger was greeted with %v, want 554 5.7.1", err)
		}
	})
	time.Sleep(200 * time.Millisecond) // in which it would have been sent
	if n := len(s.auth.all()) + len(s.bulk.all()); n != 0 {
		t.Errorf("%d mails arrived that were refused", n)
	}
	if n := len(s.queue()); n != 0 {
		t.Errorf("%d mails wait that were refused", n)
	}
}
