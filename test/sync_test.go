package test

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// call is one system call of a trace: the lines at which it began and ended.
type call struct {
	name       string
	args       string
	result     string
	began, end int
}

var (
	wholeCall  = regexp.MustCompile(`^(\d+) +(\w+)\((.*)\) += (-?\d+|\?)`)
	begunCall  = regexp.MustCompile(`^(\d+) +(\w+)\((.*) <unfinished \.\.\.>$`)
	endedCall  = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)\) += (-?\d+|\?)`)
	descriptor = regexp.MustCompile(`^(\d+)<([^>]*)>`)
)

// readTrace reads what strace -f -y wrote. Calls come in the order in which they ended.
func readTrace(t *testing.T, file string) (calls []call) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	begun := make(map[string]call) // by thread
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 0; lines.Scan(); n++ {
		line := lines.Text()
		if m := wholeCall.FindStringSubmatch(line); m != nil {
			calls = append(calls, call{m[2], m[3], m[4], n, n})
		} else if m := begunCall.FindStringSubmatch(line); m != nil {
			begun[m[1]] = call{name: m[2], args: m[3], began: n}
		} else if m := endedCall.FindStringSubmatch(line); m != nil {
			c := begun[m[1]]
			c.args, c.result, c.end = c.args+m[3], m[4], n
			calls = append(calls, c)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return calls
}

// file returns what descriptor the call is about, with its path or socket.
func (c call) file() string { return descriptor.FindString(c.args) }

func TestBetweenTheEndOfDataAndIts250LiesACompletedFsyncOfTheLog(t *testing.T) {
	t.Parallel()
	needs(t, "strace", "strace")
	s := newSite(t)
	s.program = plain // strace and the race detector together are too slow
	s.start("strace", "-f", "-y", "-s", "256", "-o", s.path("trace"),
		"-e", "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,fsync,fdatasync,sync_file_range,msync", "--")
	const sessions, each = 4, 10
	var wg sync.WaitGroup
	for i := range sessions {
		for _, via := range []stream{authStream, bulkStream} {
			wg.Go(func() {
				for n := range each {
					if reply, err := via.post(s.listen, fmt.Sprintf("m%d-%d", i, n), "1"); err != nil {
						t.Errorf("%q, %v", reply, err)
					}
				}
			})
		}
	}
	wg.Wait()
	s.stopTraced()
	calls := readTrace(t, s.path("trace"))
	answers := 0
	for i, c := range calls {
		if !strings.Contains(c.args, "250 2.0.0 queued as ") || c.name == "read" {
			continue
		}
		answers++
		if !syncedBefore(calls[:i], c) {
			t.Errorf("no fsync of the log lies between the end of DATA and its answer: %s(%s)", c.name, c.args)
		}
	}
	if answers != 2*sessions*each {
		t.Errorf("the trace has %d answers to mail, want %d", answers, 2*sessions*each)
	}
	t.Logf("%d answers, each after an fsync of the log that began after the end of its DATA", answers)
}

// stopTraced ends the daemon that strace runs; strace follows.
func (s *site) stopTraced() {
	s.t.Helper()
	if err := syscall.Kill(s.status().PID, syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	if code := s.daemon.wait(15 * time.Second); code != 0 {
		s.t.Errorf("gatepost ended with %d under strace", code)
	}
}

// syncedBefore reports whether a sync of the log began after the last read from answer's client, which was the end of
// its mail since the client waits for the answer, and ended before answer was written.
func syncedBefore(before []call, answer call) bool {
	read := -1
	for i, c := range before {
		if strings.HasPrefix(c.name, "re") && c.file() == answer.file() && c.result != "0" && c.result[0] != '-' {
			read = i
		}
	}
	if read < 0 || !strings.Contains(before[read].args, `.\r\n"`) {
		return false
	}
	return slices.ContainsFunc(before[read:], func(c call) bool {
		return (c.name == "fsync" || c.name == "fdatasync") && c.result == "0" && strings.HasSuffix(strings.TrimSuffix(c.file(), ">"), "spool.db-wal") &&
			c.began > before[read].end && c.end < answer.began
	})
}
