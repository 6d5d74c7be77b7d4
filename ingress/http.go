package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"gatepost/config"
	"gatepost/hook"
	"gatepost/message"
)

// Caller says who may order mail over HTTP. Package relay implements it.
type Caller interface {
	// Admits returns nil if p may be client on listener as far as its address, user id or certificate tell, or a
	// *reply.Error (550 5.7.1).
	Admits(listener, client string, p message.Peer) error
	// AdmitsAny reports whether p may be any client of listener, before it has shown a certificate.
	AdmitsAny(listener string, p message.Peer) bool
	// Token returns nil if token is one of client's, or a *reply.Error: 535 5.7.8, or 454 4.7.0 where that cannot be told.
	Token(listener, client, token string) error
	// Limited records that a mail was refused because of a limit.
	Limited(s *message.Submission, text string)
	// Accept is that of Acceptor. Submissions whose Order has the Key of one before are not queued again.
	Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error)
}

// Templates fills templates in.
type Templates interface {
	// Knows reports whether there is a template for mail of that type, or one made for it.
	Knows(kind string) bool
	// Fill makes the message that m, whose Variables are set, stands for. Its errors are *hook.Invalid. from is the sender
	// where the template has none.
	Fill(m *hook.Mail, from string, schemes []string) (*Filled, error)
	// Compose makes the message of m, which is Rendered, from a sender. Its errors are *hook.Invalid.
	Compose(m *hook.Mail, from string) (*Filled, error)
}

// Filled is a composed mail.
type Filled struct {
	Type     string        // whose template it is; "" for none, as are Purpose and Lifetime then
	Unknown  bool          // there is none for the type that was asked for
	Purpose  string        // "code", "invitation" or "notice"
	Lifetime time.Duration // how long it is worth sending
	From     message.Address
	Raw      message.Raw
	Provided map[string]message.Provided // by upstream: what it makes the mail of with a template of its own; nil for none
	TooMuch  []string                    // upstreams that are not given the variables for theirs, which are too much: they are sent Raw
}

// HTTPTimeouts bounds how long requests may take. Zero fields take the default.
type HTTPTimeouts struct {
	Header  time.Duration // for a request line and header, a TLS handshake and a PROXY header (10 s)
	Body    time.Duration // for a body, and a second more for each 256 KB that it says to have (10 s)
	Answer  time.Duration // for all of a request, from its header to the end of its answer (2 min)
	Idle    time.Duration // between requests on one connection: callers keep theirs open (2 min)
	Refused time.Duration // for one that is refused whatever it asks for (2 s)
	Drain   time.Duration // when stopping: for requests under way (2 s)
	Linger  time.Duration // when stopping: for requests that are on their way on open connections; twice that after one (500 ms)
}

func (t HTTPTimeouts) withDefaults() HTTPTimeouts {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&t.Header, 10*time.Second)
	def(&t.Body, 10*time.Second)
	def(&t.Answer, 2*time.Minute)
	def(&t.Idle, 2*time.Minute)
	def(&t.Refused, 2*time.Second)
	def(&t.Drain, 2*time.Second)
	def(&t.Linger, 500*time.Millisecond)
	return t
}

// HTTPOptions is what an HTTP door needs. All fields but Connections, Reserve and Timeouts are required.
type HTTPOptions struct {
	Config    *config.Config // as at the start; see Reconfigure
	Listen    string         // name of the listener in it
	Caller    Caller
	Templates Templates // see Reconfigure
	Budget    *Budget   // shared by all doors
	Limits    *Limits   // shared by all doors
	// Connections is shared by all doors; nil sets clients no limits of their own. Whose a connection is only its requests
	// tell, so that each of those counts while it is under way.
	Connections *Connections
	Reserve     func(client string) bool // whether the client may use the reserves: it sends auth mail; nil for nobody
	Log         *slog.Logger
	Timeouts    HTTPTimeouts
}

// HTTP is a door that speaks HTTP/1.1, and HTTP/2 over TLS. It takes orders for mail: POST /hooks/NAME, in the form that
// the hook's adapter knows, and POST /v1/send for hooks with adapter native. Every request on a connection that was
// accepted gets an answer, also while the door is full or stops. Nothing else is served.
type HTTP struct {
	HTTPOptions
	settings atomic.Pointer[httpSettings]
	server   *http.Server
	places   *places
	draining atomic.Bool
	unbound  chan struct{}   // closed with the listener
	turned   rate.Sometimes  // lines about requests of strangers to no hook: a flood must not fill the log
	life     context.Context // given to Accept: outlives callers and the stop signal, ends when connections are cut
	cut      context.CancelFunc
}

// httpSettings are what Reconfigure changes. A request keeps those that it began with.
type httpSettings struct {
	*config.Listen
	tls       *tlsFiles // nil where TLS is "none"
	hooks     map[string]*hooked
	native    []*hooked // those with adapter native, by name
	templates Templates
}

// strangers is how often the log tells of callers that have proved nothing.
const strangers = 10 * time.Second

// hooked is a hook with what belongs to it.
type hooked struct {
	*config.Hook
	client  *config.Client
	stream  *config.Stream
	adapter hook.Adapter
	turned  rate.Sometimes // lines about strangers that call it
}

// NewHTTP returns a door that is ready to Serve, once. Its error says what is wrong with the certificate.
func NewHTTP(o HTTPOptions) (*HTTP, error) {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Reserve == nil {
		o.Reserve = func(string) bool { return false }
	}
	if o.Connections == nil {
		o.Connections = NewConnections(func(string) int { return 0 })
	}
	h := &HTTP{HTTPOptions: o, places: newPlaces(), unbound: make(chan struct{}), turned: rate.Sometimes{Interval: strangers}}
	apply, err := h.Reconfigure(o.Config, o.Config.Listen[o.Listen], o.Templates)
	if err != nil {
		return nil, err
	}
	apply()
	h.server = &http.Server{
		Handler:           h,
		ReadHeaderTimeout: o.Timeouts.Header,
		WriteTimeout:      o.Timeouts.Answer,
		IdleTimeout:       o.Timeouts.Idle,
		MaxHeaderBytes:    32 << 10,
		ConnContext:       withConn,
		ErrorLog:          slog.NewLogLogger(o.Log.With("listener", o.Listen).Handler(), slog.LevelDebug),
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: 100},
	}
	return h, nil
}

// Reconfigure makes ready what cfg changes about the door that l, which has the same name and address, is: all that can
// fail is done when it returns. apply, called once, then puts it in force for requests to come.
func (h *HTTP) Reconfigure(cfg *config.Config, l *config.Listen, templates Templates) (apply func(), err error) {
	next := &httpSettings{Listen: l, hooks: map[string]*hooked{}, templates: templates}
	if l.TLS == "implicit" {
		if next.tls, err = newTLSFiles(l, h.Log); err != nil {
			return nil, fmt.Errorf("listen %s: %w", l.Name, err)
		}
	}
	for name, c := range cfg.Hook {
		if slices.Contains(l.Clients, c.Client) {
			next.hooks[name] = &hooked{c, cfg.Client[c.Client], cfg.Stream[c.Stream], hook.New(c), rate.Sometimes{Interval: strangers}}
		}
	}
	next.native = next.natives()
	return func() {
		before := h.settings.Swap(next)
		h.places.resize(l.MaxConnections, l.MaxPerSource)
		if before != nil {
			resetMode(before.Listen, l, h.Log)
		}
	}, nil
}

// natives returns the hooks that /v1/send may mean, by name.
func (s *httpSettings) natives() (found []*hooked) {
	for _, c := range s.hooks {
		if c.Adapter == "native" {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b *hooked) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return found
}

// Serve answers those who connect to ln until ctx ends, then stops: what has connected until then is answered, requests
// under way come to their end within Timeouts.Drain. It returns nil after the last answer, or an error when ln failed or
// requests had to be cut off. It closes ln.
func (h *HTTP) Serve(ctx context.Context, ln net.Listener) error {
	h.life, h.cut = context.WithCancel(context.WithoutCancel(ctx))
	defer h.cut()
	l := &httpListener{Listener: ln, door: h}
	served := make(chan error, 1)
	go func() { served <- h.server.Serve(l) }()
	var err error
	select {
	case err = <-served:
		err = fmt.Errorf("listen %s: accept connections: %w", h.Listen, err)
	case <-ctx.Done():
		l.stop()
		<-served
	}
	if ctx.Err() != nil {
		err = nil // the listener was closed on purpose
	}
	h.draining.Store(true)
	return errors.Join(err, h.drain())
}

// Unbound returns a channel that is closed when Serve, whose context has ended, has taken in who had connected and closed
// its listener: the address is free then.
func (h *HTTP) Unbound() <-chan struct{} { return h.unbound }

// idleLook is how often a door that stops looks for connections that have become idle.
const idleLook = 20 * time.Millisecond

// drain answers what is under way. Connections on which nothing is going on stay open for a moment, longer where something
// was just before: a request may be on its way there, which whoever sent it would lose. One of which only a part has come
// gets as long, then it is told.
func (h *HTTP) drain() error {
	if waitFor(h.places.empty(), h.Timeouts.Linger) {
		return nil
	}
	over := h.places.empty()
	h.places.lastCall(time.Now().Add(h.Timeouts.Linger))
	for end := time.Now().Add(h.Timeouts.Drain / 2); time.Now().Before(end); {
		h.places.closeIdle(2 * h.Timeouts.Linger)
		if waitFor(over, idleLook) {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), h.Timeouts.Drain/2)
	defer cancel()
	if h.server.Shutdown(ctx) == nil && waitFor(over, h.Timeouts.Drain/2) { // HTTP/2 has to be told
		return nil
	}
	n := h.places.count()
	h.cut()
	h.server.Close() // of what is left; there is nobody to tell
	waitFor(over, h.Timeouts.Drain/3)
	return fmt.Errorf("listen %s: %d connections were cut off: they did not end within %v", h.Listen, n, h.Timeouts.Drain)
}
