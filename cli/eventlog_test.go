package cli

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
)

// logged returns the line that e becomes.
func logged(t *testing.T, addresses string, e event.Event) map[string]any {
	t.Helper()
	var b bytes.Buffer
	l := &eventLog{newLog(&b, config.Log{Format: "json", Addresses: addresses})}
	l.Emit([]event.Event{e})
	line := map[string]any{}
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatalf("%v in %q", err, b.String())
	}
	return line
}

func TestRecipientsAreMaskedWhereThePolicySaysSo(t *testing.T) {
	for name, tt := range map[string]struct {
		addresses string
		kind      message.Kind
		want      string
	}{
		"auth by default":                {"", message.Auth, "a…@example.org"},
		"marketing by default":           {"", message.Marketing, "ann@example.org"},
		"a kind nobody told":             {"", "", "a…@example.org"},
		"marketing where masking is set": {"masked", message.Marketing, "a…@example.org"},
		"auth where clear is set":        {"clear", message.Auth, "ann@example.org"},
	} {
		t.Run(name, func(t *testing.T) {
			e := event.Event{Kind: event.Delivered, Message: 1, MailKind: tt.kind, Address: "ann@example.org"}
			if got := logged(t, tt.addresses, e)["to"]; got != tt.want {
				t.Errorf("to = %v, want %s", got, tt.want)
			}
		})
	}
}

func TestEveryKindOfEventHasALine(t *testing.T) {
	for k := event.Accepted; k <= event.Alarm; k++ {
		if k.String() == "" {
			continue // a number not in use
		}
		line := logged(t, "", event.Event{Kind: k})
		if line["msg"] == "" || line["msg"] == nil {
			t.Errorf("event %s has no text", k)
		}
	}
}

func TestAnAlarmIsAnErrorWhateverItsKind(t *testing.T) {
	if got := logged(t, "", event.Event{Kind: event.Delivered})["level"]; got != "INFO" {
		t.Errorf("a delivery is logged at %v", got)
	}
	line := logged(t, "", event.Event{Kind: event.Expired, Data: event.Data{Alarm: true, Text: "the code came too late"}})
	if line["level"] != "ERROR" || line["text"] != "the code came too late" {
		t.Errorf("an alarm is logged as %v", line)
	}
}

func TestWhatIsKnownOfAnAttemptIsLoggedUnderStableKeys(t *testing.T) {
	line := logged(t, "", event.Event{Kind: event.Deferred, Message: 1, N: 2, Stream: "auth", Upstream: "esp", Data: event.Data{
		Client: "app", Egress: "out", Local: "127.0.0.2", Attempt: 3, Class: message.Temporary, Scope: message.ScopeRecipient, Code: 451,
		Reply: "451 later", Took: event.Millis(1500 * time.Microsecond), Total: event.Millis(2 * time.Second), MaybeSent: true, Copies: 1}})
	for key, want := range map[string]any{"msg": "message deferred", "msg_id": "0000000000002", "n": 2.0, "stream": "auth", "upstream": "esp",
		"client": "app", "egress": "out", "local_ip": "127.0.0.2", "attempt": 3.0, "verdict": "temporary", "scope": "recipient", "code": 451.0,
		"reply": "451 later", "took_ms": 1.5, "total_ms": 2000.0, "maybe_sent": true, "copies": 1.0} {
		if line[key] != want {
			t.Errorf("%s = %v, want %v", key, line[key], want)
		}
	}
	if _, there := line["provider_id"]; there {
		t.Error("a key without a value is logged")
	}
}
