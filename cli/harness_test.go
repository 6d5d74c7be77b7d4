package cli

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/dkim"
	"gatepost/upstream/upstreamtest"
)

// patient is what a test waits for what must happen, on a busy machine.
const patient = 15 * time.Second

// output collects what a process writes while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// gateway is a gatepost process with two streams, each with an SMTP host of its own.
type gateway struct {
	t       *testing.T
	dir     string
	file    string // the config
	address string
	auth    *upstreamtest.Host
	news    *upstreamtest.Host
	log     *output
	cmd     *exec.Cmd
	exited  chan error
}

const gatewayConfig = `hostname  = "gw.auth.example.com"
state_dir = "state"
[listen.smtp]
address = %q
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
%s
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
address = %q
tls     = "none"
[upstream.bulk]
type    = "smtp"
address = %q
tls     = "none"
`

// newGateway writes a config and keys, and lets the test run beside others. more goes into [stream.auth].
func newGateway(t *testing.T, more ...string) *gateway {
	t.Helper()
	t.Parallel()
	g := &gateway{t: t, dir: shortDir(t), address: freeAddress(t), log: &output{},
		auth: upstreamtest.NewHost(t, upstreamtest.HostOptions{}), news: upstreamtest.NewHost(t, upstreamtest.HostOptions{})}
	g.file = filepath.Join(g.dir, "gatepost.toml")
	for _, name := range []string{"auth.pem", "marketing.pem"} {
		key, err := dkim.GenerateKey("rsa", 2048)
		if err != nil {
			t.Fatal(err)
		}
		if err := dkim.WriteKey(filepath.Join(g.dir, name), key); err != nil {
			t.Fatal(err)
		}
	}
	g.write(fmt.Sprintf(gatewayConfig, g.address, strings.Join(more, "\n"), g.auth.Addr(), g.news.Addr()))
	t.Cleanup(g.kill)
	return g
}

// shortDir is t.TempDir with a path that leaves room for a socket's name, however long the test's is.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatepost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// writeCertificate writes fullchain.pem and privkey.pem for name into dir, signed by themselves, and returns a pool that
// trusts them.
func writeCertificate(t *testing.T, dir, name string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), DNSNames: []string{name}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"fullchain.pem": {Type: "CERTIFICATE", Bytes: cert}, "privkey.pem": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return pool
}

func freeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		addr := fmt.Sprintf("127.0.0.1:%d", 31000+mathrand.N(1000))
		if _, taken := givenOut.LoadOrStore(addr, true); taken {
			continue
		}
		c, err := net.Dial("tcp", addr)
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

// givenOut are the addresses that this run of the tests has used. They are below those that the kernel gives to outgoing
// connections, which could take one before its listener is there.
var givenOut sync.Map

func (g *gateway) config() string { return g.file }

// text returns the config.
func (g *gateway) text() string {
	g.t.Helper()
	b, err := os.ReadFile(g.config())
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

func (g *gateway) write(config string) {
	g.t.Helper()
	if err := os.WriteFile(g.config(), []byte(config), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// withDoor adds a listener for HTTP at address, with a hook that nobody has the token of.
func (g *gateway) withDoor(address string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "web.token"), []byte("0123456789abcdef\n"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.replace("[client.logto]", fmt.Sprintf("[listen.http]\naddress = %q\nclients = [\"web\"]\n[client.web]\nnetworks = [\"127.0.0.0/8\"]\ntoken_files = [\"web.token\"]\n"+
		"streams = [\"auth\"]\n[hook.web]\nadapter = \"logto\"\nclient = \"web\"\nstream = \"auth\"\n[client.logto]", address))
}

// replace edits the config.
func (g *gateway) replace(old, new string) {
	g.t.Helper()
	text := g.text()
	if !strings.Contains(text, old) {
		g.t.Fatalf("the config has no %q", old)
	}
	g.write(strings.ReplaceAll(text, old, new))
}

// start runs the daemon and waits until it is ready.
func (g *gateway) start() {
	g.t.Helper()
	before := strings.Count(g.log.String(), "msg=ready")
	g.cmd = exec.Command("gatepost", "serve", "-c", g.config())
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(g.cmd, g.exited)
	g.until("the daemon is ready", func() bool { return strings.Count(g.log.String(), "msg=ready") > before })
}

// stop ends the daemon with SIGTERM and returns how long that took.
func (g *gateway) stop() time.Duration {
	g.t.Helper()
	begin := time.Now()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	select {
	case err := <-g.exited:
		if err != nil {
			g.t.Errorf("serve ended with %v\n%s", err, g.log)
		}
	case <-time.After(patient):
		g.t.Errorf("serve did not end within %v of SIGTERM\n%s", patient, g.log)
	}
	g.cmd = nil
	return time.Since(begin)
}

// kill ends the daemon as a power cut would, if it runs.
func (g *gateway) kill() {
	if g.cmd == nil {
		return
	}
	_ = g.cmd.Process.Kill()
	<-g.exited
	g.cmd = nil
}

// until waits for what must become true.
func (g *gateway) until(what string, is func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(patient); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatalf("not within %v: %s\n%s", patient, what, g.log)
		}
	}
}

// result is what a command printed and exited with.
type result struct {
	out, err string
	code     int
}

// run runs a command against the gateway's config, in this process.
func (g *gateway) run(args ...string) result {
	g.t.Helper()
	var out, errs bytes.Buffer
	code := Main(g.t.Context(), append([]string{"gatepost", "-c", g.config()}, args...), &out, &errs)
	return result{out.String(), errs.String(), code}
}

// ok runs a command that must succeed and returns what it printed.
func (g *gateway) ok(args ...string) string {
	g.t.Helper()
	r := g.run(args...)
	if r.code != 0 {
		g.t.Fatalf("gatepost %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// into runs a command with --json and decodes what it printed.
func (g *gateway) into(v any, args ...string) {
	g.t.Helper()
	out := g.ok(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		g.t.Fatalf("gatepost %s: %v in\n%s", strings.Join(args, " "), err, out)
	}
}

// send submits a mail over SMTP from the local address source and returns the reply to its end.
func (g *gateway) send(source, from, to, subject string) (string, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}, Timeout: patient}
	conn, err := d.DialContext(g.t.Context(), "tcp", g.address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patient))
	c, err := smtp.NewClient(conn, "client.example")
	if err != nil {
		return "", err
	}
	if err := errors.Join(c.Mail(from), c.Rcpt(to)); err != nil {
		return "", err
	}
	if _, err := c.Data(); err != nil {
		return "", err
	}
	_, err = fmt.Fprintf(conn, "From: %s\r\nTo: %s\r\nSubject: %s\r\n\r\nYour code is 482913.\r\n.\r\n", from, to, subject)
	if err != nil {
		return "", err
	}
	_, line, err := c.Text.ReadResponse(250)
	return line, err
}

// queued submits a mail that must be taken and returns its id.
func (g *gateway) queued(source, from, to string) string {
	g.t.Helper()
	line, err := g.send(source, from, to, "hello")
	_, id, found := strings.Cut(line, "queued as ")
	if err != nil || !found {
		g.t.Fatalf("mail from %s was not taken: %q, %v\n%s", from, line, err, g.log)
	}
	return id
}

const (
	fromAuth = "no-reply@auth.example.com"
	fromNews = "news@marketing.example.com"
)
