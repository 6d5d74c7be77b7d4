package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatepost/admin"
	"gatepost/event"
	"gatepost/upstream/upstreamtest"
)

func TestATestMessageTriesAnUpstreamBeforeItsConfigIsInForce(t *testing.T) {
	g := newGateway(t)
	g.start()
	spare := upstreamtest.NewHost(t, upstreamtest.HostOptions{})
	g.write(g.text() + "[upstream.spare]\ntype = \"smtp\"\naddress = \"" + spare.Addr() + "\"\ntls = \"none\"\n")

	out := g.ok("send", "--upstream", "spare", "--stream", "auth", "--to", "ann@example.org")
	if !strings.Contains(out, "delivered  spare  250") {
		t.Errorf("it printed %q, want what the upstream said", out)
	}
	mails := spare.Messages()
	if len(mails) != 1 || len(g.auth.Messages()) != 0 {
		t.Fatalf("%d mails reached the upstream and %d the one in force, want 1 and 0", len(mails), len(g.auth.Messages()))
	}
	if m := mails[0]; m.Peer.Addr().String() != "127.0.0.2" || m.From != "no-reply@auth.example.com" || !strings.Contains(string(m.Data), "d=auth.example.com") {
		t.Errorf("it arrived from %s, %s: %s\nwant the stream's egress, sender and signature", m.Peer, m.From, m.Data)
	}
	var s admin.Status
	g.into(&s, "status")
	for _, l := range s.Lanes {
		if l.Queued+l.InFlight != 0 {
			t.Errorf("the daemon has the test message in its queue: %+v", l)
		}
	}
}

func TestATestMessageByOneUpstreamNeedsNoDaemonAndLeavesNothing(t *testing.T) {
	g := newGateway(t)
	var trace admin.Trace
	g.into(&trace, "send", "--upstream", "bulk", "--to", "ann@example.org")
	if outcome(trace.Events) != event.Delivered {
		t.Errorf("events %+v, want one that says delivered", trace.Events)
	}
	if mails := g.news.Messages(); len(mails) != 1 || mails[0].From != "no-reply@marketing.example.com" {
		t.Errorf("arrived %+v, want one mail of the stream that uses the upstream", mails)
	}
	if _, err := os.Stat(filepath.Join(g.dir, "state")); !os.IsNotExist(err) {
		t.Errorf("the state directory was made (%v)", err)
	}
}

func TestATestMessageThatDoesNotGetThroughIsToldAtOnce(t *testing.T) {
	g := newGateway(t)
	g.auth.Script(func(s upstreamtest.Step) upstreamtest.Action {
		if s.Verb == "RCPT" && strings.Contains(s.Arg, "nobody@") {
			return upstreamtest.Action{Reply: "550 5.1.1 no such user"}
		}
		return upstreamtest.Action{}
	})
	for name, tt := range map[string]struct {
		args []string
		code int
		want string // of what is printed
	}{
		"a recipient who is refused":      {[]string{"--upstream", "sink", "--to", "nobody@example.org"}, exitFailed, "550 5.1.1 no such user"},
		"an upstream that does not exist": {[]string{"--upstream", "snik", "--to", "ann@example.org"}, exitNotFound, "bulk, sink"},
		"a stream that does not exist":    {[]string{"--upstream", "sink", "--stream", "x", "--to", "ann@example.org"}, exitFailed, "there is no stream"},
		"a sender of no stream":           {[]string{"--upstream", "sink", "--from", "x@example.net", "--to", "ann@example.org"}, exitFailed, "no stream has the From domain example.net"},
		"a sender of nobody's":            {[]string{"--upstream", "sink", "--stream", "auth", "--from", "x@example.net", "--to", "ann@example.org"}, exitFailed, "refused"},
		"an address that is none":         {[]string{"--upstream", "sink", "--to", "ann"}, exitUsage, "--to"},
	} {
		begin := time.Now()
		r := g.run(append([]string{"send"}, tt.args...)...)
		if r.code != tt.code || !strings.Contains(r.out+r.err, tt.want) {
			t.Errorf("%s: exit code %d with %q, want %d with %q", name, r.code, r.out+r.err, tt.code, tt.want)
		}
		if took := time.Since(begin); took > patient/2 {
			t.Errorf("%s: it took %v", name, took)
		}
	}

	g.replace(`address = "`+g.auth.Addr()+`"`, `address = "`+freeAddress(t)+`"`)
	r := g.run("send", "--upstream", "sink", "--to", "ann@example.org", "--wait", "300ms")
	if r.code != exitFailed || !strings.Contains(r.out, "connection refused") || !strings.Contains(r.err, "not sent within 300ms") {
		t.Errorf("nobody listens: exit code %d, printed %q and %q", r.code, r.out, r.err)
	}
}

func TestATestMessageToAnUpstreamThatRefusesTheLoginEndsAtOnce(t *testing.T) {
	g := newGateway(t)
	host := upstreamtest.NewHost(t, upstreamtest.HostOptions{Username: "joe", Password: "right"})
	if err := os.WriteFile(filepath.Join(g.dir, "password"), []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.replace(`address = "`+g.auth.Addr()+`"`, `address = "`+host.Addr()+"\"\nusername = \"joe\"\npassword_file = \"password\"")
	begin := time.Now()
	r := g.run("send", "--upstream", "sink", "--to", "ann@example.org")
	if r.code != exitFailed || !strings.Contains(r.out, "535") || !strings.Contains(r.err, "does not let us in") || strings.Contains(r.out+r.err, "wrong\n") {
		t.Errorf("exit code %d, printed %q and %q", r.code, r.out, r.err)
	}
	if took := time.Since(begin); took > patient/2 {
		t.Errorf("it took %v", took)
	}
}

func TestAServiceWithAnAPIIsCheckedAndTriedFromItsConfig(t *testing.T) {
	g := newGateway(t)
	service := upstreamtest.NewService(t, upstreamtest.ServiceOptions{Plain: true}, func(upstreamtest.Request) upstreamtest.Reply {
		return upstreamtest.Reply{Status: 204}
	})
	if err := os.WriteFile(filepath.Join(g.dir, "webhook.secret"), []byte("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.replace("type    = \"smtp\"\naddress = \""+g.auth.Addr()+"\"\ntls     = \"none\"",
		"type = \"webhook\"\nurl = \""+service.URL()+"/deliver\"\nsecret_file = \"webhook.secret\"")

	if r := g.run("check"); !strings.Contains(r.out, "sink      webhook  auth    not proven  127.0.0.2\n") || len(service.All()) != 0 {
		t.Errorf("check made %d requests and printed\n%s\nwant none, and that the webhook is not proven", len(service.All()), r.out)
	}
	g.ok("send", "--upstream", "sink", "--to", "ann@example.org")
	r := service.Wait(1)[0]
	if r.Peer.Addr().String() != "127.0.0.2" || r.Header.Get("X-Gatepost-To") != "ann@example.org" || !strings.Contains(string(r.Body), "d=auth.example.com") {
		t.Errorf("%+v arrived, want a signed mail for ann from the stream's egress", r)
	}
}
