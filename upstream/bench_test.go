package upstream_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// BenchmarkSend is one hand-over over a kept connection, from Reserve to Release, in one flight and in two.
func BenchmarkSend(b *testing.B) {
	for _, chunking := range []string{"never", "always"} {
		for _, size := range []int{2 << 10, 20 << 10, 200 << 10} {
			b.Run(fmt.Sprintf("chunking=%s/%dKB", chunking, size>>10), func(b *testing.B) {
				c := &config.Upstream{Name: "sink", Type: "smtp", Address: upstreamtest.Discard(b), TLS: "none", Connections: 1, Chunking: chunking}
				u, err := upstream.New(c, "gw.example.com", egress(), nil)
				if err != nil {
					b.Fatal(err)
				}
				defer u.Close(b.Context())
				body := []byte(strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78))
				e := envelope()
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					slot, err := u.Reserve(b.Context(), "auth")
					if err != nil {
						b.Fatal(err)
					}
					slot.Send(b.Context(), e, net.Buffers{body}, commit)
					slot.Release()
				}
			})
		}
	}
}

// BenchmarkConnect is what the first mail waits for, and a connection costs beside its mail.
func BenchmarkConnect(b *testing.B) {
	c := &config.Upstream{Name: "sink", Type: "smtp", Address: upstreamtest.Discard(b), TLS: "none", Connections: 1}
	b.ReportAllocs()
	for b.Loop() {
		u, err := upstream.New(c, "gw.example.com", egress(), nil)
		if err != nil {
			b.Fatal(err)
		}
		slot, err := u.Reserve(b.Context(), "auth")
		if err != nil {
			b.Fatal(err)
		}
		slot.Release()
		u.Close(b.Context())
	}
}
