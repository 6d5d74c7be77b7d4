package relay

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

var refused = message.Verdict{Class: message.Permanent, Scope: message.ScopeRecipient, Code: 550, Enhanced: "5.1.1", Text: "no such user 123456"}

// notifying turns notifications on for the marketing stream.
func notifying(c *config.Config) {
	c.Stream["marketing"].DSNUpstream = "bulk"
	c.Upstream["bulk"].Host = "mx.example.org"
}

// refuse makes the marketing upstream refuse recipients whose address begins with "no".
func (g *rig) refuse() {
	g.marketing.set(func(s *service) {
		s.verdict = func(e message.Envelope) []message.Verdict {
			vs := message.Verdict{Class: message.Accepted, Code: 250}.Verdicts(len(e.To))
			for i, to := range e.To {
				if strings.HasPrefix(to, "no") && e.From != "" {
					vs[i] = refused
				}
			}
			return vs
		}
	})
}

// notifications returns what was handed over as a notification.
func (g *rig) notifications() []sent {
	return slices.DeleteFunc(g.marketing.got(), func(s sent) bool { return s.env.Stream != "dsn:marketing" })
}

// parsed is a notification as its reader's program sees it.
type parsed struct {
	header   mail.Header
	types    []string
	human    string
	message  textproto.MIMEHeader   // of the fields about the message
	each     []textproto.MIMEHeader // … and about each recipient
	returned string
}

// parse reads a notification with nothing of ours.
func parse(t *testing.T, wire string) parsed {
	t.Helper()
	m, err := mail.ReadMessage(strings.NewReader(wire))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || params["report-type"] != "delivery-status" {
		t.Fatalf("content type %s %v, %v", kind, params, err)
	}
	p := parsed{header: m.Header}
	var bodies []string
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		p.types = append(p.types, part.Header.Get("Content-Type"))
		bodies = append(bodies, string(body))
	}
	if want := []string{"text/plain; charset=utf-8", "message/delivery-status", "text/rfc822-headers"}; !slices.Equal(p.types, want) {
		t.Fatalf("parts %v, want %v", p.types, want)
	}
	p.human, p.returned = bodies[0], bodies[2]
	groups := strings.Split(strings.TrimSuffix(bodies[1], "\r\n"), "\r\n\r\n")
	for i, group := range groups {
		h, err := textproto.NewReader(bufio.NewReader(strings.NewReader(group + "\r\n\r\n"))).ReadMIMEHeader()
		if err != nil {
			t.Fatalf("%q: %v", group, err)
		}
		if i == 0 {
			p.message = h
		} else {
			p.each = append(p.each, h)
		}
	}
	return p
}

func TestASenderIsToldOfWhomTheUpstreamRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, notifying)
		g.refuse()
		id, err := g.submit("news", "X-List: spring\r\n", "kim@example.net", "no1@example.net", "no2@example.net")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		ns := g.notifications()
		if len(ns) != 1 {
			t.Fatalf("%d notifications were sent, want one for what failed together", len(ns))
		}
		env := ns[0].env
		if env.From != "" || !slices.Equal(env.To, []string{"no-reply@news.example.com"}) {
			t.Errorf("from <%s> to %v, want the null sender to the original one", env.From, env.To)
		}
		if !strings.HasPrefix(ns[0].wire, "DKIM-Signature:") || !strings.Contains(ns[0].wire, "d=news.example.com") {
			t.Error("the notification is not signed for its From domain")
		}
		p := parse(t, ns[0].wire)
		for name, want := range map[string]string{"From": "Mail Delivery System <MAILER-DAEMON@news.example.com>", "To": "<no-reply@news.example.com>",
			"Auto-Submitted": "auto-replied", "Mime-Version": "1.0", "Message-Id": "<" + env.ID.String() + "@news.example.com>"} {
			if got := p.header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if _, err := p.header.Date(); err != nil {
			t.Error(err)
		}
		if got := p.message.Get("Reporting-MTA"); got != "dns; gw.example.com" {
			t.Errorf("Reporting-MTA: %q", got)
		}
		if _, err := mail.ParseDate(p.message.Get("Arrival-Date")); err != nil {
			t.Error(err)
		}
		if len(p.each) != 2 {
			t.Fatalf("%d recipients are reported, want the two that failed", len(p.each))
		}
		for i, want := range []string{"rfc822; no1@example.net", "rfc822; no2@example.net"} {
			for name, want := range map[string]string{"Final-Recipient": want, "Action": "failed", "Status": "5.1.1",
				"Remote-MTA": "dns; mx.example.org", "Diagnostic-Code": "smtp; 550 5.1.1 no such user ..."} {
				if got := p.each[i].Get(name); got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		}
		if !strings.Contains(p.human, "no1@example.net") || strings.Contains(p.human, "kim@") || !strings.Contains(p.human, id.String()) {
			t.Errorf("in plain words:\n%s", p.human)
		}
		if !strings.Contains(p.returned, "X-List: spring\r\n") || strings.Contains(ns[0].wire, "123456") {
			t.Errorf("not the header alone comes back:\n%s", ns[0].wire)
		}
		if rows := g.queue(); len(rows) != 0 {
			t.Errorf("still queued: %+v", rows)
		}
		for _, e := range g.history.of(event.Bounced) {
			if !strings.Contains(e.Data.Text, env.ID.String()) {
				t.Errorf("the bounced event does not name the notification: %q", e.Data.Text)
			}
		}
	})
}

func TestASenderIsToldOfMailThatExpires(t *testing.T) {
	for name, tt := range map[string]struct {
		lose  int
		human string
		kind  event.Kind
	}{
		"never handed over":                    {0, "could not be delivered in time", event.Expired},
		"handed over, and the answer was lost": {1, "may or may not have arrived", event.Unconfirmed},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, notifying)
				g.marketing.set(func(s *service) {
					s.lose = tt.lose
					s.verdict = func(e message.Envelope) []message.Verdict {
						v := message.Verdict{Class: message.Temporary, Scope: message.ScopeMessage, Code: 450, Enhanced: "4.2.1", Text: "busy"}
						if e.From == "" {
							v = message.Verdict{Class: message.Accepted}
						}
						return v.Verdicts(len(e.To))
					}
				})
				if _, err := g.submit("news", "X-Gatepost-TTL: 30m\r\nX-List: spring\r\n", "kim@example.net", "lee@example.net"); err != nil {
					t.Fatal(err)
				}
				time.Sleep(29 * time.Minute)
				if n := len(g.notifications()); n != 0 {
					t.Errorf("%d notifications while it may still be sent", n)
				}
				time.Sleep(3 * time.Minute)
				if n := len(g.history.of(tt.kind)); n != 2 {
					t.Fatalf("%d %v events, want 2", n, tt.kind)
				}
				ns := g.notifications()
				if len(ns) != 1 {
					t.Fatalf("%d notifications, want one", len(ns))
				}
				p := parse(t, ns[0].wire)
				if len(p.each) != 2 || p.each[0].Get("Status") != "4.4.7" || p.each[0].Get("Action") != "failed" || !strings.Contains(p.human, tt.human) {
					t.Errorf("%v\n%s", p.each, p.human)
				}
				if tt.lose == 0 && p.each[0].Get("Diagnostic-Code") != "smtp; 450 4.2.1 busy" {
					t.Errorf("Diagnostic-Code: %q, want what was said last", p.each[0].Get("Diagnostic-Code"))
				}
				if !strings.Contains(p.returned, "X-List: spring\r\n") || strings.Contains(ns[0].wire, "123456") {
					t.Errorf("not the header alone comes back:\n%s", ns[0].wire)
				}
			})
		})
	}
}

func TestWhoIsNeverToldByNotification(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*config.Config)
		client string
		from   string
	}{
		"anybody, by default":            {func(*config.Config) {}, "news", "a@news.example.com"},
		"the null sender":                {func(c *config.Config) { c.Stream["marketing"].ReturnPath = "b@news.example.com" }, "news", ""},
		"who sent auth mail":             {func(c *config.Config) { c.Stream["auth"].DSNUpstream = "bulk" }, "logto", "a@auth.example.com"},
		"who sent auth mail that waited": {func(c *config.Config) { c.Stream["auth"].DSNUpstream, c.Stream["auth"].Verdict = "bulk", "queued" }, "logto", "a@auth.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, func(c *config.Config) {
					if tt.client == "news" && name != "anybody, by default" {
						notifying(c)
					}
					tt.change(c)
				})
				for _, s := range []*service{g.auth, g.marketing} {
					s.set(func(s *service) { s.verdict = always(refused) })
				}
				g.submitFrom(tt.client, tt.from)
				time.Sleep(time.Minute)
				if n := len(g.history.of(event.Bounced)); n != 1 {
					t.Errorf("%d bounced events, want 1 with or without a notification", n)
				}
				if all := len(g.auth.got()) + len(g.marketing.got()); all != 1 || len(g.queue()) != 0 {
					t.Errorf("%d messages were handed over, %d are queued, want the refused one alone", all, len(g.queue()))
				}
			})
		})
	}
}

// submitFrom hands one mail in with the given envelope sender.
func (g *rig) submitFrom(client, from string) error {
	domain := map[string]string{"logto": "auth.example.com", "news": "news.example.com"}[client]
	to, err := message.ParseAddress("kim@example.net")
	if err != nil {
		g.t.Fatal(err)
	}
	_, err = g.relay.Accept(context.Background(), []*message.Submission{{Client: client, Listener: "smtp", Remote: netip.MustParseAddrPort("127.0.0.1:4711"),
		MailFrom: from, To: []message.Address{to}, StartedAt: time.Now(), Raw: message.Raw("From: a@" + domain + "\r\nTo: kim@example.net\r\n\r\nHello\r\n")}})
	return err
}

func TestANotificationGoesToTheOriginalSenderNotTheReturnPath(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			notifying(c)
			c.Stream["marketing"].ReturnPath = "bounces@news.example.com"
		})
		g.marketing.set(func(s *service) {
			s.verdict = func(e message.Envelope) []message.Verdict {
				if e.From == "" {
					return message.Verdict{Class: message.Accepted}.Verdicts(1)
				}
				return refused.Verdicts(1)
			}
		})
		if err := g.submitFrom("news", "editor@office.example"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if ns := g.notifications(); len(ns) != 1 || ns[0].env.To[0] != "editor@office.example" {
			t.Errorf("notifications %+v, want one to the sender", ns)
		}
	})
}

func TestNotificationsBeginWithAReload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, nil)
		g.refuse()
		for _, want := range []int{0, 1} {
			if _, err := g.submit("news", "", "no@example.net"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if n := len(g.notifications()); n != want {
				t.Errorf("%d notifications, want %d", n, want)
			}
			g.mustReload(notifying)
		}
	})
}

func TestANotificationThatIsRefusedIsDroppedWithItsEvent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, notifying)
		g.marketing.set(func(s *service) { s.verdict = always(refused) })
		if _, err := g.submit("news", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if n := len(g.marketing.got()); n != 2 || len(g.queue()) != 0 {
			t.Errorf("%d messages were handed over, %d are queued, want the mail, its notification and nothing more", n, len(g.queue()))
		}
		es := g.history.of(event.Bounced)
		if len(es) != 2 || es[1].Stream != "dsn:marketing" {
			t.Errorf("bounced events %+v, want one for the mail and one for the notification", es)
		}
	})
}

func TestANotificationOutlivesARestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			notifying(c)
			c.Upstream["dsn"] = &config.Upstream{Name: "dsn", Type: "smtp", Address: "127.0.0.1:2527", TLS: "none", Connections: 1, DKIM: "sign", Egress: "auth"}
			c.Stream["marketing"].DSNUpstream = "dsn"
		})
		g.refuse()
		g.stop()
		dead := &deadLane{lane: "dsn:marketing"}
		g.start(func(s Spool) Spool { dead.Spool = s; return dead })
		if _, err := g.submit("news", "", "no@example.net"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		g.stop()
		if n := len(g.notifications()); n != 0 {
			t.Fatalf("%d notifications were sent before the restart", n)
		}
		g.start(nil)
		time.Sleep(time.Minute)
		if n := len(g.notifications()); n != 1 {
			t.Errorf("%d notifications were sent after it, want 1", n)
		}
	})
}

// deadLane is a spool whose one lane gets nothing.
type deadLane struct {
	Spool
	lane string
}

func (d *deadLane) Claim(ctx context.Context, lane string, can []string, max int, maxBytes int64) ([]*message.Delivery, error) {
	if lane == d.lane {
		return nil, nil
	}
	return d.Spool.Claim(ctx, lane, can, max, maxBytes)
}

func TestAClientThatIsToldOfARefusalIsNotSentANotificationToo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			notifying(c)
			c.Stream["marketing"].Verdict = "upstream"
		})
		g.refuse()
		if _, err := g.submit("news", "", "no@example.net"); err == nil || reply.Of(err).Code != 550 {
			t.Errorf("answered %v, want 550", err)
		}
		time.Sleep(time.Minute)
		if n := len(g.notifications()); n != 0 {
			t.Errorf("%d notifications were sent as well", n)
		}
		if _, err := g.submit("news", "", "no@example.net", "kim@example.net"); err != nil {
			t.Errorf("a mixture is answered %v, want 250", err)
		}
		time.Sleep(time.Minute)
		if n := len(g.notifications()); n != 1 {
			t.Errorf("%d notifications about a mixture, want 1", n)
		}
	})
}

// slowSettle delays settlements.
type slowSettle struct {
	Spool
	by time.Duration
}

func (s *slowSettle) Settle(ctx context.Context, ss []message.Settlement) ([]message.RecipientID, error) {
	time.Sleep(s.by)
	return s.Spool.Settle(ctx, ss)
}

func TestARefusalIsToldOnceHoweverLongItTakesToRecord(t *testing.T) {
	for name, tt := range map[string]struct{ refusal, settle time.Duration }{
		"the refusal comes in time, the record does not": {0, time.Minute},
		"the refusal comes too late":                     {5 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				g := newRig(t, func(c *config.Config) {
					notifying(c)
					c.Stream["marketing"].Verdict = "upstream"
				})
				g.stop()
				g.start(func(s Spool) Spool { return &slowSettle{s, tt.settle} })
				g.marketing.set(func(s *service) {
					s.verdict = func(e message.Envelope) []message.Verdict {
						if e.From == "" {
							return message.Verdict{Class: message.Accepted}.Verdicts(1)
						}
						time.Sleep(tt.refusal)
						return refused.Verdicts(1)
					}
				})
				_, err := g.submit("news", "", "no@example.net")
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				told := 0
				if err != nil {
					told++
				}
				if told += len(g.notifications()); told != 1 {
					t.Errorf("answered %v, with %d notifications: told %d times", err, len(g.notifications()), told)
				}
			})
		})
	}
}

func TestOfSeveralMessagesNoneIsRefusedWithoutANotification(t *testing.T) {
	bubble(t, func(t *testing.T) {
		g := newRig(t, func(c *config.Config) {
			notifying(c)
			c.Stream["marketing"].Verdict = "upstream"
		})
		g.refuse()
		var subs []*message.Submission
		for _, to := range []string{"kim@example.net", "no@example.net"} {
			a, err := message.ParseAddress(to)
			if err != nil {
				t.Fatal(err)
			}
			subs = append(subs, &message.Submission{Client: "news", Listener: "smtp", MailFrom: "a@news.example.com", To: []message.Address{a},
				StartedAt: time.Now(), Raw: message.Raw("From: a@news.example.com\r\n\r\nHello\r\n")})
		}
		if _, err := g.relay.Accept(t.Context(), subs); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := len(g.notifications()); n != 1 {
			t.Errorf("%d notifications, want 1", n)
		}
	})
}

func TestANotificationFitsEveryHopAndGivesNothingAway(t *testing.T) {
	header := "From: a@news.example.com\r\nSubject: gr\u00fc\u00df\u00df\u00df\r\n" + strings.Repeat("X-Long: "+strings.Repeat("y", 1200)+"\r\n", 40)
	m := &message.Message{ID: 7, HeaderFrom: "news.example.com", AcceptedAt: time.Now(), Raw: message.Raw(header + "\r\nSecret body\r\n")}
	d := dsn{id: 8, at: time.Now(), hostname: "gw.example.com", about: m, host: func(u string) string { return u }}
	for _, r := range []struct{ address, upstream, said, enhanced string }{
		{"kim@example.net", "192.0.2.1", "550 see https://x.example/?t=abc\r\nAction: delivered \u00e9", "5.1.1\r\nX: y"},
		{"\u30ad\u30e0+a@example.net", "", "the message cannot be signed", ""},
		{"lee@example.net", "mx.example.org", "554 no", "4.7.1"},
	} {
		d.failed = append(d.failed, message.Settlement{Message: m, Outcome: message.Bounced,
			Recipient: message.Recipient{Address: r.address, LastUpstream: r.upstream, LastReply: r.said},
			Attempt:   &message.Attempt{Verdict: message.Verdict{Enhanced: r.enhanced}}})
	}
	for name, tt := range map[string]struct {
		to   string
		caps upstream.Caps
	}{
		"7bit":     {"a@news.example.com", upstream.Caps{}},
		"8BITMIME": {"a@news.example.com", upstream.Caps{EightBitMIME: true}},
		"SMTPUTF8": {"\u30ad\u30e0@example.net", upstream.Caps{EightBitMIME: true, SMTPUTF8: true}},
	} {
		var err error
		if d.to, err = message.ParseAddress(tt.to); err != nil {
			t.Fatal(err)
		}
		raw := d.compose()
		if len(raw) > 48<<10 {
			t.Errorf("%s: %d octets, with a header of %d", name, len(raw), len(header))
		}
		wire, _, err := render(raw, tt.caps, upstream.Traits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		p := parse(t, string(wire))
		for i, want := range []map[string]string{
			{"Final-Recipient": "rfc822; kim@example.net", "Remote-MTA": "dns; [192.0.2.1]", "Status": "5.0.0"},
			{"Final-Recipient": `utf-8; \x{30AD}\x{30E0}\x{2B}a@example.net`, "Remote-MTA": "", "Status": "5.0.0", "Diagnostic-Code": "x-gatepost; the message cannot be signed"},
			{"Final-Recipient": "rfc822; lee@example.net", "Remote-MTA": "dns; mx.example.org", "Status": "5.0.0", "Diagnostic-Code": "smtp; 554 no"},
		} {
			for field, want := range want {
				if got := p.each[i].Get(field); got != want {
					t.Errorf("%s: recipient %d: %s: %q, want %q", name, i, field, got, want)
				}
			}
			if a := p.each[i]["Action"]; !slices.Equal(a, []string{"failed"}) {
				t.Errorf("%s: recipient %d: Action %q", name, i, a)
			}
		}
		if bytes.Contains(wire, []byte("t=abc")) || bytes.Contains(wire, []byte("Secret body")) {
			t.Errorf("%s: a link or the body is in it", name)
		}
	}
}
