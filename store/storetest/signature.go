package storetest

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"gatepost/message"
)

// deferred settles n of m as put off until now, with what it was signed with.
func (r *rig) deferred(t *testing.T, m *message.Message, n int, epoch int64, kept *message.Signature) {
	t.Helper()
	s := outcome(m, n, epoch, message.None)
	s.Recipient.DueAt, s.Recipient.Attempts, s.Signature = time.Now(), s.Recipient.Attempts+1, kept
	r.settle(t, s)
}

// wantSignature claims all of a lane, which is m, and wants kept with it.
func (r *rig) wantSignature(t *testing.T, m *message.Message, kept *message.Signature) *message.Delivery {
	t.Helper()
	ds := r.claim(t, m.Stream)
	if len(ds) != 1 || !bytes.Equal(ds[0].Message.Raw, m.Raw) {
		t.Fatalf("%d messages came back, want %v", len(ds), m.ID)
	}
	if !reflect.DeepEqual(ds[0].Signature, kept) {
		t.Errorf("it came back with %+v, want %+v", ds[0].Signature, kept)
	}
	return ds[0]
}

func testSignature(t *testing.T, r *rig) {
	first := &message.Signature{Profile: [32]byte{1}, Fields: []byte("DKIM-Signature: a=\r\n")}
	second := &message.Signature{Profile: [32]byte{2}, Fields: []byte("DKIM-Signature: b=\r\n")}
	m := r.marketing("a@example.net", "b@example.net")
	epoch := r.put(t, true, m).Epoch
	r.deferred(t, m, 0, epoch, first)
	d := r.wantSignature(t, m, first)
	r.deferred(t, d.Message, 0, d.Epoch, nil)
	d = r.wantSignature(t, m, first) // nil leaves what is there
	r.deferred(t, d.Message, 0, d.Epoch, second)
	r.settle(t, outcome(m, 1, epoch, message.Delivered))
	r.restart(t)
	d = r.wantSignature(t, m, second)
	r.settle(t, outcome(d.Message, 0, d.Epoch, message.Delivered))

	epoch = r.put(t, true, m).Epoch // the id is free again, and nothing may be left of the first
	r.deferred(t, m, 0, epoch, nil)
	d = r.wantSignature(t, m, nil)
	r.settle(t, outcome(d.Message, 0, d.Epoch, message.Dropped), outcome(m, 1, epoch, message.Dropped))

	code, filled := r.message("a@example.net"), r.marketing("a@example.net")
	filled.Provided = map[string]message.Provided{"postmark": {Template: "sign-in", Variables: json.RawMessage(`{"code":"735914"}`)}}
	for _, sealed := range []*message.Message{code, filled} {
		r.deferred(t, sealed, 0, r.put(t, true, sealed).Epoch, first)
		r.wantSignature(t, sealed, nil)
	}
}
