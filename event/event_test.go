package event

import (
	"encoding/json"
	"testing"
	"time"

	"gatepost/message"
)

func TestEveryOutcomeHasItsEvent(t *testing.T) {
	for _, o := range []message.Outcome{message.Delivered, message.Captured, message.Bounced, message.Unconfirmed, message.Expired,
		message.Superseded, message.Suppressed, message.Dropped} {
		if k := OfOutcome(o); k.String() != string(o) {
			t.Errorf("outcome %s is recorded as %q", o, k)
		}
	}
	if k := OfOutcome(message.None); k != 0 {
		t.Errorf("no outcome is recorded as %q", k)
	}
}

func TestEventsSurviveJSON(t *testing.T) {
	in := Event{Node: 1, Seq: 7, At: time.Unix(1, 0).UTC(), Kind: Delivered, Message: 12345678, Data: Data{Took: Millis(1234567 * time.Nanosecond), Code: 250}}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	var out Event
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	in.Data.Took = Millis(1234 * time.Microsecond)
	if out != in {
		t.Errorf("%s became %+v, want %+v", b, out, in)
	}
}
