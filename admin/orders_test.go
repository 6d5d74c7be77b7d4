package admin

import (
	"fmt"
	"slices"
	"testing"

	"gatepost/event"
)

func TestOrdersAreCountedByWhatBecameOfThem(t *testing.T) {
	c := NewOrderCounter()
	emit := func(kind event.Kind, hook, mail string) {
		c.Emit([]event.Event{{Kind: kind, Data: event.Data{Hook: hook, Type: mail}}})
	}
	for range 3 {
		emit(event.Delivered, "logto", "SignIn")
	}
	emit(event.Deferred, "logto", "SignIn")
	emit(event.Captured, "logto", "Register")
	emit(event.Bounced, "logto", "SignIn")
	emit(event.Limited, "logto", "SignIn")
	emit(event.Unconfirmed, "kratos", "SignIn")
	emit(event.Delivered, "", "")
	want := []OrderCount{{"kratos", "SignIn", 1, 0, 0}, {"logto", "Register", 1, 0, 0}, {"logto", "SignIn", 3, 1, 1}}
	if got := c.Orders(); !slices.Equal(got.Counts, want) || got.StartedAt.IsZero() {
		t.Errorf("counted %+v", got)
	}
	if got := c.Orders().By(true, false).Counts; !slices.Equal(got, []OrderCount{{"kratos", "", 1, 0, 0}, {"logto", "", 4, 1, 1}}) {
		t.Errorf("by hook: %+v", got)
	}
	if got := c.Orders().By(false, true).Counts; !slices.Equal(got, []OrderCount{{"", "Register", 1, 0, 0}, {"", "SignIn", 4, 1, 1}}) {
		t.Errorf("by type: %+v", got)
	}
	if got := c.Orders().By(true, true).Counts; !slices.Equal(got, want) {
		t.Errorf("by both: %+v", got)
	}
	for n := range 2 * maxOrdered {
		emit(event.Delivered, "logto", fmt.Sprint(n))
	}
	if n := len(c.Orders().Counts); n > maxOrdered+1 {
		t.Errorf("%d pairs are kept", n)
	}
}

func TestOrdersReachTheCaller(t *testing.T) {
	r := start(t)
	o, err := r.client.Orders(t.Context())
	if err != nil || len(o.Counts) != 1 || o.Counts[0].Sent != 7 {
		t.Errorf("Orders = %+v, %v", o, err)
	}
}
