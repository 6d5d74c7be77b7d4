package policy

import (
	"gatepost/config"
	"gatepost/message"
)

// Limit returns how many octets a message of client may have: as far as the client decides it, where header is nil, else
// as its stream does too. 0 stands for no limit but the listener's. A header that will be refused has no stream.
func (p *Policy) Limit(client string, header []byte) int64 {
	c := p.clients[client]
	if c == nil {
		return 0
	}
	if header == nil {
		return least(c.maxSize, c.largest())
	}
	if s := p.streamOf(c, header); s != nil {
		return least(c.maxSize, s.MaxSize)
	}
	return c.maxSize
}

// largest returns what the most generous stream of c allows; 0 where one has no limit.
func (c *client) largest() (size int64) {
	for _, s := range c.streams {
		if s.MaxSize == 0 {
			return 0
		}
		size = max(size, s.MaxSize)
	}
	return size
}

// least returns the smaller limit, where 0 is none.
func least(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// streamOf returns the stream that mail with this header would be of, nil for none. Check decides again, and on all of it.
func (p *Policy) streamOf(c *client, block []byte) *config.Stream {
	h := &header{}
	for f := range message.Fields(block) {
		if f.Is("From") {
			h.from = f
			break
		}
	}
	stream, _, err := p.stream(c, h)
	if err != nil {
		return nil
	}
	return stream
}
