package letter

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

// BenchmarkRead takes apart what a service without MIME gets: a code in two forms, and the same with a file.
func BenchmarkRead(b *testing.B) {
	alternative := []string{"From: Example <no-reply@auth.example.com>", "To: user@example.net", "Subject: =?utf-8?q?Code?=",
		"Message-ID: <a@auth.example.com>", "MIME-Version: 1.0"}
	for _, kb := range []int{2, 20, 200} {
		lines := append(alternative[:len(alternative):len(alternative)], "Content-Type: multipart/mixed; boundary=m", "",
			"--m", "Content-Type: multipart/alternative; boundary=a", "",
			"--a", "Content-Type: text/plain; charset=utf-8", "", code, "--a",
			"Content-Type: text/html; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "",
			strings.Repeat("=E7=A2=BA<p>text of an ordinary line</p>=\r\n", kb<<10/100), "--a--")
		file := base64.StdEncoding.EncodeToString(make([]byte, kb<<10*3/8))
		lines = append(lines, "--m", "Content-Type: application/pdf; name=a.pdf", "Content-Transfer-Encoding: base64", "")
		for ; len(file) > 76; file = file[76:] {
			lines = append(lines, file[:76])
		}
		raw := crlf(append(lines, file, "--m--")...)
		b.Run(fmt.Sprintf("%dKB", kb), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			for b.Loop() {
				mustRead(b, raw)
			}
		})
	}
}
