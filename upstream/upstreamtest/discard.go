package upstreamtest

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strconv"
	"testing"
)

// Discard starts an SMTP host that takes every mail, by DATA or BDAT, and keeps none. It makes next to no garbage, so that
// what is measured beside it is not its own. It returns where it listens.
func Discard(tb testing.TB) (address string) {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("start test host: %v", err)
	}
	tb.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go discard(c)
		}
	}()
	return l.Addr().String()
}

// discard serves c until that ends.
func discard(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	w.WriteString("220 test host\r\n")
	for inMail := false; ; {
		if r.Buffered() == 0 {
			w.Flush()
		}
		line, err := r.ReadSlice('\n')
		switch {
		case err != nil && err != bufio.ErrBufferFull:
			return
		case inMail && string(line) == ".\r\n":
			inMail = false
			w.WriteString("250 2.0.0 taken\r\n")
		case inMail:
		case bytes.HasPrefix(line, []byte("EHLO")):
			w.WriteString("250-test host\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n")
		case bytes.HasPrefix(line, []byte("DATA")):
			inMail = true
			w.WriteString("354 go ahead\r\n")
		case bytes.HasPrefix(line, []byte("BDAT ")):
			size, _, _ := bytes.Cut(bytes.TrimSpace(line[5:]), []byte(" "))
			n, err := strconv.ParseInt(string(size), 10, 64)
			if err != nil {
				return
			}
			io.CopyN(io.Discard, r, n)
			w.WriteString("250 2.0.0 taken\r\n")
		default:
			w.WriteString("250 2.0.0 ok\r\n")
		}
	}
}
