package ingress

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"gatepost/reply"
)

// The PROXY protocol (haproxy.org, proxy-protocol.txt) tells whom a balancer speaks for. Only those in proxy_from may
// use it, and they must.
const (
	maxProxyV1 = 107 // octets of a header in text, with its CRLF
	maxProxyV2 = 536 // octets of a binary header: what fits the smallest packet
)

// proxySignature begins a binary header. A header in text is longer than it, too.
var proxySignature = []byte("\r\n\r\n\x00\r\nQUIT\n")

var errProxy = errors.New("malformed PROXY header")

// introduce reads the PROXY header and finds out who is behind it.
func (c *conn) introduce() {
	if err := c.armRead(time.Now().Add(c.smtp.Timeouts.Handshake)); err != nil {
		c.silence(err)
		return
	}
	remote, err := readProxy(c.raw)
	if err != nil {
		c.silence(err)
		c.logTurned("no PROXY header from a balancer in proxy_from", &reply.Error{Code: 421, Text: "none", Err: err})
		return
	}
	if remote.IsValid() {
		c.remote, c.peer.Addr = remote, remote.Addr()
	}
	if err := c.settle(); err != nil {
		c.turnAwayLate(reply.Of(err))
	}
}

// settle does what admit does for those who come directly.
func (c *conn) settle() error {
	client, err := c.identify()
	if err != nil {
		return err
	}
	if err := c.smtp.table.move(c, sourceOf(c.peer), c.smtp.reserved(client)); err != nil {
		return err
	}
	c.known = client
	return c.become(client)
}

// turnAwayLate is turnAway for a connection that has a session already.
func (c *conn) turnAwayLate(e *reply.Error) {
	if c.set.TLS == "implicit" { // no words before the handshake
		c.silence(e)
		c.logTurned("connection refused", e)
		return
	}
	c.instead(e)
}

// readProxy reads one header of version 1 or 2 from r and no octet more, since TLS may follow. It returns the address
// of the client, or none where the balancer speaks for itself (LOCAL) or does not know (UNKNOWN, UNSPEC).
func readProxy(r io.Reader) (netip.AddrPort, error) {
	var head [maxProxyV2]byte
	n := len(proxySignature)
	if _, err := io.ReadFull(r, head[:n]); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	if bytes.Equal(head[:n], proxySignature) {
		return readProxyV2(r, head[:])
	}
	if !bytes.HasPrefix(head[:], []byte("PROXY ")) {
		return netip.AddrPort{}, errProxy
	}
	for ; n < maxProxyV1; n++ {
		if _, err := io.ReadFull(r, head[n:n+1]); err != nil {
			return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
		}
		if head[n] == '\n' {
			return parseProxyV1(string(head[:n+1]))
		}
	}
	return netip.AddrPort{}, errProxy
}

// parseProxyV1 reads "PROXY TCP4 source destination port port" with its CRLF.
func parseProxyV1(line string) (netip.AddrPort, error) {
	line, ok := strings.CutSuffix(line, "\r\n")
	words := strings.Split(line, " ")
	switch {
	case ok && words[1] == "UNKNOWN":
		return netip.AddrPort{}, nil
	case !ok || len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6":
		return netip.AddrPort{}, errProxy
	}
	from, err := parseEnd(words[2], words[4])
	to, err2 := parseEnd(words[3], words[5])
	if err := errors.Join(err, err2); err != nil {
		return netip.AddrPort{}, err
	}
	if is4 := words[1] == "TCP4"; from.Addr().Is4() != is4 || to.Addr().Is4() != is4 {
		return netip.AddrPort{}, errProxy
	}
	return unmapped(from), nil
}

func parseEnd(address, port string) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(address)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || a.Zone() != "" {
		return netip.AddrPort{}, errProxy
	}
	return netip.AddrPortFrom(a, uint16(n)), nil
}

// readProxyV2 reads what follows the signature: version and command, family, length, and that many octets, of which
// those behind the addresses are extensions.
func readProxyV2(r io.Reader, head []byte) (netip.AddrPort, error) {
	fixed := head[len(proxySignature):][:4]
	if _, err := io.ReadFull(r, fixed); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	command, family, length := fixed[0], fixed[1], int(binary.BigEndian.Uint16(fixed[2:]))
	rest := head[len(proxySignature)+len(fixed):]
	if length > len(rest) {
		return netip.AddrPort{}, errProxy
	}
	rest = rest[:length]
	if _, err := io.ReadFull(r, rest); err != nil {
		return netip.AddrPort{}, fmt.Errorf("read the PROXY header: %w", err)
	}
	const v2Local, v2Proxy, unspecified, tcp4, tcp6 = 0x20, 0x21, 0x00, 0x11, 0x21
	switch {
	case command == v2Local, command == v2Proxy && family == unspecified:
		return netip.AddrPort{}, nil
	case command == v2Proxy && family == tcp4 && length >= 12:
		return sourceAt(rest, 4), nil
	case command == v2Proxy && family == tcp6 && length >= 36:
		return sourceAt(rest, 16), nil
	}
	return netip.AddrPort{}, errProxy
}

// sourceAt reads the source from two addresses of size octets and two ports.
func sourceAt(b []byte, size int) netip.AddrPort {
	a, _ := netip.AddrFromSlice(b[:size])
	return unmapped(netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[2*size:])))
}
