package upstream

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// What a capture upstream keeps, at most; the last mail is kept whatever its size.
const (
	maxCaptured     = 100
	maxCapturedSize = 32 << 20 // octets
)

// Captured is one mail that a capture upstream took.
type Captured struct {
	At       time.Time
	Envelope message.Envelope
	Wire     []byte // as it would have gone to a host; not to be changed
}

// Capture is an Upstream that reaches nobody and shows what it was given: for demos, and for trying a config.
type Capture interface {
	Upstream
	// Captured returns the last mails taken, oldest first.
	Captured() []Captured
	// Changed returns a channel that is closed when the next mail is taken.
	Changed() <-chan struct{}
}

type capture struct {
	cfg   *config.Upstream
	slots *slots

	mu      sync.Mutex
	mails   []Captured
	size    int
	changed chan struct{}
}

func newCapture(c *config.Upstream) *capture {
	return &capture{cfg: c, slots: newSlots(c.Connections, c.Rate, nil), changed: make(chan struct{})}
}

// Traits implements Upstream.
func (c *capture) Traits() Traits { return Traits{DKIM: c.cfg.DKIM, Captures: true} }

// Reserve implements Upstream.
func (c *capture) Reserve(ctx context.Context, lane string) (Slot, error) {
	if err := c.slots.take(ctx, lane); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, fmt.Errorf("upstream %s: %w", c.cfg.Name, err)
	}
	return &captureSlot{c, lane}, nil
}

// Close implements Upstream. What was captured stays to be seen.
func (c *capture) Close(ctx context.Context) error {
	c.slots.close()
	if err := c.slots.drain(ctx); err != nil {
		return fmt.Errorf("close upstream %s: mail was still being handed over: %w", c.cfg.Name, err)
	}
	return nil
}

// Captured implements Capture.
func (c *capture) Captured() []Captured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.mails)
}

// Changed implements Capture.
func (c *capture) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *capture) keep(m Captured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mails = append(c.mails, m)
	c.size += len(m.Wire)
	for len(c.mails) > 1 && (len(c.mails) > maxCaptured || c.size > maxCapturedSize) {
		c.size -= len(c.mails[0].Wire)
		c.mails = slices.Delete(c.mails, 0, 1)
	}
	close(c.changed)
	c.changed = make(chan struct{})
}

type captureSlot struct {
	capture *capture
	lane    string
}

// Caps implements Slot.
func (s *captureSlot) Caps() Caps { return Caps{EightBitMIME: true, SMTPUTF8: true} }

// Local implements Slot.
func (s *captureSlot) Local() string { return "" }

// Release implements Slot.
func (s *captureSlot) Release() { s.capture.slots.give(s.lane) }

// Send implements Slot.
func (s *captureSlot) Send(ctx context.Context, e message.Envelope, wire net.Buffers, commit func() error) []message.Verdict {
	e.To = slices.Clone(e.To)
	mail := Captured{Envelope: e, Wire: bytes.Join(wire, nil)}
	if err := ctx.Err(); err != nil {
		return upstreamDown(message.Temporary, err.Error()).Verdicts(len(e.To))
	}
	if commit() != nil {
		return nil
	}
	mail.At = time.Now()
	s.capture.keep(mail)
	return message.Verdict{Class: message.Accepted, Code: 250, Enhanced: "2.0.0", Text: "captured, delivered to nobody"}.Verdicts(len(e.To))
}
