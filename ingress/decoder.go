package ingress

import (
	"bytes"

	"gatepost/reply"
)

// decoder finds the end of a message and takes the dots off that SMTP puts in front of lines (RFC 5321 §4.5.2). Only
// CRLF ends a line, and only a dot between two of them ends the message: any other reading is what lets one server
// find two messages where another saw one. A bare CR or LF anywhere is a fault, after which it goes on to look for the
// end in the strict sense.
type decoder struct {
	state decoderState
	line  int          // octets of the current line
	blank bool         // an empty line has come: the header is complete
	fault *reply.Error // what is wrong with the message so far
}

type decoderState int

const (
	lineStart decoderState = iota // also before the first octet
	afterDot                      // after a dot at the start of a line, which is not part of the message
	afterDotCR
	inLine
	afterCR
)

// decode reads p until its end or that of the message. It writes the n octets that belong to the message to the front
// of p and returns how many it has used. After a fault n means nothing.
func (d *decoder) decode(p []byte) (n, used int, end bool) {
	for used < len(p) {
		if d.state == inLine {
			run := plain(p[used:])
			copy(p[n:], p[used:used+run])
			n, used = n+run, used+run
			d.count(run)
			if used == len(p) {
				break
			}
		}
		b, was := p[used], d.state
		used++
		d.step(b)
		switch {
		case was == afterDotCR && b == '\n':
			return n, used, true
		case d.state == afterDot, d.state == afterDotCR:
			continue
		}
		p[n] = b
		n++
	}
	return n, used, false
}

// plain returns for how many octets p goes on without one that matters inside a line. It looks ahead a little only,
// else a message of bare LFs would be searched for a CR at each of them.
func plain(p []byte) int {
	p = p[:min(len(p), 256)]
	for _, b := range []byte("\r\n\x00") {
		if i := bytes.IndexByte(p, b); i >= 0 {
			p = p[:i]
		}
	}
	return len(p)
}

// count notes that the line has n more octets.
func (d *decoder) count(n int) {
	if d.line += n; d.line > maxLine+2 {
		d.blame(errLongLine)
	}
}

// step takes the next octet.
func (d *decoder) step(b byte) {
	d.count(1)
	switch b {
	case '\r':
		d.carriageReturn()
	case '\n':
		d.lineFeed()
	default:
		d.octet(b)
	}
}

func (d *decoder) carriageReturn() {
	switch d.state {
	case afterCR, afterDotCR:
		d.blame(errLineEnds)
		d.state = afterCR
	case afterDot:
		d.state = afterDotCR
	default:
		d.state = afterCR
	}
}

func (d *decoder) lineFeed() {
	if d.state != afterCR && d.state != afterDotCR {
		d.blame(errLineEnds)
		d.state = inLine
		return
	}
	d.state = lineStart
	d.blank = d.blank || d.line == len("\r\n")
	d.line = 0
}

func (d *decoder) octet(b byte) {
	switch {
	case d.state == afterCR || d.state == afterDotCR:
		d.blame(errLineEnds)
	case b == 0:
		d.blame(errNUL)
	}
	if d.state == lineStart && b == '.' {
		d.state = afterDot
		return
	}
	d.state = inLine
}

// blame notes a fault. Those of line ends outweigh others, since after them nothing may be taken for a command.
func (d *decoder) blame(fault *reply.Error) {
	if d.fault == nil || fault == errLineEnds {
		d.fault = fault
	}
}
