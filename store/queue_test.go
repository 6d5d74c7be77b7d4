package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"gatepost/message"
)

func TestPutIsRefusedWhileTooMuchWaits(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
		s.writer.commit = func(db database) error { <-gate; return commitTx(db) }
	})
	var codes []int
	raw := make(message.Raw, 8<<20)
	for range 10 {
		m := newMessage(s, message.Marketing, 0)
		m.Raw = raw
		w := s.Put([]*message.Message{m}, false)
		select {
		case <-w.Done():
			_, err := w.Result()
			codes = append(codes, replyCode(err))
		default:
		}
	}
	auth := s.Put([]*message.Message{newMessage(s, message.Auth, 0)}, false)
	select {
	case <-auth.Done():
		t.Error("auth mail was refused too")
	default:
	}
	close(gate)
	if len(codes) < 3 || slices.ContainsFunc(codes, func(c int) bool { return c != 452 }) {
		t.Errorf("refused with %v, want 452 for what exceeds 48 MB", codes)
	}
	<-auth.Done()
	if _, err := auth.Result(); err != nil {
		t.Error(err)
	}
}

// filler is a job of some size.
type filler struct {
	name             string
	messages, octets int
}

func (f *filler) size() (int, int) { return f.messages, f.octets }

func (f *filler) apply(*tx) error { return nil }

func (f *filler) finish(error) {}

func names(jobs []job) (names string) { return fmt.Sprint(len(jobs)) + first(jobs) }

func first(jobs []job) (s string) {
	for _, j := range jobs {
		if n := j.(*filler).name; !strings.HasSuffix(s, n) {
			s += " " + n
		}
	}
	return s
}

func TestBatchesPutAuthFirstAndStarveNobody(t *testing.T) {
	t.Parallel()
	fill := func(q *queue, c class, name string, count, octets int) {
		for range count {
			if err := q.add(c, &filler{name, 1, octets}); err != nil {
				t.Fatal(err)
			}
		}
	}
	q := newQueue()
	fill(q, rest, "rest", 300, 10)
	fill(q, settlement, "settle", 300, 0)
	fill(q, authPut, "auth", 300, 10)
	for _, want := range []string{"256 auth settle rest", "256 auth settle rest", "256 settle rest", "132 rest"} {
		if got := names(q.take()); got != want {
			t.Errorf("batch %q, want %q", got, want)
		}
	}
	fill(q, authPut, "auth", 40, 100<<10)
	fill(q, rest, "rest", 3, 2<<20)
	for i := 1; ; i++ {
		got := names(q.take())
		if got == "10 auth" {
			fill(q, authPut, "auth", 10, 100<<10)
			continue
		}
		if i != maxSkips+1 || !strings.HasSuffix(got, "rest") {
			t.Errorf("batch %d is %q; a big one waits for %d batches of auth mail and no more", i, got, maxSkips)
		}
		break
	}
	q = newQueue()
	fill(q, rest, "rest", 10, 1<<20)
	if got := names(q.take()); got != "4 rest" {
		t.Errorf("batch %q, want 4 MB", got)
	}
}

// isEmpty reports whether nothing waits.
func (q *queue) isEmpty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, jobs := range q.jobs {
		if len(jobs) > 0 {
			return false
		}
	}
	return true
}
