package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"

	"gatepost/message"
)

// maxAnswer bounds what the client reads, in octets: 100 captured messages of the largest size are far below it.
const maxAnswer = 512 << 20

// Client speaks to a running daemon over its socket.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient makes a client for the socket at path. Nothing is connected yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{path, &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
		Timeout:   longest,
	}}
}

// Unreachable is the error of a Client whose daemon does not answer.
type Unreachable struct {
	Socket string
	Err    error
}

func (u *Unreachable) Error() string {
	switch {
	case errors.Is(u.Err, fs.ErrNotExist):
		return fmt.Sprintf("no gatepost runs here: there is no socket %s", u.Socket)
	case errors.Is(u.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("no gatepost runs here: nobody answers at %s", u.Socket)
	case errors.Is(u.Err, fs.ErrPermission):
		return fmt.Sprintf("not allowed to use %s", u.Socket)
	}
	return fmt.Sprintf("reach gatepost at %s: %v", u.Socket, u.Err)
}

func (u *Unreachable) Unwrap() error { return u.Err }

// Hint says what to do about it.
func (u *Unreachable) Hint() string {
	if errors.Is(u.Err, fs.ErrPermission) {
		return "run this as root or as gatepost's user (sudo)"
	}
	return "start it with `gatepost serve`, or name the running one's config with -c"
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/status", nil, nil, &s)
}

// List returns up to f.Limit rows of the queue in the order of their ids; f.After pages on.
func (c *Client) List(ctx context.Context, f message.QueueFilter) (rows []message.QueueRow, err error) {
	q := url.Values{}
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	set("stream", f.Stream)
	set("address", f.Address)
	if f.State != nil {
		set("state", f.State.String())
	}
	if f.After != 0 {
		set("after", f.After.String())
	}
	if f.Limit > 0 {
		set("limit", strconv.Itoa(f.Limit))
	}
	return rows, c.do(ctx, http.MethodGet, "/v1/queue", q, nil, &rows)
}

// Stats returns how the upstreams have done.
func (c *Client) Stats(ctx context.Context) (s Stats, err error) {
	return s, c.do(ctx, http.MethodGet, "/v1/stats", nil, nil, &s)
}

// Show returns the rows of one message.
func (c *Client) Show(ctx context.Context, id message.ID) (rows []message.QueueRow, err error) {
	return rows, c.do(ctx, http.MethodGet, "/v1/queue/"+id.String(), nil, nil, &rows)
}

// Change does action (retry, hold, release, drop) to what ch chooses.
func (c *Client) Change(ctx context.Context, action string, ch Change) (done Changed, err error) {
	return done, c.do(ctx, http.MethodPost, "/v1/queue/"+action, nil, ch, &done)
}

// Trace returns what is known of a message or, where id is 0, of an address.
func (c *Client) Trace(ctx context.Context, id message.ID, address string) (t Trace, err error) {
	q := url.Values{}
	if id != 0 {
		q.Set("msg_id", id.String())
	} else {
		q.Set("address", address)
	}
	return t, c.do(ctx, http.MethodGet, "/v1/trace", q, nil, &t)
}

// Test submits a test message.
func (c *Client) Test(ctx context.Context, t TestMail) (id message.ID, err error) {
	var q Queued
	err = c.do(ctx, http.MethodPost, "/v1/test", nil, t, &q)
	return q.ID, err
}

// Orders returns how much mail was ordered over HTTP.
func (c *Client) Orders(ctx context.Context) (o Orders, err error) {
	return o, c.do(ctx, http.MethodGet, "/v1/stats/orders", nil, nil, &o)
}

// Captured returns what the daemon's capture upstreams keep.
func (c *Client) Captured(ctx context.Context) (m []Captured, err error) {
	return m, c.do(ctx, http.MethodGet, "/v1/captured", nil, nil, &m)
}

// Reload makes the daemon read its config anew. Problems of that are inside the error, for config.Problems.
func (c *Client) Reload(ctx context.Context) (r Reloaded, err error) {
	return r, c.do(ctx, http.MethodPost, "/v1/reload", nil, nil, &r)
}

// do sends one request and decodes its answer into out. Its errors are *Unreachable or *Problem.
func (c *Client) do(ctx context.Context, method, path string, q url.Values, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "gatepost", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	res, err := c.http.Do(req)
	if err != nil {
		if cause, ok := errors.AsType[*url.Error](err); ok {
			err = cause.Err // its text would repeat the made-up address
		}
		return &Unreachable{c.socket, err}
	}
	defer res.Body.Close()
	from := io.LimitReader(res.Body, maxAnswer)
	if res.StatusCode != http.StatusOK {
		p := &Problem{Code: res.StatusCode}
		if err := json.NewDecoder(from).Decode(p); err != nil || p.Text == "" {
			p.Text = "gatepost answered " + res.Status
		}
		return p
	}
	if err := json.NewDecoder(from).Decode(out); err != nil {
		return &Unreachable{c.socket, fmt.Errorf("read answer: %w", err)}
	}
	return nil
}
