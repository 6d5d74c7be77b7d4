package cli

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/store"
	"gatepost/store/storetest/pgtest"
)

// share makes the gateway a node of a fleet on the database at dsn.
func (g *gateway) share(dsn, node string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, "store.dsn"), []byte(dsn+"\n"), 0o600); err != nil {
		g.t.Fatal(err)
	}
	g.ok("store", "init-key", filepath.Join(g.dir, "store.key"))
	g.write(g.text() + "[store]\nengine = \"postgres\"\ndsn_file = \"store.dsn\"\nkey_file = \"store.key\"\nnode = \"" + node + "\"\n")
}

func TestTheCommandsTellOfAQueueInPostgreSQL(t *testing.T) {
	g := newGateway(t)
	server := pgtest.New(t)
	g.share(server.Database(t), "mail-1")
	// No DNS record is published, so it finds something.
	if r := g.run("check"); !strings.Contains(r.out, "OK    database store: PostgreSQL ") || strings.Contains(r.out+r.err, server.Password) {
		t.Errorf("check tells\n%s", r.out)
	}
	g.ok("store", "rotate-key", "--remove") // before there is a table
	g.start()
	id := g.queued("127.0.0.1", fromAuth, "ann@example.org")
	g.auth.Wait(1)
	g.until("the trace tells of the delivery", func() bool { return strings.Contains(g.ok("trace", id), "delivered") })

	var s admin.Status
	g.into(&s, "status")
	if s.Store.Engine != "postgres" || !strings.HasPrefix(s.Store.Where, "database ") || s.Store.Node != "mail-1" || len(s.Store.Nodes) != 1 || !s.Store.Nodes[0].Alive || s.Store.Nodes[0].Name != "mail-1" {
		t.Errorf("the status tells %+v", s.Store)
	}
	if out := g.ok("status"); !strings.Contains(out, ", as node mail-1") || strings.Contains(out, server.Password) {
		t.Errorf("the status tells\n%s", out)
	}
	for _, shown := range []string{g.ok("config", "show"), g.log.String()} {
		if strings.Contains(shown, server.Password) {
			t.Errorf("the password is shown:\n%s", shown)
		}
	}

	g.replace(`node = "mail-1"`, `node = "mail-2"`)
	if r := g.run("reload"); r.code != exitConfig || !strings.Contains(r.err, "store: it cannot change while gatepost runs") {
		t.Errorf("a reload to another node's name: exit %d, %s", r.code, r.err)
	}
	server.Stop(t, pgtest.Immediate)
	g.until("the status tells that the database is away", func() bool {
		r := g.run("status")
		return r.code == exitFailed && strings.Contains(r.err, "the database is away")
	})
	server.Start(t)
	g.until("the status tells that it is back", func() bool { return g.run("status").code == exitOK })
	for _, line := range []string{"the lease could not be renewed", "cannot claim mail"} {
		if n := strings.Count(g.log.String(), line); n > 2 { // once for each of two streams
			t.Errorf("of one outage %q is told %d times", line, n)
		}
	}
	g.stop()
}

func TestKeysThatMailNeedsAreNotRemoved(t *testing.T) {
	g := newGateway(t)
	g.share(pgtest.New(t).Database(t), "mail-1")
	file := filepath.Join(g.dir, "store.key")
	g.start()
	g.auth.Stop()
	g.replace(`[stream.marketing]`, "when_down = \"queue\"\nverdict = \"queued\"\n[stream.marketing]")
	g.ok("reload")
	g.queued("127.0.0.1", fromAuth, "ann@example.org") // waits, sealed with the only key
	g.stop()

	now := time.Now()
	f := strings.Fields(string(must(os.ReadFile(file))))            // the line of the history key, and the key that is needed
	f[4] = strconv.FormatInt(now.Add(-3*time.Hour).UnixMilli(), 10) // it seals no more
	text := strings.Join(f[:3], " ") + "\n" + strings.Join(f[3:], " ") + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	spent := must(store.RotateKeyFile(file, now.Add(-2*time.Hour)))
	replaced := must(store.RotateKeyFile(file, now.Add(-90*time.Minute))) // ten minutes ago: a node may not know it yet
	seals := must(store.RotateKeyFile(file, now.Add(-10*time.Minute)))
	var printed keyFile
	g.into(&printed, "store", "rotate-key", "--remove")
	if !slices.Equal(printed.Removed, []int64{spent}) {
		t.Errorf("removed %v, want %d alone", printed.Removed, spent)
	}
	var ids []string
	for _, k := range printed.Keys[:len(printed.Keys)-1] {
		ids = append(ids, strconv.FormatInt(k.ID, 10))
	}
	if want := []string{f[3], strconv.FormatInt(replaced, 10), strconv.FormatInt(seals, 10)}; !slices.Equal(ids, want) {
		t.Errorf("the file holds %v and a new one, want %v", ids, want)
	}
	g.auth.Start()
	g.start()
	g.auth.Wait(1)
}

func TestADatabaseThatCannotBeUsedKeepsTheDaemonFromStarting(t *testing.T) {
	g := newGateway(t)
	server := pgtest.New(t)
	g.share(server.DSN(pgtest.Role, "nowhere"), "mail-1")
	r := g.run("serve")
	if r.code != exitFailed || !strings.Contains(r.err, "hint: make it: CREATE DATABASE gatepost OWNER gatepost") || strings.Contains(r.err, server.Password) {
		t.Errorf("without a database: exit %d, %s", r.code, r.err)
	}
	if err := os.WriteFile(filepath.Join(g.dir, "store.dsn"), []byte("postgres://gatepost:hunter2:@:x/\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := g.run("serve"); r.code != exitFailed || strings.Contains(r.err, "hunter2") {
		t.Errorf("with a DSN that is none: exit %d, %s", r.code, r.err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
