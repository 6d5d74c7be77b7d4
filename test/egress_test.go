package test

import (
	"net"
	"testing"
	"time"
)

// elsewhere is an address for documentation (RFC 5737), which no host has.
const elsewhere = "192.0.2.1"

func TestAnEgressThatIsNotHereIsNamedAndNoConnectionLeavesByAnother(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configure(`ipv4 = "127.0.0.2"`, `ipv4 = "`+elsewhere+`"`)
	_, port, err := net.SplitHostPort(s.auth.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.auth.stop()
	everywhere := newSinkOn(t, "0.0.0.0:"+port)

	if r := s.run("check"); r.code != 1 || !containsAll(r.stdout+r.stderr, "egress auth", elsewhere) {
		t.Errorf("check ended with %d and does not tell of the egress:\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := s.run("check", "--offline"); r.code != 1 || !containsAll(r.stdout+r.stderr, "egress auth", elsewhere) {
		t.Errorf("check --offline ended with %d and does not tell of the egress:\n%s%s", r.code, r.stdout, r.stderr)
	}
	d := s.start()
	d.says(5*time.Second, "egress auth", elsewhere)
	id := authStream.mustPost(t, s.listen, "a", "123456")
	bulkStream.mustPost(t, s.listen, "b", "123456")
	s.bulk.wait(1, 10*time.Second) // the other stream works
	time.Sleep(3 * time.Second)    // in which the pair is probed, again and again
	if n := len(everywhere.connections()); n != 0 {
		t.Errorf("%d connections reached the host all the same, the first one from %s", n, everywhere.connections()[0].source)
	}
	if waiting := s.queue("--stream", "auth"); len(waiting) != 1 || waiting[0].ID.String() != id || waiting[0].State != "queued" {
		t.Errorf("the queue holds %+v, want the one mail", waiting)
	}
	s.daemon.stop()
}
