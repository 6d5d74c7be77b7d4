package main

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/upstream/upstreamtest"
)

// secret is what all files with keys and tokens hold. As a signing key it must be one of Standard Webhooks.
const secret = "whsec_Z2F0ZXBvc3QgYmVuY2ggc2VjcmV0IDEyMzQ1Njc4\n"

// A service takes every mail. What it looks at in a request is the business of the tests of package upstream.
var services = []struct {
	name  string
	lines string // of the upstream; ENDPOINT stands where a URL goes
	reply upstreamtest.Reply
}{
	{"ses", `type = "ses"
region = "eu-central-1"
access_key_id_file = "secret"
secret_access_key_file = "secret"
endpoint`, upstreamtest.Reply{Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0000"}`}},
	{"mailgun", `type = "mailgun"
domain = "auth.example.com"
api_key_file = "secret"
endpoint`, upstreamtest.Reply{Body: `{"id":"<20260105.1@auth.example.com>","message":"Queued. Thank you."}`}},
	{"sendgrid", `type = "sendgrid"
api_key_file = "secret"
endpoint`, upstreamtest.Reply{Status: http.StatusAccepted, Header: map[string]string{"X-Message-Id": "14c5d75ce93"}}},
	{"postmark", `type = "postmark"
server_token_file = "secret"
endpoint`, upstreamtest.Reply{Body: `{"To":"user@example.org","SubmittedAt":"2026-01-05T10:00:00Z","MessageID":"0a-uuid","ErrorCode":0,"Message":"OK"}`}},
	{"aliyun", `type = "aliyun"
account_name = "noreply@auth.example.com"
access_key_id_file = "secret"
access_key_secret_file = "secret"
endpoint`, upstreamtest.Reply{Body: `{"EnvId":"600000012345","RequestId":"0A-1"}`}},
	{"webhook", `type = "webhook"
secret_file = "secret"
url`, upstreamtest.Reply{}},
}

// overHTTP runs f for every type of service, over each version of HTTP. arrive is called when a mail has arrived whole.
func overHTTP(b *testing.B, f func(b *testing.B, lines, url string, service *upstreamtest.Service, arrive *atomic.Pointer[func()])) {
	for _, tt := range services {
		for _, o := range []upstreamtest.ServiceOptions{{}, {HTTP1: true}} {
			name := tt.name + "/http2"
			if o.HTTP1 {
				name = tt.name + "/http1"
			}
			b.Run(name, func(b *testing.B) {
				arrive := new(atomic.Pointer[func()])
				service := upstreamtest.NewService(b, o, func(r upstreamtest.Request) upstreamtest.Reply {
					if r.Method == http.MethodGet {
						return upstreamtest.Reply{Body: "{}"}
					}
					if told := arrive.Load(); told != nil {
						(*told)()
					}
					return tt.reply
				})
				f(b, tt.lines, service.URL(), service, arrive)
			})
		}
	}
}

// serviceLines configures an upstream that leads to a service.
func serviceLines(lines, url string, s *upstreamtest.Service) string {
	return fmt.Sprintf("%s = %q\ntls_ca_file = %q\n", lines, url, s.CAFile())
}

func BenchmarkServiceThroughput(b *testing.B) {
	overHTTP(b, func(b *testing.B, lines, url string, service *upstreamtest.Service, arrive *atomic.Pointer[func()]) {
		var arrived atomic.Int64
		count := func() { arrived.Add(1) }
		arrive.Store(&count)
		p := start(b, "keep", serviceLines(lines, url, service))
		began, cpu := time.Now(), p.cpu()
		n := p.pump(authDomain, 20, "")
		until(b, "mails arrived", n, func() int { return int(arrived.Load()) })
		p.report(n, time.Since(began), p.cpu()-cpu)
		b.ReportMetric(float64(len(service.Peers())), "connections")
		b.ReportMetric(float64(int(arrived.Load())-n), "dups")
	})
}

// BenchmarkServiceLatency measures mails one by one over a round trip of 40 ms. A mail is cold where the service closed
// all connections 6 s before.
func BenchmarkServiceLatency(b *testing.B) {
	overHTTP(b, func(b *testing.B, lines, url string, service *upstreamtest.Service, arrive *atomic.Pointer[func()]) {
		arrived := make(chan time.Time, 100)
		tell := func() { arrived <- time.Now() }
		arrive.Store(&tell)
		near := service.URL()[len("https://"):]
		p := start(b, "keep", serviceLines(lines, "https://"+slowly(b, near, roundTrip/2), service))
		p.latencies(2, 6*time.Second, service.DropConnections, arrived)
	})
}
