package upstream_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// rawService speaks on every connection it gets as serve does, and counts what it has had of bodies.
type rawService struct {
	url, ca string
	body    atomic.Int64  // octets of bodies so far
	ended   atomic.Int64  // requests that were complete
	gone    chan struct{} // closed once the first connection is closed, and our side knows
}

// newRawService listens until the test ends. serve runs on a goroutine of its own for each connection, number from 1.
func newRawService(t *testing.T, h2 bool, serve func(s *rawService, conn net.Conn, number int)) *rawService {
	t.Helper()
	s := &rawService{gone: make(chan struct{})}
	var tasks sync.WaitGroup
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "http://" + l.Addr().String()
	if h2 {
		certificate, ca := upstreamtest.Certificate(t)
		certificate.NextProtos = []string{"h2"}
		l = tls.NewListener(l, certificate)
		s.url, s.ca = "https://"+l.Addr().String(), ca
	}
	var mu sync.Mutex
	var conns []net.Conn
	tasks.Go(func() {
		for number := 1; ; number++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			tasks.Go(func() {
				serve(s, conn, number)
				conn.Close()
				if number == 1 {
					untilGone(conn.RemoteAddr().(*net.TCPAddr).Port)
					close(s.gone)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		tasks.Wait()
	})
	return s
}

// upstream makes a mailgun upstream for s.
func (s *rawService) upstream(t *testing.T) upstream.Upstream {
	t.Helper()
	return open(t, &config.Upstream{Name: "mg", Type: "mailgun", Endpoint: s.url, TLSCAFile: s.ca, Domain: "mg.example.com",
		APIKey: secretFile(t, "key"), Connections: 4, DKIM: "none"})
}

const rawAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"id\":\"<a@b>\"}"

// request1 reads one HTTP/1.1 request, counting.
func (s *rawService) request1(br *bufio.Reader) error {
	length := 0
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return err
		}
		if n, ok := strings.CutPrefix(strings.ToLower(line), "content-length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(n))
		}
		if line == "\r\n" {
			break
		}
	}
	for piece := make([]byte, 4096); length > 0; {
		n, err := br.Read(piece[:min(length, len(piece))])
		if err != nil {
			return err
		}
		s.body.Add(int64(n))
		length -= n
	}
	s.ended.Add(1)
	return nil
}

func serveHTTP1(s *rawService, conn net.Conn, _ int) {
	br := bufio.NewReader(conn)
	for s.request1(br) == nil {
		io.WriteString(conn, rawAnswer)
	}
}

// frames is one HTTP/2 connection of a service that decides by frame what to do.
type frames struct {
	*http2.Framer
	conn net.Conn
}

// openHTTP2 takes the preface and says what a server says first. The windows it opens hold every mail of the tests.
func openHTTP2(conn net.Conn) (*frames, error) {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(conn, preface); err != nil {
		return nil, err
	}
	f := &frames{http2.NewFramer(conn, conn), conn}
	err := f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 24})
	return f, errors.Join(err, f.WriteWindowUpdate(0, 1<<24))
}

// next returns the next frame that belongs to a request.
func (f *frames) next() (http2.Frame, error) {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return nil, err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				f.WritePing(true, frame.Data)
			}
		case *http2.HeadersFrame, *http2.DataFrame, *http2.RSTStreamFrame:
			return frame, nil
		}
	}
}

// accept answers a request with 200 and an id: ":status: 200" is entry 8 of the static table (RFC 7541 appendix A).
func (f *frames) accept(stream uint32) {
	f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte{0x88}, EndHeaders: true})
	f.WriteData(stream, true, []byte(`{"id":"<a@b>"}`))
}

// serveHTTP2 accepts every request that ends.
func serveHTTP2(s *rawService, conn net.Conn, _ int) {
	f, err := openHTTP2(conn)
	for err == nil {
		var frame http2.Frame
		if frame, err = f.next(); err != nil {
			return
		}
		if d, ok := frame.(*http2.DataFrame); ok {
			s.body.Add(int64(len(d.Data())))
			if d.StreamEnded() {
				s.ended.Add(1)
				f.accept(d.StreamID)
			}
		}
	}
}

func TestTheLastByteIsNotOnTheWireBeforeTheCommitReturns(t *testing.T) {
	for name, tt := range map[string]struct {
		h2    bool
		serve func(*rawService, net.Conn, int)
	}{"over HTTP/1.1": {false, serveHTTP1}, "over HTTP/2": {true, serveHTTP2}} {
		for _, size := range []int{10, 100 << 10, 1 << 20} {
			t.Run(fmt.Sprintf("%s, %d octets", name, size), func(t *testing.T) {
				s := newRawService(t, tt.h2, tt.serve)
				u := s.upstream(t)
				slot := reserve(t, u)
				defer slot.Release()
				wire := net.Buffers{[]byte("Subject: x\r\n\r\n"), bytes.Repeat([]byte{'x'}, size)}
				var before int64
				vs := slot.Send(t.Context(), envelope(), wire, func() error {
					time.Sleep(100 * time.Millisecond) // what was sent arrives
					before = s.body.Load()
					if s.ended.Load() != 0 {
						t.Error("the service had the whole request before the commit")
					}
					return nil
				})
				wantClasses(t, vs, message.Accepted)
				if all := s.body.Load(); before >= all || size >= 100<<10 && before < all/2 {
					t.Errorf("the service had %d of %d octets before the commit, want most of a large mail and never all", before, all)
				}
			})
		}
	}
}

func TestACommitThatIsRefusedOrStoppedEndsTheRequestWithoutItsLastByte(t *testing.T) {
	for name, tt := range map[string]struct {
		h2    bool
		serve func(*rawService, net.Conn, int)
	}{"over HTTP/1.1": {false, serveHTTP1}, "over HTTP/2": {true, serveHTTP2}} {
		t.Run(name, func(t *testing.T) {
			s := newRawService(t, tt.h2, tt.serve)
			u := s.upstream(t)
			for _, size := range []int{10, 1 << 20} {
				slot := reserve(t, u)
				ctx, cancel := context.WithCancel(t.Context())
				vs := slot.Send(ctx, envelope(), net.Buffers{make([]byte, size)}, func() error {
					cancel() // what a timer does while the commit waits
					<-ctx.Done()
					return ctx.Err()
				})
				slot.Release()
				cancel()
				if vs != nil {
					t.Errorf("verdicts %+v after a commit that failed, want none", vs)
				}
			}
			time.Sleep(50 * time.Millisecond)
			if n := s.ended.Load(); n != 0 {
				t.Errorf("%d requests were complete", n)
			}
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if n := s.ended.Load(); n != 1 {
				t.Errorf("%d requests were complete, want the last", n)
			}
		})
	}
}

func TestAServiceThatReadsNothingIsLeftInTimeWithoutACommit(t *testing.T) {
	for name, h2 := range map[string]bool{"over HTTP/1.1": false, "over HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			s := newRawService(t, h2, func(_ *rawService, conn net.Conn, _ int) {
				if t, ok := conn.(*tls.Conn); ok {
					t.Handshake()
				}
				time.Sleep(time.Second)
			})
			slot := reserve(t, s.upstream(t))
			defer slot.Release()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			vs := slot.Send(ctx, envelope(), net.Buffers{make([]byte, 20<<20)}, func() error {
				t.Error("commit was called")
				return nil
			})
			wantClasses(t, vs, message.Temporary)
		})
	}
}

// TestAConnectionThatEndsAtItsReuseCostsNoMail: the service closes a kept connection when the next request begins, or
// says by HTTP/2 that it has not processed it. The mail arrives once, over a new connection.
func TestAConnectionThatEndsAtItsReuseCostsNoMail(t *testing.T) {
	for name, tt := range map[string]struct {
		h2    bool
		size  int
		gone  string // when the connection has ended for sure
		serve func(*rawService, net.Conn, int)
	}{
		"HTTP/1.1, at the first octets of a large mail": {false, 1 << 20, "at the commit", func(s *rawService, conn net.Conn, number int) {
			br := bufio.NewReader(conn)
			for n := 1; ; n++ {
				if number == 1 && n == 2 {
					br.ReadByte()
					return
				}
				if s.request1(br) != nil {
					return
				}
				io.WriteString(conn, rawAnswer)
			}
		}},
		"HTTP/1.1, while nobody used it": {false, 10, "before", func(s *rawService, conn net.Conn, number int) {
			if s.request1(bufio.NewReader(conn)) == nil {
				io.WriteString(conn, rawAnswer)
			}
		}},
		"HTTP/2, GOAWAY at the beginning":    {true, 10, "", goAway(http2.FrameHeaders)},
		"HTTP/2, GOAWAY at the end":          {true, 10, "", goAway(http2.FrameData)},
		"HTTP/2, GOAWAY within a large mail": {true, 1 << 20, "", goAway(http2.FrameHeaders)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newRawService(t, tt.h2, tt.serve)
			u := s.upstream(t)
			for n := range 2 {
				wait := func(at string) {
					if n == 1 && tt.gone == at {
						<-s.gone
					}
				}
				wait("before")
				slot := reserve(t, u)
				vs := slot.Send(t.Context(), envelope(), net.Buffers{make([]byte, tt.size)}, func() error {
					wait("at the commit")
					return nil
				})
				slot.Release()
				wantClasses(t, vs, message.Accepted)
			}
			if n := s.ended.Load(); n != 2 {
				t.Errorf("the service took %d mails, want 2", n)
			}
		})
	}
}

// untilGone waits until our side, which has that port, knows that a connection was closed.
func untilGone(port int) {
	established := regexp.MustCompile(fmt.Sprintf(`:%04X 0100007F:[0-9A-F]{4} 01 `, port))
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(time.Millisecond) {
		if table, err := os.ReadFile("/proc/net/tcp"); err != nil || !established.Match(table) {
			return
		}
	}
}

// goAway accepts the first request of the first connection. Of the second it says, at its first frame of a kind (its last
// one, if that is DATA), that it will not be processed.
func goAway(at http2.FrameType) func(*rawService, net.Conn, int) {
	return func(s *rawService, conn net.Conn, number int) {
		f, err := openHTTP2(conn)
		for err == nil {
			var frame http2.Frame
			if frame, err = f.next(); err != nil {
				return
			}
			h := frame.Header()
			second := number == 1 && h.StreamID > 1
			d, isData := frame.(*http2.DataFrame)
			ended := isData && d.StreamEnded()
			if second && h.Type == at && (!isData || ended) {
				f.WriteGoAway(1, http2.ErrCodeNo, nil)
				time.Sleep(20 * time.Millisecond)
				return
			}
			if ended {
				s.ended.Add(1)
				f.accept(h.StreamID)
			}
		}
	}
}

func TestARefusedStreamIsNoLostAnswer(t *testing.T) {
	s := newRawService(t, true, func(s *rawService, conn net.Conn, _ int) {
		f, err := openHTTP2(conn)
		for err == nil {
			var frame http2.Frame
			if frame, err = f.next(); err != nil {
				return
			}
			if d, ok := frame.(*http2.DataFrame); ok && d.StreamEnded() {
				f.WriteRSTStream(d.StreamID, http2.ErrCodeRefusedStream)
			}
		}
	})
	vs := send(t, s.upstream(t), envelope())
	wantClasses(t, vs, message.Temporary)
}

func TestARefusalBeforeTheMailIsCompleteIsAVerdictAndAnAcceptanceIsNone(t *testing.T) {
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		want  message.Class
	}{
		"too large":    {upstreamtest.Reply{Status: 413, Body: "{}", How: upstreamtest.Early}, message.Permanent},
		"unauthorised": {upstreamtest.Reply{Status: 401, Body: "Forbidden", How: upstreamtest.Early}, message.Unauthorised},
		"accepted":     {upstreamtest.Reply{Body: `{"id":"<a@b>"}`, How: upstreamtest.Early}, message.Temporary},
		"nobody knows": {upstreamtest.Reply{Status: 504, How: upstreamtest.Early}, message.Temporary},
	} {
		for _, o := range []upstreamtest.ServiceOptions{{}, {HTTP1: true}} {
			t.Run(fmt.Sprintf("%s, HTTP/1.1 only: %v", name, o.HTTP1), func(t *testing.T) {
				s := upstreamtest.NewService(t, o, mailgunHost)
				u := open(t, mailgunConfig(t, s))
				s.Reply(tt.reply)
				slot := reserve(t, u)
				defer slot.Release()
				vs := slot.Send(t.Context(), envelope(), net.Buffers{make([]byte, 1<<20)}, func() error {
					time.Sleep(200 * time.Millisecond) // long after the answer
					return nil
				})
				wantClasses(t, vs, tt.want)
				if n := len(s.Requests()); n != 0 {
					t.Errorf("%d requests were complete", n)
				}
			})
		}
	}
}

func TestTheEnvironmentAndRedirectsLeadNowhere(t *testing.T) {
	elsewhere := upstreamtest.NewService(t, upstreamtest.ServiceOptions{Plain: true}, mailgunHost)
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		t.Setenv(name, elsewhere.URL())
	}
	for _, status := range []int{301, 302, 303, 307, 308} {
		s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
		s.Reply(upstreamtest.Reply{Status: status, Header: map[string]string{"Location": elsewhere.URL() + "/v3/mg.example.com/messages.mime"}})
		vs := send(t, open(t, mailgunConfig(t, s)), envelope())
		wantClasses(t, vs, message.Unauthorised)
		if vs[0].Alarm == "" {
			t.Errorf("%d raises no alarm", status)
		}
	}
	if n := len(elsewhere.Peers()); n != 0 {
		t.Errorf("%d connections went elsewhere", n)
	}
}

func TestACertificateThatIsNotTheServicesStopsEverythingBeforeItIsSent(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
	c := mailgunConfig(t, s)
	c.TLSCAFile = ""
	_, err := open(t, c).Reserve(t.Context(), "auth")
	p, ok := errors.AsType[*upstream.Paused](err)
	if !ok || p.Verdict.Class != message.Temporary || !strings.Contains(p.Verdict.Text, "tls_ca_file of [upstream.mg]") {
		t.Errorf("Reserve: %v, want a pause that says where to look", err)
	}
	if n := len(s.All()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
}

func TestWhateverComesWithTheStatusDoesNotChangeIt(t *testing.T) {
	page := map[string]string{"Content-Type": "text/html; charset=utf-8"}
	for name, tt := range map[string]struct {
		reply upstreamtest.Reply
		class message.Class
		alarm bool
		text  string
	}{
		"a success without a body":         {upstreamtest.Reply{}, message.Accepted, true, ""},
		"a success that is cut":            {upstreamtest.Reply{Body: `{"id":"<20260105.1@mg.example.com>"}`, How: upstreamtest.Cut}, message.Accepted, true, ""},
		"a success that does not end":      {upstreamtest.Reply{Body: `{"id":"<20`, How: upstreamtest.Slow}, message.Accepted, true, ""},
		"a success that goes on for ever":  {upstreamtest.Reply{Body: `{"id":"`, How: upstreamtest.Endless}, message.Accepted, true, ""},
		"a success that is no JSON":        {upstreamtest.Reply{Body: "\xff\x00{"}, message.Accepted, true, ""},
		"a success that is a web page":     {upstreamtest.Reply{Body: "<html>Log in to the network</html>", Header: page}, message.Unknown, false, "web page"},
		"a gateway's page":                 {upstreamtest.Reply{Status: 502, Body: "<html>code 123456</html>", Header: page}, message.Temporary, false, "Bad Gateway"},
		"an error that goes on for ever":   {upstreamtest.Reply{Status: 503, Body: "x", How: upstreamtest.Endless}, message.Temporary, false, "Service Unavailable"},
		"a status that nobody knows":       {upstreamtest.Reply{Status: 418}, message.Temporary, true, "I'm a teapot"},
		"a status that should not be":      {upstreamtest.Reply{Status: 299, Body: `{"id":"<a@b>"}`}, message.Accepted, false, ""},
		"an answer that begins and stops":  {upstreamtest.Reply{How: upstreamtest.Drop}, message.Unknown, false, ""},
		"a header that does not end":       {upstreamtest.Reply{Header: map[string]string{"X-Long": strings.Repeat("x", 100<<10)}}, message.Unknown, false, ""},
		"an error whose words are endless": {upstreamtest.Reply{Status: 400, Body: `{"message":"` + strings.Repeat("x", 10000) + `"}`}, message.Permanent, false, "xxx"},
	} {
		for _, o := range []upstreamtest.ServiceOptions{{}, {HTTP1: true}} {
			t.Run(fmt.Sprintf("%s, HTTP/1.1 only: %v", name, o.HTTP1), func(t *testing.T) {
				t.Parallel()
				s := upstreamtest.NewService(t, o, mailgunHost)
				u := open(t, mailgunConfig(t, s))
				s.Reply(tt.reply)
				began := time.Now()
				v := send(t, u, envelope())[0]
				if v.Class != tt.class || (v.Alarm != "") != tt.alarm || !strings.Contains(v.Text, tt.text) || len(v.Text) > 2000 || strings.Contains(v.Text, "<html") {
					t.Errorf("verdict %+v, want %s, alarm: %v, words with %q", v, tt.class, tt.alarm, tt.text)
				}
				if took := time.Since(began); took > 8*time.Second {
					t.Errorf("it took %v", took)
				}
				slot, err := u.Reserve(t.Context(), "auth")
				if err != nil {
					t.Fatalf("Reserve afterwards: %v", err)
				}
				wantClasses(t, slot.Send(t.Context(), envelope(), net.Buffers{text}, commit), message.Accepted)
				slot.Release()
			})
		}
	}
}

func TestNoRequestCanBeSentAgainByNetHTTP(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, mailgunHost)
	wantClasses(t, send(t, open(t, mailgunConfig(t, s)), envelope()), message.Accepted)
	r := s.Wait(1)[0]
	for name := range r.Header {
		if strings.Contains(strings.ToLower(name), "idempotency") {
			t.Errorf("the request has %s, with which net/http sends again what was sent", name)
		}
	}
	if r.Proto != "HTTP/2.0" || r.Header.Get("Content-Length") != strconv.Itoa(len(r.Body)) {
		t.Errorf("%s with Content-Length %q for %d octets", r.Proto, r.Header.Get("Content-Length"), len(r.Body))
	}

}
