package relay

import (
	"context"
	"fmt"
	"net"

	"gatepost/dkim"
	"gatepost/message"
	"gatepost/upstream"
)

// render makes the bytes for a slot of h that offers caps: what the next hop needs, then the signature over exactly that.
func (t *try) render(ctx context.Context, h *hop, caps upstream.Caps) (net.Buffers, bool, error) {
	traits := h.upstream.Traits()
	raw, eightBit, err := render(t.msg.Raw, t.asked(caps), traits)
	if err != nil {
		return nil, false, err
	}
	if traits.DKIM != "sign" {
		return net.Buffers{raw}, eightBit, nil
	}
	fields, err := t.sign(ctx, h, raw)
	if err != nil {
		return nil, false, err
	}
	return net.Buffers{fields, raw}, eightBit, nil
}

// asked returns what of caps the message may use: SMTPUTF8 that is offered but not asked for is not there.
func (t *try) asked(caps upstream.Caps) upstream.Caps {
	caps.SMTPUTF8 = caps.SMTPUTF8 && t.msg.SMTPUTF8
	return caps
}

// sign returns the signature fields for raw as h wants them. A signature of the message as it is stored is made once, and
// again only where it would be made otherwise: with other keys, or over other fields.
func (t *try) sign(ctx context.Context, h *hop, raw message.Raw) ([]byte, error) {
	if t.plan.signer == nil {
		return nil, fmt.Errorf("sign for %s: stream %s has no DKIM key", h.config.Name, t.lane.name)
	}
	traits := h.upstream.Traits()
	unsigned, err := t.plan.signer.Prepare(raw, t.msg.HeaderFrom, traits.NeverSign, traits.OneSignature)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", h.config.Name, err)
	}
	stored, profile := same(raw, t.msg.Raw), unsigned.Profile()
	if s := t.signature.Load(); stored && s != nil && s.Profile == profile {
		return s.Fields, nil
	}
	hash := dkim.BodyHash(raw.Body())
	var fields []byte
	if late := t.r.processors.sign(ctx, t.lane.kind, func() { fields, err = unsigned.Sign(hash) }); late != nil {
		return nil, late
	}
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", h.config.Name, err)
	}
	if stored {
		t.signature.Store(&message.Signature{Profile: profile, Fields: fields})
	}
	return fields, nil
}

// same reports whether rendering left the stored message as it is.
func same(rendered, stored message.Raw) bool {
	return len(rendered) == len(stored) && len(stored) > 0 && &rendered[0] == &stored[0]
}

// signAhead signs while the message waits for its place at h, as the last connection there would have it: whoever gets a
// place then holds it, and its connection, for no longer than the hand-over takes. Whatever keeps it from that comes up
// again when there is a slot.
func (t *try) signAhead(ctx context.Context, h *hop) {
	caps, traits := h.pair.caps.Load(), h.upstream.Traits()
	if caps == nil || traits.DKIM != "sign" || ctx.Err() != nil {
		return
	}
	if raw, _, err := render(t.msg.Raw, t.asked(*caps), traits); err == nil && same(raw, t.msg.Raw) {
		t.sign(ctx, h, raw)
	}
}

// learnCaps notes what a connection offered.
func (p *pair) learnCaps(caps upstream.Caps) {
	if last := p.caps.Load(); last == nil || *last != caps {
		p.caps.Store(&caps)
	}
}

// keep returns the signature that a deferred message is to be stored with; nil for the one that is there, or none.
func (t *try) keep() *message.Signature {
	if s := t.signature.Load(); s != t.kept {
		return s
	}
	return nil
}
