package store

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"gatepost/message"
)

// sendThrough stores n mails of 2 KB born owned in one commit, and settles them in another.
func sendThrough(t testing.TB, s *Store, n int) {
	t.Helper()
	var ms []*message.Message
	var settlements []message.Settlement
	for range n {
		m := newMessage(s, message.Marketing, 2000)
		m.Recipients[0].Address = strconv.FormatInt(int64(m.ID), 10) + "@example.net"
		ms, settlements = append(ms, m), append(settlements, delivered(m, s.epoch.Load())...)
	}
	mustPut(t, s, true, ms...)
	if lost, err := s.Settle(context.Background(), settlements); err != nil || len(lost) > 0 {
		t.Fatalf("lost %v, err %v", lost, err)
	}
}

func sizeOf(t testing.TB, file string) int64 {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

func TestTheFilesStaySmallHoweverMuchMailGoesThrough(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openTest(t, Options{Dir: dir}, nil)
	const turns = 160 // some 5000 pages in the log
	for range turns {
		sendThrough(t, s, 10)
	}
	if n, most := sizeOf(t, filepath.Join(dir, databaseFile+"-wal")), int64(checkpointLate*checkpointPages*pageSize); n >= most {
		t.Errorf("the log has grown to %d octets, want less than %d: it is to be copied and begun anew while commits go on", n, most)
	}
	if n, most := sizeOf(t, filepath.Join(dir, databaseFile)), int64(turns*10*1500+1<<20); n > most {
		t.Errorf("the database has grown to %d octets, want %d at most, for history and what is under way", n, most)
	}
}
