package admin

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"time"

	"gatepost/message"
)

const (
	maxBody     = 64 << 10 // octets of a request
	maxRows     = 1000     // rows of one answer; the client pages
	maxEvents   = 1000     // events of one answer
	defaultRows = 100

	longest = 10 * time.Minute // for one request: a change may touch a million rows
)

type handler struct {
	queue  Queue
	engine Engine
	log    *slog.Logger
}

// Handler serves the operators' API. It trusts its caller: whoever may not use it must be kept out before (Server does).
//
//	GET  /v1/health           200 while the daemon does its work, else 503
//	GET  /v1/status           Status
//	GET  /v1/lanes            []Lane
//	GET  /v1/stats            Stats
//	GET  /v1/queue            []message.QueueRow; stream, address, state, after, limit (to 1000)
//	GET  /v1/queue/{id}       []message.QueueRow of one message
//	POST /v1/queue/{action}   Change → Changed; action is retry, hold, release or drop
//	GET  /v1/trace            Trace; msg_id or address
//	GET  /v1/captured         []Captured
//	GET  /v1/stats/orders     Orders
//	POST /v1/test             TestMail → Queued
//	POST /v1/reload           Reloaded
//
// Errors are a Problem with a status of 400 and above.
func Handler(queue Queue, engine Engine, log *slog.Logger) http.Handler {
	h := &handler{queue, engine, log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/health", h.answer(h.health))
	mux.HandleFunc("GET /v1/status", h.answer(h.status))
	mux.HandleFunc("GET /v1/lanes", h.answer(h.lanes))
	mux.HandleFunc("GET /v1/stats", h.answer(func(*http.Request) (any, error) { return h.engine.Stats(), nil }))
	mux.HandleFunc("GET /v1/queue", h.answer(h.list))
	mux.HandleFunc("GET /v1/queue/{id}", h.answer(h.show))
	mux.HandleFunc("POST /v1/queue/{action}", h.answer(h.change))
	mux.HandleFunc("GET /v1/trace", h.answer(h.trace))
	mux.HandleFunc("GET /v1/captured", h.answer(h.captured))
	mux.HandleFunc("GET /v1/stats/orders", h.answer(func(*http.Request) (any, error) { return h.engine.Orders(), nil }))
	mux.HandleFunc("POST /v1/test", h.answer(h.test))
	mux.HandleFunc("POST /v1/reload", h.answer(func(r *http.Request) (any, error) { return h.engine.Reload(r.Context()) }))
	mux.HandleFunc("/", h.answer(func(*http.Request) (any, error) {
		return nil, &Problem{Text: "no such page or method", Hint: "the command line and the daemon may be of different versions", Code: http.StatusNotFound}
	}))
	return mux
}

// answer writes what do returns as JSON. An error that is not a Problem is ours.
func (h *handler) answer(do func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		v, err := do(r)
		code := http.StatusOK
		if err != nil {
			p, ok := errors.AsType[*Problem](err)
			if !ok {
				p = &Problem{Text: err.Error(), Code: http.StatusInternalServerError}
			}
			if p.Code >= http.StatusInternalServerError {
				h.log.LogAttrs(r.Context(), slog.LevelWarn, "admin request failed", slog.String("path", r.URL.Path), slog.Any("err", err))
			}
			v, code = p, p.Code
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		if err := json.NewEncoder(w).Encode(v); err != nil {
			h.log.LogAttrs(r.Context(), slog.LevelDebug, "admin answer not written", slog.Any("err", err))
		}
	}
}

// read decodes a JSON body; unknown fields are errors, so that a misspelt filter never means "everything".
func read(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return bad("the request is not what this version understands: "+err.Error(), "")
	}
	return nil
}

func bad(text, hint string) *Problem {
	return &Problem{Text: text, Hint: hint, Code: http.StatusBadRequest}
}

func (h *handler) health(r *http.Request) (any, error) {
	s := h.engine.Status(r.Context())
	if !s.Alive {
		return nil, &Problem{Text: s.Problem, Hint: "see the daemon's log", Code: http.StatusServiceUnavailable}
	}
	return struct {
		Alive bool `json:"alive"`
	}{true}, nil
}

func (h *handler) status(r *http.Request) (any, error) {
	s := h.engine.Status(r.Context())
	ctx, cancel := context.WithTimeout(r.Context(), countWithin)
	defer cancel()
	lanes, err := h.countLanes(ctx)
	if err != nil && s.Alive {
		return nil, err
	}
	s.Lanes = lanes // where the queue cannot be read, without what waits: s.Problem says why
	return s, nil
}

func (h *handler) lanes(r *http.Request) (any, error) { return h.countLanes(r.Context()) }

// countWithin is how long a status waits for the queue to be counted.
const countWithin = 5 * time.Second

// countLanes joins what the engine and the queue know of each lane. A lane of the queue that the engine does not know
// belongs to a stream that is gone from the config.
func (h *handler) countLanes(ctx context.Context) ([]Lane, error) {
	lanes := []Lane{}
	for _, s := range h.engine.Lanes() {
		lanes = append(lanes, Lane{LaneStatus: s})
	}
	counts, err := h.queue.Lanes(ctx)
	if err != nil {
		return lanes, err
	}
	for _, c := range counts {
		i := slices.IndexFunc(lanes, func(l Lane) bool { return l.Lane == c.Lane })
		if i < 0 {
			i = len(lanes)
			lanes = append(lanes, Lane{LaneStatus: message.LaneStatus{Lane: c.Lane, Held: true}})
		}
		lanes[i].Queued, lanes[i].Kept, lanes[i].Oldest = c.Queued, c.Held, c.Oldest
	}
	return lanes, nil
}

// checkStream returns a Problem where name is no stream of the config and, unless it must be, has no mail in the queue
// either. A misspelt name must not look like an empty queue.
func (h *handler) checkStream(ctx context.Context, name string, mustBeConfigured bool) error {
	if name == "" || slices.ContainsFunc(h.engine.Lanes(), func(l message.LaneStatus) bool { return l.Lane == name }) {
		return nil
	}
	if !mustBeConfigured {
		waiting, err := h.queue.Lanes(ctx)
		if err != nil || slices.ContainsFunc(waiting, func(c message.LaneCount) bool { return c.Lane == name }) {
			return err
		}
	}
	return &Problem{Text: "there is no stream " + strconv.Quote(name), Hint: "gatepost status lists the streams", Code: http.StatusNotFound}
}

func (h *handler) list(r *http.Request) (any, error) {
	f, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	if err := h.checkStream(r.Context(), f.Stream, false); err != nil {
		return nil, err
	}
	rows, err := h.queue.List(r.Context(), f)
	if err != nil {
		return nil, err
	}
	return h.shown(rows), nil
}

// shown returns rows as operators are to see them: what waits for a stream that is gone from the config is held, though
// its rows are as they were and go once the stream is back.
func (h *handler) shown(rows []message.QueueRow) []message.QueueRow {
	lanes := h.engine.Lanes()
	for i, r := range rows {
		if r.State == "queued" && !slices.ContainsFunc(lanes, func(l message.LaneStatus) bool { return l.Lane == r.Stream }) {
			rows[i].State = "held"
		}
	}
	return notNil(rows)
}

// filterOf reads the query of a list.
func filterOf(r *http.Request) (f message.QueueFilter, err error) {
	q := r.URL.Query()
	f.Stream, f.Address, f.Limit = q.Get("stream"), q.Get("address"), defaultRows
	if s := q.Get("state"); s != "" {
		state, ok := ParseState(s)
		if !ok {
			return f, bad("state "+strconv.Quote(s)+" is not known", "one of queued, held, held-unconfirmed")
		}
		f.State = &state
	}
	if s := q.Get("after"); s != "" {
		if f.After, err = message.ParseID(s); err != nil {
			return f, bad(err.Error(), "")
		}
	}
	if s := q.Get("limit"); s != "" {
		if f.Limit, err = strconv.Atoi(s); err != nil || f.Limit < 1 {
			return f, bad("limit is not a number above 0", "")
		}
		f.Limit = min(f.Limit, maxRows)
	}
	return f, nil
}

// ParseState reads the name of a queued recipient's state.
func ParseState(s string) (message.State, bool) {
	for _, state := range []message.State{message.Queued, message.Held, message.HeldUnconfirmed} {
		if state.String() == s {
			return state, true
		}
	}
	return 0, false
}

func (h *handler) show(r *http.Request) (any, error) {
	id, err := message.ParseID(r.PathValue("id"))
	if err != nil {
		return nil, bad(err.Error(), "")
	}
	rows, err := h.queue.Show(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, &Problem{Text: "message " + id.String() + " is not in the queue",
			Hint: "gatepost trace " + id.String() + " tells what became of it", Code: http.StatusNotFound}
	}
	return h.shown(rows), nil
}

func (h *handler) change(r *http.Request) (any, error) {
	var c Change
	if err := read(r, &c); err != nil {
		return nil, err
	}
	action := r.PathValue("action")
	do := map[string]func(context.Context, message.QueueFilter) (int, int, error){
		"retry": h.queue.Retry, "hold": h.queue.Hold, "release": h.queue.Unhold, "drop": h.queue.Drop,
	}[action]
	f := &c.Filter
	if err := h.checkStream(r.Context(), f.Stream, c.Whole); err != nil {
		return nil, err
	}
	switch {
	case do == nil:
		return nil, &Problem{Text: "the queue knows no such action", Hint: "retry, hold, release or drop", Code: http.StatusNotFound}
	case !c.All && len(f.IDs) == 0 && f.Stream == "" && f.Address == "" && f.State == nil:
		return nil, bad("nothing was chosen", "name messages, a stream or an address, or say all")
	case c.Whole:
		if err := h.holdStream(r.Context(), action, f.Stream); err != nil {
			return nil, err
		}
		if action == "hold" { // its rows need no mark of their own
			h.record(r.Context(), "stream held by operator", slog.String("stream", f.Stream))
			return Changed{}, nil
		}
		h.record(r.Context(), "stream released by operator", slog.String("stream", f.Stream))
	}
	if action == "release" && len(f.IDs) == 0 && f.State == nil {
		f.State = new(message.Held) // a second copy of what may have been sent must be asked for by name
	}
	changed, inFlight, err := do(r.Context(), c.Filter)
	if err != nil {
		return nil, err
	}
	h.record(r.Context(), "queue changed by operator", append([]slog.Attr{slog.String("action", action)},
		append(chosen(f), slog.Int("changed", changed), slog.Int("in_flight", inFlight))...)...)
	return Changed{changed, inFlight}, nil
}

// record tells the log what an operator did.
func (h *handler) record(ctx context.Context, what string, attrs ...slog.Attr) {
	h.log.LogAttrs(ctx, slog.LevelInfo, what, attrs...)
}

// maxNamed bounds the ids that one log line names.
const maxNamed = 20

// chosen returns what a filter chooses by, for the log. Addresses are masked, whatever the stream.
func chosen(f *message.QueueFilter) (attrs []slog.Attr) {
	if len(f.IDs) > 0 {
		attrs = append(attrs, slog.Any("msg_ids", f.IDs[:min(len(f.IDs), maxNamed)]))
	}
	if f.Stream != "" {
		attrs = append(attrs, slog.String("stream", f.Stream))
	}
	if f.Address != "" {
		attrs = append(attrs, slog.String("to", message.MaskAddress(f.Address)))
	}
	if f.State != nil {
		attrs = append(attrs, slog.String("state", f.State.String()))
	}
	return attrs
}

// holdStream sets or lifts the hold of a whole stream, before its rows are looked at, so that none slips through.
func (h *handler) holdStream(ctx context.Context, action, stream string) error {
	if stream == "" || action != "hold" && action != "release" {
		return bad("only hold and release of a named stream can mean the whole stream", "")
	}
	return h.queue.HoldStream(ctx, stream, action == "hold")
}

func (h *handler) trace(r *http.Request) (any, error) {
	ctx, q := r.Context(), r.URL.Query()
	address := q.Get("address")
	var id message.ID
	if s := q.Get("msg_id"); s != "" {
		var err error
		if id, err = message.ParseID(s); err != nil {
			return nil, bad(err.Error(), "")
		}
	} else if address == "" {
		return nil, bad("neither a message nor an address was named", "")
	}
	events, err := h.engine.Events(ctx, id, address, maxEvents)
	if err != nil {
		return nil, err
	}
	var rows []message.QueueRow
	if id != 0 {
		rows, err = h.queue.Show(ctx, id)
	} else {
		rows, err = h.queue.List(ctx, message.QueueFilter{Address: address, Limit: maxRows})
	}
	if err != nil {
		return nil, err
	}
	return Trace{notNil(events), h.shown(rows)}, nil
}

func (h *handler) captured(*http.Request) (any, error) { return notNil(h.engine.Captured()), nil }

func (h *handler) test(r *http.Request) (any, error) {
	var t TestMail
	if err := read(r, &t); err != nil {
		return nil, err
	}
	id, err := h.engine.Submit(r.Context(), t)
	if err != nil {
		return nil, err
	}
	return Queued{id}, nil
}

// notNil makes an empty list of a nil one, for JSON.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
