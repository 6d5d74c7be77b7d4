package store

import (
	"context"
	"testing"
	"time"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

func TestTablesThatAreGoneAreNotMadeAnewUnderARunningNode(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	sqlAt(t, f, "CREATE SCHEMA q")
	other := f.node(t, "other")
	f.dsn += "&search_path=q"
	s := f.node(t, "a")
	m := newMessage(s, message.Auth, 0)
	mustPut(t, s, false, m)
	exec := func(sql ...string) {
		t.Helper()
		for _, sql := range sql {
			must(other.fleet.pool.Exec(t.Context(), sql))
		}
	}
	exec("ALTER SCHEMA q RENAME TO away", "CREATE SCHEMA q", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'gatepost a'")
	eventually(t, "their loss is noticed", func() bool { return s.Ready(message.Auth) != nil })
	time.Sleep(2 * probeEvery)
	var made int
	must(0, other.fleet.pool.QueryRow(context.Background(), "SELECT count(*) FROM pg_class WHERE relnamespace = 'q'::regnamespace").Scan(&made))
	if made > 0 || s.Ready(message.Auth) == nil {
		t.Errorf("%d tables were made, ready %v", made, s.Ready(message.Auth))
	}
	exec("DROP SCHEMA q", "ALTER SCHEMA away RENAME TO q")
	eventually(t, "it goes on", func() bool { return s.Ready(message.Auth) == nil })
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || ds[0].Message.ID != m.ID {
		t.Errorf("claimed %+v", ds)
	}
}

func TestNumbersOfNodesThatAreLongGoneAreUsedAgain(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	sqlAt(t, f, "INSERT INTO node(id, name, epoch, lease_until) SELECT n, 'n' || n, 7, "+serverNow+" - n * 86400000::bigint FROM generate_series(2, 1023) n",
		"INSERT INTO event VALUES(1022, 40, 1, 1, 0, 1, 's', 'u', NULL, NULL, '{}')",
		"INSERT INTO message VALUES(1, 'auth', 'c', '', 'example.com', 1, 0, NULL, 1, 1, NULL, '')",
		"INSERT INTO recipient VALUES(1, 0, 'a@example.net', 'auth', '', 0, 0, 0, false, 0, 1023, 7, '', '', '')") // which the oldest owns still
	s := f.node(t, "new")
	if n := s.NewID().Node(); n != 1022 {
		t.Errorf("number %d, want that of the node which has been gone longest and owns nothing", n)
	}
	mustPut(t, s, false, newMessage(s, message.Auth, 0))
	if es := must(s.Events(t.Context(), EventQuery{Node: 1022})); len(es) != 2 || es[1].Seq != 41 {
		t.Errorf("events %+v, want the count to go on", es)
	}
}

func TestWhatADeletedNodeOwnedIsFreedByItsSuccessor(t *testing.T) {
	t.Parallel()
	f := newTestFleet(t, pgtest.Shared(t))
	a := f.node(t, "a")
	mustPut(t, a, true, newMessage(a, message.Auth, 0))
	must(a.fleet.pool.Exec(t.Context(), "DELETE FROM node WHERE name = 'a'"))
	abandon(a)
	closeTest(t, a)
	s := f.node(t, "b") // which gets the number
	if ds := claimAll(t, s, "auth"); len(ds) != 1 || !ds[0].Message.Recipients[0].MaybeSent {
		t.Errorf("claimed %+v, want what the node before owned, marked", ds)
	}
}
