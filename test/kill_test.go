package test

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	_ "modernc.org/sqlite" // to look at what a killed daemon leaves

	"gatepost/event"
	"gatepost/message"
)

// maxSlots is how many hand-overs the daemon of configText has under way at most: the connections of both upstreams.
const maxSlots = 2 * 20

// crash is one SIGKILL: when it was, and what was under way.
type crash struct {
	before, after time.Time       // the daemon died in between
	owned         map[string]bool // the messages that the spool it left says were being handed over
	marked        map[string]bool // the messages that the next daemon marked as perhaps sent
	slots         int             // hand-overs under way, at most
}

func TestKilledInMidLoadLosesNothingAndDuplicatesOnlyWhatIsMarked(t *testing.T) {
	s := newSite(t)
	slow := func(arrival) error { time.Sleep(3 * time.Millisecond); return nil } // so that hand-overs are under way
	s.auth.setAnswer(slow)
	s.bulk.setAnswer(slow)
	s.start()
	l := startLoad(s.listen, 8, authStream, bulkStream)
	var crashes []crash
	for range rounds(5, 50) {
		l.waitMore(t, 50)
		time.Sleep(rand.N(300 * time.Millisecond))
		crashes = append(crashes, s.crash())
	}
	taken := l.stop()
	s.waitArrived(taken, time.Minute)
	s.waitEmpty(time.Minute)
	s.judge(crashes, len(taken))
}

// crash kills the daemon, looks at what it left, and starts another.
func (s *site) crash() crash {
	s.t.Helper()
	c := crash{before: time.Now(), marked: make(map[string]bool)}
	s.daemon.kill()
	c.after = time.Now()
	for _, far := range []*sink{s.auth, s.bulk} {
		c.slots += far.openBetween(c.before, c.after)
	}
	c.owned = make(map[string]bool)
	for id := range s.spool("SELECT message, 0 FROM recipient WHERE owner <> 0") {
		c.owned[id] = true
	}
	s.start()
	return c
}

// spool asks a copy of the database, which no daemon may be using, for messages and a time for each.
func (s *site) spool(query string) iter.Seq2[string, time.Time] {
	s.t.Helper()
	copied, err := os.MkdirTemp(s.dir, "copy-")
	if err != nil {
		s.t.Fatal(err)
	}
	defer os.RemoveAll(copied)
	for _, name := range []string{"spool.db", "spool.db-wal"} {
		b, err := os.ReadFile(s.path("state/" + name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a daemon that ended in order leaves no log
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), b, 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(copied, "spool.db"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(s.t.Context(), query)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rows.Close()
	type row struct {
		id message.ID
		at int64
	}
	var found []row
	for rows.Next() {
		var r row
		if err := rows.Scan(&r.id, &r.at); err != nil {
			s.t.Fatal(err)
		}
		found = append(found, r)
	}
	if err := rows.Err(); err != nil {
		s.t.Fatal(err)
	}
	return func(yield func(string, time.Time) bool) {
		for _, r := range found {
			if !yield(r.id.String(), time.UnixMilli(r.at)) {
				return
			}
		}
	}
}

// judge holds what arrived against what each crash may have caused.
func (s *site) judge(crashes []crash, taken int) {
	t := s.t
	t.Helper()
	s.daemon.stop()
	marked := s.readMarks(crashes)
	s.start()
	var copies, duplicates int
	caused := make([]int, len(crashes))
	for _, far := range []*sink{s.auth, s.bulk} {
		for id, all := range far.copies() {
			copies += len(all)
			for i := 1; i < len(all); i++ {
				duplicates++
				if n := causeOf(crashes, all[i-1], all[i]); n >= 0 {
					caused[n]++
				} else {
					t.Errorf("mail %s arrived again without a crash in between", id)
				}
			}
			if len(all) > 1 && !s.tellsRecovered(queueID(all[0].raw)) {
				t.Errorf("mail %s arrived %d times, and trace says nothing of it", id, len(all))
			}
		}
	}
	for i, c := range crashes {
		if caused[i] > c.slots || caused[i] > maxSlots {
			t.Errorf("crash %d caused %d duplicates with at most %d slots in use", i, caused[i], c.slots)
		}
		if !subset(c.marked, c.owned) {
			t.Errorf("after crash %d %d messages were marked, and they are not among the %d that were owned", i, len(c.marked), len(c.owned))
		}
	}
	if marked == 0 {
		t.Error("no crash hit a hand-over under way: the test has shown nothing")
	}
	t.Logf("%d kills: %d mails taken, %d copies arrived, 0 lost, %d duplicates, %d marked", len(crashes), taken, copies, duplicates, marked)
}

// readMarks finds out which messages were marked after which crash, and returns how many marks there are.
func (s *site) readMarks(crashes []crash) (n int) {
	s.t.Helper()
	for id, at := range s.spool(fmt.Sprintf("SELECT message, at FROM event WHERE kind = %d", event.Recovered)) {
		n++
		for i := len(crashes) - 1; i >= 0; i-- {
			if at.After(crashes[i].before) {
				crashes[i].marked[id] = true
				break
			}
		}
	}
	return n
}

// causeOf returns which crash lies between two copies and had the message marked, -1 for none.
func causeOf(crashes []crash, first, second arrival) int {
	for i, c := range crashes {
		if !first.at.After(c.after) && second.at.After(c.before) && c.marked[queueID(second.raw)] {
			return i
		}
	}
	return -1
}

func subset(a, b map[string]bool) bool {
	for key := range a {
		if !b[key] {
			return false
		}
	}
	return true
}

// tellsRecovered reports whether the trace of a message has the event that marks it.
func (s *site) tellsRecovered(id string) bool {
	s.t.Helper()
	for _, e := range s.trace(id).Events {
		if e.Kind == event.Recovered {
			return true
		}
	}
	return false
}
