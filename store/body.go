package store

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"

	"gatepost/message"
)

// What body.format says of a body.
const (
	bodyRaw      = 1 // the message as repaired, unsigned
	bodyProvided = 2 // JSON of a providedBody
)

// providedBody is a message that has templates at upstreams. It names the templates, and not type and language, to look
// them up by later: what is queued does not change with the templates.
type providedBody struct {
	Raw      message.Raw                 `json:"raw"`
	Provided map[string]message.Provided `json:"provided"`
}

// body is what is kept of a message apart from its row.
type body struct {
	format int
	sealed bool
	data   []byte
}

// bodyOf returns the body of m.
func bodyOf(m *message.Message) (body, error) {
	if len(m.Provided) == 0 {
		return body{bodyRaw, isSealed(m), m.Raw}, nil
	}
	data, err := json.Marshal(providedBody{m.Raw, m.Provided})
	if err != nil {
		return body{}, errors.New("its templates at upstreams cannot be written as JSON") // whose words may be a variable's
	}
	return body{bodyProvided, isSealed(m), data}, nil
}

// isSealed reports whether the body of m is sealed. Variables are in mail of every kind: that they were given by name shows
// what is a code or a link.
func isSealed(m *message.Message) bool { return m.Kind == message.Auth || len(m.Provided) > 0 }

// isLarge reports whether b is written in parts.
func (b body) isLarge() bool { return len(b.data) > maxInline }

// Why a delivery is held: alarms, which say what to do.
const (
	heldBroken = "its row in the database cannot be read; held: restore the database, or drop it"
	heldGone   = "its body is not in the database; held: restore the database, or drop it"
	heldNoKey  = "the key that its body is sealed with is not in spool.key, or key_file of [store]; held"
)

// hold has d held for a reason, unless it has one already.
func hold(d *message.Delivery, why string) { d.Held = cmp.Or(d.Held, why) }

// openBody gives d its body, or has it held where that is gone, its key is, or nobody here can read it.
func (s *Store) openBody(d *message.Delivery, b storedBody, found bool) (err error) {
	m, data := d.Message, b.data
	if b.octets > 0 {
		if data, err = s.readParts(m.ID, b.octets); err != nil {
			return err
		}
		found = data != nil
	}
	if !found {
		hold(d, heldGone)
		return nil
	}
	if b.keyID != 0 {
		if data, err = s.keys.open(b.keyID, m.ID, data); errors.Is(err, errNoKey) {
			hold(d, heldNoKey)
			return nil
		}
		if err != nil {
			return err
		}
	}
	if err := readBody(m, b.format, data); err != nil {
		hold(d, err.Error())
	}
	return nil
}

// readBody sets what bodyOf has written of m. Its error is fit to be an alarm.
func readBody(m *message.Message, format int, data []byte) error {
	switch format {
	case bodyRaw:
		m.Raw = data
		return nil
	case bodyProvided:
		var p providedBody
		if json.Unmarshal(data, &p) != nil {
			return errors.New("its body is not what was written; held: restore the database, or drop it")
		}
		m.Raw, m.Provided = p.Raw, p.Provided
		return nil
	}
	return fmt.Errorf("its body has format %d, which this release does not know; held: start the release that wrote it, and release the message", format)
}
