package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"gatepost/upstream/upstreamtest"
)

// serveHere runs gatepost in this process until the test ends, with one stream of that kind, and returns where it listens.
func serveHere(t testing.TB, kind string) (address string) {
	t.Helper()
	dir := t.TempDir()
	address = freeAddress(t)
	file := filepath.Join(dir, "gatepost.toml")
	config := fmt.Sprintf(`hostname = "gw.example.com"
state_dir = "state"
[log]
level = "error"
[listen.smtp]
address = %q
clients = ["app"]
[client.app]
networks = ["127.0.0.0/8"]
streams = ["only"]
[stream.only]
kind = %q
verdict = "upstream"
domains = ["auth.example.com"]
route = ["sink"]
egress = "local"
[egress.local]
ipv4 = "127.0.0.1"
[upstream.sink]
type = "smtp"
address = %q
tls = "none"
dkim = "none"
`, address, kind, upstreamtest.Discard(t))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() { ended <- Main(ctx, []string{"gatepost", "serve", "-c", file}, io.Discard, io.Discard) }()
	t.Cleanup(func() {
		stop()
		if code := <-ended; code != 0 {
			t.Errorf("serve ended with %d", code)
		}
	})
	return address
}

// sender is a client that makes no garbage.
type sender struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dialSender(t testing.TB, address string) *sender {
	t.Helper()
	s := &sender{t: t}
	for until := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			s.conn = conn
			break
		}
		if time.Now().After(until) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.conn.Close() })
	s.r = bufio.NewReader(s.conn)
	s.expect('2')
	s.say([]byte("EHLO client.example.com\r\n"), '2')
	return s
}

func (s *sender) say(b []byte, class byte) {
	s.conn.SetDeadline(time.Now().Add(patient))
	if _, err := s.conn.Write(b); err != nil {
		s.t.Fatal(err)
	}
	s.expect(class)
}

func (s *sender) expect(class byte) {
	for {
		line, err := s.r.ReadSlice('\n')
		if err != nil || line[0] != class {
			s.t.Fatalf("answer %q, %v; want class %c", line, err, class)
		}
		if line[3] != '-' {
			return
		}
	}
}

func (s *sender) mail(data []byte) {
	s.say([]byte("MAIL FROM:<no-reply@auth.example.com>\r\n"), '2')
	s.say([]byte("RCPT TO:<user@example.net>\r\n"), '2')
	s.say([]byte("DATA\r\n"), '3')
	s.say(data, '2')
}

func mailOf(size int) []byte {
	head := "From: no-reply@auth.example.com\r\nTo: user@example.net\r\nSubject: x\r\n" +
		"Date: Sat, 01 Mar 2025 10:00:00 +0000\r\nMessage-ID: <x@auth.example.com>\r\n\r\n"
	line := strings.Repeat("x", 76) + "\r\n"
	return []byte(head + strings.Repeat(line, (size-len(head))/len(line)) + ".\r\n")
}

// allocated returns how many octets, and how many times, memory is allocated for a mail.
func allocated(s *sender, data []byte) (octets, times int) {
	const n = 40
	for range 10 {
		s.mail(data)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // which empties pools
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		s.mail(data)
	}
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc-before.TotalAlloc) / n, int(after.Mallocs-before.Mallocs) / n
}

func TestAMailIsCopiedAtMostTwiceBetweenTheSocketAndTheUpstream(t *testing.T) {
	for kind, copies := range map[string]int{
		"auth":      2, // in one piece, and sealed for the disk
		"marketing": 1,
	} {
		t.Run(kind, func(t *testing.T) {
			s := dialSender(t, serveHere(t, kind))
			small, large := mailOf(2<<10), mailOf(200<<10)
			smallOctets, smallTimes := allocated(s, small)
			largeOctets, largeTimes := allocated(s, large)
			// What is the same for every mail is not a copy of it; pages round up, and the race detector loses parts of pools.
			if most := (copies + 1) * (len(large) - len(small)); largeOctets-smallOctets >= most*9/10 {
				t.Errorf("%d octets are allocated for a mail of %d and %d for one of %d: that is more than %d copies", largeOctets, len(large), smallOctets, len(small), copies)
			}
			if smallOctets > 128<<10 || largeTimes > smallTimes+smallTimes/4 {
				t.Errorf("a small mail takes %d octets of memory in %d pieces, a large one %d pieces: more than its size accounts for", smallOctets, smallTimes, largeTimes)
			}
		})
	}
}

// BenchmarkMail is a mail from the client's socket to the sink's, unsigned, with its commits to disk.
func BenchmarkMail(b *testing.B) {
	for _, size := range []int{2 << 10, 20 << 10, 200 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			s := dialSender(b, serveHere(b, "marketing"))
			data := mailOf(size)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				s.mail(data)
			}
		})
	}
}
