package reply

import (
	"errors"
	"fmt"
	"testing"
)

func TestAnErrorWithoutAVerdictIsTemporaryAndTellsNothing(t *testing.T) {
	secret := errors.New("open /var/lib/gatepost/spool.db: no space left on device")
	e := Of(secret)
	if e.Code != 451 || !e.Temporary() || e.Text == secret.Error() || !errors.Is(e, secret) {
		t.Errorf("Of(%v) = %+v", secret, e)
	}
}

func TestAVerdictIsFoundHoweverDeeplyItIsWrapped(t *testing.T) {
	v := New(550, "5.7.1", "not %s", "yours")
	if e := Of(fmt.Errorf("a: %w", fmt.Errorf("b: %w", v))); e != v || e.Temporary() || e.Text != "not yours" {
		t.Errorf("got %+v", e)
	}
}
