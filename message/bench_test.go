package message

import (
	"strings"
	"testing"
)

func BenchmarkFields(b *testing.B) {
	header := []byte("Received: from logto ([192.0.2.7]) by gw.example.com\r\n\twith ESMTP id 06b7v2c80g000 for <kim@example.net>;\r\n\tMon, 05 Jan 2026 10:00:00 +0000\r\n" +
		"Message-ID: <a@auth.example.com>\r\nDate: Mon, 05 Jan 2026 10:00:00 +0000\r\nFrom: Example <no-reply@auth.example.com>\r\nTo: kim@example.net\r\n" +
		"Subject: Your code\r\n" + strings.Repeat("X-Field: value of a field\r\n", 10))
	b.SetBytes(int64(len(header)))
	b.ReportAllocs()
	for b.Loop() {
		found := false
		for f := range Fields(header) {
			found = found || f.Is("Subject")
		}
		if !found {
			b.Fatal("no Subject")
		}
	}
}

func BenchmarkParseAddress(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAddress("Kim.Lee+x@Example.NET"); err != nil {
			b.Fatal(err)
		}
	}
}
