package store

import (
	"testing"
	"time"

	"gatepost/event"
	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

func TestWhatIsDueNowIsDueOnEveryNodeAtOnce(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, -2 * slightly, 2 * slightly, time.Hour} {
		c := fleetClock{wall: func() time.Time { return time.Now().Add(off) }}
		sent := bootTime() - 300*time.Millisecond // it took the database so long, and its time is that of the end
		c.set(time.Now().UnixMilli(), sent)
		if ahead := time.Until(time.UnixMilli(c.due(c.wall()))); ahead > 0 {
			t.Errorf("clock off by %v: what is due now is due in %v for others", off, ahead)
		}
		if wait := time.Until(time.UnixMilli(c.due(c.wall().Add(time.Minute)))); wait < 55*time.Second || wait > 65*time.Second {
			t.Errorf("clock off by %v: what is due in a minute is due in %v for others", off, wait)
		}
	}
}

// movableClock returns a database whose clock the returned function moves.
func movableClock(t *testing.T) (f testFleet, move func(by string)) {
	t.Helper()
	f = newTestFleet(t, pgtest.Shared(t))
	f.dsn += "&search_path=public,pg_catalog"
	sqlAt(t, f, "CREATE TABLE moved AS SELECT interval '0' AS by",
		"CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.clock_timestamp() + (SELECT by FROM public.moved)'")
	hand := f.node(t, "hand") // which holds nothing
	return f, func(by string) {
		t.Helper()
		must(hand.fleet.pool.Exec(t.Context(), "UPDATE moved SET by = $1::text::interval", by))
	}
}

func TestAJumpOfTheDatabasesClockCostsNobodyTheLeaseAndExpiresNothing(t *testing.T) {
	t.Parallel()
	for _, by := range []string{"1 hour", "-1 hour"} {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			f, move := movableClock(t)
			sink := &collector{}
			a, b := must(f.open(t, "a", sink, nil)), f.node(t, "b")
			owned, waiting := newMessage(a, message.Auth, 0), newMessage(a, message.Marketing, 0)
			mustPut(t, a, true, owned)
			mustPut(t, a, false, waiting)
			epoch, _ := a.Lease()
			move(by)
			for end := time.Now().Add(2 * testLease); time.Now().Before(end); time.Sleep(testRenew / 3) {
				if n, err := b.Expire(t.Context(), 100, nil); n != 0 || err != nil {
					t.Fatalf("expired %d, %v", n, err)
				}
				if now, valid := a.Lease(); now != epoch || !valid(0) {
					t.Fatalf("epoch %d, was %d, valid %v: the other node has taken over from one that lives", now, epoch, valid(0))
				}
			}
			if lost := must(a.Settle(t.Context(), delivered(owned, epoch))); len(lost) > 0 {
				t.Error("what was in flight was lost")
			}
			if rows := must(b.Show(t.Context(), waiting.ID)); len(rows) != 1 {
				t.Errorf("%+v, want what waited", rows)
			}
			eventually(t, "the jump is told", func() bool {
				kinds := sink.kinds()
				return len(kinds) > 0 && kinds[len(kinds)-1] == event.Delivered && countOf(kinds, event.ClockJump) == 1
			})
		})
	}
}

func countOf(kinds []event.Kind, of event.Kind) (n int) {
	for _, k := range kinds {
		if k == of {
			n++
		}
	}
	return n
}

func TestADeadNodesMailIsTakenOverThoughTheClockWentBack(t *testing.T) {
	t.Parallel()
	f, move := movableClock(t)
	a, b := f.node(t, "a"), f.node(t, "b")
	mustPut(t, a, true, newMessage(a, message.Auth, 0))
	abandon(a)
	move("-1 hour")
	eventually10(t, "it is taken over", func() bool { return len(claimAll(t, b, "auth")) == 1 })
}
