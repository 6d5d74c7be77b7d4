package upstreamtest

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// More of what a service can do besides answering; Drop and Hang are the others.
const (
	Cut     = "cut"     // send half of the body and close the connection
	Endless = "endless" // send the body again and again
	Slow    = "slow"    // send the body, then nothing more, and never end it
	Early   = "early"   // answer without waiting for the body of the request
)

// ServiceOptions says how a service is reached. The zero value speaks HTTP/2 and HTTP/1.1 over TLS on an ephemeral port
// of 127.0.0.1.
type ServiceOptions struct {
	Addr  string // "127.0.0.1:0" by default
	HTTP1 bool   // offer no HTTP/2
	Plain bool   // http without TLS
}

// Request is one request that a service has had, whole.
type Request struct {
	Method string
	Path   string // with the query
	Host   string
	Proto  string // "HTTP/1.1" or "HTTP/2.0"
	Header http.Header
	Body   []byte
	Peer   netip.AddrPort
	At     time.Time
}

// Reply is what a service does with a request. A zero Status stands for 200.
type Reply struct {
	Status int
	Header map[string]string // Content-Type is application/json unless set
	Body   string
	Delay  time.Duration
	How    string // "", Drop, Hang, Cut, Endless, Slow or Early
}

// Service is an HTTP service whose every answer can be scripted. Its methods may be called from any goroutine.
type Service struct {
	tb    testing.TB
	opts  ServiceOptions
	tls   *tls.Config
	ca    string // file
	usual func(Request) Reply

	mu       sync.Mutex
	addr     string
	server   *http.Server
	served   sync.WaitGroup
	conns    map[net.Conn]bool
	peers    []netip.AddrPort
	requests []Request
	queue    []Reply // for requests that bring something
	changed  chan struct{}
}

// NewService starts a service that is stopped with the test. usual says what it answers where no Reply is queued.
func NewService(tb testing.TB, o ServiceOptions, usual func(Request) Reply) *Service {
	tb.Helper()
	s := &Service{tb: tb, opts: o, usual: usual, addr: o.Addr, conns: map[net.Conn]bool{}, changed: make(chan struct{})}
	if s.addr == "" {
		s.addr = "127.0.0.1:0"
	}
	if !o.Plain {
		s.tls, s.ca = certificate(tb)
	}
	s.Start()
	tb.Cleanup(s.Stop)
	return s
}

// Start listens again after Stop, on the same port.
func (s *Service) Start() {
	s.tb.Helper()
	l, err := net.Listen("tcp", s.addr)
	if err != nil {
		s.tb.Fatalf("start test service: %v", err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(!s.opts.HTTP1 && !s.opts.Plain)
	server := &http.Server{Handler: http.HandlerFunc(s.handle), TLSConfig: s.tls, ConnState: s.watch, Protocols: &protocols,
		ErrorLog: log.New(io.Discard, "", 0)}
	s.mu.Lock()
	s.addr, s.server = l.Addr().String(), server
	s.mu.Unlock()
	s.served.Go(func() {
		if s.opts.Plain {
			server.Serve(l)
			return
		}
		server.ServeTLS(l, "", "")
	})
}

// Stop closes the listener and every connection.
func (s *Service) Stop() {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	server.Close()
	s.served.Wait()
}

// DropConnections closes every connection without a word, and goes on listening.
func (s *Service) DropConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *Service) watch(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.conns[c] = true
		s.peers = append(s.peers, peerOf(c))
	case http.StateClosed, http.StateHijacked:
		delete(s.conns, c)
	}
}

func (s *Service) handle(w http.ResponseWriter, r *http.Request) {
	peer, _ := netip.ParseAddrPort(r.RemoteAddr)
	req := Request{Method: r.Method, Path: r.URL.RequestURI(), Host: r.Host, Proto: r.Proto, Header: r.Header, Peer: peer, At: time.Now()}
	reply, queued := s.early(r)
	if !queued {
		var err error
		if req.Body, err = io.ReadAll(r.Body); err != nil {
			panic(http.ErrAbortHandler) // the request was taken back
		}
		reply = s.take(req)
	}
	s.answer(w, r, reply)
}

// early returns the next reply where it does not wait for the body.
func (s *Service) early(r *http.Request) (Reply, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodGet || len(s.queue) == 0 || s.queue[0].How != Early {
		return Reply{}, false
	}
	reply := s.queue[0]
	s.queue = s.queue[1:]
	return reply, true
}

// take keeps a request and returns the answer to it.
func (s *Service) take(req Request) Reply {
	s.mu.Lock()
	s.requests = append(s.requests, req)
	close(s.changed)
	s.changed = make(chan struct{})
	if req.Method != http.MethodGet && len(s.queue) > 0 {
		reply := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		return reply
	}
	s.mu.Unlock()
	return s.usual(req)
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request, reply Reply) {
	time.Sleep(reply.Delay)
	switch reply.How {
	case Drop:
		panic(http.ErrAbortHandler)
	case Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	for name, value := range reply.Header {
		w.Header().Set(name, value)
	}
	status := reply.Status
	if status == 0 {
		status = http.StatusOK
	}
	if reply.How == Cut {
		w.Header().Set("Content-Length", strconv.Itoa(len(reply.Body)))
		reply.Body = reply.Body[:len(reply.Body)/2]
	}
	w.WriteHeader(status)
	io.WriteString(w, reply.Body)
	s.linger(w, r, reply)
}

// linger does what comes after the body.
func (s *Service) linger(w http.ResponseWriter, r *http.Request, reply Reply) {
	flush := http.NewResponseController(w).Flush
	switch reply.How {
	case Cut:
		flush()
		panic(http.ErrAbortHandler)
	case Slow:
		flush()
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case Endless:
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, strings.Repeat(reply.Body, 100)); err != nil {
				return
			}
		}
	}
}

// Reply queues replies to requests that bring something (not GET): each is used once, whatever is usual.
func (s *Service) Reply(replies ...Reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, replies...)
}

// URL returns scheme://host:port.
func (s *Service) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.opts.Plain {
		return "http://" + s.addr
	}
	return "https://" + s.addr
}

// Port returns the port of URL.
func (s *Service) Port() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.tb.Errorf("the test service listens at %q: %v", s.addr, err)
	}
	return port
}

// CAFile returns the PEM file with the certificate to trust; "" without TLS.
func (s *Service) CAFile() string { return s.ca }

// Requests returns the requests so far that brought something, in order: those that came whole, whatever was answered.
func (s *Service) Requests() []Request {
	return slices.DeleteFunc(s.All(), func(r Request) bool { return r.Method == http.MethodGet })
}

// All returns all whole requests so far, check calls too.
func (s *Service) All() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Wait returns Requests once there are at least n, and fails the test where they do not come.
func (s *Service) Wait(n int) []Request {
	s.tb.Helper()
	timeout := time.NewTimer(waitTime)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if got := s.Requests(); len(got) >= n {
			return got
		}
		select {
		case <-changed:
		case <-timeout.C:
			s.tb.Fatalf("the test service has %d requests after %v, want %d", len(s.Requests()), waitTime, n)
		}
	}
}

// Peers returns who connected, in order.
func (s *Service) Peers() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.peers)
}

// Connections returns how many connections are open now.
func (s *Service) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}
