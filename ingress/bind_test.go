package ingress

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/message"
)

func TestASocketIsServedAndItsPeerKnownByUserID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "smtp.sock")
	ln, err := Listen(t.Context(), &config.Listen{Name: "local", Address: "unix:" + path, SocketMode: 0o660})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	peers := make(chan message.Peer, 2)
	d := open(t, ln, func(o *SMTPOptions, f *fakeRelay) {
		byPassword(o, f)
		o.Listen.Address, o.Listen.SocketMode = "unix:"+path, 0o660
		o.Listen.MaxPerSource = 2
		f.identify = func(_ string, p message.Peer) (string, error) {
			if peers <- p; len(peers) == 1 {
				return "cron", nil
			}
			return "", errStranger
		}
	})
	dial := func() *client {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, conn)
	}
	c := dial()
	c.want("220 ")
	if offer := c.do("EHLO x", "250-"); !strings.Contains(offer, "250-AUTH PLAIN LOGIN\r\n") {
		t.Errorf("offered %q: nobody can listen on the way", offer)
	}
	c.toData()
	c.do(mail+".", "250 ")
	if s := d.relay.submissions()[0]; s.Client != "cron" || s.Remote.IsValid() {
		t.Errorf("client %q from %v", s.Client, s.Remote)
	}
	stranger := fmt.Sprintf("554 5.7.1 gw.example.com listener \"smtp\": your user id %d is no client's, so mail from it is not accepted\r\n", os.Getuid())
	if rest := dial().rest(); rest != stranger {
		t.Errorf("a stranger was greeted with %q, want %q", rest, stranger)
	}
	next := *d.Listen
	next.SocketMode = 0o600
	if apply, err := d.Reconfigure(&next, d.Hostname); err != nil {
		t.Error(err)
	} else {
		apply()
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("after a reload the socket is %v, %v", info.Mode(), err)
	}
	for range 2 {
		if p := <-peers; p.UID != os.Getuid() || p.Addr.IsValid() || p.Names != nil {
			t.Errorf("peer %+v", p)
		}
	}
}

func TestASocketLeftBehindIsReplacedAndAnythingElseIsNot(t *testing.T) {
	dir := t.TempDir()
	stale, used, file := filepath.Join(dir, "stale"), filepath.Join(dir, "used"), filepath.Join(dir, "file")
	left, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	inUse, err := net.Listen("unix", used)
	if err != nil {
		t.Fatal(err)
	}
	defer inUse.Close()
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		stale:                                "",
		used:                                 "listen local: " + used + " is in use: stop the program that listens on it, or change the address",
		file:                                 "listen local: " + file + " is there and no socket: move it away, or change the address",
		filepath.Join(dir, "none", "socket"): "listen local: bind the socket " + dir,
	} {
		ln, err := Listen(t.Context(), &config.Listen{Name: "local", Address: "unix:" + path, SocketMode: 0o600})
		switch {
		case err == nil:
			if ln.Close(); want != "" {
				t.Errorf("%s was bound", path)
			}
		case want == "" || !strings.HasPrefix(err.Error(), want):
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// activated makes the test binary, run again with sockets handed over, serve one mail.
const activated = "GATEPOST_TEST_ACTIVATED"

func TestSocketsOfSystemdAreServed(t *testing.T) {
	if name := os.Getenv(activated); name != "" {
		serveActivated(t, name)
		return
	}
	for name, tt := range map[string]struct{ ask, names, want string }{
		"by its name":         {"smtp", "admin:smtp", ""},
		"one of another name": {"smtp", "admin:mail", `systemd has handed over no socket "smtp", only admin, mail: see FileDescriptorName=`},
		"two of one name":     {"smtp", "smtp:smtp", `systemd has handed over 2 sockets "smtp": give each address a socket unit`},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestSocketsOfSystemdAreServed$'`, os.Args[0])
			cmd.Env = append(os.Environ(), activated+"="+tt.ask, "LISTEN_FDS=2", "GORACE=atexit_sleep_ms=0", "LISTEN_FDNAMES="+tt.names)
			var smtp net.Listener
			for range 2 {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				file, err := ln.(*net.TCPListener).File()
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				cmd.ExtraFiles, smtp = append(cmd.ExtraFiles, file), ln // the second is smtp
			}
			var out strings.Builder
			cmd.Stdout = &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				conn, err := net.Dial("tcp", smtp.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				c := newClient(t, conn)
				c.hello()
				c.toData()
				c.do(mail+".", "250 ")
				c.do("QUIT", "221 ")
			}
			if err := cmd.Wait(); (err == nil) != (tt.want == "") || !strings.Contains(out.String(), tt.want) {
				t.Errorf("%v, want %q:\n%s", err, tt.want, out.String())
			}
		})
	}
}

func serveActivated(t *testing.T, name string) {
	ln, err := Listen(t.Context(), &config.Listen{Name: "smtp", Address: "systemd:" + name})
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, ln, nil)
	d.until(t, "a mail has come", func() bool { return len(d.relay.submissions()) == 1 })
	d.gone(t)
}

func TestWithoutSocketsOfSystemdTheErrorSaysWhatToStart(t *testing.T) {
	_, err := Listen(t.Context(), &config.Listen{Name: "smtp", Address: "systemd:smtp"})
	if err == nil || !strings.HasPrefix(err.Error(), "listen smtp: systemd has handed over no sockets: start gatepost by a socket unit") {
		t.Errorf("Listen: %v", err)
	}
}
