package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

func TestACrowdSharesACommitAndSignInMailDoesNotWaitForIt(t *testing.T) {
	t.Parallel()
	few := &filler{"", 1, 10}
	settles := func(kind message.Kind) job {
		return &settleJob{list: []message.Settlement{{Message: &message.Message{}}, {Message: &message.Message{Kind: kind}}}}
	}
	part := func(c class) job { return &partJob{put: &putJob{class: c, large: []*largeBody{{}}}} }
	for name, c := range map[string]struct {
		class class
		jobs  int
		job   job
		close bool
		want  time.Duration
	}{
		"a few":                  {rest, plenty - 1, few, false, moment},
		"settlements":            {settlement, enough - 1, few, false, moment},
		"many settlements":       {settlement, enough, few, false, moment / 4},
		"nothing":                {rest, 0, few, false, moment},
		"plenty":                 {rest, plenty, few, false, moment / 4},
		"sign-in mail":           {authPut, 1, few, false, moment / 4},
		"what became of a code":  {settlement, 1, settles(message.Auth), false, moment / 4},
		"what became of others":  {settlement, 1, settles(message.Marketing), false, moment},
		"a part of sign-in mail": {bulk, 1, part(authPut), false, moment / 4},
		"a part of a newsletter": {bulk, 1, part(rest), false, moment},
		"a store's end":          {rest, 1, few, true, moment / 4},
		"all of it late":         {authPut, 1, few, true, moment / 4},
	} {
		synctest.Test(t, func(t *testing.T) {
			q := newQueue()
			began := time.Now()
			time.AfterFunc(moment/4, func() {
				for range c.jobs {
					q.add(c.class, c.job)
				}
				if c.close {
					q.close()
				}
			})
			q.gather(began.Add(moment))
			if took := time.Since(began); took != c.want {
				t.Errorf("%s: the batch begins after %v, want %v", name, took, c.want)
			}
			began = time.Now()
			q.gather(began.Add(moment))
			if took, waits := time.Since(began), c.want == moment; (took > 0) != waits {
				t.Errorf("%s: what is there already waits %v", name, took)
			}
			for !q.isEmpty() {
				q.take()
			}
			if q.urgent != 0 {
				t.Errorf("%s: of an empty queue %d are urgent", name, q.urgent)
			}
		})
	}
}

func TestOnlyACrowdWaitsForMore(t *testing.T) {
	t.Parallel()
	for jobs, waits := range map[int]bool{1: false, crowd - 1: false, crowd: true} {
		synctest.Test(t, func(t *testing.T) {
			gate := make(chan struct{})
			s := openTest(t, Options{Dir: t.TempDir()}, func(s *Store) {
				s.writer.commit = func(db database) error { <-gate; return commitTx(db) }
			})
			defer s.Close(t.Context())
			defer close(gate)
			news := func() Write { return s.Put([]*message.Message{newMessage(s, message.Marketing, 0)}, false) }
			first := news()
			synctest.Wait() // it is being committed, so what comes now is a batch
			var batch []Write
			for range jobs {
				batch = append(batch, news())
			}
			gate <- struct{}{}
			<-first.Done()
			gate <- struct{}{}
			for _, w := range batch {
				<-w.Done()
			}
			began := time.Now()
			news()
			gate <- struct{}{}
			if waited := time.Since(began); (waited > 0) != waits || waited > moment {
				t.Errorf("after a batch of %d the next begins %v later", jobs, waited)
			}
		})
	}
}
