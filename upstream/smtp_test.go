package upstream_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// pin is the source address of the tests; the host listens on another.
var pin = netip.MustParseAddr("127.0.0.2")

// configFor describes an upstream at h.
func configFor(t *testing.T, h *upstreamtest.Host, o upstreamtest.HostOptions) *config.Upstream {
	t.Helper()
	c := &config.Upstream{
		Name: "sink", Type: "smtp", Address: h.Addr(), Host: "127.0.0.1", TLS: o.TLS, TLSCAFile: h.CAFile(), Connections: 4, DKIM: "sign",
	}
	if c.TLS == "" {
		c.TLS = "none"
	}
	if o.Username != "" {
		c.Username, c.Auth = o.Username, "plain"
		c.Password = secretFile(t, o.Password)
		c.Token = secretFile(t, o.Token)
	}
	return c
}

func secretFile(t *testing.T, value string) config.Secret {
	t.Helper()
	f := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(f, []byte(value+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Secret{File: f}
}

func egress() *upstream.Egress {
	return upstream.NewEgress(&config.Egress{Name: "auth", IPv4: pin})
}

// open makes the upstream that c describes, for lanes, closed with the test.
func open(t *testing.T, c *config.Upstream, lanes ...upstream.LaneKind) upstream.Upstream {
	t.Helper()
	u, err := upstream.New(c, "gw.example.com", egress(), lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, u) })
	return u
}

func closeNow(t *testing.T, u upstream.Upstream) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := u.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// newPair makes a host and an upstream for it.
func newPair(t *testing.T, o upstreamtest.HostOptions) (*upstreamtest.Host, upstream.Upstream) {
	t.Helper()
	h := upstreamtest.NewHost(t, o)
	return h, open(t, configFor(t, h, o))
}

func envelope(to ...string) message.Envelope {
	if len(to) == 0 {
		to = []string{"user@example.net"}
	}
	return message.Envelope{From: "no-reply@auth.example.com", To: to}
}

var text = []byte("Subject: hello\r\n\r\nHello\r\n")

func commit() error { return nil }

// send makes one hand-over of text.
func send(t *testing.T, u upstream.Upstream, e message.Envelope) []message.Verdict {
	t.Helper()
	slot := reserve(t, u)
	defer slot.Release()
	return slot.Send(t.Context(), e, net.Buffers{text}, commit)
}

func reserve(t *testing.T, u upstream.Upstream) upstream.Slot {
	t.Helper()
	slot, err := u.Reserve(t.Context(), "auth")
	if err != nil {
		t.Fatalf("Reserve: %v", err)
	}
	return slot
}

func wantClasses(t *testing.T, vs []message.Verdict, want ...message.Class) {
	t.Helper()
	var got []message.Class
	for _, v := range vs {
		got = append(got, v.Class)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("verdicts %+v, want classes %v", vs, want)
	}
}

// answers maps a class and scope to what a host says to bring it about.
func answers(h *upstreamtest.Host) func(message.Class, message.Scope) bool {
	type key struct {
		message.Class
		message.Scope
	}
	replies := map[key][2]string{
		{message.Temporary, message.ScopeRecipient}:   {"RCPT", "450 4.2.1 try later"},
		{message.Temporary, message.ScopeMessage}:     {upstreamtest.Dot, "451 4.3.0 try later"},
		{message.Temporary, message.ScopeUpstream}:    {"DATA", upstreamtest.Drop},
		{message.Permanent, message.ScopeRecipient}:   {"RCPT", "550-5.1.1 no\r\n550 5.1.1 such user"},
		{message.Permanent, message.ScopeMessage}:     {upstreamtest.Dot, "554 5.6.0 no"},
		{message.Permanent, message.ScopeDomain}:      {"MAIL", "550 5.7.1 who are you?"},
		{message.Throttled, message.ScopeUpstream}:    {"RCPT", "421 4.7.0 slow down"},
		{message.Unauthorised, message.ScopeUpstream}: {"MAIL", "530 5.7.0 log in"},
		{message.Unknown, message.ScopeUpstream}:      {upstreamtest.Dot, upstreamtest.Drop},
	}
	return func(c message.Class, s message.Scope) bool {
		r, ok := replies[key{c, s}]
		if ok {
			h.Reply(r[0], r[1])
		}
		return ok
	}
}

func TestSMTPKeepsThePromisesOfAnUpstream(t *testing.T) {
	login := upstreamtest.HostOptions{Username: "gp", Password: "pass word", TLS: "starttls"}
	for name, o := range map[string]upstreamtest.HostOptions{
		"in clear text":                         {},
		"without PIPELINING":                    {Without: []string{"PIPELINING"}},
		"over STARTTLS with a login":            login,
		"over implicit TLS":                     {TLS: "implicit"},
		"with replies that come octet by octet": {SplitReplies: true},
		"to a host that offers next to nothing": {Without: []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}},
	} {
		t.Run(name, func(t *testing.T) {
			upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
				h := upstreamtest.NewHost(t, o)
				c := configFor(t, h, o)
				c.Connections = connections
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					t.Fatal(err)
				}
				return &upstreamtest.Instance{
					Upstream: u, Received: h.Messages, Answer: answers(h), MaxSize: 26214400,
					Silence: func() { h.Reply(upstreamtest.Dot, upstreamtest.Hang) },
					Peers:   h.Peers, Egress: pin, Open: h.Connections,
				}
			}})
		})
	}
}

func TestCaptureKeepsThePromisesOfAnUpstream(t *testing.T) {
	upstreamtest.Run(t, upstreamtest.Suite{New: func(t *testing.T, connections int) *upstreamtest.Instance {
		u, err := upstream.New(&config.Upstream{Name: "cap", Type: "capture", Connections: connections}, "gw.example.com", egress(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return &upstreamtest.Instance{Upstream: u, Received: func() []upstreamtest.Mail {
			var mails []upstreamtest.Mail
			for _, m := range u.(upstream.Capture).Captured() {
				mails = append(mails, upstreamtest.Mail{From: m.Envelope.From, To: m.Envelope.To, Data: m.Wire})
			}
			return mails
		}}
	}})
}

func TestTheEnvelopeGoesOutInOneWriteAndEachReplyIsPutToItsCommand(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Script(func(s upstreamtest.Step) upstreamtest.Action {
		switch {
		case s.Verb == "RCPT" && strings.Contains(s.Arg, "gone"):
			return upstreamtest.Action{Reply: "550 5.1.1 no such user"}
		case s.Verb == "RCPT" && strings.Contains(s.Arg, "full"):
			return upstreamtest.Action{Reply: "452-4.2.2 mailbox\r\n452 4.2.2 full"}
		}
		return upstreamtest.Action{}
	})
	vs := send(t, u, envelope("a@example.net", "gone@example.net", "full@example.net", "b@example.net"))
	wantClasses(t, vs, message.Accepted, message.Permanent, message.Temporary, message.Accepted)
	if vs[2].Reply() != "452 4.2.2 mailbox full" || vs[0].ProviderID != "T1-1" {
		t.Errorf("verdicts %+v, want the words and the queue id of the host", vs)
	}
	if got := h.Wait(1)[0].To; !slices.Equal(got, []string{"a@example.net", "b@example.net"}) {
		t.Errorf("the mail went to %v", got)
	}
}

func TestHundredsOfRecipientsPassInBursts(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	var to []string
	for range 1000 {
		to = append(to, strings.Repeat("x", 60)+"@example.net")
	}
	for _, v := range send(t, u, envelope(to...)) {
		if v.Class != message.Accepted {
			t.Fatalf("verdict %+v", v)
		}
	}
	if got := len(h.Wait(1)[0].To); got != len(to) {
		t.Errorf("%d recipients arrived, want %d", got, len(to))
	}
}

func TestAMailForNobodyIsNeverSentThoughTheHostInvitesIt(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Reply("RCPT", "550 5.1.1 no such user")
	h.Reply("DATA", "354 go ahead")
	slot := reserve(t, u)
	vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, func() error {
		t.Error("commit was called")
		return nil
	})
	slot.Release()
	wantClasses(t, vs, message.Permanent)
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if n := len(h.Messages()); n != 1 || h.Accepted() != 2 {
		t.Errorf("%d mails over %d connections, want the second mail only, over a second connection", n, h.Accepted())
	}
}

func TestARefusedTransactionIsResetBeforeTheNext(t *testing.T) {
	for _, without := range [][]string{nil, {"PIPELINING"}} {
		h, u := newPair(t, upstreamtest.HostOptions{Without: without})
		h.Reply("RCPT", "550 5.1.1 no such user")
		wantClasses(t, send(t, u, envelope()), message.Permanent)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		resets := slices.DeleteFunc(h.Verbs(), func(v string) bool { return v != "RSET" })
		if h.Accepted() != 1 || len(resets) != 1 {
			t.Errorf("%d connections and %d RSET, want 1 and 1: %v", h.Accepted(), len(resets), h.Verbs())
		}
	}
}

func TestMailParametersAreThoseOffered(t *testing.T) {
	e := envelope("ü@example.net")
	e.EightBit, e.SMTPUTF8 = true, true
	h, u := newPair(t, upstreamtest.HostOptions{})
	wantClasses(t, send(t, u, e), message.Accepted)
	if got, want := h.Wait(1)[0].Params, "SIZE=25 BODY=8BITMIME SMTPUTF8"; got != want {
		t.Errorf("parameters %q, want %q", got, want)
	}

	h, u = newPair(t, upstreamtest.HostOptions{Without: []string{"SIZE"}})
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if got := h.Wait(1)[0].Params; got != "" {
		t.Errorf("parameters %q, want none", got)
	}
}

func TestWhatTheHostCannotTakeIsNotTried(t *testing.T) {
	utf8, eight := envelope(), envelope()
	utf8.SMTPUTF8, eight.EightBit = true, true
	for name, tt := range map[string]struct {
		e    message.Envelope
		want string
	}{
		"SMTPUTF8 for a host without it":          {utf8, "permanent message 5.6.7"},
		"8BITMIME for a host without it":          {eight, "temporary message 4.6.3"},
		"letters beyond ASCII without SMTPUTF8":   {envelope("ü@example.net"), "permanent recipient 5.1.3"},
		"a recipient with a parameter in it":      {envelope("x> NOTIFY=NEVER@example.net"), "permanent recipient 5.1.3"},
		"a recipient with a second command in it": {envelope("x@example.net>\r\nRCPT TO:<y@example.net"), "permanent recipient 5.1.3"},
		"a sender with a second command in it":    {message.Envelope{From: "x@example.net>\r\nQUIT", To: []string{"y@example.net"}}, "permanent message 5.1.7"},
	} {
		t.Run(name, func(t *testing.T) {
			h, u := newPair(t, upstreamtest.HostOptions{Without: []string{"SMTPUTF8", "8BITMIME"}})
			v := send(t, u, tt.e)[0]
			if got := string(v.Class) + " " + string(v.Scope) + " " + v.Enhanced; got != tt.want {
				t.Errorf("verdict %q, want %q", got, tt.want)
			}
			if slices.Contains(h.Verbs(), "MAIL") {
				t.Errorf("the host was asked: %v", h.Verbs())
			}
		})
	}
}

func TestGarbageFromTheHostIsTemporaryAndEndsTheConnection(t *testing.T) {
	for name, tt := range map[string]struct{ verb, reply string }{
		"no code":                   {"MAIL", "what?"},
		"a code out of range":       {"MAIL", "999 ok"},
		"codes that differ":         {"RCPT", "250-ok\r\n550 no"},
		"an endless line":           {"RCPT", "250 " + strings.Repeat("x", 5000)},
		"endless lines":             {"RCPT", strings.Repeat("250-x\r\n", 300) + "250 x"},
		"an invitation too early":   {"MAIL", "354 go ahead"},
		"DATA taken without a mail": {"DATA", "250 ok"},
	} {
		t.Run(name, func(t *testing.T) {
			h, u := newPair(t, upstreamtest.HostOptions{})
			h.Reply(tt.verb, tt.reply)
			v := send(t, u, envelope())[0]
			if v.Class != message.Temporary || v.Scope != message.ScopeUpstream {
				t.Errorf("verdict %+v, want temporary about the upstream", v)
			}
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if h.Accepted() != 2 {
				t.Errorf("%d connections, want a new one for the second mail", h.Accepted())
			}
		})
	}
}

func TestGarbageInAnswerToTheDotIsUnknown(t *testing.T) {
	for _, reply := range []string{"what?", "354 go on", "250-ok\r\n550 no"} {
		h, u := newPair(t, upstreamtest.HostOptions{})
		h.Reply(upstreamtest.Dot, reply)
		wantClasses(t, send(t, u, envelope()), message.Unknown)
	}
}

func TestAHostThatLeavesBeforeTheDotHasNotTakenTheMail(t *testing.T) {
	for _, how := range []string{upstreamtest.Drop, "421 4.4.2 timeout", "552 5.3.4 too big"} {
		h, u := newPair(t, upstreamtest.HostOptions{})
		h.Reply(upstreamtest.Body, how)
		slot := reserve(t, u)
		vs := slot.Send(t.Context(), envelope(), net.Buffers{text}, func() error {
			time.Sleep(100 * time.Millisecond) // the host's answer is here before we are durable
			return nil
		})
		slot.Release()
		if vs[0].Class != message.Temporary || vs[0].Scope != message.ScopeUpstream {
			t.Errorf("%s: verdict %+v, want temporary about the upstream", how, vs[0])
		}
		if n := len(h.Messages()); n != 0 {
			t.Errorf("%s: the host has %d mails", how, n)
		}
	}
}

func TestAStopInMidEnvelopeIsTemporaryAndQuick(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Reply("RCPT", upstreamtest.Hang)
	slot := reserve(t, u)
	defer slot.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	v := slot.Send(ctx, envelope(), net.Buffers{text}, commit)[0]
	if v.Class != message.Temporary || v.Scope != message.ScopeUpstream || !strings.Contains(v.Text, "deadline exceeded") {
		t.Errorf("verdict %+v, want temporary about the upstream, because of the deadline", v)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("the stop took %v", took)
	}
}

func TestALargeMailStopsInMidBody(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == upstreamtest.Body {
			return upstreamtest.Action{Delay: time.Second} // reads no more meanwhile
		}
		return upstreamtest.Action{}
	})
	slot := reserve(t, u)
	defer slot.Release()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	vs := slot.Send(ctx, envelope(), net.Buffers{[]byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", 250_000))}, commit)
	wantClasses(t, vs, message.Temporary)
	if len(h.Messages()) != 0 {
		t.Errorf("the host has %d mails", len(h.Messages()))
	}
}
