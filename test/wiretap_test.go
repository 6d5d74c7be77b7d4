package test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"gatepost/message"
)

// wiretap stands between a client and gatepost and keeps what the client sends. gatepost sees it come from local.
type wiretap struct {
	t     *testing.T
	ln    net.Listener
	to    string
	local string
	wg    sync.WaitGroup
	mu    sync.Mutex
	heard [][]byte // one for each connection
}

func newWiretap(t *testing.T, to, local string) *wiretap {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wiretap{t: t, ln: ln, to: to, local: local}
	w.wg.Go(w.serve)
	t.Cleanup(func() { ln.Close(); w.wg.Wait() })
	return w
}

func (w *wiretap) serve() {
	for {
		client, err := w.ln.Accept()
		if err != nil {
			return // closed by the test's end
		}
		w.wg.Go(func() { w.relay(client) })
	}
}

func (w *wiretap) relay(client net.Conn) {
	defer client.Close()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(w.local)}}
	server, err := d.Dial("tcp", w.to)
	if err != nil {
		w.t.Errorf("wiretap: %v", err)
		return
	}
	defer server.Close()
	var heard bytes.Buffer
	w.wg.Go(func() {
		io.Copy(client, server)
		client.Close()
	})
	io.Copy(server, io.TeeReader(client, &heard))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, heard.Bytes())
}

// mail returns the last mail that a client sent, as it was before dots were doubled for the wire.
func (w *wiretap) mail() message.Raw {
	w.t.Helper()
	w.ln.Close()
	w.wg.Wait()
	if len(w.heard) == 0 {
		w.t.Fatal("nobody connected to the wiretap")
	}
	wire := w.heard[len(w.heard)-1]
	_, raw, begun := bytes.Cut(wire, []byte("\r\nDATA\r\n"))
	if !begun {
		_, raw, begun = bytes.Cut(wire, []byte("\r\ndata\r\n")) // smtplib
	}
	raw, _, ended := bytes.Cut(raw, []byte("\r\n.\r\n"))
	if !begun || !ended {
		w.t.Fatalf("no whole mail in what the client sent:\n%s", wire)
	}
	return append(bytes.ReplaceAll(raw, []byte("\r\n.."), []byte("\r\n.")), "\r\n"...)
}
