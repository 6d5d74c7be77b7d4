package test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/event"
)

// promptly is how soon after an upstream's return the codes that waited for it must be there.
const promptly = 1500 * time.Millisecond

// outage is how long every upstream is gone. A route counts as down after 30 s, and is then closed to new codes.
var (
	outage      = time.Duration(rounds(5, 34)) * time.Second
	countsAsOut = 31 * time.Second
)

func TestCodesArriveRightAfterAnOutageAndNeverPastTheirLifetime(t *testing.T) {
	for name, backlog := range map[string]int{
		"nothing else waits":     0,
		"a newsletter waits too": rounds(2000, 20000),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.program = plain // a second and a half is measured
			s.start()
			s.bulk.stop()
			s.fill(backlog)
			s.auth.stop()

			began := time.Now()
			short := authStream.mustPost(t, s.listen, "short", "111111", "X-Gatepost-TTL: 2")
			taken := s.codesUntil(began.Add(outage * 5 / 6))
			s.wantRefusalsAfter(began.Add(countsAsOut), began.Add(outage))
			time.Sleep(time.Until(began.Add(outage)))
			back := time.Now()
			s.bulk.start()
			s.auth.start()

			s.auth.wait(taken, 10*time.Second)
			last := time.Duration(0)
			for _, a := range s.auth.all() {
				last = max(last, a.at.Sub(back))
			}
			if last > promptly {
				t.Errorf("the last code arrived %v after the upstream's return, want %v at most", last, promptly)
			}
			authStream.mustPost(t, s.listen, "afterwards", "333333")
			s.auth.wait(taken+1, 10*time.Second)
			if s.auth.copies()["short"] != nil {
				t.Error("the code arrived whose lifetime was over")
			}
			if !s.hasEvent(short, event.Expired) {
				t.Error("no event says that the code has expired")
			}
			s.bulk.wait(backlog, 2*time.Minute)
			s.waitEmpty(10 * time.Second)
			t.Logf("%d codes in an outage of %v with %d other mails waiting: the last one arrived %v after its end", taken, outage, backlog,
				last.Round(time.Millisecond))
			s.daemon.stop()
		})
	}
}

// wantRefusalsAfter checks, in an outage that lasts until end, that new codes are refused at once from a moment on, so
// that nobody is told "code sent".
func (s *site) wantRefusalsAfter(from, end time.Time) {
	s.t.Helper()
	if end.Before(from) {
		return
	}
	time.Sleep(time.Until(from))
	began := time.Now()
	_, err := authStream.post(s.listen, "refused", "222222")
	if r, ok := errors.AsType[refusal](err); !ok || !strings.HasPrefix(string(r), "451 4.") || time.Since(began) > time.Second {
		s.t.Errorf("a code for a route that is down was answered %v after %v, want 451 at once", err, time.Since(began))
	}
}

// fill queues n marketing mails.
func (s *site) fill(n int) {
	s.t.Helper()
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := worker; i < n; i += 8 {
				if _, err := bulkStream.post(s.listen, fmt.Sprintf("b%d", i), "1"); err != nil {
					s.t.Errorf("mail %d of the backlog: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// codesUntil hands in a code every quarter of a second and returns how many were taken: all of them have to be.
func (s *site) codesUntil(end time.Time) (n int) {
	s.t.Helper()
	var wg sync.WaitGroup
	for ; time.Now().Before(end); time.Sleep(250 * time.Millisecond) {
		id := fmt.Sprintf("c%d", n)
		n++
		wg.Go(func() {
			if reply, err := authStream.post(s.listen, id, "123456"); err != nil {
				s.t.Errorf("code %s was answered %q, %v", id, reply, err)
			}
		})
	}
	wg.Wait()
	return n
}

func (s *site) hasEvent(id string, kind event.Kind) bool {
	s.t.Helper()
	for _, e := range s.trace(id).Events {
		if e.Kind == kind {
			return true
		}
	}
	return false
}
