package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

// childDir tells the test binary to be the process that is killed; childKey what its messages supersede under, childSize
// how large they are.
const (
	childDir  = "GATEPOST_STORE_TEST_DIR"
	childKey  = "GATEPOST_STORE_TEST_KEY"
	childSize = "GATEPOST_STORE_TEST_SIZE"
)

// child says what the process does and after how many messages it is killed.
type child struct {
	key, size string
	until     int
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		size, _ := strconv.Atoi(os.Getenv(childSize))
		putForEver(dir, os.Getenv(childKey), size)
	}
	os.Exit(pgtest.Main(m))
}

// putForEver stores messages until it is killed, half of them born ours, and prints the id of each that is durable.
// With a key each has that and its producer's number as its supersede key.
func putForEver(dir, key string, size int) {
	s, err := Open(context.Background(), Options{Dir: dir})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var out sync.Mutex
	for i := range 16 {
		go func() {
			for {
				m := newMessage(s, message.Auth, size)
				if key != "" {
					m.Supersede = fmt.Append(nil, key, i)
				}
				if err := put(s, i%2 == 0, m); err != nil {
					fmt.Println("error", err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Println(map[bool]string{true: "own", false: "waiting"}[i%2 == 0], m.ID)
				out.Unlock()
			}
		}()
	}
	select {}
}

func TestNothingDurableIsLostWhenTheProcessIsKilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	durable := map[message.ID]string{}
	for range 3 {
		killed := runAndKill(t, dir, child{size: "1000", until: 100}, durable)
		if killed < 16 {
			t.Fatalf("only %d messages were stored before the kill", killed)
		}
	}
	s := openTest(t, Options{Dir: dir}, nil)
	rows := must(s.List(t.Context(), message.QueueFilter{Limit: 1 << 20}))
	for _, r := range rows {
		if how := durable[r.ID]; r.State != "queued" || how == "waiting" && r.MaybeSent || how == "own" && (!r.MaybeSent || r.Copies != 1) {
			t.Errorf("%s: %+v", how, r)
		}
		delete(durable, r.ID)
	}
	if len(durable) != 0 {
		t.Errorf("%d of %d durable messages are lost", len(durable), len(rows)+len(durable))
	}
	for _, d := range claimAll(t, s, "auth") {
		if d.Held != "" || len(d.Message.Raw) < 1000 {
			t.Errorf("message %v came back with %d octets, held %q", d.Message.ID, len(d.Message.Raw), d.Held)
		}
	}
	marked := 0
	for _, e := range must(s.Events(t.Context(), EventQuery{Limit: maxEvents})) {
		if e.Kind == event.Recovered {
			marked++
		}
	}
	if marked == 0 {
		t.Error("no recovered events")
	}
}

func TestAKilledProcessLeavesTheNewestUnderEachKeyAndAnEndForTheRest(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	durable := map[message.ID]string{}
	if n := runAndKill(t, dir, child{"k", "1000", 100}, durable); n < 100 {
		t.Fatalf("only %d messages were stored before the kill", n)
	}
	s := openTest(t, Options{Dir: dir}, nil)
	queued := map[message.ID]bool{}
	waiting := 0
	for _, r := range must(s.List(t.Context(), message.QueueFilter{Limit: 1 << 20})) {
		if queued[r.ID] = true; !r.MaybeSent {
			waiting++
		}
	}
	if waiting > 8 {
		t.Errorf("%d messages wait under 8 keys", waiting)
	}
	superseded := 0
	for id, how := range durable {
		ends := 0
		for _, kind := range kindsOf(t, s, id) {
			if kind == event.Superseded {
				ends++
			}
		}
		superseded += ends
		if want := map[bool]int{false: 1}[queued[id]]; ends != want || how == "own" && ends != 0 {
			t.Errorf("%s: message %v is queued: %v, and superseded %d times", how, id, queued[id], ends)
		}
	}
	if superseded == 0 {
		t.Error("nothing was superseded")
	}
}

// runAndKill lets a child store messages for a while, kills it, and notes what it said was durable.
func runAndKill(t *testing.T, dir string, c child, durable map[message.ID]string) (n int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childKey+"="+c.key, childSize+"="+c.size)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		how, text, _ := strings.Cut(lines.Text(), " ")
		id, err := message.ParseID(text)
		if err != nil {
			cmd.Process.Kill()
			t.Fatalf("the child says %q", lines.Text())
		}
		durable[id] = how
		if n++; n == c.until {
			cmd.Process.Kill()
		}
	}
	return n
}

// smallDisk mounts a file system of 8 MB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		t.Fatalf("mount a small file system (this test must run as root, with CAP_SYS_ADMIN): %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

func TestAFullDiskIsAnsweredWith452AndLosesNothing(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	dir := filepath.Join(disk, "state")
	s := openTest(t, Options{Dir: dir}, nil)
	if err := s.Ready(message.Marketing); err != nil {
		t.Fatalf("not ready with 8 MB free: %v", err)
	}
	var stored []*message.Message
	refused := 0
	for range 400 { // 20 MB, whatever Ready says
		m := newMessage(s, message.Auth, 50000)
		switch err := put(s, false, m); replyCode(err) {
		case 0:
			if err != nil {
				t.Fatal(err)
			}
			stored = append(stored, m)
		case 452:
			refused++
		default:
			t.Fatalf("put: %v, want 452", err)
		}
	}
	if len(stored) < 20 || refused < 100 {
		t.Fatalf("%d stored, %d refused", len(stored), refused)
	}
	if rows := must(s.List(t.Context(), message.QueueFilter{Limit: 1000})); len(rows) != len(stored) {
		t.Errorf("%d rows, %d were stored", len(rows), len(stored))
	}
	got := map[message.ID]bool{}
	drain := func(max int) {
		for _, d := range must(s.Claim(t.Context(), "auth", []string{""}, max, 1<<30)) {
			got[d.Message.ID] = d.Held == "" && len(d.Message.Raw) > 50000
			must(s.Settle(t.Context(), delivered(d.Message, d.Epoch)))
		}
	}
	drain(len(stored) / 2) // which the full disk does not keep it from
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=32m"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it takes mail again", func() bool { return s.Ready(message.Auth) == nil && s.Ready(message.Marketing) == nil })
	mustPut(t, s, false, newMessage(s, message.Auth, 50000))
	drain(1000)
	for _, m := range stored {
		if !got[m.ID] {
			t.Errorf("message %v is lost", m.ID)
		}
	}
	closeTest(t, s)
	s = openTest(t, Options{Dir: dir}, nil)
	if rows := must(s.List(t.Context(), message.QueueFilter{})); len(rows) != 0 {
		t.Errorf("%d rows are left", len(rows))
	}
	closeTest(t, s)
}

func TestADiskThatOthersFillIsRefusedEarly(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	s := openTest(t, Options{Dir: filepath.Join(disk, "state")}, nil)
	var fs syscall.Statfs_t
	if err := syscall.Statfs(disk, &fs); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, int(fs.Bavail)*int(fs.Bsize)-3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "marketing is refused", func() bool { return replyCode(s.Ready(message.Marketing)) == 452 })
	if err := s.Ready(message.Auth); err != nil {
		t.Errorf("auth mail is refused too, with 3 MB free: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	eventually(t, "marketing is taken again", func() bool { return s.Ready(message.Marketing) == nil })
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	closeTest(t, s)
}
