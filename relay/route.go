package relay

import (
	"slices"

	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

// arm returns the hop that mail with this id begins at. It follows from the id alone, so that every try, also after a
// restart, begins at the same.
func (p *plan) arm(id message.ID) *hop {
	n := int(mix(uint64(id)) % 100)
	for _, h := range p.route {
		if n -= h.share; n < 0 {
			return h
		}
	}
	return p.route[0]
}

// mix spreads ids, which count up, evenly over all numbers (the finalizer of SplitMix64).
func mix(n uint64) uint64 {
	n += 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// way returns the hops that w, a recipient of a message that begins at arm, goes to in this try, in order. Those that
// refused the message are left out. Marketing mail, which takes one step with each try, goes on behind the hop of the last.
func (p *plan) way(arm *hop, w *message.Recipient) []*hop {
	way := append(make([]*hop, 0, len(p.route)), arm)
	for _, h := range p.route {
		if h != arm {
			way = append(way, h)
		}
	}
	if p.stream.Kind != message.Auth && w.Attempts > 0 {
		last := slices.IndexFunc(way, func(h *hop) bool { return h.config.Name == w.LastUpstream })
		way = slices.Concat(way[last+1:], way[:last+1])
	}
	return slices.DeleteFunc(way, func(h *hop) bool { return slices.Contains(w.Refused, h.config.Name) })
}

// carries returns why m cannot be handed over through h, whatever its upstream would say; nil where it can.
func (h *hop) carries(m *message.Message) *reply.Error {
	if most := h.upstream.Traits().MaxSize; most > 0 && int64(m.Size) > most {
		return tooBig(m.Size, most)
	}
	c, ok := h.upstream.(upstream.Carrier)
	if !ok {
		return nil
	}
	if e := c.Carries(m); e != nil && !reply.Of(e).Temporary() {
		return reply.Of(e)
	}
	return nil
}

func tooBig(size int, most int64) *reply.Error {
	return reply.New(552, "5.3.4", "the message has %d octets, more than the mail service takes (%d)", size, most)
}

// carriers returns why no upstream of the route can carry m, as the one that it begins at has it; nil where one can.
func (p *plan) carriers(m *message.Message) error {
	arm := p.arm(m.ID)
	why := arm.carries(m)
	if why == nil || slices.ContainsFunc(p.route, func(h *hop) bool { return h != arm && h.carries(m) == nil }) {
		return nil
	}
	return why
}

// cannotCarry is the verdict on a message that an upstream need not be asked about.
func cannotCarry(why *reply.Error) message.Verdict {
	return message.Verdict{Class: message.Permanent, Scope: message.ScopeMessage, Code: why.Code, Enhanced: why.Enhanced, Text: why.Text}
}
