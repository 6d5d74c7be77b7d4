package upstreamtest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/upstream"
)

// Instance is an upstream and the service behind it. What a type or its service does not have is nil, and is not
// asked of it.
type Instance struct {
	Upstream upstream.Upstream
	// Received returns the mails that the service has taken, in order: only To and Data matter.
	Received func() []Mail
	// Answer makes the service answer the next hand-over with a verdict of that class and scope, and reports false where
	// nothing it says means that. Recipient scope means the first recipient only.
	Answer func(message.Class, message.Scope) bool
	// Silence makes the service take the next mail and never answer.
	Silence func()
	// Alone says that each recipient of auth mail has a hand-over, and a mail, of its own.
	Alone bool
	// TextOnly says that Received has the decoded text of a mail for Data, since the service gets its parts.
	TextOnly bool
	// MaxSize is a limit on the octets of a mail that the service tells.
	MaxSize int64
	// Peers returns the source address of every connection so far; all must be Egress.
	Peers  func() []netip.AddrPort
	Egress netip.Addr
	// Open returns how many connections the service has open.
	Open func() int
}

// Suite is what Run puts to the test.
type Suite struct {
	// New makes an upstream with that many connections at most, and a service of its own.
	New func(t *testing.T, connections int) *Instance
}

const lane = "auth"

// wire is a mail with all that framing may trip over, in pieces that end in unlucky places.
func wire() net.Buffers {
	return net.Buffers{
		[]byte("From: a@auth.example.com\r\nSubject: dots\r"), []byte("\n\r\n"),
		[]byte(".\r\n"), []byte("..\r\n.leading\r\nmid.dle\r\n"), {}, []byte("."), []byte("\r\n"), []byte(".."), []byte(" end\r\n"),
	}
}

// joined is wire in one piece.
func joined() string { return string(slices.Concat(wire()...)) }

func envelope(to ...string) message.Envelope {
	if len(to) == 0 {
		to = []string{"user@example.net"}
	}
	return message.Envelope{ID: 1, Stream: lane, Kind: message.Auth, From: "no-reply@auth.example.com", To: to, Size: len(joined())}
}

func yes() error { return nil }

// Run checks that an upstream keeps the promises of upstream.Upstream and upstream.Slot.
func Run(t *testing.T, s Suite) {
	for name, f := range map[string]func(*testing.T, Suite){
		"an accepted mail arrives octet by octet":                testBytes,
		"the null sender and several recipients pass":            testRecipients,
		"every verdict comes with its class and scope":           testVerdicts,
		"nothing is taken before the commit":                     testCommitGate,
		"a commit that fails leaves nothing":                     testCommitFails,
		"a stop before the commit is temporary":                  testStopBefore,
		"a stop after the commit is unknown":                     testStopAfter,
		"a mail over the limit is refused without a commit":      testSize,
		"no more slots are given than the account has":           testBound,
		"the end of the context ends the waiting":                testReserveStops,
		"Close waits for slots in use and leaves nothing behind": testClose,
		"every connection leaves from the egress":                testEgress,
	} {
		t.Run(name, func(t *testing.T) { f(t, s) })
	}
}

// start makes an instance that is closed with the test.
func (s Suite) start(t *testing.T, connections int) *Instance {
	t.Helper()
	in := s.New(t, connections)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := in.Upstream.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return in
}

func reserve(t *testing.T, in *Instance) upstream.Slot {
	t.Helper()
	slot, err := in.Upstream.Reserve(t.Context(), lane)
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	return slot
}

// send makes one whole hand-over.
func send(t *testing.T, in *Instance, e message.Envelope, commit func() error) []message.Verdict {
	t.Helper()
	slot := reserve(t, in)
	defer slot.Release()
	return slot.Send(t.Context(), e, wire(), commit)
}

func classes(vs []message.Verdict) []message.Class {
	var cs []message.Class
	for _, v := range vs {
		cs = append(cs, v.Class)
	}
	return cs
}

func expect(t *testing.T, vs []message.Verdict, want ...message.Class) {
	t.Helper()
	if got := classes(vs); !slices.Equal(got, want) {
		t.Fatalf("verdicts %v, want classes %v", vs, want)
	}
}

func testBytes(t *testing.T, s Suite) {
	in := s.start(t, 1)
	for range 3 {
		expect(t, send(t, in, envelope(), yes), message.Accepted)
	}
	got := in.Received()
	if len(got) != 3 {
		t.Fatalf("%d mails arrived, want 3", len(got))
	}
	want := joined()
	if in.TextOnly {
		_, want, _ = strings.Cut(want, "\r\n\r\n")
	}
	for _, m := range got {
		if plain(in, string(m.Data)) != plain(in, want) {
			t.Errorf("arrived %q, want %q", m.Data, want)
		}
	}
}

// plain returns text without what the parts of a mail may lose: the form of its line ends, and those at its end.
func plain(in *Instance, text string) string {
	if !in.TextOnly {
		return text
	}
	return strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
}

func testRecipients(t *testing.T, s Suite) {
	in := s.start(t, 1)
	to := []string{"one@example.net", "two@example.net", "three@example.net"}
	e := envelope(to...)
	e.From = ""
	expect(t, send(t, in, e, yes), message.Accepted, message.Accepted, message.Accepted)
	var arrived []string
	got := in.Received()
	for _, m := range got {
		arrived = append(arrived, m.To...)
		if m.From != "" {
			t.Errorf("a mail arrived from %q, want nobody", m.From)
		}
	}
	mails := 1
	if in.Alone {
		mails = len(to)
	}
	if len(got) != mails || !slices.Equal(arrived, to) {
		t.Errorf("arrived %+v, want %d mails to %v", got, mails, to)
	}
}

func testVerdicts(t *testing.T, s Suite) {
	in := s.start(t, 2)
	if in.Answer == nil {
		expect(t, send(t, in, envelope(), yes), message.Accepted)
		return
	}
	to := []string{"one@example.net", "two@example.net"}
	for _, want := range []message.Verdict{
		{Class: message.Temporary, Scope: message.ScopeRecipient},
		{Class: message.Temporary, Scope: message.ScopeMessage},
		{Class: message.Temporary, Scope: message.ScopeUpstream},
		{Class: message.Permanent, Scope: message.ScopeRecipient},
		{Class: message.Permanent, Scope: message.ScopeMessage},
		{Class: message.Permanent, Scope: message.ScopeDomain},
		{Class: message.Unauthorised, Scope: message.ScopeDomain},
		{Class: message.Throttled, Scope: message.ScopeUpstream},
		{Class: message.Unauthorised, Scope: message.ScopeUpstream},
		{Class: message.Unknown, Scope: message.ScopeUpstream},
	} {
		if !in.Answer(want.Class, want.Scope) {
			continue
		}
		vs := send(t, in, envelope(to...), yes)
		second := want.Class
		if want.Scope == message.ScopeRecipient || in.Alone && (want.Scope != message.ScopeUpstream || want.Class == message.Unknown) {
			second = message.Accepted
		}
		expect(t, vs, want.Class, second)
		if vs[0].Scope != want.Scope {
			t.Errorf("scope %q, want %q: %+v", vs[0].Scope, want.Scope, vs[0])
		}
		// Whatever it was, the next mail is none the worse for it, once the service lets it come.
		if !soon(func() bool { return !paused(t, in) }) {
			t.Fatalf("the upstream stays paused after %+v", vs[0])
		}
		expect(t, send(t, in, envelope(to...), yes), message.Accepted, message.Accepted)
	}
}

// paused reports whether no slot can be had because of what the service said.
func paused(t *testing.T, in *Instance) bool {
	t.Helper()
	slot, err := in.Upstream.Reserve(t.Context(), lane)
	if err == nil {
		slot.Release()
		return false
	}
	if _, ok := errors.AsType[*upstream.Paused](err); !ok {
		t.Fatalf("Reserve: %v", err)
	}
	return true
}

func testCommitGate(t *testing.T, s Suite) {
	in := s.start(t, 1)
	calls, early := 0, 0
	vs := send(t, in, envelope(), func() error {
		calls++
		time.Sleep(50 * time.Millisecond) // time for a mail that was whole already to arrive
		early = len(in.Received())
		return nil
	})
	expect(t, vs, message.Accepted)
	if calls != 1 || early != 0 || len(in.Received()) != 1 {
		t.Errorf("commit was called %d times, %d mails had arrived by then and %d did in all; want 1, 0, 1", calls, early, len(in.Received()))
	}
}

func testCommitFails(t *testing.T, s Suite) {
	in := s.start(t, 1)
	if vs := send(t, in, envelope(), func() error { return errors.New("disk full") }); vs != nil {
		t.Errorf("verdicts %v, want none", vs)
	}
	expect(t, send(t, in, envelope("next@example.net"), yes), message.Accepted)
	if got := in.Received(); len(got) != 1 || got[0].To[0] != "next@example.net" {
		t.Errorf("arrived %+v, want only the next mail", got)
	}
}

func testStopBefore(t *testing.T, s Suite) {
	in := s.start(t, 1)
	slot := reserve(t, in)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	vs := slot.Send(ctx, envelope(), wire(), func() error {
		t.Error("commit was called after the stop")
		return nil
	})
	slot.Release()
	expect(t, vs, message.Temporary)
	if vs[0].Scope != message.ScopeUpstream {
		t.Errorf("scope %q, want upstream", vs[0].Scope)
	}
	expect(t, send(t, in, envelope(), yes), message.Accepted)
	if got := len(in.Received()); got != 1 {
		t.Errorf("%d mails arrived, want 1", got)
	}
}

func testStopAfter(t *testing.T, s Suite) {
	in := s.start(t, 1)
	if in.Silence == nil {
		expect(t, send(t, in, envelope(), yes), message.Accepted)
		return
	}
	in.Silence()
	slot := reserve(t, in)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	vs := slot.Send(ctx, envelope(), wire(), func() error {
		time.AfterFunc(100*time.Millisecond, cancel)
		return nil
	})
	slot.Release()
	expect(t, vs, message.Unknown)
	expect(t, send(t, in, envelope(), yes), message.Accepted)
}

func testSize(t *testing.T, s Suite) {
	in := s.start(t, 1)
	if in.MaxSize == 0 {
		expect(t, send(t, in, envelope(), yes), message.Accepted)
		return
	}
	slot := reserve(t, in)
	defer slot.Release()
	if got := slot.Caps().Size; got != in.MaxSize {
		t.Errorf("Caps().Size = %d, want %d", got, in.MaxSize)
	}
	big := net.Buffers{[]byte("Subject: big\r\n\r\n"), []byte(strings.Repeat("x", int(in.MaxSize)) + "\r\n")}
	vs := slot.Send(t.Context(), envelope(), big, func() error {
		t.Error("commit was called")
		return nil
	})
	expect(t, vs, message.Permanent)
	if vs[0].Scope != message.ScopeMessage || vs[0].Enhanced != "5.3.4" {
		t.Errorf("verdict %+v, want 5.3.4 about the message", vs[0])
	}
}

func testBound(t *testing.T, s Suite) {
	const most = 3
	in := s.start(t, most)
	var slots []upstream.Slot
	for range most {
		slots = append(slots, reserve(t, in))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := in.Upstream.Reserve(ctx, lane); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one slot too many: err = %v, want the deadline", err)
	}
	time.AfterFunc(20*time.Millisecond, slots[0].Release)
	slots[0] = reserve(t, in)
	if in.Open != nil && in.Open() > most {
		t.Errorf("%d connections are open, want at most %d", in.Open(), most)
	}
	for _, slot := range slots {
		slot.Release()
	}
}

func testReserveStops(t *testing.T, s Suite) {
	in := s.start(t, 1)
	slot := reserve(t, in)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := in.Upstream.Reserve(ctx, lane); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want context.Canceled", err)
	}
	slot.Release()
	expect(t, send(t, in, envelope(), yes), message.Accepted)
}

func testClose(t *testing.T, s Suite) {
	in := s.New(t, 2)
	kept, busy := reserve(t, in), reserve(t, in)
	kept.Release()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := in.Upstream.Close(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close with a slot in use: err = %v, want the deadline", err)
	}
	if _, err := in.Upstream.Reserve(t.Context(), lane); err == nil {
		t.Error("Reserve after Close gave a slot")
	}
	busy.Release()
	if err := in.Upstream.Close(t.Context()); err != nil {
		t.Errorf("Close with nothing in use: %v", err)
	}
	if in.Open != nil && !soon(func() bool { return in.Open() == 0 }) {
		t.Errorf("%d connections are left open", in.Open())
	}
	if !soon(func() bool { return len(goroutines()) == 0 }) {
		t.Errorf("goroutines are left:\n%s", strings.Join(goroutines(), "\n\n"))
	}
}

// soon reports whether f comes true within two seconds.
func soon(f func() bool) bool {
	for range 200 {
		if f() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return f()
}

// goroutines returns the stacks of those that run methods of package upstream.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	return slices.DeleteFunc(all, func(g string) bool { return !strings.Contains(g, "gatepost/upstream.") })
}

func testEgress(t *testing.T, s Suite) {
	in := s.start(t, 2)
	slot := reserve(t, in)
	local := slot.Local()
	slot.Release()
	if in.Peers == nil {
		if local != "" {
			t.Errorf("Local() = %q of an upstream without connections", local)
		}
		return
	}
	if local != in.Egress.String() {
		t.Errorf("Local() = %q, want %s", local, in.Egress)
	}
	expect(t, send(t, in, envelope(), yes), message.Accepted)
	for _, p := range in.Peers() {
		if p.Addr() != in.Egress {
			t.Errorf("a connection came from %s, want %s", p.Addr(), in.Egress)
		}
	}
}
