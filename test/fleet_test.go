package test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"gatepost/event"
	"gatepost/store/storetest/pgtest"
)

// lease is how long what a dead node owned stays its own, and takenOver by when others must have freed it: they look every
// 3 s.
const (
	lease     = 15 * time.Second
	takenOver = lease + 5*time.Second
)

// fleet is several gateposts on one database, with the same hosts behind them.
type fleet struct {
	t     *testing.T
	db    *pgtest.Server
	dsn   string
	nodes []*site
}

// newFleet makes n sites and starts their daemons. Node i sends from addresses of its own, so that the far end can tell.
func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{t: t, db: pgtest.New(t)}
	f.dsn = f.db.Database(t)
	first := newSite(t)
	first.run("store", "init-key", first.path("store.key"))
	for i := range n {
		s := first
		if i > 0 {
			s = first.sibling()
		}
		s.write("store.dsn", f.dsn+"\n")
		s.write("gatepost.toml", s.read("gatepost.toml")+fmt.Sprintf("[store]\nengine = \"postgres\"\ndsn_file = \"store.dsn\"\nkey_file = \"store.key\"\nnode = %q\n", nodeName(i)))
		s.configure(`"`+authEgress+`"`, `"`+authSource(i)+`"`)
		s.configure(`"`+bulkEgress+`"`, `"`+bulkSource(i)+`"`)
		f.nodes = append(f.nodes, s)
	}
	for _, s := range f.nodes {
		s.start()
	}
	return f
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// authSource and bulkSource are what node i sends from.
func authSource(i int) string { return fmt.Sprintf("127.0.%d.2", 10+i) }
func bulkSource(i int) string { return fmt.Sprintf("127.0.%d.3", 10+i) }

// sibling makes a site with the same config, keys and far ends, and an address and a state of its own.
func (s *site) sibling() *site {
	s.t.Helper()
	c := *s
	c.dir, c.listen, c.daemon = shortTempDir(s.t), freeAddress(s.t), nil
	for _, name := range []string{"auth.pem", "marketing.pem", "store.key"} {
		c.write(name, s.read(name))
	}
	c.write("gatepost.toml", strings.NewReplacer("LISTEN", c.listen, "SINK", s.auth.addr, "BULK", s.bulk.addr).Replace(configText))
	return &c
}

// load starts sessions of both streams at every node.
func (f *fleet) load(sessions int) *load {
	l := newLoad()
	for _, s := range f.nodes {
		for _, of := range []stream{authStream, bulkStream} {
			l.add(sessions, of, func() (*client, error) { return dial(s.listen, of.client) })
		}
	}
	return l
}

// number asks the database for one.
func (f *fleet) number(query string, args ...any) (n int64) {
	f.t.Helper()
	conn, err := pgx.Connect(f.t.Context(), f.dsn)
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close(f.t.Context())
	if err := conn.QueryRow(f.t.Context(), query, args...).Scan(&n); err != nil {
		f.t.Fatal(err)
	}
	return n
}

// ownedBy counts the recipients that node i is handing over, as the database has it.
func (f *fleet) ownedBy(i int) int64 {
	f.t.Helper()
	return f.number("SELECT count(*) FROM recipient WHERE owner = (SELECT id FROM node WHERE name = $1)", nodeName(i))
}

func TestAFleetLosesNothingWhenANodeIsKilledAndTheDatabaseRestarts(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	slow := func(arrival) error { time.Sleep(50 * time.Millisecond); return nil } // so that hand-overs are under way
	f.nodes[0].auth.setAnswer(slow)
	f.nodes[0].bulk.setAnswer(slow)
	l := f.load(4)
	kills := rounds(1, 20)
	for range kills {
		l.waitMore(t, 100)
		time.Sleep(rand.N(300 * time.Millisecond))
		victim := rand.N(len(f.nodes))
		f.nodes[victim].daemon.kill()
		died := time.Now()
		l.waitMore(t, 50)
		f.db.Restart(t, pgtest.Immediate)
		eventually(t, takenOver-time.Since(died), "others have taken over what the killed node owned", func() bool { return f.ownedBy(victim) == 0 })
		t.Logf("%s was killed, and the database restarted: taken over after %v", nodeName(victim), time.Since(died).Round(time.Millisecond))
		l.waitMore(t, 50)
		f.nodes[victim].start()
	}
	taken := l.stop()
	f.nodes[0].waitArrived(taken, time.Minute)
	f.nodes[0].waitEmpty(time.Minute)
	marked := f.number("SELECT count(*) FROM event WHERE kind = $1", event.Recovered)
	duplicates := f.wantOnlyMarkedTwice()
	if marked == 0 {
		t.Error("no kill hit a hand-over under way: the test has shown nothing")
	}
	if most := kills * maxSlots; duplicates > most {
		t.Errorf("%d duplicates after %d kills, want %d at most", duplicates, kills, most)
	}
	t.Logf("%d kills, and as many restarts of the database: %d mails taken, 0 lost, %d duplicates, %d marked, %d refused for now",
		kills, len(taken), duplicates, marked, len(l.refused))
}

// wantOnlyMarkedTwice fails the test for each mail that arrived again though no event says that it may, and returns how
// many more copies than mails there are.
func (f *fleet) wantOnlyMarkedTwice() (duplicates int) {
	f.t.Helper()
	for _, far := range []*sink{f.nodes[0].auth, f.nodes[0].bulk} {
		for id, all := range far.copies() {
			duplicates += len(all) - 1
			if len(all) > 1 && !f.nodes[0].tellsRecovered(queueID(all[0].raw)) {
				f.t.Errorf("mail %s arrived %d times, and trace says nothing of it", id, len(all))
			}
		}
	}
	return duplicates
}

func TestWhileTheDatabaseIsAwayMailIsRefusedAtOnceAndThenTakenAgain(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	authStream.mustPost(t, f.nodes[0].listen, "before", "123456")
	f.db.Stop(t, pgtest.Immediate)
	for i, s := range f.nodes {
		s.refusesFor(t, fmt.Sprintf("first%d", i), 8*time.Second) // may be under way when the loss is found
		for n := range 3 {
			s.refusesFor(t, fmt.Sprintf("next%d-%d", i, n), time.Second)
		}
	}
	f.db.Start(t)
	back := time.Now()
	for i, s := range f.nodes {
		eventually(t, 15*time.Second, "mail is taken again", func() bool {
			_, err := authStream.post(s.listen, fmt.Sprintf("after%d", i), "123456")
			return err == nil
		})
	}
	resumed := time.Since(back)
	f.nodes[0].auth.wait(3, 10*time.Second)
	f.nodes[0].waitEmpty(10 * time.Second)
	for id, all := range f.nodes[0].auth.copies() {
		if strings.HasPrefix(id, "first") || strings.HasPrefix(id, "next") || len(all) != 1 {
			t.Errorf("%d copies of %s arrived", len(all), id)
		}
	}
	t.Logf("mail is taken again %v after the database's return", resumed.Round(time.Millisecond))
}

// refusesFor checks that a code is refused for now within a time.
func (s *site) refusesFor(t *testing.T, id string, within time.Duration) {
	t.Helper()
	began := time.Now()
	reply, err := authStream.post(s.listen, id, "123456")
	if r, ok := errors.AsType[refusal](err); !ok || r[0] != '4' {
		t.Errorf("without a database mail %s was answered %q, %v", id, reply, err)
	}
	if took := time.Since(began); took > within {
		t.Errorf("without a database the answer to %s took %v, want %v at most", id, took, within)
	}
}

func TestANodeStoppedUnderLoadLeavesNothingBehindAndDuplicatesNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	slow := func(arrival) error { time.Sleep(5 * time.Millisecond); return nil }
	f.nodes[0].auth.setAnswer(slow)
	f.nodes[0].bulk.setAnswer(slow)
	l := f.load(4)
	for range rounds(3, 20) {
		l.waitMore(t, 50)
		i := rand.N(len(f.nodes))
		if took := f.nodes[i].daemon.stop(); took > 10*time.Second {
			t.Errorf("stopping took %v, want 10 s at most", took)
		}
		if n := f.ownedBy(i); n != 0 {
			t.Errorf("%s has stopped, and still owns %d recipients", nodeName(i), n)
		}
		f.nodes[i].start()
	}
	taken := l.stop()
	f.nodes[0].waitArrived(taken, time.Minute)
	f.nodes[0].waitEmpty(time.Minute)
	f.nodes[0].wantOneCopyEach(t)
	if l.silent > 0 {
		t.Errorf("%d sessions ended without a reply", l.silent)
	}
}

func TestAnOrderThatComesToAllNodesAtOnceIsOneMail(t *testing.T) {
	t.Parallel()
	const orders, each = 20, 3
	f := newFleet(t, 2)
	var doors []*hooks
	for _, s := range f.nodes {
		s.daemon.stop()
		doors = append(doors, s.addHooks())
		s.start()
	}
	ids := make([]map[string]int, orders) // how often each was answered
	var mu sync.Mutex
	var posts sync.WaitGroup
	for n := range orders {
		ids[n] = map[string]int{}
		for i := range len(doors) * each {
			posts.Go(func() {
				a, err := doors[i%len(doors)].post(nil, "/v1/send", fmt.Sprintf(`{"to":"a%d@example.net","subject":"s","text":"t"}`, n),
					"Authorization", webToken, "Idempotency-Key", fmt.Sprint(n))
				if err != nil || a.status != 200 {
					t.Errorf("order %d got %+v, %v", n, a, err)
				}
				mu.Lock()
				defer mu.Unlock()
				ids[n][a.id()]++
			})
		}
	}
	posts.Wait()
	f.nodes[0].waitEmpty(20 * time.Second)
	to := map[string]int{}
	for _, a := range f.nodes[0].auth.all() {
		to[a.to[0]]++
	}
	for n, answered := range ids {
		if mails := to[fmt.Sprintf("a%d@example.net", n)]; len(answered) != 1 || mails != 1 {
			t.Errorf("order %d made %d mails, and was answered %v", n, mails, answered)
		}
	}
}

func TestANodeThatSleptPastItsLeaseHandsNothingOver(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	asleep, sleepy := f.nodes[0], netip.MustParseAddr(bulkSource(0))
	begun, wake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.nodes[0].bulk.setEnvelope(func(from netip.Addr) {
		if from == sleepy { // before the commit, which has a minute left in this stream
			once.Do(func() { close(begun) })
			<-wake
		}
	})
	id := bulkStream.mustPost(t, asleep.listen, "late", "123456")
	<-begun
	asleep.daemon.signal(syscall.SIGSTOP)
	arrived := f.nodes[0].bulk.wait(1, takenOver+10*time.Second)
	asleep.daemon.signal(syscall.SIGCONT)
	if arrived[0].peer.source == sleepy {
		t.Fatal("the mail came from the node that sleeps")
	}
	close(wake)
	eventually(t, 20*time.Second, "the node that slept takes mail again", func() bool {
		_, err := bulkStream.post(asleep.listen, "again", "123456")
		return err == nil
	})
	f.nodes[1].waitEmpty(20 * time.Second)
	if all := f.nodes[0].bulk.copies()["late"]; len(all) != 1 {
		t.Errorf("%d copies arrived, want the other node's alone", len(all))
	}
	if !f.nodes[1].tellsRecovered(id) {
		t.Error("the trace does not say that another node took the mail over")
	}
}

func TestTwoDaemonsWithOneNameAreRefused(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	twin := f.nodes[0].sibling()
	twin.write("store.dsn", f.dsn+"\n")
	twin.write("gatepost.toml", twin.read("gatepost.toml")+"[store]\nengine = \"postgres\"\ndsn_file = \"store.dsn\"\nkey_file = \"store.key\"\nnode = \""+nodeName(0)+"\"\n")
	d := twin.launch()
	if code := d.wait(30 * time.Second); code == 0 || !strings.Contains(d.log.String(), "node "+nodeName(0)+": another gatepost runs under this name\nhint: stop it first") {
		t.Errorf("a second %s ended with %d and said\n%s", nodeName(0), code, d.log.String())
	}
	authStream.mustPost(t, f.nodes[0].listen, "still", "123456")
}
