package test

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

const unixText = `
[listen.local]
protocol = "smtp"
address  = "unix:gp.sock"
clients  = ["here"]
[client.here]
unix_users = ["root"]
streams    = ["auth"]
`

// sendAs sends with swaks over a unix socket as another user.
func sendAs(t *testing.T, user int, socket string) error {
	t.Helper()
	id := strconv.Itoa(user)
	_, err := peer(t, "", "setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--", "swaks", "--socket", socket, "--silent", "2",
		"--from", authStream.sender(), "--to", "user@example.net", "--h-From", authStream.sender())
	return err
}

func TestAUnixSocketKnowsItsPeerByUserAndOutlivesACrash(t *testing.T) {
	t.Parallel()
	needsRoot(t)
	needs(t, "swaks", "swaks")
	s := newSite(t)
	s.addConfig(unixText)
	if err := os.Chmod(s.dir, 0o755); err != nil { // so that others reach the socket
		t.Fatal(err)
	}
	s.start()
	socket := s.path("gp.sock")
	if err := sendAs(t, 0, socket); err != nil {
		t.Fatal(err)
	}
	s.auth.wait(1, 10*time.Second)
	wantRefused(t, "another user", sendAs(t, unitUser, socket), "Permission denied")

	s.daemon.kill() // which leaves the socket's file
	s.configure("address  = \"unix:gp.sock\"", "address  = \"unix:gp.sock\"\nsocket_mode = \"0666\"")
	s.start()
	wantRefused(t, "another user who can connect", sendAs(t, unitUser, socket), "554 5.7.1")
	if err := sendAs(t, 0, socket); err != nil {
		t.Fatal(err)
	}
	s.auth.wait(2, 10*time.Second)
	s.daemon.stop()
	if _, err := os.Stat(socket); err == nil {
		t.Error("a daemon that ended in order leaves its socket's file")
	}
}

func TestSystemdsSocketIsServedAndRefusesNobodyWhileGatepostRestarts(t *testing.T) {
	t.Parallel()
	needs(t, "systemd-socket-activate", "systemd")
	s := newSite(t)
	s.configure("address = \""+s.listen+"\"", "address = \"systemd:smtp\"")
	s.start("systemd-socket-activate", "--listen", s.listen, "--fdname", "smtp")
	authStream.mustPost(t, s.listen, "a", "246810")
	s.auth.wait(1, 10*time.Second)
	s.daemon.stop()

	t.Run("without sockets it says what is missing", func(t *testing.T) {
		d := s.launch()
		if code := d.wait(15 * time.Second); code == 0 || !containsAll(d.log.String(), "listen smtp", "systemd", "no sockets") {
			t.Errorf("it ended with %d:\n%s", code, d.log.String())
		}
	})

	ln, file := inherited(t)
	s.listen, s.files = ln.Addr().String(), []*os.File{file}
	activated := []string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=smtp exec "$0" "$@"`}
	s.start(activated...)
	s.daemon.stop()
	answered := make(chan error)
	go func() {
		_, err := authStream.post(s.listen, "b", "246810") // while nobody serves
		answered <- err
	}()
	time.Sleep(100 * time.Millisecond)
	s.start(activated...)
	if err := <-answered; err != nil {
		t.Errorf("who connected during the restart got %v", err)
	}
	s.auth.wait(2, 10*time.Second)
}

// inherited returns a socket as systemd holds it.
func inherited(t *testing.T) (net.Listener, *os.File) {
	t.Helper()
	ln := listen(t, freeAddress(t))
	t.Cleanup(func() { ln.Close() })
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return ln, file
}

const haproxyText = `
global
  maxconn 200
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
listen v1
  bind V1
  server gatepost GATEPOST source 127.0.3.1 send-proxy
listen v2
  bind V2
  server gatepost GATEPOST source 127.0.3.1 send-proxy-v2 check inter 100ms
`

func TestBehindHAProxyTheClientsOwnAddressDecides(t *testing.T) {
	t.Parallel()
	needs(t, "haproxy", "haproxy")
	s := newSite(t)
	s.configure("address = \""+s.listen+"\"", "address = \""+s.listen+"\"\nproxy_from = [\"127.0.3.1\"]")
	balancers := map[string]string{"version 1": freeAddress(t), "version 2": freeAddress(t)}
	s.write("haproxy.cfg", strings.NewReplacer("V1", balancers["version 1"], "V2", balancers["version 2"], "GATEPOST", s.listen).Replace(haproxyText))
	startHAProxy(t, s.path("haproxy.cfg"))
	gatepost := s.listen
	s.listen = balancers["version 1"] // which start waits for
	s.start()
	for version, addr := range balancers {
		t.Run(version, func(t *testing.T) {
			before, letters := len(s.auth.all()), len(s.bulk.all())
			authStream.mustPost(t, addr, "a", "246810")
			bulkStream.mustPost(t, addr, "b", "246810")
			s.auth.wait(before+1, 10*time.Second)
			s.bulk.wait(letters+1, 10*time.Second)
			_, err := stream{bulkDomain, authClient}.post(addr, "c", "246810")
			wantRefused(t, "marketing mail of the auth client", err, "550 5.7.1")
			_, err = dial(addr, "127.0.9.9")
			wantRefused(t, "a stranger", err, "554 5.7.1")
		})
	}
	for name, tt := range map[string]struct{ from, header string }{
		"a client that claims another's address": {authClient, "PROXY TCP4 127.0.1.7 127.0.0.1 40000 25\r\n"},
		"a stranger that claims a client's":      {"127.0.9.9", "PROXY TCP4 127.0.0.1 127.0.0.1 40000 25\r\n"},
		"a balancer that says nothing":           {"127.0.3.1", ""},
		"a balancer that talks nonsense":         {"127.0.3.1", "PROXY TCP4 127.0.0.1 nonsense\r\n"},
		"a balancer in front of a stranger":      {"127.0.3.1", "PROXY TCP4 127.0.9.9 127.0.0.1 40000 25\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := connect(gatepost, tt.from)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(tt.header)); err != nil {
				t.Fatal(err)
			}
			c, err := greet(conn)
			if err != nil {
				return
			}
			if reply, err := c.send(bulkStream.sender(), "user@example.net", bulkStream.letter("x", "1")); err == nil {
				t.Errorf("mail was taken: %s", reply)
			}
		})
	}
	if a, b := len(s.auth.all()), len(s.bulk.all()); a != 2 || b != 2 {
		t.Errorf("%d and %d mails arrived, want 2 each", a, b)
	}
}

func startHAProxy(t *testing.T, config string) {
	t.Helper()
	var said output
	cmd := exec.Command("haproxy", "-db", "-f", config)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("haproxy said:\n%s", said.String())
		}
	})
}

const farText = `
[listen.far]
protocol = "smtp"
address  = "FAR"
clients  = ["far"]
tls           = "starttls"
tls_cert_file = "gw.crt"
tls_key_file  = "gw.key"
proxy_from    = ["127.0.3.1"]
[client.far]
username      = "far"
password_file = "web.password"
networks      = ["192.0.2.0/24"]
streams       = ["auth"]
`

// Behind a balancer a client that is not on this host can be had on this host.
func TestAPasswordIsNotAskedForInClearFromAfar(t *testing.T) {
	t.Parallel()
	d := newDoors(t)
	far := freeAddress(t)
	d.addConfig(strings.ReplaceAll(farText, "FAR", far))
	d.start()
	c := dialFar(t, far)
	defer c.quit()
	offer, err := c.command(250, "EHLO test.example.com")
	if err != nil || strings.Contains(offer, "AUTH") || !strings.Contains(offer, "STARTTLS") {
		t.Errorf("before TLS the offer is %q, %v, want STARTTLS and no AUTH", offer, err)
	}
	_, err = c.command(250, "MAIL FROM:<%s>", authStream.sender())
	wantRefused(t, "mail without login", err, "530 5.7.0")
	l := login{"far", webLogin.password}
	wantRefused(t, "a password in clear", c.login(l), "538 5.7.11")
	if err := c.startTLS(d.ca.trust()); err != nil {
		t.Fatal(err)
	}
	if err := c.login(l); err != nil {
		t.Fatal(err)
	}
	if _, err := c.send(authStream.sender(), "a@example.net", authStream.letter("a", "246810")); err != nil {
		t.Fatal(err)
	}
	d.auth.wait(1, 10*time.Second)
}

// dialFar connects as a balancer does for a client at 192.0.2.7.
func dialFar(t *testing.T, addr string) *client {
	t.Helper()
	conn, err := connect(addr, "127.0.3.1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("PROXY TCP4 192.0.2.7 192.0.2.1 40000 587\r\n")); err != nil {
		t.Fatal(err)
	}
	c, err := greet(conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
