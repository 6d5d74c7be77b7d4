package ingress

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

const (
	chunkSize   = 32 << 10
	maxLine     = 1 << 20   // octets of a line of a message; what is over 998 is wrapped where the next hop needs it
	maxHeader   = 256 << 10 // octets of a header block
	headerRoom  = 1 << 10   // octets kept free in front of a message: what its header is likely to grow by
	maxReceived = 50        // Received fields: more is a loop (RFC 5321 §6.3)
	drainSlack  = 1 << 20   // octets over twice the size limit that a refused message may go on for

	// doubtWait is how long a client may be silent after a bare CR or LF: perhaps it believes to have ended its message.
	doubtWait = 2 * time.Second
)

// errLeft says that the connection ended before the message did. Nobody is there to be told.
var errLeft = errors.New("the client left before the end of its data")

// The ways in which a message can be wrong that show while it comes.
var (
	errLineEnds   = reply.New(550, "5.6.0", "The message has a bare CR or LF in it, lines must end in CRLF (RFC 5321 section 2.3.8)")
	errNUL        = reply.New(550, "5.6.0", "The message has a NUL in it")
	errLongLine   = reply.New(554, "5.6.0", "The message has a line of more than %d octets", maxLine)
	errLongHeader = reply.New(552, "5.3.4", "The header of the message is longer than %d octets", maxHeader)
	errTooBig     = reply.New(552, "5.3.4", "The message is too big")
	errNoMemory   = reply.New(452, "4.3.1", "Too much mail at once, please try again later")
)

var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// intake is a message on its way in. It keeps what may still become a mail; once the message is refused it only looks
// for its end.
type intake struct {
	limit    int64                     // octets of a message
	limitOf  func(header []byte) int64 // what the header makes of limit
	patience int64                     // octets of a refused message that are read to find its end
	budget   *Budget
	reserve  bool

	decoder decoder
	kept    []*[chunkSize]byte
	asked   bool  // limitOf was
	size    int64 // octets kept
	read    int64 // octets received
	held    int64 // octets taken from the budget
	refusal *reply.Error
}

// space returns where to receive the next octets.
func (in *intake) space() []byte {
	if in.refusal != nil { // kept[0] is scratch
		return in.kept[0][:]
	}
	used := int(in.size % chunkSize)
	if used == 0 && in.size == int64(len(in.kept))*chunkSize {
		in.kept = append(in.kept, chunks.Get().(*[chunkSize]byte))
		in.take(chunkSize)
		if in.refusal != nil {
			return in.kept[0][:]
		}
	}
	return in.kept[len(in.kept)-1][used:]
}

// take counts n octets against the budget.
func (in *intake) take(n int64) {
	if !in.budget.Acquire(n, in.reserve) {
		in.refuse(errNoMemory)
		return
	}
	in.held += n
}

// add takes octets that were received into space, and returns what of them lies behind the end of the message.
func (in *intake) add(p []byte) (rest []byte, end bool) {
	in.read += int64(len(p))
	n, used, end := in.decoder.decode(p)
	switch {
	case in.decoder.fault != nil:
		in.refuse(in.decoder.fault)
	case in.refusal != nil:
	case in.size+int64(n) > in.limit:
		in.refuse(errTooBig)
	default:
		in.size += int64(n)
		in.readHeader(end)
	}
	return p[used:], end
}

// readHeader asks limitOf once the header is there, and gives up where it is too long. Without a blank line it ends with
// the message.
func (in *intake) readHeader(end bool) {
	if in.asked || !in.decoder.blank && !end && in.size <= maxHeader {
		return
	}
	in.asked = true
	header := in.header()
	if len(header) > maxHeader {
		in.refuse(errLongHeader)
		return
	}
	if in.limit = min(in.limit, in.limitOf(header)); in.size > in.limit {
		in.refuse(errTooBig)
	}
}

// header returns the header of what was kept.
func (in *intake) header() []byte {
	if len(in.kept) == 1 {
		return message.Raw(in.kept[0][:in.size]).Header()
	}
	return message.Raw(in.joined(0)).Header()
}

// refuse gives up what was kept, but for one chunk to read into. What is wrong with the lines outweighs what was said
// before, as nothing may be taken for a command after it.
func (in *intake) refuse(why *reply.Error) {
	if in.refusal == nil || why == errLineEnds {
		in.refusal = why
	}
	for _, c := range in.kept[1:] {
		chunks.Put(c)
	}
	in.kept = in.kept[:1]
	in.budget.Release(in.held)
	in.held = 0
}

// joined returns what was kept in a buffer of its own size, behind room free octets.
func (in *intake) joined(room int64) []byte {
	buf := make([]byte, room, room+in.size)
	for _, c := range in.kept {
		buf = append(buf, c[:min(chunkSize, room+in.size-int64(len(buf)))]...)
	}
	return buf
}

// raw returns the message in one piece, at the end of room, and keeps only that in the budget. While it is made both are
// in memory.
func (in *intake) raw() (raw message.Raw, room []byte, err error) {
	if in.take(in.size); in.refusal != nil {
		return nil, nil, in.refusal
	}
	room = in.joined(headerRoom)
	in.freeChunks()
	in.budget.Release(in.held - in.size)
	in.held = in.size
	return room[headerRoom:], room, nil
}

func (in *intake) freeChunks() {
	for _, c := range in.kept {
		chunks.Put(c)
	}
	in.kept = nil
}

// close gives back all that is held.
func (in *intake) close() {
	in.freeChunks()
	in.budget.Release(in.held)
	in.held = 0
}

// readData reads a message up to the line with the single dot. Its errors are a *reply.Error, or errLeft. Unless the
// end was found beyond doubt, nothing more is read from the client.
func (c *conn) readData(in *intake) error {
	c.line = endOfData
	c.over = true
	start := time.Now()
	for end := false; !end; {
		space := in.space()
		n := copy(space, c.buf[c.r:c.w])
		c.r += n
		if n == 0 {
			var err error
			if n, err = c.receive(space, c.dataDeadline(start, in)); n == 0 && err != nil {
				return c.broken(in, err)
			}
		}
		var rest []byte
		if rest, end = in.add(space[:n]); len(rest) > 0 {
			c.unread(rest)
		}
		if in.read > largeFrom && !in.reserve {
			in.budget.pause(n)
		}
		switch {
		case end:
		case in.read > in.patience:
			c.linger = true
			return in.refusal
		case c.r == c.w:
			quickAck(c.raw)
		}
	}
	if in.decoder.fault == errLineEnds || in.decoder.fault == errLongLine {
		c.linger = true
		return in.refusal
	}
	c.over = false
	if in.refusal != nil {
		return in.refusal
	}
	return nil
}

// endOfData is what go-smtp, which is not shown the message, gets to see of it.
var endOfData = []byte(".\r\n")

// dataDeadline returns until when the next octets must come.
func (c *conn) dataDeadline(start time.Time, in *intake) time.Time {
	if in.decoder.fault == errLineEnds {
		return time.Now().Add(doubtWait)
	}
	t := &c.smtp.Timeouts
	earned := time.Duration(float64(in.read) / float64(t.MinRate) * float64(time.Second))
	return earlier(start.Add(t.Grace+earned), time.Now().Add(t.Idle))
}

// broken ends the session inside a message.
func (c *conn) broken(in *intake, err error) error {
	switch timeout := errors.Is(err, os.ErrDeadlineExceeded); {
	case timeout && in.refusal != nil:
		c.linger = true
		return in.refusal
	case timeout:
		return c.timedOut("got the message too slowly")
	}
	return fmt.Errorf("%w: %w", errLeft, err)
}

// unread puts octets back in front of the buffer: commands that the client sent without waiting.
func (c *conn) unread(p []byte) {
	c.buf = append(bytes.Clone(p), c.buf[c.r:c.w]...)
	c.r, c.w = 0, len(c.buf)
}

// checkLoop refuses a message that has gone round in circles.
func checkLoop(raw message.Raw) error {
	received := 0
	for f := range message.Fields(raw.Header()) {
		if f.Is("Received") {
			received++
		}
	}
	if received > maxReceived {
		return reply.New(554, "5.4.6", "The message has more than %d Received fields: it is going round in a loop", maxReceived)
	}
	return nil
}
