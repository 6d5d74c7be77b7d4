package test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// smallDisk gives the site a state_dir on a file system of its own, of some megabytes.
func (s *site) smallDisk(megabytes int) {
	s.t.Helper()
	needsRoot(s.t)
	dir := s.path("state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Mount("gatepost-test", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", megabytes)); err != nil {
		s.t.Fatalf("mount a small file system: %v (this takes CAP_SYS_ADMIN)", err)
	}
	s.t.Cleanup(func() {
		if s.daemon != nil {
			s.daemon.signal(syscall.SIGKILL)
			<-s.daemon.exited
		}
		if err := syscall.Unmount(dir, 0); err != nil {
			s.t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

// untilFull hands in mail of the stream until one is refused, and returns what was taken.
func (s *site) untilFull(via stream, prefix string, size int) map[string]string {
	s.t.Helper()
	taken := make(map[string]string)
	pad := strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78)
	for i := range 10000 {
		id := fmt.Sprintf("%s%d", prefix, i)
		c, err := dial(s.listen, via.client)
		if err != nil {
			s.t.Fatal(err)
		}
		reply, err := c.send(via.sender(), id+"@example.net", via.letter(id, "123456")+pad)
		c.quit()
		if err != nil {
			if !strings.HasPrefix(err.Error(), "452 4.3.1 ") {
				s.t.Errorf("mail %s was answered %v, want 452 4.3.1", id, err)
			}
			return taken
		}
		taken[id] = queuedAs(reply)
	}
	s.t.Fatal("the disk does not get full")
	return nil
}

// fillDisk takes the space of the small disk for something else, such as a core dump, until only so much is free.
func (s *site) fillDisk(free uint64) {
	s.t.Helper()
	f, err := os.OpenFile(s.path("state/core"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 4096); err == nil; _, err = f.Write(block) {
		var fs syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &fs); err != nil {
			s.t.Fatal(err)
		}
		if fs.Bavail*uint64(fs.Bsize) <= free {
			return
		}
	}
	if !errors.Is(err, syscall.ENOSPC) {
		s.t.Fatal(err)
	}
}

// makeSpace undoes fillDisk.
func (s *site) makeSpace() {
	s.t.Helper()
	if err := os.Remove(s.path("state/core")); err != nil {
		s.t.Fatal(err)
	}
}

// takenAgainWithin checks that mail of both streams is taken soon, with nobody doing anything.
func (s *site) takenAgainWithin(d time.Duration, prefix string, taken map[string]string) {
	s.t.Helper()
	deadline := time.Now().Add(d)
	for i, via := range []stream{authStream, bulkStream} {
		id := fmt.Sprintf("%s%d", prefix, i)
		eventually(s.t, time.Until(deadline), "mail is taken again", func() bool {
			reply, err := via.post(s.listen, id, "1")
			taken[id] = queuedAs(reply)
			return err == nil
		})
	}
}

func TestAFullDiskRefusesForNowLosesNothingAndGoesOnByItself(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.smallDisk(64)
	s.configure(`kind    = "auth"`, "kind    = \"auth\"\nwhen_down = \"queue\"")
	s.start()

	// The queue itself takes the last space. What was taken is delivered all the same.
	s.auth.stop()
	s.bulk.stop()
	s.fillDisk(24 << 20)
	taken := s.untilFull(bulkStream, "b", 256<<10)
	maps.Copy(taken, s.untilFull(authStream, "a", 64<<10))
	if len(taken) < 20 {
		t.Errorf("%d mails were taken before the disk was full", len(taken))
	}
	s.bulk.start()
	s.auth.start()
	s.waitArrived(taken, 30*time.Second)
	s.waitEmpty(10 * time.Second)
	s.makeSpace()
	s.takenAgainWithin(5*time.Second, "space", taken)

	// Something else takes all of it at once.
	eventually(t, 10*time.Second, "mail is refused", func() bool {
		s.fillDisk(0) // again, since the spool gives space back after the flood
		id := fmt.Sprintf("c%d", len(taken))
		reply, err := authStream.post(s.listen, id, "123456")
		if err != nil {
			return strings.HasPrefix(err.Error(), "452 4.3.1 ")
		}
		taken[id] = queuedAs(reply)
		return false
	})
	s.makeSpace()
	s.takenAgainWithin(5*time.Second, "again", taken)

	s.waitArrived(taken, 10*time.Second)
	s.waitEmpty(10 * time.Second)
	s.daemon.stop()
	for _, far := range []*sink{s.auth, s.bulk} {
		for id, all := range far.copies() {
			if taken[id] == "" || len(all) != 1 {
				t.Errorf("mail %s, taken as %q, arrived %d times", id, taken[id], len(all))
			}
		}
	}
	t.Logf("%d mails taken around two full disks, none lost, none twice", len(taken))
}
