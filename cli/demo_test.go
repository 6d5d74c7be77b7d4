package cli

import (
	"net/smtp"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestDemoShowsAVerifiedMailWithinTenSecondsAndServesUntilInterrupted(t *testing.T) {
	t.Parallel()
	tmp := shortDir(t)
	cmd := exec.Command("gatepost", "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer cmd.Process.Kill()
	until := func(what string) {
		t.Helper()
		for !strings.Contains(out.String(), what) {
			select {
			case err := <-exited:
				t.Fatalf("the demo ended with %v before %q:\n%s", err, what, out.String())
			case <-time.After(20 * time.Millisecond):
			}
			if time.Since(begin) > patient {
				t.Fatalf("the demo did not print %q:\n%s", what, out.String())
			}
		}
	}
	until("goes on until Ctrl-C")
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the demo took %v to show the sample, want 10 s at most", took)
	}
	for _, want := range []string{"DKIM-Signature: ", "Your sign-in code is 482913",
		"d=auth.example.com s=gp1 rsa-sha256: valid, aligned with the header From",
		"gp1._domainkey.auth.example.com. IN TXT", "v=spf1", "v=DMARC1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the demo does not show %q:\n%s", want, out.String())
		}
	}

	address := regexp.MustCompile(`listens for SMTP on (\S+)`).FindStringSubmatch(out.String())
	own := "From: no-reply@auth.example.com\r\nTo: you@example.org\r\nSubject: =?utf-8?B?44Kz44O844OJ?=\r\n\r\nhello\r\n"
	if err := smtp.SendMail(address[1], nil, "no-reply@auth.example.com", []string{"you@example.org"}, []byte(own)); err != nil {
		t.Fatal(err)
	}
	until(`to you@example.org  "コード"`)

	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("the demo ended with %v:\n%s", err, out.String())
		}
	case <-time.After(patient):
		t.Errorf("the demo did not end within %v of SIGINT", patient)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("the demo left %v (%v)", left, err)
	}
}
