package upstream

import (
	"bytes"
	"fmt"
	"net"
	"testing"

	"gatepost/config"
	"gatepost/message"
)

func capturing(t *testing.T, n, size int) *capture {
	t.Helper()
	c := newCapture(&config.Upstream{Name: "cap", Connections: 1})
	for i := range n {
		slot, err := c.Reserve(t.Context(), "auth")
		if err != nil {
			t.Fatal(err)
		}
		e := message.Envelope{From: fmt.Sprintf("%d@example.com", i), To: []string{"user@example.net"}}
		slot.Send(t.Context(), e, net.Buffers{make([]byte, size)}, func() error { return nil })
		slot.Release()
	}
	return c
}

func TestOnlyTheLastMailsAreKept(t *testing.T) {
	got := capturing(t, maxCaptured+3, 10).Captured()
	if len(got) != maxCaptured || got[0].Envelope.From != "3@example.com" {
		t.Errorf("%d mails, the first from %s; want %d from 3@example.com on", len(got), got[0].Envelope.From, maxCaptured)
	}
}

func TestWhatIsKeptIsBoundedInOctetsButForTheLastMail(t *testing.T) {
	if got := capturing(t, 5, maxCapturedSize/3).Captured(); len(got) != 3 {
		t.Errorf("%d mails of a third of the bound each are kept, want 3", len(got))
	}
	if got := capturing(t, 2, maxCapturedSize+1).Captured(); len(got) != 1 || got[0].Envelope.From != "1@example.com" {
		t.Errorf("%d mails over the bound are kept, want the last", len(got))
	}
}

func TestACaptureIsToldOf(t *testing.T) {
	c := capturing(t, 1, 10)
	changed := c.Changed()
	select {
	case <-changed:
		t.Fatal("told of a mail that has not come")
	default:
	}
	slot, err := c.Reserve(t.Context(), "auth")
	if err != nil {
		t.Fatal(err)
	}
	wire := []byte("Subject: kept\r\n\r\n")
	slot.Send(t.Context(), message.Envelope{To: []string{"user@example.net"}}, net.Buffers{wire}, func() error { return nil })
	<-changed
	got := c.Captured()
	if last := got[len(got)-1]; !bytes.Equal(last.Wire, wire) || last.At.IsZero() {
		t.Errorf("kept %+v, want the mail and its time", last)
	}
	if !c.Traits().Captures {
		t.Error("Traits do not say that nobody gets the mail")
	}
}
