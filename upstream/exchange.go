package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxAnswer  = 64 << 10        // octets read of an answer
	answerTime = 2 * time.Second // for the rest of an answer whose status has come: what follows is for the records
)

// errOver ends the reading of a body that nobody waits for any more.
var errOver = errors.New("the call is over")

// answer is what a service said to one request.
type answer struct {
	status int
	header http.Header
	body   []byte
	cut    bool     // there was more, or the connection ended too soon
	early  bool     // it came before the last byte of the request was given out
	hidden []string // what the request proved itself with, which some services repeat in an error
}

// exchange is one request through the commit gate, and its answer. The service can have the last byte of the body only
// once commit has returned nil: until then the request is not complete, and can be taken back by closing it.
type exchange struct {
	transport http.RoundTripper
	commit    func() error
	over      atomic.Bool

	mu       sync.Mutex // held while commit runs
	asked    bool
	refused  error // why commit said no
	passed   bool  // the last byte was given out
	line     *line // that the request goes over
	reused   bool  // it has waited for this request, so the service may have closed it
	mark     int64 // line's writes when the last byte was given out
	declined bool  // net/http knows that the service has not processed the request

	answered bool
	answer   answer
}

// Do sends req, whose body must have a length, and reads the answer, which it leaves in x too. It is net/http's RoundTrip
// with the gate in front of the last byte of the body.
func (x *exchange) Do(req *http.Request) (*http.Response, error) {
	if x.asked {
		return nil, errors.New("a call makes one request")
	}
	x.asked = true
	if req.Body == nil || req.ContentLength <= 0 {
		return nil, errors.New("the request has no body of a known length")
	}
	req = req.Clone(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{GotConn: x.got}))
	req.Body = &gatedBody{ReadCloser: req.Body, exchange: x, left: req.ContentLength}
	req.GetBody = x.decline
	resp, err := do(x.transport, req, x.end)
	if err != nil {
		return nil, err
	}
	x.answer, x.answered = resp.answer, true
	x.answer.early = !x.passed
	resp.Body = io.NopCloser(bytes.NewReader(resp.answer.body))
	return resp.Response, nil
}

// got notes the connection that the request goes over.
func (x *exchange) got(info httptrace.GotConnInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	conn := info.Conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	x.line, _ = conn.(*line)
	x.reused = info.Reused || x.line != nil && x.line.waited
}

// decline is what net/http asks for the body again. It does so where it knows that the service has not processed the
// request (a connection that was closed before anything was written; GOAWAY and REFUSED_STREAM of HTTP/2), and would
// send it again by itself, past the gate. So it gets nothing, and the knowledge stays.
func (x *exchange) decline() (io.ReadCloser, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.declined = true
	return nil, errors.New("the connection ended before the service took the request")
}

// pass runs commit. Its error ends the request before its last byte.
func (x *exchange) pass() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over.Load() {
		return errOver
	}
	if x.refused = x.commit(); x.refused != nil {
		return x.refused
	}
	if x.over.Load() {
		return errOver
	}
	if x.line != nil {
		if x.line.closedByPeer() {
			return errors.New("the service has closed the connection")
		}
		x.mark = x.line.writes.Load()
	}
	x.passed = true
	return nil
}

// end is called once net/http has returned: nothing more is given out. It waits for a commit that is under way.
func (x *exchange) end() {
	x.over.Store(true)
	x.mu.Lock()
	defer x.mu.Unlock()
}

// unsent reports whether it is certain, after a request without an answer, that the service did not have all of it. Over
// HTTP/1.1 net/http has closed the connection by then, so what was not written never will be; a connection of HTTP/2 lives
// on.
func (x *exchange) unsent() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return !x.passed || x.declined || x.line != nil && !x.line.shared && x.line.writes.Load() == x.mark
}

// stale reports whether a kept connection turned out to be closed, and nothing of the request has been taken.
func (x *exchange) stale() bool {
	return x.reused && x.refused == nil && !x.answered && x.unsent()
}

// gatedBody gives out a body whose last byte waits for the gate.
type gatedBody struct {
	io.ReadCloser
	exchange *exchange
	left     int64
}

// Read implements io.Reader.
func (b *gatedBody) Read(p []byte) (int, error) {
	if b.left == 0 || len(p) == 0 {
		return 0, io.EOF
	}
	if b.exchange.over.Load() {
		return 0, errOver
	}
	if b.left == 1 {
		if err := b.exchange.pass(); err != nil {
			return 0, err
		}
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), max(b.left-1, 1))])
	if b.left -= int64(n); errors.Is(err, io.EOF) {
		err = nil
		if b.left > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	return n, err
}

// response is an answer with what it was made from.
type response struct {
	*http.Response
	answer answer
}

// ask makes a request without a gate.
func ask(t http.RoundTripper, req *http.Request) (answer, error) {
	r, err := do(t, req, func() {})
	if err != nil {
		return answer{}, err
	}
	return r.answer, nil
}

// do makes a request and reads its answer. back is called as soon as the status is known, or that there will be none.
func do(t http.RoundTripper, req *http.Request, back func()) (*response, error) {
	ctx, cancel := context.WithCancel(req.Context())
	defer cancel()
	req = req.Clone(ctx)
	if req.UserAgent() == "" {
		req.Header.Set("User-Agent", "gatepost")
	}
	resp, err := t.RoundTrip(req)
	back()
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	defer time.AfterFunc(answerTime, cancel).Stop()
	a := answer{status: resp.StatusCode, header: resp.Header, hidden: proofs(req.Header)}
	a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if len(a.body) > maxAnswer {
		a.body, a.cut = a.body[:maxAnswer], true
	}
	a.cut = a.cut || err != nil
	return &response{resp, a}, nil
}

// proofs returns what a request with header h shows of our credentials, in the forms that an answer may repeat it in: AWS
// puts the token of a session into what it says of a signature, other services whole requests.
func proofs(h http.Header) (all []string) {
	for _, name := range []string{"Authorization", "X-Amz-Security-Token", "X-Postmark-Server-Token"} {
		for word := range strings.FieldsSeq(h.Get(name)) {
			if len(word) >= 8 { // the shorter ones name the scheme
				all = append(all, word)
			}
		}
	}
	if _, password, ok := (&http.Request{Header: h}).BasicAuth(); ok {
		all = append(all, password)
	}
	return all
}

// explain says what kept a request from being answered, without its URL, which may hold a secret.
func (u *apiUpstream) explain(err error) string {
	if p, ok := errors.AsType[*Paused](err); ok {
		return p.Verdict.Text
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Sprintf("%s: %v: somebody between may be reading along; look at endpoint and tls_ca_file of [upstream.%s]", u.lines.address, err, u.cfg.Name)
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return fmt.Sprintf("%s: %v", u.lines.address, cause(err))
	}
	return fmt.Sprintf("%s: %v", u.lines.address, err)
}
