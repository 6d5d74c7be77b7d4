package ingress

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// waiting reports whether something waits in the kernel to be taken from c: a connection from a listener, octets or their
// end from a connection. Of what has no socket nothing is known.
func waiting(c any) (yes bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	_ = rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		yes = err == nil && n > 0
	})
	return yes
}

// refuseNew keeps ln from taking part in new connections, so that those which are complete can be accepted before it is
// closed: closing resets what nobody has accepted, with the requests that were sent on it. A filter drops the packets
// that begin a connection (SYN); who sent them tries again a second later, and finds whoever listens then. It reports
// whether the kernel can do that; else the moment between the last look and the closing is left.
func refuseNew(ln net.Listener) (done bool) {
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return false
	}
	rc, err := tcp.SyscallConn()
	if err != nil {
		return false
	}
	// A socket filter of TCP sees packets from their TCP header on; octet 13 holds the flags.
	const flags, syn = 13, 0x02
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: syn, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	_ = rc.Control(func(fd uintptr) {
		done = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}) == nil
	})
	return done
}
