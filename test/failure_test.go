package test

import (
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-smtp"

	"gatepost/event"
)

func TestASenderIsToldOfABounceThoughGatepostWasKilledInBetween(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	addr := freeAddress(t) // of the host that takes reports; it is not there yet
	s.configure("route   = [\"bulk\"]\n", "route   = [\"bulk\"]\ndsn_upstream = \"back\"\n")
	s.configure("[upstream.bulk]\n", `[upstream.back]
type    = "smtp"
address = "`+addr+`"
tls     = "none"
[upstream.bulk]
`)
	s.bulk.setAnswer(func(arrival) error {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "we do not want it"}
	})
	s.start()
	id := bulkStream.mustPost(t, s.listen, "unwanted", "123456")
	s.daemon.says(10*time.Second, "message bounced", id, "the sender is told by message")
	s.daemon.kill()
	back := newSinkOn(t, addr)
	s.start()
	report := back.wait(1, 15*time.Second)[0]
	if len(report.to) != 1 || report.from != "" || report.to[0] != bulkStream.sender() {
		t.Errorf("the report is from <%s> to %v, want the null sender to the original one", report.from, report.to)
	}
	wantSigned(t, s.records, bulkDomain, report)
	text := string(report.raw)
	for _, want := range []string{"multipart/report", "Reporting-MTA: dns; gw.auth.example.com\r\n", "Status: 5.7.1\r\n",
		"Diagnostic-Code: smtp; 554 5.7.1 we do not want it\r\n", id} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "to sign in") {
		t.Error("the report holds the body of the mail")
	}
	s.waitEmpty(5 * time.Second)
	if n := len(back.all()); n != 1 {
		t.Errorf("%d reports, want 1", n)
	}
}

// code sends a code of an application to one person, under an id of the test, and returns the id gatepost gave to it.
func (s *site) code(id, application string) string {
	s.t.Helper()
	c, err := dial(s.listen, authStream.client)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.quit()
	reply, err := c.send(authStream.sender(), "kim@example.net", authStream.letter(id, "123456", "X-Gatepost-Application: "+application))
	if err != nil {
		s.t.Fatal(err)
	}
	return queuedAs(reply)
}

func TestANewerCodeTakesThePlaceOfAQueuedOlderOne(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.configure("[stream.marketing]\n", `supersede = true
when_down = "queue"
verdict   = "queued"
[[stream.auth.match]]
subject = "(?i)code"
purpose = "code"
[stream.marketing]
`)
	s.auth.stop()
	s.start()
	probe := s.code("probe", "probe")
	s.daemon.says(10*time.Second, "upstream paused")
	ids := map[string]event.Kind{probe: event.Delivered}
	for _, code := range []struct {
		id, application string
		end             event.Kind
	}{
		{"first", "shop", event.Superseded},
		{"second", "shop", event.Superseded},
		{"other", "bank", event.Delivered},
		{"third", "shop", event.Delivered},
	} {
		ids[s.code(code.id, code.application)] = code.end
	}
	s.auth.start()
	s.waitEmpty(15 * time.Second)
	got := s.auth.copies()
	if len(s.auth.all()) != 3 || len(got["probe"]) != 1 || len(got["third"]) != 1 || len(got["other"]) != 1 {
		t.Errorf("%d codes arrived, want the newest of each application", len(s.auth.all()))
	}
	for id, end := range ids {
		if !s.hasEvent(id, end) {
			t.Errorf("the trace of %s has no %v event", id, end)
		}
	}
}
