package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/admin"
)

// reload asks the daemon for it as the command does, and returns the status and the answer.
func (s *site) reload() (int, string) {
	s.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.path("state/"+admin.SocketName))
		}}}
	answer, err := client.Post("http://gatepost/v1/reload", "application/json", strings.NewReader("{}"))
	if err != nil {
		s.t.Fatalf("reload: %v", err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		s.t.Fatalf("reload: %v", err)
	}
	return answer.StatusCode, string(text)
}

// replace puts a config in the place of the other, whole at every moment.
func (s *site) replace(text string) {
	s.t.Helper()
	s.write("gatepost.toml.new", text)
	if err := os.Rename(s.path("gatepost.toml.new"), s.path("gatepost.toml")); err != nil {
		s.t.Fatal(err)
	}
}

// variants are configs that differ from the site's in what may change while it runs: lifetimes, sizes, a client, and a
// listener that comes and goes.
func (d *doors) variants() []string {
	was := d.read("gatepost.toml")
	auth, extra := "[stream.auth]\n", "\n[listen.extra]\nprotocol = \"smtp\"\naddress = \""+freeAddress(d.t)+"\"\nclients = [\"logto\"]\n"
	return []string{
		was,
		strings.Replace(was, auth, auth+"ttl = \"30m\"\n", 1),
		was + extra,
		strings.Replace(was, "[listen.smtp]\n", "[listen.smtp]\nmax_size = \"10MB\"\nmax_recipients = 7\n", 1),
		strings.Replace(was, "[upstream.bulk]\n", "[upstream.bulk]\nconnections = 9\n", 1) + extra,
	}
}

func TestReloadedAgainAndAgainUnderLoadLosesNothingAndCutsNoSession(t *testing.T) {
	d := newDoors(t)
	if chaos {
		d.program = plain // which is fast enough for 50 a second
	}
	d.start()
	variants := d.variants()
	l := startLoad(d.listen, 4, authStream, bulkStream)
	l.add(2, authStream, func() (*client, error) { return d.dialLogin(d.starttls, authClient, webLogin) })
	l.add(2, bulkStream, func() (*client, error) { return d.dialLogin(d.implicit, bulkClient, lettersLogin) })
	patient := d.beginMail(t)
	l.waitMore(t, 20)

	reloads, broken := 0, 0
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	for until := began.Add(time.Duration(rounds(2, 10)) * time.Second); time.Now().Before(until); reloads++ {
		<-tick.C
		if reloads%10 == 9 {
			broken++
			d.wantBrokenRefused(t)
			continue
		}
		d.replace(variants[reloads%len(variants)])
		if reloads%10 == 4 {
			d.daemon.signal(syscall.SIGHUP)
		} else if status, answer := d.reload(); status != http.StatusOK {
			t.Fatalf("reload %d was answered %d: %s", reloads, status, answer)
		}
	}
	took := time.Since(began)
	d.endMail(t, patient)
	l.waitMore(t, 20)
	taken := l.stop()
	taken["patient"] = ""
	d.waitArrived(taken, time.Minute)
	d.waitEmpty(time.Minute)
	d.wantOneCopyEach(t)
	if l.silent > 0 || len(l.refused) > 0 || len(l.missed) > 0 {
		t.Errorf("%d sessions were cut, %d mails refused %v, %d connections failed %v", l.silent, len(l.refused), l.refused, len(l.missed), l.missed)
	}
	if perSecond := float64(reloads) / took.Seconds(); chaos && perSecond < 45 {
		t.Errorf("only %.0f reloads a second, want 50", perSecond)
	}
	t.Logf("%d reloads in %v, %d of them of a broken file: %d mails taken, 0 lost", reloads, took.Round(time.Millisecond), broken, len(taken))
}

// beginMail opens a session and leaves it in the midst of a mail.
func (d *doors) beginMail(t *testing.T) *client {
	t.Helper()
	c, err := d.dialLogin(d.starttls, authClient, webLogin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	for _, line := range []string{"MAIL FROM:<" + authStream.sender() + ">", "RCPT TO:<patient@example.net>"} {
		if _, err := c.command(250, "%s", line); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.command(354, "DATA"); err != nil {
		t.Fatal(err)
	}
	return c
}

func (d *doors) endMail(t *testing.T, c *client) {
	t.Helper()
	if _, err := io.WriteString(c.conn, authStream.letter("patient", "246810")+".\r\n"); err != nil {
		t.Fatal(err)
	}
	if reply, err := c.expect(250); err != nil {
		t.Errorf("the mail that was begun before the first reload and ended after the last got %q, %v", reply, err)
	}
}

// wantBrokenRefused reloads a file that is broken, and checks that it is told where.
func (d *doors) wantBrokenRefused(t *testing.T) {
	t.Helper()
	good := d.read("gatepost.toml")
	d.replace("hostnam = \"x\"\n" + good)
	status, answer := d.reload()
	if status < 400 || !containsAll(answer, "gatepost.toml", `"line":1,`, "hostnam") {
		t.Errorf("a broken file was answered %d %s, want an error with its line", status, answer)
	}
	d.replace(good)
}

// wantOneCopyEach checks that no mail arrived twice.
func (s *site) wantOneCopyEach(t *testing.T) {
	t.Helper()
	for _, far := range []*sink{s.auth, s.bulk} {
		for id, all := range far.copies() {
			if len(all) > 1 {
				t.Errorf("mail %s arrived %d times", id, len(all))
			}
		}
	}
}

func TestABrokenFileChangesNothingAndTheAnswerSaysWhy(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.start()
	good := d.read("gatepost.toml")
	for name, broken := range map[string]struct{ text, tells string }{
		"an unknown key":                       {good + "\n[limits]\nmemori = \"1GB\"\n", "memori"},
		"no TOML":                              {good + "\n[[[\n", "not valid TOML"},
		"a key that is gone":                   {strings.Replace(good, "auth.pem", "gone.pem", 1), "gone.pem"},
		"a certificate that is gone":           {strings.Replace(good, "gw.crt", "gone.crt", 1), "gone.crt"},
		"an address that is taken":             {strings.Replace(good, d.any, d.auth.addr, 1), d.auth.addr},
		"another state_dir":                    {strings.Replace(good, `"state"`, `"elsewhere"`, 1), "state_dir"},
		"a listener that relays for the world": {strings.Replace(good, `"127.0.0.0/24"`, `"0.0.0.0/0"`, 1), "networks"},
	} {
		t.Run(name, func(t *testing.T) {
			defer d.replace(good)
			d.replace(broken.text)
			if status, answer := d.reload(); status < 400 || !strings.Contains(answer, broken.tells) {
				t.Errorf("reload was answered %d %s", status, answer)
			}
			d.daemon.says(5*time.Second, "level=ERROR", broken.tells)
			before := len(d.auth.all())
			authStream.mustPost(t, d.listen, fmt.Sprintf("m%d", before), "246810")
			d.wantLogin(t)
			d.auth.wait(before+2, 10*time.Second)
		})
	}
}

func TestTheReloadCommandTellsWhatIsWrongWithTheFile(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.start()
	if r := d.run("reload"); r.code != 0 {
		t.Errorf("with a good file it ended with %d and said\n%s%s", r.code, r.stdout, r.stderr)
	}
	d.addConfig("[limits]\nmemori = \"1GB\"\n")
	if r := d.run("reload"); r.code != 3 || !containsAll(r.stderr, "gatepost.toml:", "memori") {
		t.Errorf("with a broken file it ended with %d and said\n%s%s", r.code, r.stdout, r.stderr)
	}
}

// wantLogin sends a mail after a login over TLS.
func (d *doors) wantLogin(t *testing.T) {
	t.Helper()
	c, err := d.dialLogin(d.implicit, authClient, webLogin)
	if err != nil {
		t.Fatal(err)
	}
	defer c.quit()
	if _, err := c.send(authStream.sender(), "x@example.net", authStream.letter("x", "246810")); err != nil {
		t.Fatal(err)
	}
}

func TestACertificateIsTakenUpWithoutReloadAndABrokenOneIsNot(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	d.start()
	first := d.served(t)
	cert, key := d.ca.issue("gw.auth.example.com", "new.example.com")
	d.write("gw.key", key)
	d.write("gw.crt", cert)
	eventually(t, 5*time.Second, "the new certificate is served", func() bool { return !bytes.Equal(d.served(t), first) })
	second := d.served(t)
	d.write("gw.crt", "nonsense")
	time.Sleep(1500 * time.Millisecond) // longer than it takes to notice
	if !bytes.Equal(d.served(t), second) {
		t.Error("a broken certificate took the place of a good one")
	}
	d.daemon.says(5*time.Second, "level=ERROR", "gw.crt")
}

// served returns the certificate that the implicit door shows.
func (d *doors) served(t *testing.T) []byte {
	t.Helper()
	c, err := d.dialTLS(d.implicit, authClient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.quit()
	return c.conn.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
}
