package event

import (
	"encoding/json"
	"testing"
	"time"

	"gatepost/message"
)

// BenchmarkData writes what each event keeps in the history.
func BenchmarkData(b *testing.B) {
	d := Data{Client: "logto", HeaderFrom: "auth.example.com", Size: 2048, Attempt: 1, Egress: "auth", Local: "192.0.2.1", Class: message.Accepted,
		Code: 250, Reply: "2.0.0 Ok: queued as 4Yz1", ProviderID: "4Yz1", Took: Millis(41 * time.Millisecond), Total: Millis(47 * time.Millisecond)}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(d); err != nil {
			b.Fatal(err)
		}
	}
}
