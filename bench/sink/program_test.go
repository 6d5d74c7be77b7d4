package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The benchmarks of this package measure the whole program before hosts and services that the relay bench does not have:
// TLS, refusals, hosts that swallow chunks, HTTPS APIs. bench/run.sh runs them; GP_BIN names the program.

const (
	authDomain = "auth.example.com"
	bulkDomain = "marketing.example.com"
	mailSize   = 2048 // bytes, as in the relay bench
)

const configText = `hostname  = "relay.example.com"
state_dir = "state"
[log]
level = "warn"
[listen.smtp]
address = "LISTEN"
clients = ["bench"]
[client.bench]
networks = ["127.0.0.0/8"]
streams  = ["auth", "marketing"]
[egress.local]
ipv4   = "127.0.0.1"
shared = true
[stream.auth]
kind      = "auth"
domains   = ["auth.example.com"]
route     = ["far"]
egress    = "local"
verdict   = "queued"
when_down = "queue"
dkim      = { selector = "bench", key_file = "dkim.pem", shared = true }
[stream.marketing]
kind    = "marketing"
domains = ["marketing.example.com"]
route   = ["BULK"]
egress  = "local"
retry   = ["1h"]
dkim    = { selector = "bench", key_file = "dkim.pem", shared = true }
[upstream.keep]
type = "capture"
[upstream.far]
shared = true
`

// program is a gatepost that serves.
type program struct {
	b      *testing.B
	binary string
	dir    string
	listen string
	cmd    *exec.Cmd
	log    bytes.Buffer
}

// start starts gatepost with lines as the rest of the section of upstream far, where auth mail goes; bulk names that of
// the other stream, far or keep.
func start(b *testing.B, bulk, lines string) *program {
	b.Helper()
	binary, err := filepath.Abs(cmp.Or(os.Getenv("GP_BIN"), "../../bin/gatepost"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := os.Stat(binary); err != nil {
		b.Fatalf("no program to measure: %v; make build, or GP_BIN=FILE", err)
	}
	dir, err := os.MkdirTemp(os.Getenv("RELAYBENCH_TMP"), "bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	p := &program{b: b, binary: binary, dir: dir, listen: freeAddress(b)}
	p.run("dkim", "generate", filepath.Join(dir, "dkim.pem"), "--domain", authDomain, "--selector", "bench")
	config := strings.NewReplacer("LISTEN", p.listen, "BULK", bulk).Replace(configText) + lines
	for name, text := range map[string]string{"gatepost.toml": config, "secret": secret} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	p.cmd = exec.Command(binary, "serve", "-c", filepath.Join(dir, "gatepost.toml"))
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.stop)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := smtp.Dial(p.listen); err == nil {
			c.Quit()
			return p
		}
		if time.Now().After(deadline) {
			b.Fatal("gatepost does not answer")
		}
	}
}

// run runs a command of gatepost to its end.
func (p *program) run(args ...string) {
	p.b.Helper()
	if out, err := exec.Command(p.binary, args...).CombinedOutput(); err != nil {
		p.b.Fatalf("gatepost %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (p *program) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Wait()
	if p.b.Failed() {
		p.b.Logf("gatepost said, at last:\n%s", p.log.Bytes()[max(0, p.log.Len()-4<<10):])
	}
}

// cpu returns the processor time used so far.
func (p *program) cpu() time.Duration {
	p.b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err := errors.Join(err1, err2); err != nil {
		p.b.Fatal(err)
	}
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// session is one connection of a client.
type session struct {
	*smtp.Client
	body []byte
}

func dial(b *testing.B, p *program, lines string) *session {
	c, err := smtp.Dial(p.listen)
	if err != nil {
		b.Error(err)
		return nil
	}
	body := lines
	for len(body) < mailSize-400 {
		body += "<p>What a newsletter says, and a code: 123456, in a line of some length</p>\r\n"
	}
	return &session{c, []byte(body)}
}

// send hands over mail number i and returns when the 250 has come.
func (s *session) send(domain string, i int) error {
	if err := s.Mail("noreply@" + domain); err != nil {
		return err
	}
	if err := s.Rcpt("user@example.org"); err != nil {
		return err
	}
	w, err := s.Data()
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "Message-ID: <%s%d@%s>\r\nDate: Mon, 05 Jan 2026 10:00:00 +0000\r\nFrom: Example <noreply@%s>\r\nTo: user@example.org\r\n"+
		"Subject: Your verification code\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n%s", idMark, i, domain, domain, s.body)
	return w.Close()
}

const idMark = "bench."

// pump hands over b.N mails over so many sessions as fast as they are answered, and returns how many there were. The
// mails hold lines.
func (p *program) pump(domain string, sessions int, lines string) (n int) {
	p.b.Helper()
	mails := make(chan int)
	var wg sync.WaitGroup
	for range sessions {
		wg.Go(func() {
			s := dial(p.b, p, lines)
			for i := range mails {
				if s == nil {
					continue
				}
				if err := s.send(domain, i); err != nil {
					p.b.Errorf("hand mail %d to gatepost: %v", i, err)
				}
			}
			if s != nil {
				s.Quit()
			}
		})
	}
	for p.b.Loop() {
		mails <- n
		n++
	}
	close(mails)
	wg.Wait()
	return n
}

// Times of one mail, which goes over a connection of its own.
type times struct{ sent, answered, arrived time.Time }

// single sends one mail and waits until it has arrived, which arrived tells.
func (p *program) single(i int, arrived <-chan time.Time) (t times) {
	p.b.Helper()
	t.sent = time.Now()
	s := dial(p.b, p, "")
	if s == nil {
		p.b.FailNow()
	}
	if err := s.send(authDomain, i); err != nil {
		p.b.Fatalf("hand a mail to gatepost: %v", err)
	}
	t.answered = time.Now()
	s.Quit()
	select {
	case t.arrived = <-arrived:
	case <-time.After(20 * time.Second):
		p.b.Fatal("a mail did not arrive within 20 s")
	}
	return t
}

// latencies measures some mails, each after a silence of gap, and then b.N in a steady trickle.
func (p *program) latencies(colds int, gap time.Duration, silence func(), arrived <-chan time.Time) {
	p.b.Helper()
	p.single(0, arrived) // makes connections
	var cold, warm []times
	for i := range colds {
		time.Sleep(5 * roundTrip) // the answer to the last is back
		silence()
		time.Sleep(gap)
		cold = append(cold, p.single(1+i, arrived))
	}
	for p.b.Loop() {
		time.Sleep(50 * time.Millisecond)
		warm = append(warm, p.single(1+len(cold)+len(warm), arrived))
	}
	time.Sleep(5 * roundTrip)
	p.b.ReportMetric(0, "ns/op")
	p.b.ReportMetric(float64(len(arrived)), "dups") // each of the others was waited for
	for name, all := range map[string][]times{"cold": cold, "warm": warm} {
		p.b.ReportMetric(median(all, func(t times) time.Duration { return t.arrived.Sub(t.answered) }), name+"-after250-ms")
		p.b.ReportMetric(median(all, func(t times) time.Duration { return t.arrived.Sub(t.sent) }), name+"-total-ms")
	}
}

// median returns the median of d over all, in milliseconds.
func median(all []times, d func(times) time.Duration) float64 {
	var ds []time.Duration
	for _, t := range all {
		ds = append(ds, d(t))
	}
	slices.Sort(ds)
	return float64(ds[len(ds)/2].Microseconds()) / 1000
}

// report tells what a run with n mails cost.
func (p *program) report(n int, elapsed, cpu time.Duration) {
	p.b.ReportMetric(0, "ns/op")
	p.b.ReportMetric(float64(n)/elapsed.Seconds(), "mails/s")
	p.b.ReportMetric(float64(cpu.Microseconds())/1000/float64(n), "cpu-ms/mail")
}

// until waits until enough is so, a minute at most without progress.
func until(b *testing.B, what string, n int, count func() int) {
	b.Helper()
	last, since := -1, time.Now()
	for {
		got := count()
		switch {
		case got >= n:
			return
		case got != last:
			last, since = got, time.Now()
		case time.Since(since) > time.Minute:
			b.Fatalf("%d %s, want %d", got, what, n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// slowly returns an address that leads to target with so much delay each way. A connection takes its round trip, too.
func slowly(b *testing.B, target string, oneWay time.Duration) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				out := later(near, oneWay)
				time.Sleep(3 * oneWay) // SYN, SYN-ACK, and the ACK with which a client may speak
				far, err := net.Dial("tcp", target)
				if err != nil {
					near.Close()
					return
				}
				go deliver(near, later(far, oneWay))
				deliver(far, out)
			}()
		}
	}()
	return ln.Addr().String()
}

// piece is what arrives at once.
type piece struct {
	due time.Time
	b   []byte
}

// later reads what from sends, which is due by d after that.
func later(from net.Conn, d time.Duration) <-chan piece {
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := from.Read(b)
			if err != nil {
				return
			}
			pieces <- piece{time.Now().Add(d), b[:n]}
		}
	}()
	return pieces
}

// deliver writes what is due, to the end.
func deliver(to net.Conn, pieces <-chan piece) {
	for p := range pieces {
		time.Sleep(time.Until(p.due))
		to.Write(p.b) // who has gone reads nothing more, and is noticed on the other way
	}
	to.Close()
}

// freeAddress returns a loopback address whose port is below those that the kernel gives to outgoing connections.
func freeAddress(b *testing.B) string {
	b.Helper()
	for range 100 {
		ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 11000+rand.N(20000)))
		if err == nil {
			defer ln.Close()
			return ln.Addr().String()
		}
	}
	b.Fatal("no free port")
	return ""
}
