package test

import (
	"crypto/tls"
	"fmt"
	"net/smtp"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// visit is one try to send one mail through a door.
type visit struct {
	addr  string
	tls   string // "starttls", "implicit" or "none"
	ca    string // file with the authority to trust
	trust *doors // for clients that are Go
	local string // source address
	login login  // empty for none
	stream
	to string
}

// envelope is what a client of another make gets of it.
func (v visit) envelope(t *testing.T) object {
	host, port := hostPort(t, v.addr)
	return object{"host": host, "port": port, "from": v.sender(), "to": v.to, "local": v.local, "tls": v.tls, "ca": v.ca,
		"user": v.login.user, "password": v.login.password}
}

// visitors are clients of all makes. What they return holds the server's reply.
var visitors = map[string]func(t *testing.T, v visit) error{
	"nodemailer":      visitNodemailer,
	"Logto connector": visitLogto,
	"smtplib":         visitSmtplib,
	"net/smtp":        visitNetSMTP,
	"swaks, PLAIN":    func(t *testing.T, v visit) error { return visitSwaks(t, v, "PLAIN") },
	"swaks, LOGIN":    func(t *testing.T, v visit) error { return visitSwaks(t, v, "LOGIN") },
	"curl, PLAIN":     func(t *testing.T, v visit) error { return visitCurl(t, v, "PLAIN") },
	"curl, LOGIN":     func(t *testing.T, v visit) error { return visitCurl(t, v, "LOGIN") },
	"Jakarta Mail":    visitJakarta,
}

// nodemailerConfig is what nodemailer, and Logto with it, is configured with.
func (v visit) nodemailerConfig(t *testing.T) object {
	host, port := hostPort(t, v.addr)
	config := object{"host": host, "port": port, "secure": v.tls == "implicit", "requireTLS": v.tls == "starttls", "ignoreTLS": v.tls == "none",
		"localAddress": v.local, "tls": object{"ca": v.trust.ca.pem()}, "auth": object{}}
	if v.login.user != "" {
		config["auth"] = object{"user": v.login.user, "pass": v.login.password}
	}
	return config
}

func visitNodemailer(t *testing.T, v visit) error {
	_, err := peer(t, "", "node", "peers/nodemailer.mjs", jsonArg(t, object{"config": v.nodemailerConfig(t),
		"mail": object{"from": v.sender(), "to": v.to, "subject": "Your code", "text": "Use 246810 to sign in."}}))
	return err
}

func visitLogto(t *testing.T, v visit) error {
	config := v.nodemailerConfig(t)
	config["fromEmail"], config["templates"] = v.sender(), templates("text/plain", "Your code", "{{code}}")
	_, err := peer(t, "", "node", "peers/logto.mjs", jsonArg(t, object{"config": config,
		"message": object{"to": v.to, "type": "SignIn", "payload": object{"code": "246810"}}}))
	return err
}

func visitSmtplib(t *testing.T, v visit) error {
	_, err := peer(t, bare(v.stream), python, "peers/smtplib_send.py", jsonArg(t, v.envelope(t)))
	return err
}

func visitNetSMTP(_ *testing.T, v visit) error {
	conn, err := connect(v.addr, v.local)
	if err != nil {
		return err
	}
	if v.tls == "implicit" {
		conn = tls.Client(conn, v.trust.ca.trust())
	}
	c, err := smtp.NewClient(conn, "127.0.0.1")
	if err != nil {
		return err
	}
	defer c.Close()
	if v.tls == "starttls" {
		if err := c.StartTLS(v.trust.ca.trust()); err != nil {
			return err
		}
	}
	if v.login.user != "" {
		if err := c.Auth(smtp.PlainAuth("", v.login.user, v.login.password, "127.0.0.1")); err != nil {
			return err
		}
	}
	return mailNetSMTP(c, v.sender(), v.to, bare(v.stream))
}

// mailNetSMTP sends one mail as smtp.SendMail does.
func mailNetSMTP(c *smtp.Client, from, to, raw string) error {
	if err := c.Mail(from); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte(raw)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

func visitSwaks(t *testing.T, v visit, mechanism string) error {
	needs(t, "swaks", "swaks")
	args := []string{"--server", v.addr, "--local-interface", v.local, "--from", v.sender(), "--to", v.to, "--h-From", v.sender(), "--silent", "2"}
	switch v.tls {
	case "starttls":
		args = append(args, "--tls", "--tls-verify", "--tls-ca-path", v.ca)
	case "implicit":
		args = append(args, "--tls-on-connect", "--tls-verify", "--tls-ca-path", v.ca)
	}
	if v.login.user != "" {
		args = append(args, "--auth", mechanism, "--auth-user", v.login.user, "--auth-password", v.login.password)
	}
	_, err := peer(t, "", "swaks", args...)
	return err
}

func visitCurl(t *testing.T, v visit, mechanism string) error {
	needs(t, "curl", "curl")
	scheme := "smtp"
	args := []string{"--silent", "--show-error", "--verbose", "--interface", v.local, "--mail-from", v.sender(), "--mail-rcpt", v.to, "--upload-file", "-", "--cacert", v.ca}
	switch v.tls {
	case "starttls":
		args = append(args, "--ssl-reqd")
	case "implicit":
		scheme = "smtps"
	}
	if v.login.user != "" {
		args = append(args, "--user", v.login.user+":"+v.login.password, "--login-options", "AUTH="+mechanism)
	}
	_, err := peer(t, bare(v.stream), "curl", append(args, scheme+"://"+v.addr+"/client.example.com")...)
	return err
}

func visitJakarta(t *testing.T, v visit) error { return sendJakarta(t, v, nil) }

// sendJakarta sends with Jakarta Mail; more are further properties.
func sendJakarta(t *testing.T, v visit, more map[string]string) error {
	_, port := hostPort(t, v.addr)
	var text strings.Builder
	fmt.Fprintf(&text, `
mail.smtp.host=localhost
mail.smtp.port=%d
mail.smtp.localaddress=%s
mail.smtp.auth=%t
mail.smtp.ssl.enable=%t
mail.smtp.starttls.enable=%t
mail.smtp.starttls.required=%[5]t
mail.smtp.ssl.checkserveridentity=true
mail.smtp.connectiontimeout=10000
mail.smtp.timeout=10000
mail.smtp.writetimeout=10000
ca=%[6]s
from=%s
to=%s
subject=Your code
text=Use 246810 to sign in.
html=<p>Use 246810 to sign in.</p>
`, port, v.local, v.login.user != "", v.tls == "implicit", v.tls == "starttls", v.ca, v.sender(), v.to)
	if v.login.user != "" {
		fmt.Fprintf(&text, "user=%s\npassword=%s\n", v.login.user, v.login.password)
	}
	for key, value := range more {
		fmt.Fprintf(&text, "%s=%s\n", key, value)
	}
	_, err := peer(t, text.String(), "java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", jakartaMail(t), "JakartaMail")
	return err
}

// jars are what Debian installs of Jakarta Mail.
const jars = "/usr/share/java/jakarta-mail.jar:/usr/share/java/jakarta-activation.jar"

// compileJakarta makes a program of the client, once for all tests.
var compileJakarta = sync.OnceValue(func() error {
	out, err := exec.Command("javac", "-d", workDir, "-cp", jars, "peers/JakartaMail.java").CombinedOutput()
	if err != nil {
		return fmt.Errorf("compile the Jakarta Mail client (apt-get install libjakarta-mail-java): %w\n%s", err, out)
	}
	return nil
})

// jakartaMail returns the class path of the client.
func jakartaMail(t *testing.T) string {
	t.Helper()
	needs(t, "javac", "default-jdk-headless")
	if err := compileJakarta(); err != nil {
		t.Fatal(err)
	}
	return workDir + ":" + jars
}

func TestEveryClientLogsInOverTLSAndIsRefusedWithTheRightCode(t *testing.T) {
	t.Parallel()
	needsNode(t)
	needsPython(t, "dkim", "python3-dkim")
	d := newDoors(t)
	d.start()
	n := 9 // last octet of the source address, of which each has its own: failures of one must not slow the next one down
	t.Run("clients", func(t *testing.T) {
		for name, send := range visitors {
			for mode, addr := range map[string]string{"starttls": d.starttls, "implicit": d.implicit} {
				n++
				host, v := n, visit{addr: addr, tls: mode, ca: d.path("ca.crt"), trust: d, stream: authStream, to: fmt.Sprintf("user%d@example.net", n)}
				t.Run(name+", "+mode, func(t *testing.T) {
					t.Parallel()
					d.wantVisits(t, v, host, send)
				})
			}
		}
	})
	wantSigned(t, d.records, authDomain, d.auth.all()...)
	wantSigned(t, d.records, bulkDomain, d.bulk.all()...)
	if a, b := len(d.auth.all()), len(d.bulk.all()); a != 2*len(visitors) || b != 2*len(visitors) {
		t.Errorf("%d and %d mails arrived, want %d each", a, b, 2*len(visitors))
	}
	for _, l := range []login{webLogin, lettersLogin, remoteLogin} {
		wantNone(t, "the log", []byte(d.daemon.log.String()), []string{l.password, "battery staple"})
	}
}

// wantVisits has one client do everything right, then each thing wrong. host is its address within each network.
func (d *doors) wantVisits(t *testing.T, v visit, host int, send func(*testing.T, visit) error) {
	v.login, v.local = webLogin, fmt.Sprintf("127.0.0.%d", host)
	if err := send(t, v); err != nil {
		t.Fatal(err)
	}
	d.auth.wantFrom(t, v)
	letter := v
	letter.login, letter.local, letter.stream = lettersLogin, fmt.Sprintf("127.0.1.%d", host), bulkStream
	if err := send(t, letter); err != nil {
		t.Fatal(err)
	}
	d.bulk.wantFrom(t, letter)

	wrong := v
	wrong.login.password = "wrong battery staple"
	wantRefused(t, "a wrong password", send(t, wrong), "535")
	wrong = v
	wrong.local = fmt.Sprintf("127.0.2.%d", host) // another client's
	wantRefused(t, "a login from another client's network", send(t, wrong), "535")
	wrong.local = fmt.Sprintf("127.0.9.%d", host)
	switch err := send(t, wrong); {
	case v.tls == "starttls":
		wantRefused(t, "a stranger's address", err, "554")
	case err == nil: // no reply can be read before the handshake, which a stranger does not get
		t.Error("a stranger's address was let in")
	}
	if v.tls == "starttls" {
		wrong = v
		wrong.login, wrong.tls = login{}, "none"
		wantRefused(t, "no TLS and no login", send(t, wrong), "530")
	}
}

// wantFrom checks that the mail of v has arrived as its client sent it.
func (s *sink) wantFrom(t *testing.T, v visit) {
	t.Helper()
	var got arrival
	eventually(t, 10*time.Second, "the mail to "+v.to+" has arrived", func() bool {
		for _, a := range s.all() {
			if len(a.to) == 1 && a.to[0] == v.to {
				got = a
				return true
			}
		}
		return false
	})
	if got.from != v.sender() {
		t.Errorf("the envelope sender is %q, want %q", got.from, v.sender())
	}
	if header := string(got.raw.Header()); !strings.Contains(header, " with ESMTPSA id ") && !strings.Contains(header, " with UTF8SMTPSA id ") {
		t.Errorf("the Received field does not say that there was TLS and a login (RFC 3848, RFC 6531):\n%s", header)
	}
}

func wantRefused(t *testing.T, what string, err error, code string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), code) {
		t.Errorf("%s got %v, want %s", what, err, code)
	}
}
