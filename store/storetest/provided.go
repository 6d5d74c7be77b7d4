package storetest

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"gatepost/event"
	"gatepost/message"
)

// sameTemplates reports whether a and b are given the same.
func sameTemplates(a, b map[string]message.Provided) bool {
	return maps.EqualFunc(a, b, func(a, b message.Provided) bool {
		return a.Template == b.Template && bytes.Equal(a.Variables, b.Variables)
	})
}

func testProvided(t *testing.T, r *rig) {
	for _, size := range []int{0, 300 << 10, 1 << 20} { // in one piece, in parts because of what comes with it, and in parts
		for lane, m := range map[string]*message.Message{"auth": r.message("a@example.net"), "news": r.marketing("a@example.net")} {
			if size > 0 {
				large(m, size)
			}
			m.Provided = map[string]message.Provided{
				"postmark": {Template: "sign-in", Variables: json.RawMessage(`{"code":"735914","name":"\u003cÅnn\u003e"}`)},
				"mailgun":  {Template: "código", Variables: json.RawMessage(`{"x":"` + strings.Repeat("y", size/2) + `"}`)},
			}
			r.put(t, false, m)
			r.restart(t)
			ds := r.claim(t, lane)
			if len(ds) != 1 || ds[0].Held != "" || !bytes.Equal(ds[0].Message.Raw, m.Raw) || ds[0].Message.Size != m.Size ||
				!sameTemplates(ds[0].Message.Provided, m.Provided) {
				t.Fatalf("%s: %d octets and their templates did not come back: %.300v", lane, size, ds)
			}
			r.settle(t, outcome(m, 0, ds[0].Epoch, message.Delivered))
			r.wantState(t, m.ID)
			r.wantKinds(t, m.ID, event.Accepted, event.Delivered)
		}
	}
}
