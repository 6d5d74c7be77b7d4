package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"gatepost/message"
)

// benchDoor is a door whose relay takes everything and remembers nothing.
func benchDoor(b *testing.B) *door {
	return openTCP(b, func(o *SMTPOptions, f *fakeRelay) {
		o.Log = slog.New(slog.DiscardHandler)
		f.accept = func(context.Context, *message.Submission) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.got = f.got[:0]
			return nil
		}
	})
}

func benchMail(size int) []byte {
	return []byte("From: no-reply@auth.example.com\r\n\r\n" + strings.Repeat(strings.Repeat("x", 76)+"\r\n", size/78) + ".\r\n")
}

// mail makes no copy of data, which would count.
func (c *client) mail(data []byte) {
	c.do("MAIL FROM:<no-reply@auth.example.com>", "250")
	c.do("RCPT TO:<user@example.net>", "250")
	c.do("DATA", "354")
	if _, err := c.Write(data); err != nil {
		c.t.Fatal(err)
	}
	c.want("250")
}

// BenchmarkMail is a mail on a session that goes on, its client included.
func BenchmarkMail(b *testing.B) {
	for _, size := range []int{2 << 10, 20 << 10, 200 << 10} {
		b.Run(fmt.Sprintf("%dKB", size>>10), func(b *testing.B) {
			c := benchDoor(b).dial(b)
			c.want("220")
			c.do("EHLO client.example.com", "250")
			data := benchMail(size)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				c.mail(data)
			}
		})
	}
}

// BenchmarkConnectionPerMail is a mail of 2 KB with a session of its own, as auth servers send them, the client included.
func BenchmarkConnectionPerMail(b *testing.B) {
	d, data := benchDoor(b), benchMail(2<<10)
	b.ReportAllocs()
	for b.Loop() {
		c := d.dial(b)
		c.want("220")
		c.do("EHLO client.example.com", "250")
		c.mail(data)
		c.do("QUIT", "221")
		c.Close()
	}
}
