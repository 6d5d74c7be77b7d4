package test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// wantRefusal checks that gatepost serve ends at once with code and says all of parts.
func (s *site) wantRefusal(code int, parts ...string) {
	s.t.Helper()
	d := s.launch()
	if got := d.wait(10 * time.Second); got != code || !containsAll(d.log.String(), parts...) {
		s.t.Errorf("gatepost serve ended with %d, want %d and %q:\n%s", got, code, parts, d.log.String())
	}
}

func TestAConfigThatCannotWorkIsRefusedWithItsLine(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	good := s.read("gatepost.toml")
	for name, tt := range map[string]struct {
		old, text string
		file      string // made before, with mode
		mode      os.FileMode
		want      []string
	}{
		"bad TOML":           {old: `[stream.auth]`, text: `[stream.auth`, want: []string{"gatepost.toml:13:"}},
		"unknown key":        {old: `kind    = "auth"`, text: "kind    = \"auth\"\nretri = 3", want: []string{"gatepost.toml:14: stream.auth.retri: ", "hint: ", "retry"}},
		"dangling route":     {old: `route   = ["sink"]`, text: `route   = ["sinc"]`, want: []string{"gatepost.toml:15: stream.auth.route: ", "sinc"}},
		"missing key file":   {old: `"auth.pem"`, text: `"gone.pem"`, want: []string{"gatepost.toml:17: stream.auth.dkim.key_file: ", "gone.pem", "hint: "}},
		"key for all to see": {old: `"auth.pem"`, text: `"open.pem"`, file: "open.pem", mode: 0o644, want: []string{"gatepost.toml:17: stream.auth.dkim.key_file: ", "hint: ", "chmod 600"}},
		"open relay":         {old: `networks = ["127.0.0.0/24"]`, text: `networks = ["0.0.0.0/0"]`, want: []string{"gatepost.toml:7: client.logto.networks: ", "open relay"}},
		"egress is no address": {old: `ipv4 = "127.0.0.2"`, text: `ipv4 = "127.0.0.256"`,
			want: []string{"gatepost.toml:25: egress.auth.ipv4: ", "127.0.0.256"}},
		"egress is any address": {old: `ipv4 = "127.0.0.2"`, text: `ipv4 = "0.0.0.0"`,
			want: []string{"gatepost.toml:25: egress.auth.ipv4: "}},
		"one domain in two streams": {old: `domains = ["marketing.example.com"]`, text: `domains = ["auth.example.com"]`,
			want: []string{"gatepost.toml:20: stream.marketing.domains: ", "auth.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.file != "" {
				s.write(tt.file, s.read("auth.pem"))
				if err := os.Chmod(s.path(tt.file), tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			s.write("gatepost.toml", strings.Replace(good, tt.old, tt.text, 1))
			for _, command := range []string{"serve", "check"} {
				r := s.run(command)
				if r.code != 3 || !containsAll(r.stdout+r.stderr, tt.want...) {
					t.Errorf("gatepost %s ended with %d, want 3 and %q:\n%s%s", command, r.code, tt.want, r.stdout, r.stderr)
				}
			}
			if _, err := os.Stat(s.path("state")); err == nil {
				t.Error("a state_dir was made all the same")
			}
		})
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	defer listen(t, s.listen).Close()
	s.wantRefusal(1, s.listen+" is in use")
}

func TestASecondInstanceOnOneStateDirIsRefusedAndTheFirstGoesOn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.start()
	there := s.listen
	s.configure(s.listen, freeAddress(t))
	s.wantRefusal(1, "another gatepost runs on this state_dir")
	authStream.mustPost(t, there, "a", "1")
	s.auth.wait(1, 10*time.Second)
	first.stop()
}

func TestADamagedDatabaseIsRefusedAndLeftAsItIs(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start()
	s.auth.stop()
	authStream.mustPost(t, s.listen, "a", "1")
	s.daemon.stop()
	good := []byte(s.read("state/spool.db"))
	for name, damage := range map[string]func(b []byte) []byte{
		"no database at all": func(b []byte) []byte { return []byte(strings.Repeat("this is something else. ", 1000)) },
		"cut short":          func(b []byte) []byte { return b[:len(b)/2] },
		"its head gone":      func(b []byte) []byte { return append(make([]byte, 100), b[100:]...) },
		"another program's": func(b []byte) []byte {
			b = bytes.Clone(b)
			copy(b[68:72], []byte{1, 2, 3, 4}) // SQLite's application_id
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			bad := damage(bytes.Clone(good))
			s.write("state/spool.db", string(bad))
			s.wantRefusal(1, "spool.db")
			if !bytes.Equal([]byte(s.read("state/spool.db")), bad) {
				t.Error("the file was changed")
			}
		})
	}
	s.write("state/spool.db", string(good))
	s.auth.start()
	s.start()
	s.auth.wait(1, 10*time.Second)
}

func TestAnUpstreamThatIsDownAtStartIsNamedAndItsMailWaits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.auth.stop()
	d := s.start()
	d.says(10*time.Second, "upstream", "sink", s.auth.addr)
	authStream.mustPost(t, s.listen, "a", "1")
	s.auth.start()
	s.auth.wait(1, 5*time.Second)
	d.stop()
}

func TestAWrongUpstreamCertificateIsNamedAndItsMailWaits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	authority := s.auth.useTLS()
	insecure := fmt.Sprintf("address = %q\ntls     = \"none\"", s.auth.addr)
	s.configure(insecure, fmt.Sprintf("address = %q", s.auth.addr))
	d := s.start()
	d.says(10*time.Second, "sink", "certificate")
	authStream.mustPost(t, s.listen, "a", "1")
	if r := s.run("check"); r.code != 1 || !containsAll(r.stdout, "sink", "certificate") {
		t.Errorf("check ended with %d and does not tell of the certificate:\n%s", r.code, r.stdout)
	}
	if n := len(s.auth.all()); n != 0 {
		t.Fatalf("%d mails went to a host that could not show who it is", n)
	}
	d.stop()
	s.write("ca.pem", string(authority))
	s.configure(fmt.Sprintf("address = %q", s.auth.addr), fmt.Sprintf("address = %q\ntls_ca_file = \"ca.pem\"", s.auth.addr))
	s.start()
	s.auth.wait(1, 5*time.Second)
}

func TestAWrongUpstreamPasswordStopsThatUpstreamUntilTheFileIsMended(t *testing.T) {
	t.Parallel()
	const right, wrong = "correct-horse-battery", "wrong-donkey-staple"
	s := newSite(t)
	s.auth.setPassword(right)
	s.write("sink.password", right+"\n")
	s.configure(fmt.Sprintf("address = %q\ntls     = \"none\"", s.auth.addr),
		fmt.Sprintf("address = %q\ntls     = \"none\"\nusername = \"gw\"\npassword_file = \"sink.password\"", s.auth.addr))
	s.start()
	authStream.mustPost(t, s.listen, "good", "1")
	s.auth.wait(1, 10*time.Second)
	s.daemon.stop()

	s.write("sink.password", wrong+"\n")
	d := s.start()
	d.says(10*time.Second, "sink", "535")
	var waiting []string // codes that were taken before gatepost knew, and must be kept
	eventually(t, 10*time.Second, "new codes are refused", func() bool {
		id := fmt.Sprintf("w%d", len(waiting))
		reply, err := authStream.post(s.listen, id, "1")
		if err == nil {
			waiting = append(waiting, queuedAs(reply))
			return false
		}
		if !strings.HasPrefix(err.Error(), "451 4.") {
			t.Fatalf("a code was answered %v, want 451", err)
		}
		return true
	})
	if r := s.run("check"); r.code != 1 || !containsAll(r.stdout, "sink", "535") {
		t.Errorf("check ended with %d and does not tell of the login:\n%s", r.code, r.stdout)
	}
	bulkStream.mustPost(t, s.listen, "b", "1")
	s.bulk.wait(1, 10*time.Second)
	if n := len(s.queue("--stream", "auth")); n != len(waiting) {
		t.Errorf("%d codes wait, want %d", n, len(waiting))
	}

	s.write("sink.password", right+"\n")
	s.auth.wait(1+len(waiting), 5*time.Second)
	eventually(t, 5*time.Second, "codes are taken again", func() bool {
		_, err := authStream.post(s.listen, "again", "1")
		return err == nil
	})
	d.stop()
	for _, secret := range []string{right, wrong} {
		if strings.Contains(d.log.String(), secret) {
			t.Error("the log holds a password")
		}
	}
}
