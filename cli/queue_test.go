package cli

import (
	"strings"
	"testing"

	"gatepost/admin"
	"gatepost/event"
	"gatepost/message"
)

func TestAMessageCanBeFollowedFromQueueToOutcome(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.news.Reply("RCPT", "451 4.7.1 come back later")
	id := g.queued("127.0.1.1", fromNews, "bob@example.org")
	g.until("it is deferred", func() bool { return strings.Contains(g.ok("trace", id), "deferred") })

	for _, what := range []string{id, "bob@example.org"} {
		out := g.ok("trace", what)
		for _, want := range []string{"message " + id + ", stream marketing", "deferred", "bulk", "451 4.7.1 come back later", "waits: bob@example.org, queued"} {
			if !strings.Contains(out, want) {
				t.Errorf("trace %s lacks %q:\n%s", what, want, out)
			}
		}
	}
	if out := g.ok("queue", "list", "--stream", "marketing"); !strings.Contains(out, id) || !strings.Contains(out, "451 4.7.1") {
		t.Errorf("queue list:\n%s", out)
	}
	if out := g.ok("queue", "list", "--stream", "auth"); !strings.Contains(out, "Nothing waits") {
		t.Errorf("queue list of the other stream:\n%s", out)
	}
	if out := g.ok("queue", "show", id); !strings.Contains(out, "bob@example.org") || !strings.Contains(out, "news@marketing.example.com") {
		t.Errorf("queue show:\n%s", out)
	}

	g.news.Reply("RCPT", "250 2.1.5 fine")
	if out := g.ok("queue", "retry", id); !strings.Contains(out, "1 recipient now due") {
		t.Errorf("queue retry: %s", out)
	}
	g.news.Wait(1)
	g.until("trace tells of the delivery", func() bool { return strings.Contains(g.ok("trace", id), "delivered") })
	var trace admin.Trace
	g.into(&trace, "trace", id)
	if last := trace.Events[len(trace.Events)-1]; last.Kind != event.Delivered || last.Upstream != "bulk" || len(trace.Queue) != 0 {
		t.Errorf("trace --json ends with %+v and a queue of %d", last, len(trace.Queue))
	}
	if r := g.run("queue", "show", id); r.code != exitNotFound || !strings.Contains(r.err, "hint: gatepost trace") {
		t.Errorf("queue show of a delivered message: exit %d, %s", r.code, r.err)
	}
	if r := g.run("trace", "nobody@example.org"); r.code != exitNotFound {
		t.Errorf("trace of an unknown address: exit %d", r.code)
	}
}

func TestHeldMailWaitsAndDroppedMailIsGone(t *testing.T) {
	g := newGateway(t)
	g.start()
	g.ok("queue", "hold", "--stream", "marketing")
	kept, dropped := g.queued("127.0.1.1", fromNews, "bob@example.org"), g.queued("127.0.1.1", fromNews, "eve@example.org")
	if out := g.ok("status"); !strings.Contains(out, "on hold") {
		t.Errorf("status does not show the hold:\n%s", out)
	}
	if out := g.ok("queue", "drop", dropped); !strings.Contains(out, "1 recipient dropped") {
		t.Errorf("queue drop: %s", out)
	}
	if out := g.ok("trace", dropped); !strings.Contains(out, "dropped") {
		t.Errorf("trace of a dropped message:\n%s", out)
	}
	var rows []message.QueueRow
	g.into(&rows, "queue", "list", "--address", "bob@example.org")
	if len(rows) != 1 || rows[0].ID.String() != kept {
		t.Errorf("queue list --json: %+v", rows)
	}
	if n := len(g.news.Messages()); n != 0 {
		t.Errorf("%d mails left a stream on hold", n)
	}
	if out := g.ok("queue", "list"); !strings.Contains(out, "Stream marketing is on hold") {
		t.Errorf("queue list does not tell of the hold:\n%s", out)
	}
	if r := g.run("queue", "list", "--stream", "marketign"); r.code != exitNotFound {
		t.Errorf("queue list of a misspelt stream: exit %d, %s", r.code, r.out)
	}
	g.queued("127.0.0.1", fromAuth, "ann@example.org") // the other stream is not held
	g.auth.Wait(1)

	g.ok("queue", "hold", kept)
	g.into(&rows, "queue", "list", "--state", "held")
	if len(rows) != 1 {
		t.Errorf("queue list --state held: %+v", rows)
	}
	g.ok("queue", "release", "--stream", "marketing")
	if got := g.news.Wait(1)[0]; got.To[0] != "bob@example.org" {
		t.Errorf("what arrived after the release was to %s", got.To)
	}
	if r := g.run("queue", "release", "--stream", "marketign"); r.code != exitNotFound || !strings.Contains(r.err, "there is no stream") {
		t.Errorf("a misspelt stream: exit %d, %s", r.code, r.err)
	}
	if r := g.run("queue", "retry", dropped); r.code != exitNotFound {
		t.Errorf("retry of a dropped message: exit %d, %s", r.code, r.err)
	}
}

func TestSendFollowsATestMessage(t *testing.T) {
	g := newGateway(t)
	g.start()
	out := g.ok("send", "--to", "ann@example.org", "--stream", "auth")
	if !strings.HasPrefix(out, "queued as ") || !strings.Contains(out, "delivered") {
		t.Errorf("send printed:\n%s", out)
	}
	m := g.auth.Wait(1)[0]
	if m.From != fromAuth || !strings.Contains(string(m.Data), "Subject: Test message from gatepost") {
		t.Errorf("what arrived:\n%s", m.Data)
	}
	g.ok("send", "--to", "bob@example.org", "--from", "team@marketing.example.com")
	if m := g.news.Wait(1)[0]; m.From != "team@marketing.example.com" {
		t.Errorf("a test message of the other stream came from %s", m.From)
	}
	if r := g.run("send", "--to", "ann@example.org"); r.code != exitFailed || !strings.Contains(r.err, "auth, marketing") {
		t.Errorf("send without a stream: exit %d, %s", r.code, r.err)
	}
	g.auth.Reply("RCPT", "550 5.1.1 no such user")
	if r := g.run("send", "--to", "nobody@example.org", "--stream", "auth"); r.code != exitFailed || !strings.Contains(r.err, "550 5.1.1") {
		t.Errorf("send to a wrong address: exit %d, %s%s", r.code, r.out, r.err)
	}
	g.auth.Stop()
	g.until("the upstream is paused", func() bool {
		r := g.run("send", "--to", "ann@example.org", "--stream", "auth", "--wait", "200ms")
		return r.code == exitFailed && strings.Contains(r.err, "no outcome after") &&
			strings.Contains(r.err, "Stream auth waits for upstream sink, which is paused for")
	})
}
