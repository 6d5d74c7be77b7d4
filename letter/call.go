package letter

import (
	"net/mail"
	"strings"

	"gatepost/message"
)

// Call says whom one request to a service is for. At least one is in To.
type Call struct {
	To, Cc, Bcc []mail.Address
	Recipients  []int // the same, as positions in the envelope
}

// Calls parts the recipients of e into requests. Mail of kind auth goes to each on its own, and so does mail whose
// header shows none of them: who was to see no address sees none. Other mail goes to all at once, to those in the
// header's To and Cc as such, and to the rest as blind copies.
//
// Who stands in the header but not in the envelope is left out: the service would send to them.
func (l *Letter) Calls(e message.Envelope) []Call {
	shown := l.shown()
	var together Call
	var alone []Call
	taken := map[string]bool{} // an address may stand in a request once, in any case of letters
	for i, to := range e.To {
		key := strings.ToLower(to)
		at, isShown := shown[key]
		box := mail.Address{Name: at.name, Address: to}
		if e.Kind == message.Auth || taken[key] {
			alone = append(alone, Call{To: []mail.Address{box}, Recipients: []int{i}})
			continue
		}
		taken[key] = true
		boxes := &together.Bcc
		if isShown {
			boxes = at.boxes(&together)
		}
		*boxes = append(*boxes, box)
		together.Recipients = append(together.Recipients, i)
	}
	return append(together.visible(), alone...)
}

// visible returns c as it can be sent, with somebody in To: alone where the header shows nobody.
func (c *Call) visible() []Call {
	var calls []Call
	switch {
	case len(c.To) > 0:
		calls = append(calls, *c)
	case len(c.Cc) > 0:
		c.To, c.Cc = c.Cc[:1:1], c.Cc[1:]
		calls = append(calls, *c)
	default:
		for i, n := range c.Recipients {
			calls = append(calls, Call{To: c.Bcc[i : i+1 : i+1], Recipients: []int{n}})
		}
	}
	return calls
}

// appearance is where and by what name the header shows an address.
type appearance struct {
	name  string
	boxes func(*Call) *[]mail.Address // To or Cc
}

// shown returns the addresses of To and Cc in lower case. Who stands in both is in To.
func (l *Letter) shown() map[string]appearance {
	found := map[string]appearance{}
	for _, b := range l.Cc {
		found[strings.ToLower(b.Address)] = appearance{b.Name, func(c *Call) *[]mail.Address { return &c.Cc }}
	}
	for _, b := range l.To {
		found[strings.ToLower(b.Address)] = appearance{b.Name, func(c *Call) *[]mail.Address { return &c.To }}
	}
	return found
}
