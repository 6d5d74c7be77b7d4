package ingress

import (
	"net"

	"golang.org/x/sys/unix"
)

// quickAck acknowledges at once what has been received. A client that sends its message and the final dot in two
// writes, as nodemailer does, otherwise waits 40 ms in between: its kernel holds the dot back until we acknowledge
// (Nagle), ours holds the acknowledgement back for lack of something to say. It is a hint, so errors don't matter.
func quickAck(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	if rc, err := tcp.SyscallConn(); err == nil {
		rc.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
}
