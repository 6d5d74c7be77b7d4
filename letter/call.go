package letter

import (
	"net/mail"
	"slices"
	"strings"

	"gatepost/message"
)

// Call says whom one request to a service is for. Somebody is in To.
type Call struct{ To, Cc, Bcc []Recipient }

// Recipient is one of the envelope's recipients, with the name that the header has for it.
type Recipient struct {
	mail.Address
	N int // position in the envelope
}

// All returns the recipients of c: those of To, then of Cc, then of Bcc.
func (c Call) All() []Recipient { return slices.Concat(c.To, c.Cc, c.Bcc) }

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
		r := Recipient{mail.Address{Name: at.name, Address: to}, i}
		switch {
		case e.Kind == message.Auth || taken[key]:
			alone = append(alone, Call{To: []Recipient{r}})
		case isShown && at.inTo:
			together.To = append(together.To, r)
		case isShown:
			together.Cc = append(together.Cc, r)
		default:
			together.Bcc = append(together.Bcc, r)
		}
		taken[key] = true
	}
	return append(together.visible(), alone...)
}

// visible returns c as it can be sent, with somebody in To: each alone where the header shows nobody.
func (c Call) visible() []Call {
	switch {
	case len(c.To) > 0:
		return []Call{c}
	case len(c.Cc) > 0:
		return []Call{{To: c.Cc[:1:1], Cc: c.Cc[1:], Bcc: c.Bcc}}
	}
	var calls []Call
	for _, r := range c.Bcc {
		calls = append(calls, Call{To: []Recipient{r}})
	}
	return calls
}

// appearance is how the header shows an address: in To, or else in Cc.
type appearance struct {
	name string
	inTo bool
}

// shown returns the addresses of To and Cc in lower case. Who stands in both is in To.
func (l *Letter) shown() map[string]appearance {
	found := map[string]appearance{}
	for _, b := range l.Cc {
		found[strings.ToLower(b.Address)] = appearance{b.Name, false}
	}
	for _, b := range l.To {
		found[strings.ToLower(b.Address)] = appearance{b.Name, true}
	}
	return found
}
