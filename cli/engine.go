package cli

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/wneessen/go-mail"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/store"
)

// aliveWithin is what a status waits for a sign of life.
const aliveWithin = 2 * time.Second

// engine shows a daemon to operators. It implements admin.Engine.
type engine struct{ *daemon }

func (e engine) Events(ctx context.Context, id message.ID, address string, limit int) ([]event.Event, error) {
	events, err := e.store.Events(ctx, store.EventQuery{Message: id, Address: address, Limit: limit, Newest: true})
	slices.SortFunc(events, inTime)
	return events, err
}

// inTime orders events as they happened. An attempt that was not the last is written beside the end of its message, and
// may have got the later number.
func inTime(a, b event.Event) int {
	return cmp.Or(a.At.Compare(b.At), stage(a)-stage(b), cmp.Compare(a.Seq, b.Seq))
}

// stage tells what happens at one moment apart: attempts, the end, and answers that come too late.
func stage(e event.Event) int {
	switch {
	case e.Kind == event.Answered:
		return 2
	case e.Kind >= event.Delivered && e.Kind <= event.Dropped:
		return 1
	}
	return 0
}

func (e engine) Lanes() []message.LaneStatus { return e.relay.Status() }

func (e engine) Stats() admin.Stats {
	return admin.Stats{StartedAt: e.started, Arms: e.relay.Stats()}
}

func (e engine) Status(ctx context.Context) admin.Status {
	s := admin.Status{Version: buildInfo().Version, PID: os.Getpid(), Hostname: e.cfg().Hostname, StateDir: e.cfg().StateDir, StartedAt: e.started, Alive: true}
	for _, d := range e.now.Load().doors {
		s.Doors = append(s.Doors, admin.Door{Name: d.listen.Name, Protocol: d.listen.Protocol, Address: d.address(), As: d.listen.Address})
	}
	ctx, cancel := context.WithTimeout(ctx, aliveWithin)
	defer cancel()
	s.Store = e.shared(ctx)
	if err := e.alive(ctx); err != nil {
		s.Alive, s.Problem = false, err.Error()
	}
	return s
}

// shared tells who shares the queue.
func (e engine) shared(ctx context.Context) admin.Store {
	set := e.cfg().Store
	s := admin.Store{Engine: set.Engine, Where: e.store.Where(), Node: set.Node}
	nodes, err := e.store.Nodes(ctx)
	if err != nil {
		return s // that the database is away is told as a problem
	}
	for _, n := range nodes {
		s.Nodes = append(s.Nodes, admin.Node{Name: n.Name, Alive: n.Alive, LeaseUntil: n.LeaseUntil})
	}
	return s
}

func (e engine) Captured() []admin.Captured {
	var all []admin.Captured
	for _, c := range e.relay.Captured() {
		all = append(all, admin.Captured{ID: c.Envelope.ID, Stream: c.Envelope.Stream, At: c.At, From: c.Envelope.From, To: c.Envelope.To, Wire: c.Wire})
	}
	slices.SortStableFunc(all, func(a, b admin.Captured) int { return a.At.Compare(b.At) })
	return all
}

// Orders implements admin.Engine.
func (e engine) Orders() admin.Orders { return e.orders.Orders() }

// Reload implements admin.Engine.
func (e engine) Reload(ctx context.Context) (admin.Reloaded, error) { return e.reload(ctx) }

// Submit makes a test message and gives it to the relay in the name of a client that may send it.
func (e engine) Submit(ctx context.Context, t admin.TestMail) (message.ID, error) {
	to, err := message.ParseAddress(t.To)
	if err != nil {
		return 0, badTest("the recipient cannot be used: "+err.Error(), "")
	}
	stream, err := streamFor(e.cfg(), t)
	if err != nil {
		return 0, err
	}
	client := e.clientOf(stream.Name)
	if client == "" {
		return 0, badTest("no client may send mail of stream "+stream.Name, "add the stream to a [client.NAME]")
	}
	from := cmp.Or(t.From, "no-reply@"+strings.TrimPrefix(stream.Domains[0], "*."))
	raw, err := testMessage(from, to.String(), e.cfg().Hostname, stream.Name)
	if err != nil {
		return 0, badTest(err.Error(), "")
	}
	sub := &message.Submission{Client: client, Listener: e.listenerOf(client), Remote: netip.MustParseAddrPort("127.0.0.1:0"),
		Helo: e.cfg().Hostname, With: "HTTP", MailFrom: from, To: []message.Address{to}, SMTPUTF8: to.UTF8(), Raw: raw, StartedAt: time.Now()}
	receipts, err := e.relay.Accept(ctx, []*message.Submission{sub})
	if err != nil {
		return 0, refusedTest(reply.Of(err), to)
	}
	return receipts[0].ID, nil
}

// refusedTest tells of a test message that was not taken. Only one that an upstream saw has left a trace.
func refusedTest(said *reply.Error, to message.Address) error {
	hint := "if the upstream was asked, gatepost trace " + to.String() + " tells what it said"
	if said.Temporary() {
		hint = "gatepost status shows paused upstreams; the daemon's log has the cause"
	}
	return &admin.Problem{Text: fmt.Sprintf("the daemon refused it: %d %s %s", said.Code, said.Enhanced, said.Text),
		Hint: hint, Code: http.StatusUnprocessableEntity}
}

func badTest(text, hint string) error {
	return &admin.Problem{Text: text, Hint: hint, Code: http.StatusBadRequest}
}

// streamFor returns the stream that a test message asks for: by its name, by the domain of its sender, or the only one.
func streamFor(cfg *config.Config, t admin.TestMail) (*config.Stream, error) {
	names := slices.Sorted(maps.Keys(cfg.Stream))
	hint := "the streams are " + strings.Join(names, ", ")
	if t.Stream != "" {
		if s := cfg.Stream[t.Stream]; s != nil {
			return s, nil
		}
		return nil, badTest(fmt.Sprintf("there is no stream %q", t.Stream), hint)
	}
	if len(names) == 1 {
		return cfg.Stream[names[0]], nil
	}
	_, domain, _ := strings.Cut(strings.ToLower(t.From), "@")
	for _, name := range names {
		for _, d := range cfg.Stream[name].Domains {
			if parent, wild := strings.CutPrefix(d, "*"); d == domain || wild && strings.HasSuffix(domain, parent) {
				return cfg.Stream[name], nil
			}
		}
	}
	if domain != "" {
		return nil, badTest(fmt.Sprintf("no stream has the From domain %s", domain), "use an address of one of the streams, see domains in the config; "+hint)
	}
	return nil, badTest("it is not clear which stream the test message belongs to", "name one with --stream; "+hint)
}

// clientOf returns a client that may send mail of stream, or "".
func (e engine) clientOf(stream string) string {
	for _, name := range slices.Sorted(maps.Keys(e.cfg().Client)) {
		if slices.Contains(e.cfg().Client[name].Streams, stream) {
			return name
		}
	}
	return ""
}

// listenerOf returns a listener that serves client, or "".
func (e engine) listenerOf(client string) string {
	for _, name := range slices.Sorted(maps.Keys(e.cfg().Listen)) {
		if slices.Contains(e.cfg().Listen[name].Clients, client) {
			return name
		}
	}
	return ""
}

// testMessage composes a message that nobody can mistake for a real one.
func testMessage(from, to, hostname, stream string) (message.Raw, error) {
	m := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := m.From(from); err != nil {
		return nil, fmt.Errorf("the sender cannot be used: %w", err)
	}
	if err := m.To(to); err != nil {
		return nil, fmt.Errorf("the recipient cannot be used: %w", err)
	}
	m.Subject("Test message from gatepost")
	m.SetBodyString(mail.TypeTextPlain, fmt.Sprintf("This is a test message of stream %s, sent by an operator of %s.\r\n"+
		"If you can read it, the way to you works. You need not do anything.\r\n", stream, hostname))
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("compose the test message: %w", err)
	}
	return b.Bytes(), nil
}
