package test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"gatepost/upstream/upstreamtest"
)

// TestASignInCodeWaitsForNoNewsletter holds codes against a queue of marketing mail at one upstream that both streams share.
func TestASignInCodeWaitsForNoNewsletter(t *testing.T) {
	t.Parallel()
	const (
		answer = 100 * time.Millisecond // what the host takes for each mail
		limit  = 2 * time.Second        // beside other tests
	)
	slow := func() func(upstreamtest.Step) upstreamtest.Action {
		return func(upstreamtest.Step) upstreamtest.Action { return upstreamtest.Action{} }
	}
	for name, tt := range map[string]struct {
		host   upstreamtest.HostOptions
		script func() func(upstreamtest.Step) upstreamtest.Action // beside the answer to each mail
		octets int                                                // of a newsletter, beside its header
	}{
		"to a slow host":                           {upstreamtest.HostOptions{}, slow, 0},
		"to a host that takes fewer connections":   {upstreamtest.HostOptions{MaxConnections: 5}, slow, 0},
		"to a host that does not read newsletters": {upstreamtest.HostOptions{}, unread, 1 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := upstreamtest.NewHost(t, tt.host)
			script := tt.script()
			h.Script(func(s upstreamtest.Step) upstreamtest.Action {
				a := script(s)
				if s.Verb == upstreamtest.Dot {
					a.Delay += answer
				}
				return a
			})
			s := newSite(t)
			s.configure("route   = [\"bulk\"]\negress  = \"bulk\"", "route   = [\"sink\"]\negress  = \"auth\"")
			s.configure("ipv4 = \"127.0.0.2\"", "ipv4 = \"127.0.0.2\"\nshared = true")
			s.configure("[upstream.sink]\ntype    = \"smtp\"\naddress = \""+s.auth.addr+"\"",
				"[upstream.sink]\nshared  = true\nconnections = 8\ntype    = \"smtp\"\naddress = \""+h.Addr()+"\"")
			s.program = plain // seconds are measured
			s.start()

			count := 400 // six seconds at least
			if tt.octets > 0 {
				count = 16
			}
			filling := strings.Repeat(strings.Repeat("x", 70)+"\r\n", tt.octets/72)
			var senders sync.WaitGroup
			for from := range 4 {
				senders.Go(func() {
					c, err := dial(s.listen, bulkStream.client)
					if err != nil {
						t.Error(err)
						return
					}
					defer c.quit()
					for i := from; i < count; i += 4 {
						id := fmt.Sprintf("b%d", i)
						if _, err := c.send(bulkStream.sender(), id+"@example.net", bulkStream.letter(id, "1")+filling); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			senders.Wait()
			for i := range 20 {
				began := time.Now()
				authStream.mustPost(t, s.listen, fmt.Sprintf("a%d", i), "123456")
				if took := time.Since(began); took > limit {
					t.Errorf("code %d was answered after %v", i, took)
				}
			}
			waiting := len(s.queue())
			if waiting == 0 {
				t.Error("no newsletter was left to wait for")
			}
			codes := 0
			for _, m := range h.Messages() {
				if strings.HasSuffix(m.From, "@"+authDomain) {
					codes++
				}
			}
			if codes != 20 {
				t.Errorf("the host has %d codes, want 20", codes)
			}
		})
	}
}

// unread makes a host stop reading each newsletter for a while.
func unread() func(upstreamtest.Step) upstreamtest.Action {
	var mu sync.Mutex
	newsletters := map[int]bool{} // connections
	return func(s upstreamtest.Step) (a upstreamtest.Action) {
		mu.Lock()
		defer mu.Unlock()
		switch s.Verb {
		case "MAIL":
			newsletters[s.Conn] = strings.Contains(s.Arg, bulkDomain)
		case upstreamtest.Body:
			if newsletters[s.Conn] {
				a.Delay = 3 * time.Second
			}
		}
		return a
	}
}
