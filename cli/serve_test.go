package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/upstream/upstreamtest"
)

func TestMailArrivesSignedFromItsOwnEgress(t *testing.T) {
	g := newGateway(t)
	g.start()
	id := g.queued("127.0.0.1", fromAuth, "ann@example.org")
	g.queued("127.0.1.1", fromNews, "bob@example.org")
	for _, want := range []struct {
		host         *upstreamtest.Host
		peer, domain string
	}{{g.auth, "127.0.0.2", "auth.example.com"}, {g.news, "127.0.0.3", "marketing.example.com"}} {
		m := want.host.Wait(1)[0]
		if m.Peer.Addr().String() != want.peer {
			t.Errorf("mail of %s came from %s, want %s", want.domain, m.Peer.Addr(), want.peer)
		}
		file := filepath.Join(g.dir, "mail.eml")
		if err := os.WriteFile(file, m.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := g.run("dkim", "verify", "--local", file)
		if r.code != 0 || !strings.Contains(r.out, "d="+want.domain+" s=gp1 rsa-sha256: valid, aligned") {
			t.Errorf("signature of %s: %s%s", want.domain, r.out, r.err)
		}
	}
	g.until("the log tells of the delivery", func() bool { return strings.Contains(g.log.String(), "msg=\"message delivered\" msg_id="+id) })
	for line := range strings.Lines(g.log.String()) {
		if strings.Contains(line, "message delivered") && strings.Contains(line, id) {
			for _, want := range []string{"stream=auth", "upstream=sink", "egress=auth", "local_ip=127.0.0.2", "to=a…@example.org", "code=250", "took_ms="} {
				if !strings.Contains(line, want) {
					t.Errorf("the line of the delivery lacks %s: %s", want, line)
				}
			}
		}
	}
	if strings.Contains(g.log.String(), "482913") || strings.Contains(g.log.String(), "ann@") {
		t.Errorf("the log holds a code or the address of somebody who signs in:\n%s", g.log)
	}
}

func TestMailOfTheOtherStreamIsRefusedWhateverTheEnvelopeSays(t *testing.T) {
	g := newGateway(t)
	g.start()
	_, err := g.send("127.0.0.1", fromNews, "ann@example.org", "hello")
	if e, ok := errors.AsType[*textproto.Error](err); !ok || e.Code != 550 || !strings.HasPrefix(strings.Trim(e.Msg, `"`), "5.7.1 ") {
		t.Errorf("marketing mail from the auth client: %v, want 550 5.7.1", err)
	}
	if n := len(g.auth.Messages()) + len(g.news.Messages()); n != 0 {
		t.Errorf("%d mails left all the same", n)
	}
}

func TestSecondInstanceAndPortInUseAreToldApart(t *testing.T) {
	g := newGateway(t)
	g.start()
	r := g.run("serve")
	if r.code != exitFailed || !strings.Contains(r.err, "another gatepost") {
		t.Errorf("a second instance: exit %d, %s", r.code, r.err)
	}
	g.ok("status") // the first one still answers on its socket
	g.replace(`state_dir = "state"`, `state_dir = "state2"`)
	r = g.run("serve")
	if r.code != exitFailed || !strings.Contains(r.err, g.address+" is in use") {
		t.Errorf("a port in use: exit %d, %s", r.code, r.err)
	}
}

func TestStoppingDrainsAndLosesNothing(t *testing.T) {
	g := newGateway(t)
	g.start()
	for range 3 {
		g.queued("127.0.0.1", fromAuth, "ann@example.org")
	}
	idle, err := net.Dial("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	_ = idle.SetReadDeadline(time.Now().Add(patient))
	heard := bufio.NewReader(idle)
	if greeting, err := heard.ReadString('\n'); err != nil { // not before then is it a session
		t.Fatalf("greeted with %q, %v", greeting, err)
	}
	if took := g.stop(); took > 10*time.Second {
		t.Errorf("stopping took %v, want 10 s at most", took)
	}
	_ = idle.SetReadDeadline(time.Now().Add(patient))
	var said bytes.Buffer
	_, _ = said.ReadFrom(heard)
	if !strings.HasPrefix(said.String(), "421 ") {
		t.Errorf("an idle session was told %q, want 421", said.String())
	}
	if n := len(g.auth.Wait(3)); n != 3 {
		t.Errorf("%d mails arrived, want 3", n)
	}
	if _, err := os.Stat(filepath.Join(g.dir, "state", admin.SocketName)); err == nil {
		t.Error("the socket is still there")
	}
	g.start()
	if out := g.ok("queue", "list"); !strings.Contains(out, "Nothing waits") {
		t.Errorf("after a clean stop there waits:\n%s", out)
	}
}

func TestStoppingIsBoundedAndAnswersEverybodyThoughTheUpstreamHangs(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.auth.Reply(upstreamtest.Dot, upstreamtest.Hang)
	answer := make(chan string, 1)
	go func() {
		line, err := g.send("127.0.0.1", fromAuth, "ann@example.org", "hello")
		answer <- fmt.Sprint(line, err)
	}()
	g.until("the mail is at the upstream", func() bool { return slices.Contains(g.auth.Verbs(), upstreamtest.Dot) })
	if took := g.stop(); took > 10*time.Second {
		t.Errorf("stopping took %v, want 10 s at most", took)
	}
	if said := <-answer; !strings.Contains(said, "queued as ") {
		t.Errorf("the waiting client was told %q, want that its mail is queued", said)
	}
}

func TestASecondSignalKills(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.auth.Reply(upstreamtest.Dot, upstreamtest.Hang)
	go g.send("127.0.0.1", fromAuth, "ann@example.org", "hello")
	g.until("the mail is at the upstream", func() bool { return slices.Contains(g.auth.Verbs(), upstreamtest.Dot) })
	begin := time.Now()
	term := func() { _ = g.cmd.Process.Signal(syscall.SIGTERM) }
	term()
	g.until("it says that it stops", func() bool { return strings.Contains(g.log.String(), "msg=stopping") })
	again := time.NewTicker(100 * time.Millisecond) // one sent in the same instant may still count as the first
	defer again.Stop()
	for {
		select {
		case err := <-g.exited:
			g.cmd = nil
			if err == nil || time.Since(begin) > 4*time.Second {
				t.Errorf("a second SIGTERM: %v after %v, want death at once", err, time.Since(begin))
			}
			return
		case <-again.C:
			term()
		}
	}
}

func TestAnEgressThatIsNotHereIsToldAndNothingLeaves(t *testing.T) {
	g := newGateway(t, `when_down = "queue"`)
	everywhere := upstreamtest.NewHost(t, upstreamtest.HostOptions{Addr: "0.0.0.0:0"})
	_, port, _ := net.SplitHostPort(everywhere.Addr())
	g.replace(`address = "`+g.auth.Addr()+`"`, `address = "127.0.0.1:`+port+`"`)
	g.replace(`ipv4 = "127.0.0.2"`, `ipv4 = "192.0.2.1"`)
	r := g.run("check", "--offline")
	if r.code != exitFailed || !strings.Contains(r.out, "FAIL  egress auth") || !strings.Contains(r.out, "192.0.2.1") {
		t.Errorf("check: exit %d\n%s%s", r.code, r.out, r.err)
	}
	g.start()
	if !strings.Contains(g.log.String(), `msg="egress cannot be used" egress=auth`) {
		t.Errorf("serve does not say that the egress is missing:\n%s", g.log)
	}
	id := g.queued("127.0.0.1", fromAuth, "ann@example.org")
	g.until("the upstream is paused", func() bool { return strings.Contains(g.ok("status"), "paused") })
	g.until("the mail waits", func() bool { return strings.Contains(g.ok("queue", "show", id), "queued") }) // no attempt is under way
	if n := everywhere.Accepted(); n != 0 {
		t.Errorf("%d connections came from another address", n)
	}
}

func TestAnUpstreamThatIsDownAtStartIsTold(t *testing.T) {
	g := newGateway(t)
	g.auth.Stop()
	g.start()
	g.until("serve says so", func() bool { return strings.Contains(g.log.String(), `msg="upstream cannot be used" upstream=sink`) })
	g.auth.Start()
	g.queued("127.0.0.1", fromAuth, "ann@example.org")
	g.auth.Wait(1)
}

func TestLogIsJSONUnderSystemd(t *testing.T) {
	g := newGateway(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(g.dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	said := make(chan string, 100)
	go func() {
		b := make([]byte, 512)
		for {
			n, err := notify.Read(b)
			if err != nil {
				close(said)
				return
			}
			said <- string(b[:n])
		}
	}()
	next := func(want string) {
		t.Helper()
		for {
			select {
			case s := <-said:
				if strings.HasPrefix(s, want) {
					return
				}
			case <-time.After(patient):
				t.Fatalf("systemd was not told %s", want)
			}
		}
	}
	g.log.Write([]byte("msg=ready\n")) // start counts these; JSON has none
	g.cmd = exec.Command("gatepost", "serve", "-c", g.config())
	g.cmd.Env = append(os.Environ(), "JOURNAL_STREAM=8:1", "NOTIFY_SOCKET="+notify.LocalAddr().String(), "WATCHDOG_USEC=600000")
	g.cmd.Stderr = g.log
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.exited = make(chan error, 1)
	go func() { g.exited <- g.cmd.Wait() }()
	next("READY=1")
	next("WATCHDOG=1")
	next("WATCHDOG=1")
	g.ok("reload")
	next("RELOADING=1\nMONOTONIC_USEC=")
	next("READY=1")
	if !strings.Contains(g.log.String(), `"msg":"ready"`) {
		t.Errorf("the log is not JSON:\n%s", g.log)
	}
	g.stop()
	next("STOPPING=1")
}
