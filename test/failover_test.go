package test

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/upstream/upstreamtest"
)

// newRoute makes a site whose auth mail goes through an upstream at addr first, and through "sink" where that fails.
func newRoute(t *testing.T, addr string) *site {
	t.Helper()
	s := newSite(t)
	s.program = plain // seconds are measured
	s.configure(`route   = ["sink"]`, `route   = ["first", "sink"]`)
	s.write("first.password", "secret\n")
	s.configure("[upstream.bulk]\n", `[upstream.first]
type    = "smtp"
address = "`+addr+`"
tls     = "none"
username = "gatepost"
password_file = "first.password"
[upstream.bulk]
`)
	return s
}

// newFirst starts the host of a route's first upstream.
func newFirst(t *testing.T) *upstreamtest.Host {
	t.Helper()
	return upstreamtest.NewHost(t, upstreamtest.HostOptions{Addr: freeAddress(t), Username: "gatepost", Password: "secret"})
}

// at makes a host answer every verb with reply.
func at(verb, reply string) func(upstreamtest.Step) upstreamtest.Action {
	return func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == verb {
			return upstreamtest.Action{Reply: reply}
		}
		return upstreamtest.Action{}
	}
}

// deafAddress returns an address whose host drops every SYN: the queue of connections that nobody accepts is full.
func deafAddress(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	host, port, _ := net.SplitHostPort(freeAddress(t))
	n, _ := strconv.Atoi(port)
	addr := &syscall.SockaddrInet4{Port: n, Addr: [4]byte(net.ParseIP(host).To4())}
	if err := os.NewSyscallError("bind", syscall.Bind(fd, addr)); err != nil {
		t.Fatal(err)
	}
	if err := os.NewSyscallError("listen", syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), 200*time.Millisecond)
		if err != nil {
			return net.JoinHostPort(host, port)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("a listener with a full backlog still lets in")
	return ""
}

func TestACodeIsDeliveredOnceByTheSecondUpstreamWhateverIsWrongWithTheFirst(t *testing.T) {
	t.Parallel()
	const answered, silent = time.Second, 2 * time.Second
	for name, tt := range map[string]struct {
		script func(upstreamtest.Step) upstreamtest.Action
		addr   func(*testing.T) string // where nobody is to answer at all
		within time.Duration
	}{
		"connections are refused":   {addr: freeAddress, within: answered},
		"SYN is dropped":            {addr: deafAddress, within: silent},
		"the greeting throttles":    {script: at(upstreamtest.Greeting, "421 4.7.0 too many"), within: answered},
		"the greeting never comes":  {script: at(upstreamtest.Greeting, upstreamtest.Hang), within: silent},
		"it hangs up at EHLO":       {script: at("EHLO", upstreamtest.Drop), within: answered},
		"the password is wrong":     {script: at("AUTH", "535 5.7.8 who are you"), within: answered},
		"MAIL is throttled":         {script: at("MAIL", "454 4.7.0 throttling failure"), within: answered},
		"the domain is not allowed": {script: at("MAIL", "550 5.7.1 not verified"), within: answered},
		"the recipient is put off":  {script: at("RCPT", "450 4.2.1 later"), within: answered},
		"DATA never gets an answer": {script: at("DATA", upstreamtest.Hang), within: silent},
		"the mail is put off":       {script: at(upstreamtest.Dot, "451 4.3.0 later"), within: answered},
		"the mail is not liked":     {script: at(upstreamtest.Dot, "554 5.6.0 we do not want it"), within: answered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var addr string
			if tt.addr != nil {
				addr = tt.addr(t)
			} else {
				first := newFirst(t)
				first.Script(tt.script)
				addr = first.Addr()
			}
			s := newRoute(t, addr)
			s.start()
			began := time.Now()
			id := authStream.mustPost(t, s.listen, "a", "111111")
			if took := time.Since(began); took > tt.within {
				t.Errorf("the client was answered after %v", took)
			}
			if took := s.auth.wait(1, 10*time.Second)[0].at.Sub(began); took > tt.within {
				t.Errorf("the code arrived after %v, want %v at most", took, tt.within)
			}
			s.waitEmpty(5 * time.Second)
			if !s.hasEvent(id, event.Delivered) || s.hasEvent(id, event.Bounced) {
				t.Errorf("the trace is %+v", s.trace(id).Events)
			}
			wantSigned(t, s.records, authDomain, s.auth.all()[0])
			s.daemon.stop()
			if n := len(s.auth.all()); n != 1 {
				t.Errorf("%d copies arrived", n)
			}
		})
	}
}

func TestAHandOverThatHangsAfterItsCommitIsRepeatedOnceByTheSecondUpstream(t *testing.T) {
	t.Parallel()
	first := newFirst(t)
	var mu sync.Mutex
	var hung []time.Time
	first.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb != upstreamtest.Dot {
			return upstreamtest.Action{}
		}
		mu.Lock()
		defer mu.Unlock()
		hung = append(hung, time.Now())
		return upstreamtest.Action{Reply: upstreamtest.Hang}
	})
	s := newRoute(t, first.Addr())
	s.start()
	began := time.Now()
	id := authStream.mustPost(t, s.listen, "a", "111111")
	if took := time.Since(began); took < 4*time.Second || took > 4500*time.Millisecond {
		t.Errorf("the client was answered after %v, want 4s", took)
	}
	second := s.auth.wait(1, 15*time.Second)[0]
	mu.Lock()
	defer mu.Unlock()
	if len(hung) != 1 {
		t.Fatalf("the first upstream got %d copies", len(hung))
	}
	if gap := second.at.Sub(hung[0]); gap < 9900*time.Millisecond || gap > 11*time.Second {
		t.Errorf("the second copy arrived %v after the first, want 10 to 11 s, as the first one reads its clock", gap)
	}
	if second.id != "a" { // from its Message-ID
		t.Errorf("the second copy has another Message-ID: %s", second.raw.Header())
	}
	s.waitEmpty(5 * time.Second)
	var tries []string
	for _, e := range s.trace(id).Events {
		tries = append(tries, e.Kind.String()+" "+e.Upstream+" "+string(e.Data.Class))
	}
	if got := strings.Join(tries, ", "); got != "deferred first unknown, delivered sink accepted" {
		t.Errorf("the trace is %q, want both attempts", got)
	}
	s.daemon.says(5*time.Second, "upstream paused", "level=ERROR", "upstream=first")
	s.daemon.stop()
	if n := len(s.auth.all()); n != 1 {
		t.Errorf("%d copies arrived at the second", n)
	}
}

func TestAfterTwoLostAnswersThereIsAnAlarmAndNoThirdCopy(t *testing.T) {
	t.Parallel()
	first := newFirst(t)
	first.Script(at(upstreamtest.Dot, upstreamtest.Hang))
	s := newRoute(t, first.Addr())
	s.configure(`kind    = "auth"`, "kind    = \"auth\"\nanswer_timeout = \"3s\"")
	s.auth.setAnswer(func(arrival) error {
		time.Sleep(6 * time.Second)
		return nil
	})
	s.start()
	id := authStream.mustPost(t, s.listen, "a", "111111")
	s.daemon.says(15*time.Second, "message unconfirmed", "level=ERROR", id)
	s.waitEmpty(5 * time.Second)
	time.Sleep(3 * time.Second) // the ladder's first steps
	dots := 0
	for _, verb := range first.Verbs() {
		if verb == upstreamtest.Dot {
			dots++
		}
	}
	if n := len(s.auth.all()); dots != 1 || n != 1 {
		t.Errorf("%d copies went to the first and %d to the second, want one each", dots, n)
	}
}

func TestTrafficReturnsToTheFirstUpstreamByItselfAndBothAreTold(t *testing.T) {
	t.Parallel()
	first := newFirst(t)
	s := newRoute(t, first.Addr())
	s.start()
	authStream.mustPost(t, s.listen, "before", "111111")
	first.Wait(1)
	first.Stop()
	for _, id := range []string{"a", "b", "c"} {
		authStream.mustPost(t, s.listen, id, "111111")
	}
	s.auth.wait(3, 10*time.Second)
	s.daemon.says(5*time.Second, "upstream failed over", "level=ERROR", "upstream=first", "through upstream sink")
	if text := s.run("status").stdout; !strings.Contains(text, "paused for") || !strings.Contains(text, "others took 3") {
		t.Errorf("the status hides it:\n%s", text)
	}
	first.Start()
	eventually(t, 10*time.Second, "the first upstream works again", func() bool { return !s.status().Lanes[0].Pairs[0].Paused })
	authStream.mustPost(t, s.listen, "after", "111111")
	if first.Wait(2); len(s.auth.all()) != 3 {
		t.Errorf("the second upstream still gets mail: %d", len(s.auth.all()))
	}
	s.daemon.says(5*time.Second, "upstream came back", "upstream=first", "others took 3")
	text := s.run("stats").stdout
	line := ""
	for l := range strings.Lines(text) {
		if f := strings.Fields(l); len(f) > 1 && f[0] == "auth" && f[1] == "first" {
			line = strings.Join(f[:13], " ")
		}
	}
	// share, began, tries, accepted, temporary (the refused connect), …, elsewhere
	if line != "auth first 100% 5 3 2 1 0 0 0 0 3 0" {
		t.Errorf("the stats say %q:\n%s", line, text)
	}
	s.daemon.stop()
}

func TestAnArmOfTheRouteThatIsKilledLosesNothingAndDelaysNothing(t *testing.T) {
	t.Parallel()
	arm := newFirst(t)
	s := newRoute(t, arm.Addr())
	weight := rounds(20, 5)
	s.configure(`route   = ["first", "sink"]`, fmt.Sprintf(`route   = ["sink", { upstream = "first", weight = %d }]`, weight))
	s.start()
	total, slack := rounds(200, 20000), rounds(18, 1) // mails, and points by which the share may be off
	began := map[string]time.Time{}
	for i := range total {
		if i == total/2 {
			arm.Stop()
		}
		id := "c" + strconv.Itoa(i)
		began[id] = time.Now()
		authStream.mustPost(t, s.listen, id, "111111")
		if took := time.Since(began[id]); took > 2*time.Second {
			t.Errorf("code %s was answered after %v", id, took)
		}
	}
	s.waitEmpty(10 * time.Second)
	through := arm.Messages()
	if n, half := len(through), total/2; 100*n < half*(weight-slack) || 100*n > half*(weight+slack) {
		t.Errorf("%d of %d went through the arm before it was killed, want %d percent", n, half, weight)
	}
	got := s.auth.copies()
	for _, m := range through {
		id := submatch(testIDs, message.Raw(m.Data).Header())
		got[id] = append(got[id], arrival{id: id, at: m.At})
	}
	for id, at := range began {
		switch copies := got[id]; {
		case len(copies) != 1:
			t.Errorf("code %s arrived %d times", id, len(copies))
		case copies[0].at.Sub(at) > 2*time.Second:
			t.Errorf("code %s arrived after %v", id, copies[0].at.Sub(at))
		}
	}
}

func TestACodeWhoseFirstUpstreamIsSlowArrivesThroughTheSecondToo(t *testing.T) {
	t.Parallel()
	first := newFirst(t)
	first.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == upstreamtest.Dot {
			return upstreamtest.Action{Delay: 3 * time.Second}
		}
		return upstreamtest.Action{}
	})
	s := newRoute(t, first.Addr())
	s.configure(`kind    = "auth"`, "kind    = \"auth\"\nhedge_after = \"1s\"")
	s.start()
	began := time.Now()
	id := authStream.mustPost(t, s.listen, "a", "111111")
	if took := time.Since(began); took < time.Second || took > 2*time.Second {
		t.Errorf("the client was answered after %v, want a little over 1s", took)
	}
	s.auth.wait(1, time.Second)
	first.Wait(1)
	eventually(t, 5*time.Second, "the late answer is in the trace", func() bool { return s.hasEvent(id, event.Answered) })
	if !s.hasEvent(id, event.Hedged) || !s.hasEvent(id, event.Delivered) || len(s.queue()) != 0 {
		t.Errorf("the trace is %+v", s.trace(id).Events)
	}
}
