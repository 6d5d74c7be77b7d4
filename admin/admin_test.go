package admin

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// fakeQueue notes what it was asked for.
type fakeQueue struct {
	rows   []message.QueueRow
	asked  message.QueueFilter
	called string
	held   map[string]bool
	err    error
}

func (q *fakeQueue) List(_ context.Context, f message.QueueFilter) ([]message.QueueRow, error) {
	q.asked = f
	return q.rows, q.err
}

func (q *fakeQueue) Show(_ context.Context, id message.ID) ([]message.QueueRow, error) {
	return slices.DeleteFunc(slices.Clone(q.rows), func(r message.QueueRow) bool { return r.ID != id }), q.err
}

func (q *fakeQueue) note(action string, f message.QueueFilter) (int, int, error) {
	q.called, q.asked = action, f
	return 3, 1, q.err
}

func (q *fakeQueue) Retry(_ context.Context, f message.QueueFilter) (int, int, error) {
	return q.note("retry", f)
}
func (q *fakeQueue) Hold(_ context.Context, f message.QueueFilter) (int, int, error) {
	return q.note("hold", f)
}
func (q *fakeQueue) Unhold(_ context.Context, f message.QueueFilter) (int, int, error) {
	return q.note("release", f)
}
func (q *fakeQueue) Drop(_ context.Context, f message.QueueFilter) (int, int, error) {
	return q.note("drop", f)
}
func (q *fakeQueue) HoldStream(_ context.Context, stream string, hold bool) error {
	q.held[stream] = hold
	return q.err
}
func (q *fakeQueue) Lanes(context.Context) ([]message.LaneCount, error) {
	return []message.LaneCount{{Lane: "auth", Queued: 2}, {Lane: "gone", Queued: 1}}, q.err
}

// fakeEngine is a daemon with one stream.
type fakeEngine struct {
	alive  bool
	held   map[string]bool
	events []event.Event
	sent   TestMail
	broken error // of Reload
}

func (e *fakeEngine) Reload(context.Context) (Reloaded, error) {
	return Reloaded{Streams: Changes{Added: []string{"news"}, Changed: []string{"auth"}}, Held: 3}, e.broken
}

func (e *fakeEngine) Events(_ context.Context, id message.ID, address string, _ int) ([]event.Event, error) {
	return slices.DeleteFunc(slices.Clone(e.events), func(ev event.Event) bool {
		return id != 0 && ev.Message != id || id == 0 && ev.Address != address
	}), nil
}
func (e *fakeEngine) Status(context.Context) Status {
	return Status{Hostname: "gw.example.com", Alive: e.alive, Problem: "the relay does not answer"}
}
func (e *fakeEngine) Stats() Stats {
	return Stats{Arms: []message.ArmStats{{Stream: "auth", Upstream: "sink", Share: 95, Verdicts: map[message.Class]int64{message.Accepted: 7}, P50: 1.5}}}
}

func (e *fakeEngine) Lanes() []message.LaneStatus {
	return []message.LaneStatus{{Lane: "auth", Kind: message.Auth, Held: e.held["auth"]}}
}
func (e *fakeEngine) Submit(_ context.Context, t TestMail) (message.ID, error) {
	e.sent = t
	return testID, nil
}
func (e *fakeEngine) Captured() []Captured { return nil }
func (e *fakeEngine) Orders() Orders       { return Orders{Counts: []OrderCount{{Sent: 7}}} }

var testID = message.NewID(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 0, 1)

type rig struct {
	queue  *fakeQueue
	engine *fakeEngine
	client *Client
	socket string
	served chan error
	stop   context.CancelFunc
}

// start serves the API on a socket of its own.
func start(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	ln, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		queue:  &fakeQueue{rows: []message.QueueRow{{ID: testID, Stream: "auth", Address: "ann@example.org", State: "queued"}}, held: map[string]bool{}},
		engine: &fakeEngine{alive: true},
		socket: filepath.Join(dir, SocketName),
		served: make(chan error, 1),
	}
	r.engine.held = r.queue.held
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.served <- Serve(ctx, ln, Handler(r.queue, r.engine, log), log) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.served; err != nil {
			t.Errorf("Serve returned %v after its context ended", err)
		}
	})
	r.client = NewClient(r.socket)
	return r
}

func TestListReachesTheQueueWithEveryFilter(t *testing.T) {
	r := start(t)
	want := message.QueueFilter{Stream: "auth", Address: "ann@example.org", State: new(message.Held), After: testID, Limit: 7}
	rows, err := r.client.List(t.Context(), want)
	if err != nil || len(rows) != 1 || rows[0].ID != testID {
		t.Fatalf("List = %v, %v, want the one row", rows, err)
	}
	got := r.queue.asked
	if got.Stream != want.Stream || got.Address != want.Address || got.State == nil || *got.State != message.Held || got.After != testID || got.Limit != 7 {
		t.Errorf("the queue was asked for %+v, want %+v", got, want)
	}
}

func TestStatsReachTheCaller(t *testing.T) {
	r := start(t)
	s, err := r.client.Stats(t.Context())
	if err != nil || len(s.Arms) != 1 || s.Arms[0].Share != 95 || s.Arms[0].Verdicts[message.Accepted] != 7 || s.Arms[0].P50 != 1.5 {
		t.Errorf("Stats = %+v, %v", s, err)
	}
}

func TestShowOfAnUnknownMessageIsNotFound(t *testing.T) {
	r := start(t)
	if rows, err := r.client.Show(t.Context(), testID); err != nil || len(rows) != 1 {
		t.Errorf("Show of a queued message = %v, %v", rows, err)
	}
	_, err := r.client.Show(t.Context(), testID+1)
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Code != http.StatusNotFound || !strings.Contains(p.Hint, "gatepost trace") {
		t.Errorf("Show of an unknown message: %v, want 404 that points to trace", err)
	}
}

func TestEveryChangeReachesItsOwnMethod(t *testing.T) {
	r := start(t)
	for _, action := range []string{"retry", "hold", "release", "drop"} {
		done, err := r.client.Change(t.Context(), action, Change{Filter: message.QueueFilter{IDs: []message.ID{testID}}})
		if err != nil || done != (Changed{3, 1}) {
			t.Errorf("%s = %+v, %v", action, done, err)
		}
		if r.queue.called != action || len(r.queue.asked.IDs) != 1 || r.queue.asked.State != nil {
			t.Errorf("%s called %s with %+v", action, r.queue.called, r.queue.asked)
		}
	}
}

func TestAnEmptyFilterChangesNothingUnlessAllIsSaid(t *testing.T) {
	r := start(t)
	if _, err := r.client.Change(t.Context(), "drop", Change{}); err == nil || r.queue.called != "" {
		t.Errorf("drop without a choice: %v, and called %q", err, r.queue.called)
	}
	if _, err := r.client.Change(t.Context(), "drop", Change{All: true}); err != nil || r.queue.called != "drop" {
		t.Errorf("drop of all: %v, and called %q", err, r.queue.called)
	}
}

func TestAMisspeltStreamOrFieldIsRefused(t *testing.T) {
	r := start(t)
	if _, err := r.client.Change(t.Context(), "hold", Change{Filter: message.QueueFilter{Stream: "autj"}, Whole: true}); err == nil {
		t.Error("a stream that does not exist could be held")
	}
	status, _ := r.post(t, "/v1/queue/drop", `{"all":true,"strem":"auth"}`)
	if status != http.StatusBadRequest || r.queue.called != "" {
		t.Errorf("a request with an unknown field got %d and called %q", status, r.queue.called)
	}
}

func TestMailOfAVanishedStreamCanStillBeListedAndDropped(t *testing.T) {
	r := start(t)
	if _, err := r.client.List(t.Context(), message.QueueFilter{Stream: "gone"}); err != nil {
		t.Errorf("list: %v", err)
	}
	if _, err := r.client.Change(t.Context(), "drop", Change{Filter: message.QueueFilter{Stream: "gone"}}); err != nil || r.queue.called != "drop" {
		t.Errorf("drop: %v, called %q", err, r.queue.called)
	}
	_, err := r.client.List(t.Context(), message.QueueFilter{Stream: "autj"})
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != http.StatusNotFound || p.Hint == "" {
		t.Errorf("list of a misspelt stream: %v, want a 404 with a hint", err)
	}
}

func TestEveryOrderOfAnOperatorIsLogged(t *testing.T) {
	var log bytes.Buffer
	h := Handler(&fakeQueue{held: map[string]bool{}}, &fakeEngine{}, slog.New(slog.NewTextHandler(&log, nil)))
	for _, tt := range []struct{ action, body, want string }{
		{"hold", `{"filter":{"stream":"auth"},"whole_stream":true}`, `msg="stream held by operator" stream=auth`},
		{"release", `{"filter":{"stream":"auth"},"whole_stream":true}`, `msg="stream released by operator" stream=auth`},
		{"drop", `{"filter":{"ids":["` + testID.String() + `"]}}`, `action=drop msg_ids=[` + testID.String() + `] changed=`},
		{"retry", `{"filter":{"address":"ann@example.org"}}`, `action=retry to=a…@example.org changed=`},
	} {
		log.Reset()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), "POST", "/v1/queue/"+tt.action, strings.NewReader(tt.body)))
		if !strings.Contains(log.String(), tt.want) {
			t.Errorf("%s %s was logged as %q, want %q in it", tt.action, tt.body, log.String(), tt.want)
		}
	}
}

func TestHoldingAStreamLeavesItsRowsAlone(t *testing.T) {
	r := start(t)
	whole := Change{Filter: message.QueueFilter{Stream: "auth"}, Whole: true}
	if _, err := r.client.Change(t.Context(), "hold", whole); err != nil || !r.queue.held["auth"] || r.queue.called != "" {
		t.Errorf("hold: %v, held %v, called %q", err, r.queue.held, r.queue.called)
	}
	s, err := r.client.Status(t.Context())
	if err != nil || len(s.Lanes) != 2 || !s.Lanes[0].Held || s.Lanes[0].Queued != 2 {
		t.Errorf("status of a held stream: %+v, %v", s.Lanes, err)
	}
	if _, err := r.client.Change(t.Context(), "release", whole); err != nil || r.queue.held["auth"] || r.queue.called != "release" {
		t.Errorf("release: %v, held %v, called %q", err, r.queue.held, r.queue.called)
	}
}

func TestALaneOfAVanishedStreamIsShownAsHeld(t *testing.T) {
	r := start(t)
	s, err := r.client.Status(t.Context())
	if err != nil || len(s.Lanes) != 2 || s.Lanes[1].Lane != "gone" || !s.Lanes[1].Held || s.Lanes[1].Queued != 1 {
		t.Errorf("lanes = %+v, %v, want the one without a stream among them", s.Lanes, err)
	}
}

func TestAReleaseWithoutNamesNeverSendsASecondCopy(t *testing.T) {
	r := start(t)
	if _, err := r.client.Change(t.Context(), "release", Change{All: true}); err != nil {
		t.Fatal(err)
	}
	if s := r.queue.asked.State; s == nil || *s != message.Held {
		t.Errorf("release --all asked for state %v, want held only", s)
	}
	if _, err := r.client.Change(t.Context(), "release", Change{Filter: message.QueueFilter{State: new(message.HeldUnconfirmed)}}); err != nil {
		t.Fatal(err)
	}
	if s := r.queue.asked.State; s == nil || *s != message.HeldUnconfirmed {
		t.Errorf("release of held-unconfirmed asked for state %v", s)
	}
}

func TestTraceJoinsHistoryAndQueue(t *testing.T) {
	r := start(t)
	r.engine.events = []event.Event{{Message: testID, Kind: event.Deferred, Address: "ann@example.org"}, {Message: testID + 1, Kind: event.Delivered, Address: "bob@example.org"}}
	got, err := r.client.Trace(t.Context(), testID, "")
	if err != nil || len(got.Events) != 1 || got.Events[0].Kind != event.Deferred || len(got.Queue) != 1 {
		t.Errorf("trace of the id = %+v, %v", got, err)
	}
	got, err = r.client.Trace(t.Context(), 0, "bob@example.org")
	if err != nil || len(got.Events) != 1 || got.Events[0].Message != testID+1 {
		t.Errorf("trace of the address = %+v, %v", got, err)
	}
	if _, err = r.client.Trace(t.Context(), 0, ""); err == nil {
		t.Error("a trace of nothing gave no error")
	}
}

func TestHealthFailsWhileTheDaemonDoesNotWork(t *testing.T) {
	r := start(t)
	if code, _ := r.get(t, "/v1/health"); code != http.StatusOK {
		t.Errorf("health of a working daemon: %d", code)
	}
	r.engine.alive = false
	if code, body := r.get(t, "/v1/health"); code != http.StatusServiceUnavailable || !strings.Contains(body, "the relay does not answer") {
		t.Errorf("health of a stuck daemon: %d %s", code, body)
	}
}

func TestTestMailReturnsItsID(t *testing.T) {
	r := start(t)
	want := TestMail{To: "ann@example.org", Stream: "auth"}
	if id, err := r.client.Test(t.Context(), want); err != nil || id != testID || r.engine.sent != want {
		t.Errorf("Test = %v, %v, having sent %+v", id, err, r.engine.sent)
	}
}

func TestErrorsAndUnknownPagesAreJSON(t *testing.T) {
	r := start(t)
	r.queue.err = errors.New("the disk is on fire")
	for path, want := range map[string]int{"/v1/queue": 500, "/v1/queue?state=odd": 400, "/v1/queue?limit=-1": 400, "/v1/queue/xyz": 400, "/nothing": 404, "/v1/queue?after=x": 400} {
		if code, body := r.get(t, path); code != want || !strings.HasPrefix(body, `{"error":"`) {
			t.Errorf("GET %s = %d %s, want %d and a JSON error", path, code, body, want)
		}
	}
	if code, _ := r.post(t, "/v1/queue/explode", `{"all":true}`); code != http.StatusNotFound {
		t.Errorf("an unknown action got %d", code)
	}
}

func TestALargeRequestIsRefused(t *testing.T) {
	r := start(t)
	if code, _ := r.post(t, "/v1/test", `{"to":"`+strings.Repeat("a", maxBody)+`"}`); code != http.StatusBadRequest || r.engine.sent.To != "" {
		t.Errorf("a request over the limit got %d", code)
	}
}

func TestTheSocketIsForItsOwnerOnly(t *testing.T) {
	r := start(t)
	fi, err := os.Stat(r.socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the socket has mode %v (%v), want 0600", fi.Mode(), err)
	}
	for name, tt := range map[string]struct {
		peer uint32
		want bool
	}{
		"root":            {0, true},
		"our own user":    {1000, true},
		"somebody else":   {1001, false},
		"a wrapped -1":    {^uint32(0), false},
		"nobody (65534)":  {65534, false},
		"a lookalike 100": {100, false},
	} {
		if got := allowed(tt.peer, 1000); got != tt.want {
			t.Errorf("%s: allowed = %v, want %v", name, got, tt.want)
		}
	}
}

func TestAPeerWithoutCredentialsIsRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	q := &fakeQueue{}
	go func() { served <- Serve(ctx, ln, Handler(q, &fakeEngine{}, log), log) }()
	res, err := http.Get("http://" + ln.Addr().String() + "/v1/queue")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		t.Errorf("a peer over TCP got %s, want 403", res.Status)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve returned %v", err)
	}
}

func TestAStaleSocketIsReplacedAndALivingOneIsFoundMissing(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		ln, err := Listen(dir)
		if err != nil {
			t.Fatalf("listen beside a stale socket: %v", err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false) // as after SIGKILL
		ln.Close()
	}
	_, err := NewClient(filepath.Join(dir, SocketName)).Status(t.Context())
	if u, ok := errors.AsType[*Unreachable](err); !ok || !strings.Contains(u.Error(), "nobody answers") || u.Hint() == "" {
		t.Errorf("a stale socket: %v, want that nobody answers", err)
	}
	_, err = NewClient(filepath.Join(dir, "none")).Status(t.Context())
	if u, ok := errors.AsType[*Unreachable](err); !ok || !strings.Contains(u.Error(), "there is no socket") {
		t.Errorf("a missing socket: %v, want that there is none", err)
	}
	if _, err := Listen(filepath.Join(dir, strings.Repeat("x", 100))); err == nil || !strings.Contains(err.Error(), "shorter state_dir") {
		t.Errorf("a path too long for a socket: %v, want advice", err)
	}
}

func (r *rig) get(t *testing.T, path string) (int, string) {
	t.Helper()
	res, err := r.client.http.Get("http://gatepost" + path)
	return answerOf(t, res, err)
}

func (r *rig) post(t *testing.T, path, body string) (int, string) {
	t.Helper()
	res, err := r.client.http.Post("http://gatepost"+path, "application/json", strings.NewReader(body))
	return answerOf(t, res, err)
}

func answerOf(t *testing.T, res *http.Response, err error) (int, string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}
