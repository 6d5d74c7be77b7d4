package relay

import (
	"fmt"
	"strings"
	"testing"

	"gatepost/upstream"
)

// BenchmarkRenderFor7Bit encodes mail of 8 bits for a host that takes 7.
func BenchmarkRenderFor7Bit(b *testing.B) {
	for _, kb := range []int{2, 20, 200} {
		raw := crlf("From: a@auth.example.com", "Subject: x", "MIME-Version: 1.0", "Content-Type: text/html; charset=utf-8", "Content-Transfer-Encoding: 8bit", "",
			strings.Repeat("<p>\u78ba\u8a8d\u30b3\u30fc\u30c9 and an ordinary line of text, 123456</p>\r\n", kb<<10/67))
		b.Run(fmt.Sprintf("%dKB", kb), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := render(raw, oldHost, upstream.Traits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
