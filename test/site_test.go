package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/dkim"
	"gatepost/message"
)

// What the config gives to each stream. Clients are known by their network.
const (
	authDomain = "auth.example.com"
	bulkDomain = "marketing.example.com"
	authClient = "127.0.0.1"
	bulkClient = "127.0.1.7"
	authEgress = "127.0.0.2"
	bulkEgress = "127.0.0.3"
)

const configText = `hostname  = "gw.auth.example.com"
state_dir = "state"
[listen.smtp]
address = "LISTEN"
clients = ["logto", "news"]
[client.logto]
networks = ["127.0.0.0/24"]
streams  = ["auth"]
[client.news]
networks = ["127.0.1.0/24"]
streams  = ["marketing"]
[stream.auth]
kind    = "auth"
domains = ["auth.example.com"]
route   = ["sink"]
egress  = "auth"
dkim    = { selector = "gp1", key_file = "auth.pem" }
[stream.marketing]
kind    = "marketing"
domains = ["marketing.example.com"]
route   = ["bulk"]
egress  = "bulk"
dkim    = { selector = "gp1", key_file = "marketing.pem" }
[egress.auth]
ipv4 = "127.0.0.2"
[egress.bulk]
ipv4 = "127.0.0.3"
[upstream.sink]
type    = "smtp"
address = "SINK"
tls     = "none"
[upstream.bulk]
type    = "smtp"
address = "BULK"
tls     = "none"
`

// site is one gatepost with all that it needs: a directory with config and keys, an address, and an SMTP host behind
// each stream.
type site struct {
	t          *testing.T
	dir        string
	listen     string
	auth, bulk *sink
	program    string     // that serves
	files      []*os.File // that it gets as descriptors 3, 4 …
	daemon     *daemon
	records    []dkim.Record // of its keys
}

// newSite makes a site. Its daemon is not started.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: shortTempDir(t), listen: freeAddress(t), auth: newSink(t), bulk: newSink(t), program: raced}
	s.write("gatepost.toml", strings.NewReplacer("LISTEN", s.listen, "SINK", s.auth.addr, "BULK", s.bulk.addr).Replace(configText))
	s.records = append(s.generateKey("auth.pem", authDomain), s.generateKey("marketing.pem", bulkDomain)...)
	return s
}

// shortTempDir is t.TempDir with a path that leaves room for the unix socket that goes below it.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gp-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (s *site) generateKey(file, domain string) []dkim.Record {
	s.t.Helper()
	return decode[[]dkim.Record](s.t, s.run("dkim", "generate", s.path(file), "--domain", domain, "--json"))
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// configure replaces a part of the config.
func (s *site) configure(old, text string) {
	s.t.Helper()
	before := s.read("gatepost.toml")
	if strings.Count(before, old) != 1 {
		s.t.Fatalf("the config holds %q %d times, want once", old, strings.Count(before, old))
	}
	s.write("gatepost.toml", strings.Replace(before, old, text, 1))
}

// result is how a command ended.
type result struct {
	args           []string
	stdout, stderr string
	code           int
}

// run runs a command of gatepost with the site's config.
func (s *site) run(args ...string) result {
	s.t.Helper()
	return s.runWith("", args...)
}

// runWith is run with something to read.
func (s *site) runWith(stdin string, args ...string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(s.t.Context(), plain, append(args, "-c", s.path("gatepost.toml"))...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		s.t.Fatalf("gatepost %s: %v", strings.Join(args, " "), err)
	}
	return result{args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// decode reads what a command with --json printed.
func decode[T any](t *testing.T, r result) (v T) {
	t.Helper()
	if r.code != 0 {
		t.Fatalf("gatepost %s ended with %d:\n%s", strings.Join(r.args, " "), r.code, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &v); err != nil {
		t.Fatalf("gatepost %s printed no JSON of its kind: %v\n%s", strings.Join(r.args, " "), err, r.stdout)
	}
	return v
}

func (s *site) status() admin.Status {
	s.t.Helper()
	return decode[admin.Status](s.t, s.run("status", "--json"))
}

func (s *site) trace(id string) admin.Trace {
	s.t.Helper()
	return decode[admin.Trace](s.t, s.run("trace", id, "--json"))
}

func (s *site) queue(flags ...string) []message.QueueRow {
	s.t.Helper()
	return decode[[]message.QueueRow](s.t, s.run(append([]string{"queue", "list", "--json"}, flags...)...))
}

// waitEmpty waits until nothing is queued any more.
func (s *site) waitEmpty(within time.Duration) {
	s.t.Helper()
	eventually(s.t, within, "the queue is empty", func() bool { return len(s.queue("--limit", "1")) == 0 })
}

// daemon is a serving gatepost.
type daemon struct {
	t      *testing.T
	cmd    *exec.Cmd
	log    output
	exited chan struct{} // closed when it has ended
}

// launch starts gatepost serve and does not wait for it to be ready. wrap is a command to run it under, such as strace.
func (s *site) launch(wrap ...string) *daemon {
	s.t.Helper()
	args := append(slices.Clip(wrap), s.program, "serve", "-c", s.path("gatepost.toml"))
	d := &daemon{t: s.t, cmd: exec.Command(args[0], args[1:]...), exited: make(chan struct{})}
	d.cmd.Stdout, d.cmd.Stderr, d.cmd.ExtraFiles = &d.log, &d.log, s.files
	d.cmd.WaitDelay = time.Second
	if err := d.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		d.cmd.Wait() // how it ended is in ProcessState
		close(d.exited)
	}()
	s.daemon = d
	s.t.Cleanup(d.cleanUp)
	return d
}

// start starts the daemon and returns once it answers.
func (s *site) start(wrap ...string) *daemon {
	s.t.Helper()
	d := s.launch(wrap...)
	eventually(s.t, 15*time.Second, "gatepost answers on "+s.listen, func() bool {
		select {
		case <-d.exited:
			s.t.Fatalf("gatepost serve ended with %d:\n%s", d.cmd.ProcessState.ExitCode(), d.log.String())
		default:
		}
		c, err := dial(s.listen, authClient)
		if err != nil {
			return false
		}
		c.quit()
		return true
	})
	return d
}

// cleanUp ends a daemon that still runs and shows what it said where the test has failed.
func (d *daemon) cleanUp() {
	d.signal(syscall.SIGKILL)
	<-d.exited
	d.checkRaces()
	if d.t.Failed() {
		text := d.log.String()
		d.t.Logf("gatepost said, at last:\n%s", text[max(0, len(text)-8<<10):])
	}
}

func (d *daemon) checkRaces() {
	d.t.Helper()
	if _, report, found := strings.Cut(d.log.String(), "WARNING: DATA RACE"); found {
		d.t.Errorf("the race detector found: %.4000s", report)
	}
}

func (d *daemon) signal(sig syscall.Signal) {
	select {
	case <-d.exited:
	default:
		d.cmd.Process.Signal(sig) // it may end at this moment
	}
}

// kill ends the daemon as a crash does.
func (d *daemon) kill() {
	d.t.Helper()
	d.signal(syscall.SIGKILL)
	<-d.exited
	if d.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		d.t.Fatalf("gatepost ended before it was killed: %v\n%s", d.cmd.ProcessState, d.log.String())
	}
}

// stop ends the daemon as systemd does and returns how long that took.
func (d *daemon) stop() time.Duration {
	d.t.Helper()
	started := time.Now()
	d.signal(syscall.SIGTERM)
	code := d.wait(15 * time.Second)
	if code != 0 {
		d.t.Errorf("gatepost ended with %d after SIGTERM, want 0", code)
	}
	return time.Since(started)
}

// wait waits for the daemon to end by itself and returns its exit code.
func (d *daemon) wait(within time.Duration) int {
	d.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(within):
		d.t.Fatalf("gatepost has not ended within %v", within)
	}
	return d.cmd.ProcessState.ExitCode()
}

// says waits until the daemon's log holds all of parts in one line.
func (d *daemon) says(within time.Duration, parts ...string) {
	d.t.Helper()
	eventually(d.t, within, fmt.Sprintf("the log has a line with %q", parts), func() bool {
		for line := range strings.Lines(d.log.String()) {
			if containsAll(line, parts...) {
				return true
			}
		}
		return false
	})
}

func containsAll(s string, parts ...string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// eventually waits until something holds, and fails the test if it does not in time.
func eventually(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v it is still not so that %s", within, what)
		}
	}
}

// listen listens on addr, also if something just forked still holds what was closed there a moment ago.
func listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ln, err := net.Listen("tcp4", addr)
		if err == nil {
			return ln
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// givenOut are the addresses that this run of the tests has used: nobody listens on them yet, perhaps.
var givenOut sync.Map

// freeAddress returns a loopback address that nobody listens on. Its port is below those that the kernel gives to
// outgoing connections, so that nobody takes it while the one who uses it restarts.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 11000+rand.N(20000))
		if _, taken := givenOut.LoadOrStore(addr, true); taken {
			continue
		}
		c, err := net.Dial("tcp", addr) // binding it to see would leave it bound in whatever is being forked just now
		if errors.Is(err, syscall.ECONNREFUSED) {
			return addr
		}
		if err == nil {
			c.Close()
		}
	}
	t.Fatal("no free port")
	return ""
}
