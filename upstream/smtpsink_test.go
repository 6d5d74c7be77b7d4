package upstream_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// startSink runs Postfix's smtp-sink, and returns where it listens and the folder that it writes mails to.
func startSink(t *testing.T, flags ...string) (address, dir string) {
	t.Helper()
	sink, err := exec.LookPath("smtp-sink")
	if err != nil {
		sink = "/usr/sbin/smtp-sink"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	l.Close()
	dir = t.TempDir()
	args := append(flags, "-d", "mail.")
	if os.Getuid() == 0 {
		args = append(args, "-u", "nobody") // it refuses to stay root
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(sink, append(args, address, "20")...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start smtp-sink: %v (it is part of Postfix: apt-get install postfix)", err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for range 200 {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			return address, dir
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("smtp-sink does not listen")
	return "", ""
}

func TestMailReachesPostfixFromThePinnedAddress(t *testing.T) {
	for name, flags := range map[string][]string{"with PIPELINING": nil, "without": {"-p"}} {
		t.Run(name, func(t *testing.T) {
			address, dir := startSink(t, flags...)
			u := open(t, &config.Upstream{Name: "sink", Type: "smtp", Address: address, TLS: "none", Connections: 2})
			slot := reserve(t, u)
			body := "Subject: dots\r\n\r\n.\r\n..two\r\n" + strings.Repeat("line\r\n", 20_000)
			vs := slot.Send(t.Context(), envelope("one@example.net", "two@example.net"), net.Buffers{[]byte(body)}, commit)
			slot.Release()
			wantClasses(t, vs, message.Accepted, message.Accepted)
			for i := range 3 {
				wantClasses(t, send(t, u, envelope(fmt.Sprintf("%d@example.net", i))), message.Accepted)
			}
			files, err := filepath.Glob(filepath.Join(dir, "mail.*"))
			if err != nil || len(files) != 4 {
				t.Fatalf("smtp-sink wrote %v, %v; want four mails", files, err)
			}
			if !strings.Contains(contents(t, files), strings.ReplaceAll(body, "\r\n", "\n")) {
				t.Error("the mail with the dots did not arrive as it was sent")
			}
			if got := strings.Count(contents(t, files), "X-Client-Addr: "+pin.String()+"\n"); got != len(files) {
				t.Errorf("%d of %d mails came from %s", got, len(files), pin)
			}
		})
	}
}

func contents(t *testing.T, files []string) string {
	t.Helper()
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
