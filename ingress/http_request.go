package ingress

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"gatepost/hook"
	"gatepost/message"
	"gatepost/reply"
)

// tryAgain is what callers are told to wait where the door is full.
const tryAgain = 5 * time.Second

const (
	maxSigned = 1 << 20         // octets of a body, but with adapter native
	maxUnread = 8 << 20         // octets of a body that nobody wants, read so that the answer arrives
	slowest   = 256 << 10       // octets a second of a long body
	patience  = 5 * time.Second // for a body that nobody wants, and no more than lull without an octet of it
	lull      = time.Second
	maxKey    = 255 // octets of an Idempotency-Key
)

// request is one HTTP request on its way to become mail.
type request struct {
	door   *HTTP
	set    *httpSettings
	w      http.ResponseWriter
	r      *http.Request
	conn   *httpConn
	peer   message.Peer
	remote netip.AddrPort
	began  time.Time
	hook   *hooked // nil while it is not known
	named  *hooked // the one that the path names, of a caller that may have proved nothing
	held   int64   // octets taken from the budget
	counts bool    // as one of the client's
	read   bool    // all of the body was
}

// problem is why a request is answered with something other than 200.
type problem struct {
	hook.Answer
	stranger bool  // whoever sent it has proved nothing: floods of it must not fill the log
	err      error // for the log
}

func (p *problem) Error() string { return p.Text }
func (p *problem) Unwrap() error { return p.err }

func fail(status int, text string, err error) *problem {
	return &problem{Answer: hook.Answer{Status: status, Text: text}, err: err}
}

// strange is fail for whoever has proved nothing yet.
func strange(status int, text string, err error) *problem {
	p := fail(status, text, err)
	p.stranger = true
	return p
}

var (
	errGone       = errors.New("the caller left before the end of its request")
	errSlow       = fail(http.StatusRequestTimeout, "The request came too slowly.", os.ErrDeadlineExceeded)
	errNoHook     = errors.New("no hook of this listener's clients has this path")
	errNoKey      = errors.New("the signing secrets cannot be read")
	errHTTPMemory = &problem{hook.Answer{Status: http.StatusServiceUnavailable, Text: "Too much mail at once, please try again in a moment.", RetryAfter: tryAgain},
		false, errors.New("limits.bytes_in_flight")}
)

// ServeHTTP implements http.Handler.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.places.begin()
	defer h.places.end()
	q := h.newRequest(w, r)
	defer q.end()
	a, err := q.serve()
	if err != nil {
		a = q.refuse(err)
	}
	q.respond(a) // also where nobody may be there: without a word of ours net/http says 200
}

func (h *HTTP) newRequest(w http.ResponseWriter, r *http.Request) *request {
	c, _ := r.Context().Value(connKey{}).(*httpConn)
	q := &request{door: h, set: h.settings.Load(), w: w, r: r, conn: c, began: time.Now(), peer: c.peer, remote: c.remote,
		read: r.Body == nil || r.Body == http.NoBody}
	c.serving.Add(1)
	if at := c.begun.Swap(nil); r.ProtoMajor == 1 && at != nil { // nil where it came with the one before
		q.began = *at
	}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		q.peer.Names = r.TLS.VerifiedChains[0][0].DNSNames
	}
	if c.trusted(c.peer.Addr) {
		q.forwarded(r.Header.Values("X-Forwarded-For"))
	}
	return q
}

func (q *request) end() {
	q.door.Budget.Release(q.held)
	if q.counts {
		q.door.Connections.release(q.hook.Client)
	}
	if q.read || q.r.ProtoMajor == 2 { // else the connection is closed
		q.conn.serving.Add(-1)
		q.conn.active.Store(time.Now().UnixNano())
		q.conn.idle.Store(true)
	}
}

// forwarded takes the caller for whom the nearest proxy says that it is, and so on while that is a proxy that may say so.
func (q *request) forwarded(values []string) {
	hops := strings.Split(strings.Join(values, ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		a, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return
		}
		a = a.Unmap().WithZone("")
		q.remote, q.peer.Addr = netip.AddrPortFrom(a, 0), a
		if !q.conn.trusted(a) {
			return
		}
	}
}

// serve does what the request asks for. Its errors are *problem, *hook.Invalid, errGone, or ours.
func (q *request) serve() (a hook.Answer, err error) {
	defer recovered(&err)
	if r := q.conn.refusal; r != nil && !r.full {
		return a, r.problem()
	}
	if err := q.admit(); err != nil {
		return a, err
	}
	body, err := q.body()
	if err != nil {
		return a, err
	}
	if err := q.verify(body); err != nil {
		return a, err
	}
	mails, err := q.hook.adapter.Parse(body)
	if err != nil {
		return a, err
	}
	return q.order(body, mails)
}

// admit finds the hook that is meant and out whether the caller may call it, before anything is read.
func (q *request) admit() error {
	var meant []*hooked
	if q.r.URL.RawPath != "" {
		// written otherwise than it must be: what stands between might read it otherwise
	} else if name, ok := strings.CutPrefix(q.r.URL.Path, "/hooks/"); ok {
		if h := q.set.hooks[name]; h != nil {
			meant, q.named = []*hooked{h}, h
		}
	} else if q.r.URL.Path == "/v1/send" {
		meant = q.set.native
	}
	switch {
	case len(meant) == 0:
		return strange(http.StatusNotFound, "There is nothing here.", errNoHook)
	case q.r.Method != http.MethodPost:
		q.w.Header().Set("Allow", http.MethodPost)
		return strange(http.StatusMethodNotAllowed, "Only POST is possible here.", nil)
	}
	var refused *problem
	for _, h := range meant {
		p := q.mayCall(h)
		if p == nil {
			q.hook = h
			return q.enter()
		}
		if refused == nil || refused.Status == http.StatusForbidden { // a wrong token says more
			refused = p
		}
	}
	return refused
}

// enter finds out whether the request can be one more of its client's, before its body is read.
func (q *request) enter() error {
	if r := q.conn.refusal; r != nil && !q.door.Reserve(q.hook.Client) {
		return r.problem()
	}
	if err := q.checkForm(); err != nil || q.hook.Signed() {
		return err
	}
	return q.count()
}

// count makes the request, which has proved whose it is, one of the client's. Its connection may stay then.
func (q *request) count() error {
	if err := q.door.Connections.acquire(q.hook.Client); err != nil {
		return &problem{hook.OfRefusal(reply.Of(err)), true, err}
	}
	q.counts = true
	q.conn.stay()
	return nil
}

// problem is the answer to a request on a connection that is served nothing.
func (r *refusal) problem() *problem {
	return &problem{hook.Answer{Status: r.status, Text: r.text, RetryAfter: r.wait}, true, r.err}
}

// mayCall returns nil if the caller is where h's client may be, and shows a token of it unless requests are signed.
func (q *request) mayCall(h *hooked) *problem {
	err := q.door.Caller.Admits(q.set.Name, h.Client, q.peer)
	if err != nil && !reply.Of(err).Temporary() {
		p := q.door.stranger().problem()
		p.err = err
		return p
	}
	if err == nil && !h.Signed() {
		err = q.door.Caller.Token(q.set.Name, h.Client, q.token(h.client.TokenHeader))
	}
	if err == nil {
		return nil
	}
	return &problem{hook.OfRefusal(reply.Of(err)), true, err}
}

// token returns the token that a request shows in a header field: bare, as Bearer, or as the password of Basic; "" for
// none or several.
func (q *request) token(field string) string {
	if field == "" {
		field = "Authorization"
	}
	values := q.r.Header.Values(field)
	if len(values) != 1 {
		return ""
	}
	value := strings.TrimSpace(values[0])
	scheme, rest, ok := strings.Cut(value, " ")
	switch {
	case ok && strings.EqualFold(scheme, "Bearer"):
		return strings.TrimSpace(rest)
	case ok && strings.EqualFold(scheme, "Basic"):
		text, err := base64.StdEncoding.DecodeString(strings.TrimSpace(rest))
		if _, password, ok := strings.Cut(string(text), ":"); err == nil && ok {
			return password
		}
		return ""
	}
	return value
}

// checkForm refuses what is not JSON, or too long by its own word.
func (q *request) checkForm() error {
	kind, params, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	coding := q.r.Header.Get("Content-Encoding")
	switch {
	case err != nil || kind != "application/json" && !strings.HasSuffix(kind, "+json"),
		charset != "" && charset != "utf-8" && charset != "us-ascii", coding != "" && !strings.EqualFold(coding, "identity"):
		return fail(http.StatusUnsupportedMediaType, "The request must be application/json.", nil)
	case q.r.ContentLength > q.limit():
		return q.tooBig()
	}
	return nil
}

// limit returns how many octets the body may have.
func (q *request) limit() int64 {
	most := q.set.MaxSize
	if n := q.hook.client.MaxSize; n > 0 {
		most = min(most, n)
	}
	if q.hook.Adapter != "native" {
		most = min(most, maxSigned)
	}
	return most
}

func (q *request) tooBig() error {
	return fail(http.StatusRequestEntityTooLarge, "The request is too big.", nil)
}

// body reads the request. What it holds is counted twice: a mail is made of it.
func (q *request) body() ([]byte, error) {
	limit := q.limit()
	allowed := q.door.Timeouts.Body
	if q.r.ContentLength > 0 {
		allowed += time.Duration(q.r.ContentLength/slowest) * time.Second
	}
	if err := http.NewResponseController(q.w).SetReadDeadline(time.Now().Add(allowed)); err != nil {
		return nil, err
	}
	var body []byte
	for {
		if len(body) == cap(body) {
			grown := min(max(4<<10, 2*cap(body)), int(limit)+1)
			if !q.hold(2 * int64(grown-cap(body))) {
				return nil, errHTTPMemory
			}
			body = append(make([]byte, 0, grown), body...)
		}
		n, err := q.r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case int64(len(body)) > limit:
			return nil, q.tooBig()
		case errors.Is(err, io.EOF):
			q.read = true
			return body, nil
		case errors.Is(err, os.ErrDeadlineExceeded) && q.door.draining.Load():
			return nil, errStops.problem()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errSlow
		case err != nil:
			return nil, q.broken(err)
		}
	}
}

// broken says what it means that a body ended before its time: a caller that left, or framing that is no HTTP.
func (q *request) broken(err error) error {
	if q.r.Context().Err() != nil || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.Join(errGone, fail(http.StatusBadRequest, "The request cannot be used: its body broke off.", err))
	}
	return fail(http.StatusBadRequest, "The request cannot be used: its body is broken.", err)
}

func (q *request) hold(n int64) bool {
	if !q.door.Budget.Acquire(n, q.door.Reserve(q.hook.Client)) {
		return false
	}
	q.held += n
	return true
}

// verify checks the signature where requests are signed.
func (q *request) verify(body []byte) error {
	if !q.hook.Signed() {
		return nil
	}
	var keys []string
	var errs []error
	for _, s := range q.hook.SigningSecrets {
		key, err := s.Read()
		if err != nil {
			errs = append(errs, err)
			continue
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return errors.Join(append(errs, errNoKey)...)
	}
	if err := q.hook.adapter.Verify(q.r.Header, body, keys, time.Now()); err != nil {
		return &problem{hook.Unauthorised, true, errors.Join(append(errs, err)...)} // the secret may be the one that cannot be read
	}
	return q.count()
}

// refuse logs err, once, and makes it an answer.
func (q *request) refuse(err error) hook.Answer {
	p, ok := errors.AsType[*problem](err)
	if !ok {
		p = &problem{err: err}
		if bad, ok := errors.AsType[*hook.Invalid](err); ok {
			p.Answer = hook.Answer{Status: http.StatusBadRequest, Text: bad.Error()}
		} else {
			p.Answer = hook.OfRefusal(reply.Of(err))
		}
	}
	q.log(p, err)
	return p.Answer
}

func (q *request) log(p *problem, err error) {
	level := slog.LevelWarn
	switch {
	case errors.Is(err, errPanic), errors.Is(err, errNoKey):
		level = slog.LevelError
	case p.stranger:
		level = slog.LevelDebug
		turned := &q.door.turned
		if q.named != nil { // who floods another path must not hide a caller with the wrong token
			turned = &q.named.turned
		}
		turned.Do(func() { level = slog.LevelWarn })
	case p.Status == http.StatusTooManyRequests: // the event tells
		level = slog.LevelDebug
	case p.Status == http.StatusUnprocessableEntity || errors.Is(err, errGone):
		level = slog.LevelInfo
	}
	attrs := []slog.Attr{slog.Int("code", p.Status), slog.String("reply", p.Text), slog.String("method", q.r.Method)}
	if p.err != nil {
		attrs = append(attrs, slog.String("err", p.err.Error()))
	}
	what := "request refused"
	if errors.Is(err, errGone) {
		what = "caller left before the end of its request"
	}
	q.say(level, what, attrs...)
}

// say logs with what is known of the request.
func (q *request) say(level slog.Level, what string, attrs ...slog.Attr) {
	from := q.conn.from()
	if q.remote.IsValid() {
		from = q.remote.String()
	}
	all := []slog.Attr{slog.String("listener", q.set.Name), slog.String("remote", from)}
	if h := cmp.Or(q.hook, q.named); h != nil {
		all = append(all, slog.String("hook", h.Name), slog.String("client", h.Client))
	}
	q.door.Log.LogAttrs(context.Background(), level, what, append(all, attrs...)...)
}

// logTurned logs that a connection came to nothing.
func (h *HTTP) logTurned(what, from string, err error) {
	level := slog.LevelDebug
	h.turned.Do(func() { level = slog.LevelWarn })
	h.Log.LogAttrs(context.Background(), level, what, slog.String("listener", h.Listen), slog.String("remote", from), slog.Any("err", err))
}

// respond writes the answer in the form that the caller knows. A body that was not read is read behind it, up to a bound:
// octets that nobody reads would make the kernel reset the connection, and the answer be lost.
func (q *request) respond(a hook.Answer) {
	answer := hook.Response{Status: a.Status, Text: a.Text}
	if q.hook != nil {
		answer = q.hook.adapter.Answer(a)
	}
	header := q.w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	if a.Status == http.StatusUnauthorized {
		header.Set("WWW-Authenticate", "Bearer")
	}
	if a.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(a.RetryAfter.Seconds()))))
	}
	// RFC 9112 §6.1: after a chunked body the connection is closed, so that a length beside it, which net/http drops,
	// cannot hide a request from whoever stands between.
	if q.door.draining.Load() || q.conn.refusal != nil || !q.read || len(q.r.TransferEncoding) > 0 || q.r.Method == http.MethodConnect {
		header.Set("Connection", "close")
	}
	body := []byte(answer.Text + "\n")
	header.Set("Content-Type", "text/plain; charset=utf-8")
	if answer.JSON != nil {
		body, _ = json.Marshal(answer.JSON) // of our own types
		header.Set("Content-Type", "application/json")
	}
	control := http.NewResponseController(q.w)
	if !q.read {
		_ = control.EnableFullDuplex() // HTTP/2 always is
	}
	header.Set("Content-Length", strconv.Itoa(len(body)))
	q.w.WriteHeader(answer.Status)
	_, _ = q.w.Write(body) // the caller may have left
	if !q.read {
		_ = control.Flush()
		q.discard(control)
	}
}

// discard reads what is left of the body.
func (q *request) discard(control *http.ResponseController) {
	if q.r.Header.Get("Expect") != "" || q.r.Body == nil {
		return
	}
	end := time.Now().Add(patience)
	for octets := int64(0); octets < maxUnread; {
		if control.SetReadDeadline(earlier(end, time.Now().Add(lull))) != nil {
			return
		}
		n, err := io.CopyN(io.Discard, q.r.Body, 64<<10)
		if octets += n; err != nil {
			return
		}
	}
}
