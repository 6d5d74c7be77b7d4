package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/store"
	"gatepost/upstream"
)

// sent is one message as the fake upstream took it.
type sent struct {
	env  message.Envelope
	wire string
	at   time.Time
}

// service is a fake upstream whose behaviour a test may change at any time.
type service struct {
	mu        sync.Mutex
	down      *upstream.Paused                           // Reserve fails
	hang      bool                                       // Reserve hangs until its context ends
	stall     bool                                       // Send hangs before its commit
	stallFor  string                                     // … for this recipient
	lose      int                                        // so many answers are lost after the commit
	wary      bool                                       // an answer is lost if its context has ended right after the commit
	fallsBack bool                                       // after its verdict on a template it is sent our words
	verdict   func(e message.Envelope) []message.Verdict // default: accepts
	sends     []sent
	logins    int
	inUse     int
	closed    int
	most      int
	traits    upstream.Traits
	caps      *upstream.Caps // default: 8BITMIME and SMTPUTF8
}

func (s *service) Traits() upstream.Traits { return s.traits }

func (s *service) Reserve(ctx context.Context, lane string) (upstream.Slot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins++
	if s.down != nil {
		return nil, s.down
	}
	if s.hang {
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		return nil, ctx.Err()
	}
	s.inUse++
	s.most = max(s.most, s.inUse)
	return &fakeSlot{s}, nil
}

func (s *service) Close(context.Context) error {
	s.set(func(s *service) { s.closed++ })
	return nil
}

func (s *service) set(change func(*service)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *service) got() []sent {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]sent(nil), s.sends...)
}

func (s *service) attempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.logins
}

type fakeSlot struct{ s *service }

func (f *fakeSlot) Caps() upstream.Caps {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.caps != nil {
		return *f.s.caps
	}
	return upstream.Caps{EightBitMIME: true, SMTPUTF8: true}
}
func (f *fakeSlot) Local() string { return "127.0.0.2" }
func (f *fakeSlot) Release()      { f.s.set(func(s *service) { s.inUse-- }) }

func (f *fakeSlot) Send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	cut := message.Verdict{Class: message.Temporary, Scope: message.ScopeUpstream, Text: "cut short"}
	f.s.mu.Lock()
	stall := f.s.stall || e.To[0] == f.s.stallFor
	f.s.mu.Unlock()
	if stall {
		<-ctx.Done()
		return cut.Verdicts(len(e.To))
	}
	if commit() != nil {
		return nil
	}
	f.s.mu.Lock()
	var all strings.Builder
	for _, b := range wire {
		all.Write(b)
	}
	f.s.sends = append(f.s.sends, sent{e, all.String(), time.Now()})
	lost := f.s.lose > 0
	f.s.lose--
	verdict, wary, falls := f.s.verdict, f.s.wary, f.s.fallsBack
	f.s.mu.Unlock()
	if wary {
		time.Sleep(time.Microsecond)
		lost = lost || ctx.Err() != nil
	}
	if lost {
		<-ctx.Done()
		return message.Verdict{Class: message.Unknown, Scope: message.ScopeUpstream, Text: "no answer"}.Verdicts(len(e.To))
	}
	if verdict != nil {
		vs := verdict(e)
		if falls && e.Provided != nil {
			e.Provided = nil
			return f.Send(ctx, e, wire, commit)
		}
		return vs
	}
	return message.Verdict{Class: message.Accepted, Code: 250}.Verdicts(len(e.To))
}

// always returns a verdict function that says v of everybody.
func always(v message.Verdict) func(message.Envelope) []message.Verdict {
	return func(e message.Envelope) []message.Verdict { return v.Verdicts(len(e.To)) }
}

// history collects events as a sink.
type history struct {
	mu     sync.Mutex
	events []event.Event
}

func (h *history) Emit(es []event.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, es...)
}

func (h *history) of(k event.Kind) []event.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	var found []event.Event
	for _, e := range h.events {
		if e.Kind == k {
			found = append(found, e)
		}
	}
	return found
}

// rig is a relay on a real store, with a fake upstream for each of its two streams.
type rig struct {
	t         *testing.T
	cfg       *config.Config
	store     *store.Store
	relay     *Relay
	auth      *service
	marketing *service
	others    map[string]*service // further upstreams, by name
	history   *history
	connects  []string                                   // upstreams that were made, by name
	instead   func(c *config.Upstream) *service          // makes an upstream instead of the two; nil for none
	wrapped   func(c *config.Upstream) upstream.Upstream // makes all upstreams; nil for none
	key       string
	stop      func()
}

// newRig builds a rig and runs it. change may alter the config first; others are upstreams beside the two.
func newRig(t *testing.T, change func(*config.Config), others ...string) *rig {
	t.Helper()
	dir := t.TempDir()
	g := &rig{others: map[string]*service{}, t: t, key: filepath.Join(dir, "key.pem"), auth: &service{traits: upstream.Traits{DKIM: "sign"}},
		marketing: &service{traits: upstream.Traits{DKIM: "sign"}}, history: &history{}}
	writeKey(t, g.key)
	g.cfg = testConfig(dir, g.key)
	for _, name := range others {
		g.others[name] = &service{traits: upstream.Traits{DKIM: "sign"}}
		u := *g.cfg.Upstream["sink"]
		u.Name = name
		g.cfg.Upstream[name] = &u
	}
	if change != nil {
		change(g.cfg)
	}
	g.start(nil)
	return g
}

// start opens the store and runs the relay on it; wrap may put something between them.
func (g *rig) start(wrap func(Spool) Spool) {
	g.t.Helper()
	st, err := store.Open(context.Background(), store.Options{Dir: g.cfg.StateDir, Sink: g.history, Log: slog.New(slog.DiscardHandler),
		Addresses: func(string, message.Kind) string { return "clear" }, Keep: time.Hour * 720})
	if err != nil {
		g.t.Fatal(err)
	}
	g.store = st
	var spool Spool = st
	if wrap != nil {
		spool = wrap(st)
	}
	g.relay, err = newRelay(Options{Config: g.cfg, Spool: spool, Log: slog.New(slog.DiscardHandler)},
		func(c *config.Upstream, _ string, _ *upstream.Egress, _ []upstream.LaneKind) (upstream.Upstream, error) {
			g.connects = append(g.connects, c.Name)
			switch {
			case g.wrapped != nil:
				return g.wrapped(c), nil
			case g.instead != nil:
				return g.instead(c), nil
			case g.others[c.Name] != nil:
				return g.others[c.Name], nil
			case c.Name == "sink":
				return g.auth, nil
			}
			return g.marketing, nil
		})
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.relay.Run(ctx)
	}()
	var once sync.Once
	g.stop = func() {
		once.Do(func() {
			cancel()
			<-done
			if err := st.Close(context.Background()); err != nil {
				g.t.Errorf("close the store: %v", err)
			}
		})
	}
	g.t.Cleanup(g.stop)
	time.Sleep(10 * time.Millisecond) // the first claim finds the queue empty
	synctest.Wait()
}

func writeKey(t *testing.T, file string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func testConfig(dir, key string) *config.Config {
	s := time.Second
	up := func(name string) *config.Upstream {
		return &config.Upstream{Name: name, Type: "smtp", Address: "127.0.0.1:2526", TLS: "none", Connections: 4, DKIM: "sign"}
	}
	return &config.Config{
		File: "gatepost.toml", Dir: dir, Hostname: "gw.example.com", StateDir: dir,
		Listen: map[string]*config.Listen{"smtp": {Name: "smtp", Protocol: "smtp", Clients: []string{"logto", "news"}, ReceivedFrom: "public"}},
		Client: map[string]*config.Client{
			"logto": {Name: "logto", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/24")}, Streams: []string{"auth"}},
			"news":  {Name: "news", Networks: []netip.Prefix{netip.MustParsePrefix("127.0.1.0/24")}, Streams: []string{"marketing"}},
		},
		Stream: map[string]*config.Stream{
			"auth": {Name: "auth", Kind: message.Auth, Domains: []string{"auth.example.com"}, Route: []string{"sink"}, Egress: "auth",
				DKIM: []config.DKIM{{Selector: "gp1", KeyFile: key, Shared: true}}, TTL: time.Hour, Retry: []time.Duration{s, 2 * s, 5 * s, 10 * s},
				Verdict: "upstream", VerdictTimeout: 4 * s, WhenDown: "refuse", CommitTimeout: 1500 * time.Millisecond, AnswerTimeout: 10 * s},
			"marketing": {Name: "marketing", Kind: message.Marketing, Domains: []string{"news.example.com"}, Route: []string{"bulk"}, Egress: "bulk",
				DKIM: []config.DKIM{{Selector: "gp1", KeyFile: key, Shared: true}}, TTL: 72 * time.Hour, Retry: []time.Duration{60 * s, 300 * s},
				Verdict: "queued", VerdictTimeout: 4 * s, WhenDown: "queue", CommitTimeout: 60 * s, AnswerTimeout: 120 * s},
		},
		Egress: map[string]*config.Egress{
			"auth": {Name: "auth", IPv4: netip.MustParseAddr("127.0.0.2")},
			"bulk": {Name: "bulk", IPv4: netip.MustParseAddr("127.0.0.3")},
		},
		Upstream: map[string]*config.Upstream{"sink": up("sink"), "bulk": up("bulk")},
		Limits:   config.Limits{BytesInFlight: 64 << 20},
	}
}

// submit hands one mail of client in and returns its id and the answer.
func (g *rig) submit(client string, header string, to ...string) (message.ID, error) {
	g.t.Helper()
	return g.accept(g.submission(client, header, to...))
}

// submission is one mail of client.
func (g *rig) submission(client string, header string, to ...string) *message.Submission {
	g.t.Helper()
	domain := map[string]string{"logto": "auth.example.com", "news": "news.example.com"}[client]
	if to == nil {
		to = []string{"kim@example.net"}
	}
	s := &message.Submission{Client: client, Listener: "smtp", Remote: netip.MustParseAddrPort("127.0.0.1:4711"), Helo: "client", With: "ESMTP",
		MailFrom: "no-reply@" + domain, StartedAt: time.Now(),
		Raw: message.Raw("From: no-reply@" + domain + "\r\nTo: kim@example.net\r\nSubject: Your code\r\n" + header + "\r\n123456\r\n")}
	for _, a := range to {
		addr, err := message.ParseAddress(a)
		if err != nil {
			g.t.Fatal(err)
		}
		s.To = append(s.To, addr)
	}
	return s
}

// accept hands s in and returns its id and the answer.
func (g *rig) accept(s *message.Submission) (message.ID, error) {
	receipts, err := g.relay.Accept(context.Background(), []*message.Submission{s})
	if len(receipts) == 0 {
		return 0, err
	}
	return receipts[0].ID, err
}

// code submits a sign-in code and fails the test unless it is accepted.
func (g *rig) code() message.ID {
	g.t.Helper()
	id, err := g.submit("logto", "")
	if err != nil {
		g.t.Fatalf("the code was not accepted: %v", err)
	}
	return id
}

// queue returns the rows that are still there.
func (g *rig) queue() []message.QueueRow {
	g.t.Helper()
	rows, err := g.store.List(context.Background(), message.QueueFilter{})
	if err != nil {
		g.t.Fatal(err)
	}
	return rows
}

// bubble runs f with a fake clock.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}
