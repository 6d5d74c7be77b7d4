package upstream_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// newChunkPair makes a host that offers CHUNKING and an upstream that is told how to take that.
func newChunkPair(t *testing.T, o upstreamtest.HostOptions, setting string) (*upstreamtest.Host, upstream.Upstream) {
	t.Helper()
	o.Chunking = true
	h := upstreamtest.NewHost(t, o)
	c := configFor(t, h, o)
	c.Chunking = setting
	return h, open(t, c)
}

func TestAMailInOneFlightKeepsThePromisesOfAnUpstream(t *testing.T) {
	for name, o := range map[string]upstreamtest.HostOptions{
		"in clear text":                         {Chunking: true},
		"over STARTTLS with a login":            {Chunking: true, Username: "gp", Password: "pass word", TLS: "starttls"},
		"with replies that come octet by octet": {Chunking: true, SplitReplies: true},
	} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				h := upstreamtest.NewHost(t, o)
				c := configFor(t, h, o)
				c.Connections, c.Chunking = connections, "always"
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				answer := answers(h)
				return &upstreamtest.Instance{
					Upstream: u, Received: h.Messages, MaxSize: 26214400,
					Answer: func(c message.Class, s message.Scope) bool {
						// What a host does before it has the whole flight shows too late to be sure of it.
						return (c != message.Temporary || s != message.ScopeUpstream) && answer(c, s)
					},
					Silence: func() { h.Reply(upstreamtest.Dot, upstreamtest.Hang) },
					Peers:   h.Peers, Egress: pin, Open: h.Connections,
				}
			}})
		})
	}
}

// verbsOf returns what the host heard on connection n, without its greeting.
func verbsOf(h *upstreamtest.Host, n int) (verbs []string) {
	for _, s := range h.Steps() {
		if s.Conn == n && s.Verb != upstreamtest.Greeting && s.Verb != "EHLO" {
			verbs = append(verbs, s.Verb)
		}
	}
	return verbs
}

func TestAHostIsTriedWithChunksOfNoConsequenceFirst(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "probe")
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	wantClasses(t, send(t, u, envelope()), message.Accepted) // waits for nothing: the slot is free once the probe has ended
	waitFor(t, "a mail in one flight", func() bool {
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		steps := h.Steps()
		return steps[len(steps)-1].Verb == upstreamtest.Dot && steps[len(steps)-2].Verb == "BDAT"
	})
	if got, want := verbsOf(h, 1), "MAIL RCPT DATA BODY DOT BDAT MAIL BDAT BDAT QUIT"; strings.Join(got, " ") != want {
		t.Errorf("on the first connection %v, want %s", got, want)
	}
	for i, m := range h.Messages() {
		if string(m.Data) != string(text) {
			t.Errorf("mail %d came as %q", i, m.Data)
		}
	}
}

func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for until := time.Now().Add(5 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// evil is a mail that is a few commands too, for a host that takes it for some.
var evil = []byte("Subject: hello\r\n\r\nRSET\r\nMAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.org>\r\nVRFY root\r\n")

// refusals makes h refuse at each point of a mail in turn while 20 mails go to it, and returns how many of them it took for
// commands.
func refusals(t *testing.T, h *upstreamtest.Host, u upstream.Upstream) (executed int) {
	t.Helper()
	for i := range 20 {
		switch i % 5 {
		case 1:
			h.Reply("RCPT", "550 5.1.1 no such user")
		case 2:
			h.Reply("MAIL", "451 4.3.0 not now")
		case 3:
			h.Reply("BDAT", "552 5.3.4 too big")
		}
		slot := reserve(t, u)
		slot.Send(t.Context(), envelope(), net.Buffers{evil}, commit)
		slot.Release()
	}
	for _, s := range h.Steps() {
		if s.Verb == "VRFY" {
			executed++
		}
	}
	return executed
}

func TestAHostThatReadsWhatItRefusedNeverGetsAMailInOneFlight(t *testing.T) {
	for _, where := range [][]string{{"MAIL"}, {"RCPT"}, {"MAIL", "RCPT"}, nil} {
		t.Run(strings.Join(where, " "), func(t *testing.T) {
			h, u := newChunkPair(t, upstreamtest.HostOptions{ReadsRefused: true, ReadsWhere: where}, "probe")
			if n := refusals(t, h, u); n > 0 {
				t.Errorf("the host took %d mails for commands", n)
			}
			for n := 2; n <= h.Accepted(); n++ {
				if slices.Contains(verbsOf(h, n), "BDAT") {
					t.Errorf("connection %d had BDAT: %v", n, verbsOf(h, n))
				}
			}
		})
	}
}

func TestAHostThatReadsOnlyAMailThatItRefusedForItsOwnSakeGetsOneInOneFlightAtMost(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{ReadsRefused: true, ReadsWhere: []string{"BDAT"}}, "probe")
	if n := refusals(t, h, u); n > 1 {
		t.Errorf("the host took %d mails for commands", n)
	}
}

func TestAProbeThatBreaksTellsNothingAndIsMadeAgainMuchLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 1, upstreamtest.HostOptions{Chunking: true}, authLane)
		h.Reply("BDAT", upstreamtest.Drop)
		for range 20 {
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			synctest.Wait()
		}
		if n := count(h, "BDAT"); n != 1 {
			t.Errorf("%d chunks after 20 mails, want only the one that broke", n)
		}
		time.Sleep(10 * time.Minute)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		synctest.Wait()
		h.Reply("RCPT", "550 5.1.1 no") // in one flight
		wantClasses(t, send(t, u, envelope()), message.Permanent)
		if n := count(h, "BDAT"); n < 5 {
			t.Errorf("%d chunks, want a probe and a flight", n)
		}
	})
}

func TestAHangingProbeGivesWayToAMail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := warmBubble(t, 1, upstreamtest.HostOptions{Chunking: true}, authLane)
		h.Reply("BDAT", upstreamtest.Hang)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		synctest.Wait()
		start := time.Now()
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		if took := time.Since(start); took > time.Second {
			t.Errorf("the mail waited for %v", took)
		}
	})
}

func TestWhatWasRefusedInAFlightEndsTheConnection(t *testing.T) {
	for name, tt := range map[string]struct {
		verb, reply string
		want        []message.Class // of the recipients a and b
		taken       int
	}{
		"the sender":       {"MAIL", "550 5.1.8 bad sender", []message.Class{message.Permanent, message.Permanent}, 0},
		"one recipient":    {"RCPT", "450 4.2.1 busy", []message.Class{message.Temporary, message.Accepted}, 1},
		"the mail":         {"BDAT", "554 5.6.0 no", []message.Class{message.Permanent, message.Permanent}, 0},
		"the mail for now": {"BDAT", "452 4.3.1 full", []message.Class{message.Temporary, message.Temporary}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
			h.Reply(tt.verb, tt.reply)
			wantClasses(t, send(t, u, envelope("a@example.net", "b@example.net")), tt.want...)
			if n := len(h.Messages()); n != tt.taken {
				t.Errorf("the host has %d mails, want %d", n, tt.taken)
			}
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if h.Accepted() != 2 {
				t.Errorf("%d connections, want a new one for the next mail", h.Accepted())
			}
		})
	}
}

func TestAHostThatTakesNoChunksAfterAllGetsTheMailInTwoFlights(t *testing.T) {
	for _, reply := range []string{"500 5.5.1 what?", "502 5.5.1 not here", "503 5.5.1 DATA first", "504 5.5.4 LAST?"} {
		h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
		h.Reply("BDAT", reply)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		if n := len(h.Messages()); n != 2 || h.Accepted() != 2 {
			t.Errorf("%s: %d mails over %d connections, want 2 over 2", reply, n, h.Accepted())
		}
		if got, want := verbsOf(h, 2), "MAIL RCPT DATA BODY DOT MAIL RCPT DATA BODY DOT"; strings.Join(got, " ") != want {
			t.Errorf("%s: then %v, want %s", reply, got, want)
		}
	}
}

func TestWhatAHostDoesInMidFlight(t *testing.T) {
	for name, tt := range map[string]struct {
		verb, reply string
		class       message.Class
		reused      message.Class // on a connection that was kept, where a flight is tried again
	}{
		"421 at MAIL":                 {"MAIL", "421 4.4.2 idle", message.Throttled, message.Accepted},
		"421 at RCPT":                 {"RCPT", "421 4.7.0 slow down", message.Throttled, message.Throttled},
		"421 instead of an answer":    {"BDAT", "421 4.7.0 slow down", message.Throttled, message.Throttled},
		"garbage instead of a reply":  {"RCPT", "what?", message.Unknown, message.Unknown},
		"an invitation for an answer": {"BDAT", "354 go on", message.Unknown, message.Unknown},
		"leaves with the mail":        {upstreamtest.Dot, upstreamtest.Drop, message.Unknown, message.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
			h.Reply(tt.verb, tt.reply)
			wantClasses(t, send(t, u, envelope()), tt.class)
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if tt.class == message.Unknown {
				return // for a while mail goes in two flights
			}
			h.Reply(tt.verb, tt.reply)
			wantClasses(t, send(t, u, envelope()), tt.reused)
		})
	}
}

func TestAfterAConnectionBrokeInMidFlightMailGoesInTwoForAWhile(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	h.Reply(upstreamtest.Dot, upstreamtest.Drop)
	wantClasses(t, send(t, u, envelope()), message.Unknown)
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if got, want := verbsOf(h, 2), "MAIL RCPT DATA BODY DOT"; strings.Join(got, " ") != want {
		t.Errorf("then %v, want %s", got, want)
	}
}

func TestAHostThatLeavesInMidFlightHasTheMailOnceOrNotAtAll(t *testing.T) {
	for range 50 {
		h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
		h.Reply("MAIL", upstreamtest.Drop)
		accepted := 0
		if v := send(t, u, envelope())[0]; v.Class == message.Accepted {
			accepted++
		} else if v.Scope != message.ScopeUpstream || v.Class != message.Temporary && v.Class != message.Unknown {
			t.Fatalf("verdict %+v", v)
		}
		if n := len(h.Messages()); n != accepted {
			t.Fatalf("the host has %d mails, %d were accepted", n, accepted)
		}
	}
}

func TestALargeMailGoesInTwoFlights(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	for _, octets := range []int{64 << 10, 64<<10 + 1} {
		slot := reserve(t, u)
		wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{[]byte(strings.Repeat("x", octets-2) + "\r\n")}, commit), message.Accepted)
		slot.Release()
	}
	if got, want := verbsOf(h, 1), "MAIL RCPT BDAT BDAT DOT MAIL RCPT DATA BODY DOT"; strings.Join(got, " ") != want {
		t.Errorf("%v, want %s", got, want)
	}
}

// flightHost greets, takes one mail in one flight, and shows it before it says a word of answer.
func flightHost(t *testing.T, answer func(c net.Conn)) (addr string, flights <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	seen := make(chan string, 16)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		io.WriteString(c, "220 x\r\n")
		r.ReadString('\n')
		io.WriteString(c, "250-x\r\n250-PIPELINING\r\n250 CHUNKING\r\n")
		var flight strings.Builder
		for {
			line, err := r.ReadString('\n')
			flight.WriteString(line)
			var n int
			if _, e := fmt.Sscanf(line, "BDAT %d", &n); e == nil {
				io.CopyN(&flight, r, int64(n))
				seen <- flight.String() // all but the last chunk
				last, _ := r.ReadString('\n')
				seen <- last
				answer(c)
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return l.Addr().String(), seen
}

func flightUpstream(t *testing.T, addr string) upstream.Upstream {
	return open(t, &config.Upstream{Name: "sink", Type: "smtp", Address: addr, Host: "127.0.0.1", TLS: "none", Connections: 1, Chunking: "always"})
}

func TestAllButTheLastChunkIsThereBeforeAnyReplyAndThatWaitsForTheCommit(t *testing.T) {
	addr, flights := flightHost(t, func(c net.Conn) {
		for _, b := range []byte("250 a\r\n250-b\r\n250 b\r\n250 chunk\r\n250 2.0.0 Ok: queued as X1\r\n") {
			c.Write([]byte{b})
		}
	})
	u := flightUpstream(t, addr)
	slot := reserve(t, u)
	defer slot.Release()
	durable := false
	vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, func() error {
		want := "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<user@example.net>\r\nBDAT 25\r\n" + string(text)
		if got := <-flights; got != want {
			t.Errorf("before the commit came\n%q\nwant\n%q", got, want)
		}
		select {
		case more := <-flights:
			t.Errorf("%q came before the commit", more)
		case <-time.After(50 * time.Millisecond):
		}
		durable = true
		return nil
	})
	wantClasses(t, vs, message.Accepted)
	if !durable || vs[0].ProviderID != "X1" {
		t.Errorf("committed %v, verdict %+v", durable, vs[0])
	}
}

func TestAFlightThatIsNotCommittedEndsWithTheConnection(t *testing.T) {
	addr, flights := flightHost(t, func(net.Conn) {})
	u := flightUpstream(t, addr)
	slot := reserve(t, u)
	vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, func() error {
		<-flights
		return errors.New("the disk is full")
	})
	slot.Release()
	if vs != nil {
		t.Errorf("verdicts %+v", vs)
	}
	if rest := <-flights; rest != "" {
		t.Errorf("then came %q", rest)
	}
}

func TestAHostThatClosesBeforeTheCommitHasNotTakenTheMail(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	slot := reserve(t, u)
	h.DropConnections()
	waitFor(t, "the end of the connection", func() bool { return h.Connections() == 0 })
	vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, commit)
	slot.Release()
	if vs[0].Class != message.Temporary || vs[0].Scope != message.ScopeUpstream {
		t.Errorf("verdict %+v, want temporary about the upstream", vs[0])
	}
}

func TestASilentHostAfterTheFlightIsUnknownAtOurDeadline(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	h.Reply("RCPT", upstreamtest.Hang)
	slot := reserve(t, u)
	defer slot.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	wantClasses(t, slot.Send(ctx, envelope(), net.Buffers{text}, commit), message.Unknown)
}

// FuzzFlight lets a host answer a flight with anything. Whatever that is, a mail is accepted only where the last of four
// replies says so, and nothing hangs.
func FuzzFlight(f *testing.F) {
	for _, s := range []string{"250 a\r\n250 b\r\n250 c\r\n250 d\r\n", "250 a\r\n550 b\r\n554 c\r\n", "250-a\r\n250 a\r\n250 b\r\n421 c\r\n", "421 bye\r\n", "250 a\r\n250 b\r\n552 c\r\n250 d\r\n", "250 a\r\n250 b\r\n250 c\r\n250 d\r\n250 e\r\n", "\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, replies []byte) {
		addr, _ := flightHost(t, func(c net.Conn) { c.Write(replies) })
		u := flightUpstream(t, addr)
		slot := reserve(t, u)
		vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, commit)
		slot.Release()
		if len(vs) != 1 || vs[0].Class == "" {
			t.Fatalf("verdicts %+v", vs)
		}
		lines := strings.Split(string(replies), "\n")
		if vs[0].Class == message.Accepted && (len(lines) < 5 || slices.ContainsFunc(lines[:4], func(l string) bool { return !strings.HasPrefix(l, "2") })) {
			t.Errorf("accepted on %q", replies)
		}
	})
}

func TestAHostThatOffersSomethingElseIsTriedAgain(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "probe")
	waitFor(t, "a mail in one flight", func() bool {
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		steps := h.Steps()
		return steps[len(steps)-2].Verb == "BDAT"
	})
	h.DropConnections()
	before := h.Accepted()
	h.Reply("EHLO", "250-test host\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE 26214400\r\n250 CHUNKING")
	waitFor(t, "the end of the connection", func() bool { return h.Connections() == 0 })
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if got, want := strings.Join(verbsOf(h, before+1)[:5], " "), "MAIL RCPT DATA BODY DOT"; got != want {
		t.Errorf("to another host behind the name %v, want %s", got, want)
	}
}

func TestARefusalOfTheSenderIsKnownThoughTheHostSaysNothingMore(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	h.Reply("MAIL", "550 5.7.1 no")
	h.Reply("RCPT", upstreamtest.Hang)
	start := time.Now()
	wantClasses(t, send(t, u, envelope()), message.Permanent)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("after %v", took)
	}
}

func TestManyRecipientsGoInTwoFlightsThatNeitherSideBlocksOn(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	var to []string
	for i := range 500 {
		to = append(to, fmt.Sprintf("somebody-with-a-name-%d@example.net", i))
	}
	slot := reserve(t, u)
	defer slot.Release()
	slot.Send(t.Context(), envelope(to...), net.Buffers{text}, commit)
	if slices.Contains(h.Verbs(), "BDAT") || len(h.Messages()) != 1 {
		t.Errorf("%d mails, by BDAT: %v", len(h.Messages()), slices.Contains(h.Verbs(), "BDAT"))
	}
}

func TestWhatAHostSaysUnaskedIsNoAnswerToTheNextMail(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	slot := reserve(t, u)
	defer slot.Release()
	h.Reply(upstreamtest.Dot, "250 2.0.0 taken\r\n250 2.0.0 and one more")
	wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
	waitFor(t, "the end of the connection", func() bool {
		wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
		return h.Accepted() == 2
	})
	h.Reply("BDAT", "452 4.3.1 full")
	wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Temporary)
}

func TestAMailWhoseEndIsTakenThoughItWasRefusedIsUnknown(t *testing.T) {
	h, u := newChunkPair(t, upstreamtest.HostOptions{}, "always")
	h.Reply("BDAT", "552 5.3.4 too big", "250 2.0.0 taken")
	wantClasses(t, send(t, u, envelope()), message.Unknown)
}
