package test

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestStoppedUnderLoadLosesNothingDuplicatesNothingAndAnswersEverySession(t *testing.T) {
	s := newDoors(t)
	s.auth.setAnswer(func(arrival) error { time.Sleep(3 * time.Millisecond); return nil })
	s.start()
	l := startLoad(s.listen, 8, authStream, bulkStream)
	l.add(4, authStream, func() (*client, error) { return s.dialLogin(s.starttls, authClient, webLogin) })
	l.add(4, bulkStream, func() (*client, error) { return s.dialLogin(s.implicit, bulkClient, lettersLogin) })
	var longest time.Duration
	for range rounds(3, 20) {
		l.waitMore(t, 50)
		time.Sleep(rand.N(100 * time.Millisecond))
		longest = max(longest, s.daemon.stop())
		s.start()
	}
	taken := l.stop()
	s.waitArrived(taken, time.Minute)
	s.waitEmpty(time.Minute)
	if longest > 10*time.Second {
		t.Errorf("stopping took %v, want 10 s at most", longest)
	}
	s.wantOneCopyEach(t)
	if l.silent > 0 {
		t.Errorf("%d sessions ended without a reply", l.silent)
	}
	for id, reply := range l.refused {
		if reply[0] != '4' {
			t.Errorf("mail %s was refused with %s", id, reply)
		}
	}
	t.Logf("%d mails taken, %d refused for now, longest stop %v", len(taken), len(l.refused), longest.Round(time.Millisecond))
}
