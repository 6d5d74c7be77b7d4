package main

import (
	"bytes"
	"cmp"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/upstream/upstreamtest"
)

const roundTrip = 40 * time.Millisecond

// upstreamLines configures an upstream that leads to s at addr.
func upstreamLines(s *sink, addr string) string {
	how := cmp.Or(s.opts.host.TLS, "none")
	lines := fmt.Sprintf("type = \"smtp\"\naddress = %q\ntls = %q\n", addr, how)
	if how != "none" {
		lines += fmt.Sprintf("tls_ca_file = %q\n", s.CAFile())
	}
	return lines
}

// tally reports which of n mails were lost, came more than once, or came unsigned.
func (s *sink) tally(b *testing.B, n int) {
	b.Helper()
	copies := map[string]int{}
	signed := 0
	for _, m := range s.Messages() {
		_, rest, _ := bytes.Cut(m.Data, []byte("Message-ID: <"+idMark))
		id, _, _ := bytes.Cut(rest, []byte("@"))
		copies[string(id)]++
		if bytes.Contains(m.Data, []byte("DKIM-Signature: ")) {
			signed++
		}
	}
	b.ReportMetric(float64(n-len(copies)), "lost")
	b.ReportMetric(float64(len(s.Messages())-len(copies)), "dups")
	b.ReportMetric(float64(len(s.Messages())-signed), "unsigned")
}

func BenchmarkThroughputOverTLS(b *testing.B) {
	for _, how := range []string{"starttls", "implicit"} {
		for _, chunking := range []bool{false, true} {
			name := how
			if chunking {
				name += "-chunking"
			}
			b.Run(name, func(b *testing.B) {
				s := newSink(b, options{host: upstreamtest.HostOptions{TLS: how, Chunking: chunking}})
				p := start(b, "far", upstreamLines(s, s.Addr()))
				began, cpu := time.Now(), p.cpu()
				n := p.pump(bulkDomain, 20, "")
				until(b, "mails arrived", n, func() int { return int(s.mails.Load()) })
				p.report(n, time.Since(began), p.cpu()-cpu)
				s.tally(b, n)
			})
		}
	}
}

// BenchmarkFlights measures mails one by one over a round trip of 40 ms, to a host with and without CHUNKING.
func BenchmarkFlights(b *testing.B) {
	for _, how := range []string{"", "starttls", "implicit"} {
		for _, chunking := range []bool{false, true} {
			name := cmp.Or(how, "plain")
			if chunking {
				name += "-chunking"
			}
			b.Run(name, func(b *testing.B) {
				arrived := make(chan time.Time, 100)
				s := newSink(b, options{host: upstreamtest.HostOptions{TLS: how, Chunking: chunking}})
				s.Script(func(step upstreamtest.Step) upstreamtest.Action {
					if step.Verb == upstreamtest.Dot {
						arrived <- time.Now()
					}
					return s.answer(step)
				})
				p := start(b, "far", upstreamLines(s, slowly(b, s.Addr(), roundTrip/2)))
				p.latencies(3, 6*time.Second, func() {}, arrived)
			})
		}
	}
}

// BenchmarkRefusedBacklog measures what the second try costs of mails that were all refused the first time, once they
// were whole: where a signature is kept, it has none to compute.
func BenchmarkRefusedBacklog(b *testing.B) {
	s := newSink(b, options{})
	var open atomic.Bool
	s.Script(func(step upstreamtest.Step) upstreamtest.Action {
		a := s.answer(step)
		if step.Verb == upstreamtest.Dot && !open.Load() {
			s.refused.Add(1)
			a.Reply = "450 4.2.1 mailbox busy"
		}
		return a
	})
	p := start(b, "far", upstreamLines(s, s.Addr()))
	began, cpu := time.Now(), p.cpu()
	n := p.pump(bulkDomain, 20, "")
	until(b, "mails refused once", n, func() int { return int(s.refused.Load()) })
	first := p.cpu() - cpu
	b.ReportMetric(float64(n)/time.Since(began).Seconds(), "refused/s")
	b.ReportMetric(float64(first.Microseconds())/1000/float64(n), "first-cpu-ms/mail")
	open.Store(true)
	time.Sleep(time.Second) // the last refusals are settled
	began, cpu = time.Now(), p.cpu()
	p.run("queue", "retry", "--stream", "marketing", "-c", p.dir+"/gatepost.toml")
	until(b, "mails arrived", n, func() int { return len(s.Messages()) })
	p.report(n, time.Since(began), p.cpu()-cpu)
	s.tally(b, n)
}

// BenchmarkCrowdedHost sends more at once than the host takes: it answers 421 above 20 connections, and 50 are configured.
func BenchmarkCrowdedHost(b *testing.B) {
	s := newSink(b, options{host: upstreamtest.HostOptions{MaxConnections: 20}})
	p := start(b, "far", upstreamLines(s, s.Addr())+"connections = 50\n")
	began, cpu := time.Now(), p.cpu()
	n := p.pump(bulkDomain, 100, "")
	until(b, "mails arrived", n, func() int { return int(s.mails.Load()) })
	p.report(n, time.Since(began), p.cpu()-cpu)
	b.ReportMetric(float64(s.Accepted()), "connections")
	s.tally(b, n)
}

// BenchmarkHostThatReadsRefusedChunks sends mails full of commands through a host that refuses a part of everything, and
// takes what is in a refused chunk for commands. None may be executed.
func BenchmarkHostThatReadsRefusedChunks(b *testing.B) {
	var refuse refusals
	for _, verb := range []string{"MAIL", "RCPT", "BDAT", "DOT"} {
		refuse = append(refuse, refusal{verb, 0.1, 450})
	}
	s := newSink(b, options{host: upstreamtest.HostOptions{Chunking: true, ReadsRefused: true}, refuse: refuse})
	p := start(b, "far", upstreamLines(s, s.Addr()))
	lines := fmt.Sprintf("RSET\r\nMAIL FROM:<a@%[1]s>\r\nRCPT TO:<b@%[1]s>\r\nDATA\r\n\r\n.\r\nQUIT\r\n", inBody)
	n := p.pump(bulkDomain, 20, lines)
	for range 30 { // each time nine in ten or fewer of the rest arrive
		if arrived := len(s.Messages()); arrived >= n {
			break
		}
		time.Sleep(time.Second)
		p.run("queue", "retry", "--stream", "marketing", "-c", p.dir+"/gatepost.toml")
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(s.executed.Load()), "executed")
	b.ReportMetric(float64(s.refused.Load()), "refused")
	s.tally(b, n)
}
