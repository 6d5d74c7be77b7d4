package test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"gatepost/upstream/upstreamtest"
)

// Codes, subjects, bodies and passwords must not be found in what gatepost says or keeps, whatever becomes of a mail:
// delivered, refused by an upstream that repeats the code in its reply, deferred, expired, dropped, waiting.
func TestNoCodeSubjectBodyOrPasswordIsLoggedShownOrStoredInClear(t *testing.T) {
	t.Parallel()
	const code, password = "918273", "correct-horse-battery"
	secrets := []string{code, password, "Your code is", "to sign in", "https://auth.example.com/magic"}
	s := newSite(t)
	s.auth.setPassword(password)
	s.write("sink.password", password+"\n")
	s.configure(fmt.Sprintf("address = %q\ntls     = \"none\"", s.auth.addr),
		fmt.Sprintf("address = %q\ntls     = \"none\"\nusername = \"gw\"\npassword_file = \"sink.password\"", s.auth.addr))
	s.write("gatepost.toml", s.read("gatepost.toml")+"[log]\nlevel = \"debug\"\n")
	d := s.start()

	ids := []string{authStream.mustPost(t, s.listen, "delivered", code)}
	echo := func(reply int, enhanced smtp.EnhancedCode) func(arrival) error {
		return func(arrival) error {
			return &smtp.SMTPError{Code: reply, EnhancedCode: enhanced, Message: "looks odd: " + code + " https://auth.example.com/magic?t=" + code}
		}
	}
	s.auth.setAnswer(echo(550, smtp.EnhancedCode{5, 7, 1}))
	authStream.post(s.listen, "bounced", code) // the refusal is the client's answer
	s.auth.setAnswer(echo(450, smtp.EnhancedCode{4, 2, 1}))
	ids = append(ids, authStream.mustPost(t, s.listen, "deferred", code))
	ids = append(ids, authStream.mustPost(t, s.listen, "expired", code, "X-Gatepost-TTL: 1"))
	s.auth.stop()
	for _, id := range []string{"dropped", "waiting"} {
		ids = append(ids, authStream.mustPost(t, s.listen, id, code))
	}
	time.Sleep(1200 * time.Millisecond) // until one is past its lifetime

	var shown bytes.Buffer
	show := func(args ...string) {
		r := s.run(args...)
		shown.WriteString(r.stdout + r.stderr)
	}
	show("queue", "drop", ids[len(ids)-2])
	for _, id := range ids {
		show("trace", id)
		show("trace", id, "--json")
		show("queue", "show", id)
		show("queue", "show", id, "--json")
	}
	for _, what := range [][]string{{"trace", "delivered@example.net"}, {"trace", "bounced@example.net"}, {"queue", "list"}, {"queue", "list", "--json"}, {"status"}, {"status", "--json"},
		{"config", "show"}, {"config", "show", "--json"}, {"check"}, {"check", "--json"}} {
		show(what...)
	}
	if !bytes.Contains(shown.Bytes(), []byte(ids[0])) {
		t.Errorf("trace and queue show nothing:\n%s", shown.String())
	}
	wantNone(t, "what the commands print", shown.Bytes(), secrets)
	s.wantNoneStored(secrets)
	d.stop()
	s.wantNoneStored(secrets)
	wantNone(t, "the log", []byte(d.log.String()), secrets)
}

// Services repeat what they got in what they say of it; the user's own may have its secret in the URL.
func TestNoCredentialOfAServiceIsLoggedShownOrStored(t *testing.T) {
	t.Parallel()
	const key, secret, token = "SG.canary-of-the-api-key", "canary/of+the/secret+key", "canary-of-the-session-token"
	secrets := []string{key, secret, token, base64.StdEncoding.EncodeToString([]byte("api:" + key)), "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
	service := upstreamtest.NewService(t, upstreamtest.ServiceOptions{HTTP1: true}, func(r upstreamtest.Request) upstreamtest.Reply {
		words := fmt.Sprint("I got ", r.Path, r.Header)
		body, err := json.Marshal(map[string]any{"message": words, "Message": words, "Code": "SignatureDoesNotMatch", "errors": []map[string]string{{"message": words}}})
		if err != nil {
			t.Error(err)
		}
		return upstreamtest.Reply{Status: 403, Body: string(body)}
	})
	s := begins(t, typeAt("ses", service.URL(), service.CAFile())+"session_token_file = \"token\"", "mailgun", "sendgrid", "postmark", "aliyun", "own")
	s.write("key", key+"\n")
	s.write("secret", secret+"\n")
	s.write("token", token+"\n")
	s.write("whsec", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
	for _, kind := range []string{"mailgun", "sendgrid", "postmark", "aliyun"} {
		s.addUpstream(kind, typeAt(kind, service.URL(), service.CAFile()))
	}
	s.addUpstream("own", "type = \"webhook\"\nurl = \""+service.URL()+"/x?key=canary-of-the-url\"\nsecret_file = \"whsec\"\ntls_ca_file = \""+service.CAFile()+"\"")
	s.write("gatepost.toml", s.read("gatepost.toml")+"[log]\nlevel = \"debug\"\n")
	d := s.start()
	id := authStream.mustPost(t, s.listen, "a", "918273")
	eventually(t, 10*time.Second, "all upstreams have refused us", func() bool { return len(service.Requests()) >= 6 })
	service.Stop() // what is said of a connection that fails is looked at too
	authStream.post(s.listen, "b", "918273")
	var shown bytes.Buffer
	for _, what := range [][]string{{"trace", id}, {"trace", id, "--json"}, {"queue", "show", id}, {"status"}, {"status", "--json"}, {"stats"}, {"stats", "--json"},
		{"check"}, {"check", "--json"}, {"send", "--upstream", "own", "--to", "a@example.net", "--wait", "1s"}} {
		r := s.run(what...)
		shown.WriteString(r.stdout + r.stderr)
	}
	if n := bytes.Count(shown.Bytes(), []byte("I got")); n < 3 {
		t.Errorf("what the services say is shown %d times:\n%s", n, shown.String())
	}
	wantNone(t, "the config as it is shown", []byte(s.run("config", "show").stdout), secrets)
	secrets = append(secrets, "canary-of-the-url") // which belongs to the config
	wantNone(t, "what the commands print", shown.Bytes(), secrets)
	d.stop()
	s.wantNoneStored(secrets)
	wantNone(t, "the log", []byte(d.log.String()), secrets)
}

// wantNoneStored looks into every file of the state_dir.
func (s *site) wantNoneStored(secrets []string) {
	s.t.Helper()
	files, err := filepath.Glob(s.path("state/*"))
	if err != nil || len(files) == 0 {
		s.t.Fatalf("no files in the state_dir: %v", err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || !info.Mode().IsRegular() {
			continue // the socket; or a file of SQLite's that was just removed
		}
		wantNone(s.t, f, []byte(s.read("state/"+filepath.Base(f))), secrets)
	}
}

func wantNone(t *testing.T, where string, b []byte, secrets []string) {
	t.Helper()
	for _, secret := range secrets {
		if i := bytes.Index(b, []byte(secret)); i >= 0 {
			t.Errorf("%s holds %q: %q", where, secret, b[max(0, i-80):min(len(b), i+80)])
		}
	}
}
