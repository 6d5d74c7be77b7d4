package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"gatepost/reply"
)

// listener lets only those connections through that belong to a client, or may come to, and fit the limits. The others
// get one line and are closed, so that strangers and floods cost neither a goroutine nor a place.
type listener struct {
	net.Listener
	smtp *SMTP
}

// Accept implements net.Listener. What it returns is a *conn.
func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, err := l.smtp.admit(raw)
		if err == nil {
			return c, nil
		}
		c.turnAway(reply.Of(err))
	}
}

// admit makes a connection of raw, finds out whose it is and gives it a place. Behind a balancer that is found out
// later, from the PROXY header: until then it is in the reserve, as it may belong there.
func (s *SMTP) admit(raw net.Conn) (*conn, error) {
	c := newConn(s, raw)
	err := c.enter()
	if err != nil {
		s.table.remove(c)
	}
	if errors.Is(err, errPanic) {
		err = c.greeting(err)
	}
	return c, err
}

func (c *conn) enter() (err error) {
	defer recovered(&err)
	if c.proxied {
		return c.smtp.table.add(c, unknown, true)
	}
	client, err := c.identify()
	if err != nil {
		return err
	}
	if err := c.smtp.table.add(c, sourceOf(c.peer), c.smtp.reserved(client)); err != nil {
		return err
	}
	c.known = client
	return c.become(client)
}

func (s *SMTP) reserved(client string) bool { return client != "" && s.Reserve(client) }

// identify asks the Acceptor who the peer is. Where a certificate can still tell, a stranger is only nobody yet.
func (c *conn) identify() (client string, err error) {
	client, err = c.ask()
	if err == nil {
		return client, nil
	}
	e := c.greeting(err)
	if e.Code == 554 && c.set.TLSClientCAFile != "" && !c.secure {
		return "", nil
	}
	return "", e
}

func (c *conn) ask() (client string, err error) {
	defer recovered(&err)
	return c.smtp.Acceptor.Identify(c.smtp.Listen.Name, c.peer)
}

// greeting is what one who could not be identified is greeted with. A stranger is refused here (RFC 5321 §3.1: 554)
// and not at MAIL: its mail would be refused whatever it says, and clients show the greeting's text.
func (c *conn) greeting(err error) *reply.Error {
	if reply.Of(err).Temporary() {
		return &reply.Error{Code: 421, Enhanced: "4.3.0", Text: "Temporary failure, please try again later", Err: err}
	}
	why := "your address is in no client's networks"
	switch {
	case len(c.peer.Names) > 0:
		why = "neither your certificate nor your address is a client's"
	case c.peer.UID >= 0:
		why = fmt.Sprintf("your user id %d is no client's", c.peer.UID)
	}
	return &reply.Error{Code: 554, Enhanced: "5.7.1", Err: err,
		Text: fmt.Sprintf("listener %q: %s, so mail from it is not accepted", c.smtp.Listen.Name, why)}
}

// become makes the connection that of client, "" for nobody, and counts it as such; or returns a 421 where the client
// has too many.
func (c *conn) become(client string) error {
	if client == c.client {
		return nil
	}
	if err := c.smtp.Connections.acquire(client); err != nil {
		return err
	}
	c.smtp.Connections.release(c.client)
	c.client = client
	c.smtp.table.setReserved(c, c.smtp.reserved(client))
	return nil
}

// turnAway greets with a refusal. The few octets fit every send buffer, so the accept loop does not wait for the peer.
// One that expects TLS could not read them.
func (c *conn) turnAway(e *reply.Error) {
	if c.set.TLS != "implicit" {
		c.raw.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		fmt.Fprintf(c.raw, "%d %s %s %s\r\n", e.Code, e.Enhanced, c.set.hostname, e.Text)
	}
	c.raw.Close()
	c.logTurned("connection refused", e)
}

// logTurned logs that a connection came to nothing.
func (c *conn) logTurned(what string, e *reply.Error) {
	level := slog.LevelDebug
	c.smtp.turned.Do(func() { level = slog.LevelWarn })
	c.log(level, what, refusalAttrs(e)...)
}

func (c *conn) log(level slog.Level, what string, attrs ...slog.Attr) {
	c.smtp.Log.LogAttrs(context.Background(), level, what, append([]slog.Attr{
		slog.String("listener", c.smtp.Listen.Name), slog.String("client", c.client), slog.String("remote", c.from()),
	}, attrs...)...)
}

// from names the other end for the log.
func (c *conn) from() string {
	if c.peer.UID >= 0 {
		return fmt.Sprintf("unix uid %d", c.peer.UID)
	}
	return c.remote.String()
}

// addrPort returns a's IP address and port, without IPv4 mapping or zone; zero where it has none.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return unmapped(tcp.AddrPort())
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
