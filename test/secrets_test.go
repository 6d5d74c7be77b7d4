package test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
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
