package cli

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/upstream/upstreamtest"
)

func TestAReloadChangesAStreamWithoutCuttingAnybody(t *testing.T) {
	g := newGateway(t)
	g.start()
	conn, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patient))
	c := textproto.NewConn(conn)
	expect := func(code int) {
		t.Helper()
		if _, line, err := c.ReadResponse(code); err != nil {
			t.Fatalf("%v %s", err, line)
		}
	}
	expect(220)
	fmt.Fprint(conn, "EHLO client.example\r\nMAIL FROM:<"+fromAuth+">\r\n")
	expect(250)
	expect(250)

	g.replace(`domains = ["auth.example.com"]`, `domains = ["auth.example.com", "login.example.com"]`)
	var done admin.Reloaded
	g.into(&done, "reload")
	if !slices.Equal(done.Streams.Changed, []string{"auth"}) || done.Count() != 1 || done.Held != 0 {
		t.Errorf("the reload tells %+v, want that stream auth changed", done)
	}
	g.queued("127.0.0.1", "no-reply@login.example.com", "ann@example.org")

	fmt.Fprint(conn, "RCPT TO:<bob@example.org>\r\nDATA\r\n")
	expect(250)
	expect(354)
	fmt.Fprint(conn, "From: "+fromAuth+"\r\nTo: bob@example.org\r\nSubject: hello\r\n\r\nhello\r\n.\r\n")
	expect(250)
	g.auth.Wait(2)
	if out := g.ok("reload"); !strings.Contains(out, "No section of the config has changed") {
		t.Errorf("a reload of the same config says %s", out)
	}
}

func TestBrokenTemplatesChangeNothingAndAreToldWithTheirLines(t *testing.T) {
	g := newGateway(t)
	g.start()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "SignIn"), 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "SignIn", "en.html")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("<p>{{ code }}</p>\n<script>{{ code }}</script>")
	g.replace("[listen.smtp]", fmt.Sprintf("[templates]\ndir = %q\n[listen.smtp]", dir))
	if r := g.run("reload"); r.code != exitConfig || !strings.Contains(r.err, file+":2: ") {
		t.Errorf("broken templates end a reload with %d: %s", r.code, r.err)
	}
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
	write("<p>{{ code }}</p>")
	g.ok("reload")
}

func TestAReloadTellsWhichTemplatesChanged(t *testing.T) {
	g := newGateway(t)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write("SignIn/en.html", "<p>{{ code }}</p>")
	write("SignIn/de.html", "<p>{{ code }}</p>")
	g.withDoor(freeAddress(t))
	g.replace("[listen.smtp]", fmt.Sprintf("[templates]\ndir = %q\n[listen.smtp]", dir))
	g.start()
	write("SignIn/en.html", "<p>Your code: {{ code }}</p>")
	write("Register/ja.txt", "{{ code }}")
	if err := os.Remove(filepath.Join(dir, "SignIn/de.html")); err != nil {
		t.Fatal(err)
	}
	var done admin.Reloaded
	g.into(&done, "reload")
	if c := done.Templates; !slices.Equal(c.Changed, []string{"SignIn/en.html"}) || !slices.Equal(c.Added, []string{"Register/ja.txt"}) ||
		!slices.Equal(c.Removed, []string{"SignIn/de.html"}) || done.Count() != 3 {
		t.Errorf("the reload tells %+v", done)
	}
	g.replace("[templates]", "[templates]\nsender_name = \"Example\"")
	if out := g.ok("reload"); out != "templates changed: [templates]\n" {
		t.Errorf("the reload says %q", out)
	}
}

func TestAnHTTPListenerThatGoesAnswersWhoeverHasConnected(t *testing.T) {
	g := newGateway(t)
	without := g.text()
	address := freeAddress(t)
	g.withDoor(address)
	g.start()
	with := g.text()
	end := make(chan struct{})
	var answered, lost atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				conn, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
				if err != nil {
					continue // nobody listens
				}
				_ = conn.SetDeadline(time.Now().Add(patient))
				_, sent := io.WriteString(conn, "POST /hooks/web HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
				if b, err := io.ReadAll(conn); sent != nil || err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 ") { // by the config before, or after
					lost.Add(1)
				} else {
					answered.Add(1)
				}
				conn.Close()
			}
		})
	}
	for range 4 {
		before := answered.Load()
		g.until("requests are answered", func() bool { return answered.Load() > before+50 })
		g.write(without)
		g.ok("reload")
		g.write(with) // its address is free at once
		g.ok("reload")
	}
	close(end)
	wg.Wait()
	if n := lost.Load(); n > 0 {
		t.Errorf("%d of %d connections got no answer", n, n+answered.Load())
	}
}

func TestABrokenConfigChangesNothingAndIsToldWithItsLines(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.replace(`networks = ["127.0.0.0/24"]`, `networks = ["everywhere"]`)
	r := g.run("reload")
	if r.code != exitConfig || !strings.Contains(r.err, "gatepost.toml:7: client.logto.networks") || !strings.Contains(r.err, "hint: ") {
		t.Errorf("exit %d, %s; want 3 and the problem with its line", r.code, r.err)
	}
	g.until("the log tells of it", func() bool {
		return strings.Contains(g.log.String(), `level=ERROR msg="reload failed`) && strings.Contains(g.log.String(), "client.logto.networks")
	})
	if _, err := g.send("127.0.0.1", fromAuth, "ann@example.org", "hello"); err != nil {
		t.Errorf("after a reload that failed: %v", err)
	}
}

func TestWhatOnlyARestartCanChangeIsRefused(t *testing.T) {
	g := newGateway(t)
	g.start()
	daemons := g.file
	g.replace(`state_dir = "state"`, `state_dir = "state2"`)
	g.file = filepath.Join(g.dir, "before.toml") // for the command to find the daemon by
	g.write(`state_dir = "state"`)
	r := g.run("reload")
	if r.code != exitConfig || !strings.Contains(r.err, daemons+": state_dir: it cannot change while gatepost runs") || !strings.Contains(r.err, "restart") {
		t.Errorf("exit %d, %s; want 3 and that it needs a restart", r.code, r.err)
	}
}

func TestListenersComeAndGo(t *testing.T) {
	g := newGateway(t)
	g.start()
	second := freeAddress(t)
	old := g.text()
	g.write(strings.Replace(old, "[client.logto]", fmt.Sprintf("[listen.second]\nprotocol = \"smtp\"\naddress = %q\nclients = [\"logto\"]\n[client.logto]", second), 1))
	if out := g.ok("reload"); !strings.Contains(out, "listeners added: second") {
		t.Errorf("the reload says %s", out)
	}
	first := g.address
	g.address = second
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
	session, err := net.Dial("tcp", second)
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	heard := bufio.NewReader(session)
	_ = session.SetDeadline(time.Now().Add(patient))
	if line, err := heard.ReadString('\n'); err != nil {
		t.Fatal(line, err)
	}

	g.write(old)
	if out := g.ok("reload"); !strings.Contains(out, "listeners removed: second") {
		t.Errorf("the reload says %s", out)
	}
	if line, err := heard.ReadString('\n'); err != nil || !strings.HasPrefix(line, "421 ") {
		t.Errorf("a session of the listener that went was told %q, %v", line, err)
	}
	g.until("the port is free", func() bool {
		ln, err := net.Listen("tcp", second)
		if err == nil {
			ln.Close()
		}
		return err == nil
	})
	g.address = first
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
	g.auth.Wait(2)
}

func TestAPortThatChangesItsListenerNeedsARestart(t *testing.T) {
	g := newGateway(t)
	g.start()
	_, port, _ := net.SplitHostPort(g.address)
	g.replace(fmt.Sprintf("address = %q\nclients", g.address), fmt.Sprintf("address = \":%s\"\nclients", port))
	r := g.run("reload")
	if r.code != exitConfig || !strings.Contains(r.err, "listen.smtp.address: it collides with "+g.address) || !strings.Contains(r.err, "restart gatepost") {
		t.Errorf("exit %d, %s; want 3 and what to do", r.code, r.err)
	}
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
}

func TestAListenerGetsTLSAndLoginsWithoutARestart(t *testing.T) {
	g := newGateway(t)
	roots := writeCertificate(t, g.dir, "gw.auth.example.com")
	g.start()
	if err := os.WriteFile(filepath.Join(g.dir, "logto.password"), []byte("correct horse battery\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.replace(`clients = ["logto", "news"]`, `clients = ["logto", "news"]`+"\nmixed = true\ntls_cert_file = \"fullchain.pem\"\ntls_key_file = \"privkey.pem\"")
	g.replace(`networks = ["127.0.0.0/24"]`, "username = \"logto\"\npassword_file = \"logto.password\"")
	if out := g.ok("reload"); !strings.Contains(out, "listeners changed: smtp") || !strings.Contains(out, "clients changed: logto") {
		t.Errorf("the reload says %s", out)
	}
	login := func(password string) error {
		c, err := smtp.Dial(g.address)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.StartTLS(&tls.Config{RootCAs: roots, ServerName: "gw.auth.example.com"}); err != nil {
			return err
		}
		if err := c.Auth(smtp.PlainAuth("", "logto", password, "127.0.0.1")); err != nil {
			return err
		}
		return errors.Join(c.Mail(fromAuth), c.Rcpt("ann@example.org"))
	}
	if err := login("correct horse battery"); err != nil {
		t.Errorf("with the right password: %v", err)
	}
	if e, ok := errors.AsType[*textproto.Error](login("wrong")); !ok || e.Code != 535 {
		t.Errorf("with a wrong password: %v, want 535", e)
	}
	if strings.Contains(g.log.String(), "correct horse") {
		t.Error("the password is in the log")
	}
}

func TestAListenerThatCannotBeBoundChangesNothing(t *testing.T) {
	g := newGateway(t)
	g.start()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g.replace("[client.logto]", fmt.Sprintf("[listen.aside]\nprotocol = \"smtp\"\naddress = %q\nclients = [\"logto\"]\n[listen.taken]\nprotocol = \"smtp\"\naddress = %q\nclients = [\"logto\"]\n[client.logto]", freeAddress(t), taken.Addr()))
	r := g.run("reload")
	if r.code != exitFailed || !strings.Contains(r.err, taken.Addr().String()+" is in use") {
		t.Errorf("exit %d, %s; want 1 and the address in use", r.code, r.err)
	}
	var s admin.Status
	g.into(&s, "status")
	if len(s.Doors) != 1 {
		t.Errorf("the listeners are %+v, want only the first", s.Doors)
	}
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
}

// leaveOut returns text without what stands from one mark up to another.
func leaveOut(text, from, upTo string) string {
	before, rest, _ := strings.Cut(text, from)
	_, after, _ := strings.Cut(rest, upTo)
	return before + upTo + after
}

// withoutMarketing returns a gateway's config without the stream and whatever is only there for it.
func withoutMarketing(config string) string {
	config, _, _ = strings.Cut(config, "[upstream.bulk]")
	config = leaveOut(config, "[client.news]", "[stream.auth]")
	config = leaveOut(config, "[stream.marketing]", "[egress.auth]")
	return strings.Replace(config, `clients = ["logto", "news"]`, `clients = ["logto"]`, 1)
}

func TestMailOnItsWayWhileItsStreamGoesAndComesBackIsTriedAgain(t *testing.T) {
	g := newGateway(t)
	g.replace(`kind    = "marketing"`, "kind = \"marketing\"\nretry = [\"1s\"]")
	var tried atomic.Int64
	g.news.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == upstreamtest.Dot && tried.Add(1) == 1 {
			return upstreamtest.Action{Reply: "451 4.3.0 later", Delay: time.Second}
		}
		return upstreamtest.Action{}
	})
	g.start()
	g.queued("127.0.1.1", fromNews, "bob@example.org")
	g.until("the mail is at the upstream", func() bool { return tried.Load() == 1 })
	whole := g.text()
	g.write(withoutMarketing(whole))
	g.ok("reload")
	g.write(whole)
	g.ok("reload")
	g.news.Wait(1)
}

func TestMailOfAStreamThatGoesIsHeldAndCounted(t *testing.T) {
	g := newGateway(t)
	g.news.Stop()
	g.start()
	g.queued("127.0.1.1", fromNews, "bob@example.org")
	g.until("the mail waits", func() bool { return strings.Contains(g.ok("queue", "list"), "  queued  ") })
	whole := g.text()
	g.write(withoutMarketing(whole))
	var done admin.Reloaded
	g.into(&done, "reload")
	if done.Held != 1 || !slices.Equal(done.Streams.Removed, []string{"marketing"}) || !slices.Equal(done.Clients.Removed, []string{"news"}) {
		t.Errorf("the reload tells %+v, want one recipient of stream marketing held", done)
	}
	if out := g.ok("queue", "list"); !strings.Contains(out, "Stream marketing is not in the config") {
		t.Errorf("the queue shows\n%s", out)
	}
	g.news.Start()
	g.write(whole)
	if out := g.ok("reload"); !strings.Contains(out, "streams added: marketing") {
		t.Errorf("the reload says %s", out)
	}
	g.news.Wait(1)
}

func TestSIGHUPReloadsLevelsToo(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.write(g.text() + "[log]\nlevel = \"warn\"\naddresses = \"clear\"\n")
	if err := g.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	g.until("the new level holds", func() bool {
		before := len(g.log.String())
		g.queued("127.0.0.1", fromAuth, "ann@example.org")
		time.Sleep(50 * time.Millisecond)
		return len(g.log.String()) == before
	})
	g.auth.Reply(upstreamtest.Dot, "550 5.1.1 no such user")
	if _, err := g.send("127.0.0.1", fromAuth, "ann@example.org", "hello"); err == nil {
		t.Error("the upstream's refusal did not reach the client")
	}
	g.until("the log shows addresses", func() bool { return strings.Contains(g.log.String(), "ann@example.org") })
}

func TestReloadsUnderLoadLoseNothing(t *testing.T) {
	g := newGateway(t)
	g.start()
	plain := g.text()
	changed := strings.Replace(plain, `domains = ["auth.example.com"]`, "domains = [\"auth.example.com\"]\nttl = \"30m\"", 1)
	var taken, cut atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := g.send("127.0.0.1", fromAuth, "ann@example.org", "hello"); err != nil {
					cut.Add(1)
					t.Errorf("under reloads: %v", err)
					return
				}
				taken.Add(1)
			}
		})
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := range 100 {
		<-tick.C
		g.write([]string{plain, changed}[n%2])
		g.ok("reload")
	}
	close(stop)
	clients.Wait()
	if got := len(g.auth.Wait(int(taken.Load()))); got != int(taken.Load()) {
		t.Errorf("%d mails were taken and %d arrived", taken.Load(), got)
	}
}
