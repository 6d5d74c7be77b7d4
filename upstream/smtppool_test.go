package upstream_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

func TestAConnectionIsKeptForTheNextMail(t *testing.T) {
	for _, tls := range []string{"", "starttls", "implicit"} {
		h, u := newPair(t, upstreamtest.HostOptions{TLS: tls})
		for range 5 {
			wantClasses(t, send(t, u, envelope()), message.Accepted)
		}
		if h.Accepted() != 1 {
			t.Errorf("tls %q: %d connections for 5 mails in a row, want 1", tls, h.Accepted())
		}
	}
}

func TestAProbeLeavesAConnectionForTheNextMail(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	reserve(t, u).Release()
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if h.Accepted() != 1 {
		t.Errorf("%d connections, want 1", h.Accepted())
	}
}

func TestAHostThatClosedAKeptConnectionCostsNoMail(t *testing.T) {
	idle := func(reply string) func(*upstreamtest.Host) {
		return func(h *upstreamtest.Host) { h.Reply("MAIL", reply) }
	}
	for name, end := range map[string]func(*upstreamtest.Host){
		"before it is used again":                   (*upstreamtest.Host).DropConnections,
		"as it is used again":                       idle(upstreamtest.Drop),
		"as it is used again, and says so with 421": idle("421 4.4.2 idle for too long"),
	} {
		t.Run(name, func(t *testing.T) {
			h, u := newPair(t, upstreamtest.HostOptions{})
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			end(h)
			wantClasses(t, send(t, u, envelope()), message.Accepted)
			if len(h.Messages()) != 2 || h.Accepted() != 2 {
				t.Errorf("%d mails over %d connections, want 2 over 2", len(h.Messages()), h.Accepted())
			}
		})
	}
}

func TestASlotSendsToMoreRecipientsInSeveralMails(t *testing.T) {
	for name, drop := range map[string]bool{"over one connection": false, "over a new one where the host has gone": true} {
		t.Run(name, func(t *testing.T) {
			h, u := newPair(t, upstreamtest.HostOptions{})
			slot := reserve(t, u)
			defer slot.Release()
			for _, to := range []string{"one@example.net", "two@example.net", "three@example.net"} {
				wantClasses(t, slot.Send(t.Context(), envelope(to), net.Buffers{text}, commit), message.Accepted)
				if drop {
					h.DropConnections()
				}
			}
			if n := len(h.Messages()); n != 3 {
				t.Errorf("%d mails arrived, want 3", n)
			}
		})
	}
}

func TestAConnectionThatDiesAfterAReplyIsNotTriedAgain(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	h.Reply("RCPT", upstreamtest.Drop)
	wantClasses(t, send(t, u, envelope()), message.Temporary)
	if h.Accepted() != 1 {
		t.Errorf("%d connections, want 1", h.Accepted())
	}
}

func TestANewConnectionMustOfferWhatTheKeptOneDid(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	h.Reply("MAIL", upstreamtest.Drop)
	h.Reply("EHLO", "250-other host\r\n250 PIPELINING")
	vs := send(t, u, envelope())
	wantClasses(t, vs, message.Temporary)
	if vs[0].Scope != message.ScopeUpstream {
		t.Errorf("scope %q, want upstream", vs[0].Scope)
	}
	wantClasses(t, send(t, u, envelope()), message.Accepted)
}

func TestAnOutageIsPausedAndOver(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	h.Stop()
	p := wantPaused(t, u)
	if p.Verdict.Class != message.Temporary {
		t.Errorf("class %q, want temporary", p.Verdict.Class)
	}
	h.Start()
	wantClasses(t, send(t, u, envelope()), message.Accepted)
}

// wantPaused reserves in vain.
func wantPaused(t *testing.T, u upstream.Upstream) *upstream.Paused {
	t.Helper()
	slot, err := u.Reserve(t.Context(), "auth")
	if err == nil {
		slot.Release()
		t.Fatal("Reserve gave a slot, want *Paused")
	}
	p, ok := errors.AsType[*upstream.Paused](err)
	if !ok {
		t.Fatalf("Reserve: %v, want *Paused", err)
	}
	if p.Verdict.Scope != message.ScopeUpstream {
		t.Errorf("scope %q, want upstream", p.Verdict.Scope)
	}
	return p
}

func TestTooManyConnectionsLowersConcurrencyInsteadOfPausing(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{MaxConnections: 2})
	var sends sync.WaitGroup
	for range 20 {
		sends.Go(func() {
			slot, err := u.Reserve(t.Context(), "auth")
			if err != nil {
				t.Errorf("Reserve: %v", err)
				return
			}
			defer slot.Release()
			if v := slot.Send(t.Context(), envelope(), net.Buffers{text}, commit)[0]; v.Class != message.Accepted {
				t.Errorf("verdict %+v, want accepted", v)
			}
		})
	}
	sends.Wait()
	if n := len(h.Messages()); n != 20 {
		t.Errorf("%d mails arrived, want 20", n)
	}
}

func TestTooManyConnectionsPausesWhereWeHaveNone(t *testing.T) {
	h, u := newPair(t, upstreamtest.HostOptions{})
	h.Reply(upstreamtest.Greeting, "421 4.7.0 too many connections")
	if p := wantPaused(t, u); p.Verdict.Class != message.Throttled || p.Verdict.Code != 421 {
		t.Errorf("verdict %+v, want throttled by 421", p.Verdict)
	}
}

// bubble makes a host and an upstream that are joined by pipes, for a test on a fake clock.
func bubble(t *testing.T, connections int) (*upstreamtest.Host, upstream.Upstream) {
	t.Helper()
	h := upstreamtest.NewHost(t, upstreamtest.HostOptions{NoListen: true})
	c := &config.Upstream{Name: "sink", Type: "smtp", Address: "pipe:25", TLS: "none", Connections: connections}
	u, err := upstream.NewSMTPOver(c, "gw.example.com", func(context.Context) (net.Conn, error) { return h.Pipe(), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, u) })
	return h, u
}

func TestAnIdleConnectionIsQuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := bubble(t, 2)
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		time.Sleep(upstream.IdleTime - time.Nanosecond)
		synctest.Wait()
		before := h.Connections()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if before != 1 || h.Connections() != 0 {
			t.Errorf("%d connections before the idle time ends and %d after, want 1 and 0", before, h.Connections())
		}
		if verbs := h.Verbs(); verbs[len(verbs)-1] != "QUIT" {
			t.Errorf("the host heard %v, want QUIT at the end", verbs)
		}
	})
}

func TestAConnectionEndsAfterItsMailsOrItsAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := bubble(t, 1)
		for range upstream.MaxMails + 1 {
			wantClasses(t, send(t, u, envelope()), message.Accepted)
		}
		if h.Accepted() != 2 {
			t.Errorf("%d connections for %d mails, want 2", h.Accepted(), upstream.MaxMails+1)
		}
		slot := reserve(t, u)
		time.Sleep(upstream.MaxAge)
		slot.Release()
		wantClasses(t, send(t, u, envelope()), message.Accepted)
		if h.Accepted() != 3 {
			t.Errorf("%d connections, want a third in place of the old one", h.Accepted())
		}
	})
}

func TestTheLastUsedConnectionIsUsedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := bubble(t, 2)
		first, second := reserve(t, u), reserve(t, u)
		first.Release()
		time.Sleep(upstream.IdleTime / 2)
		second.Release()
		for range 3 { // the second is kept busy, the first grows idle
			time.Sleep(upstream.IdleTime / 3)
			wantClasses(t, send(t, u, envelope()), message.Accepted)
		}
		synctest.Wait()
		if h.Connections() != 1 || h.Accepted() != 2 {
			t.Errorf("%d of %d connections are open, want 1 of 2", h.Connections(), h.Accepted())
		}
	})
}

func TestAHostThatSaysNothingPausesInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := bubble(t, 1)
		h.Reply(upstreamtest.Greeting, upstreamtest.Hang)
		start := time.Now()
		p := wantPaused(t, u)
		if took := time.Since(start); took != upstream.ConnectTime || p.Verdict.Class != message.Temporary {
			t.Errorf("%+v after %v, want temporary after %v", p.Verdict, took, upstream.ConnectTime)
		}
	})
}

func TestCloseEndsAConnectionBeingMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, u := bubble(t, 1)
		h.Reply(upstreamtest.Greeting, upstreamtest.Hang)
		var made sync.WaitGroup
		made.Go(func() {
			if _, err := u.Reserve(context.Background(), "auth"); err == nil {
				t.Error("Reserve gave a slot of a closed upstream")
			}
		})
		synctest.Wait()
		start := time.Now()
		closeNow(t, u)
		made.Wait()
		if took := time.Since(start); took != 0 {
			t.Errorf("Close took %v, want no time", took)
		}
	})
}
