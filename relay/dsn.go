package relay

import (
	"maps"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/reply"
)

// notificationTTL is the lifetime of a delivery status notification: the sender's host may be down for a weekend.
const notificationTTL = 72 * time.Hour

// notificationPrefix makes the name of the lane by which a stream's notifications leave. No configured name has a
// colon.
const notificationPrefix = "dsn:"

// notifies reports whether senders of s are told of recipients that fail. Those of auth mail never are: who it was
// for, and that it was sent, is nobody else's business, and a bounce of a sign-in code helps nobody.
func notifies(s *config.Stream) bool { return s.DSNUpstream != "" && s.Kind != message.Auth }

// streamsOf returns all streams of cfg that have a lane: those configured, and for each that notifies senders one of
// its own, so that notifications neither wait behind the stream's mail nor hold it up.
func streamsOf(cfg *config.Config) map[string]*config.Stream {
	all := maps.Clone(cfg.Stream)
	for _, s := range cfg.Stream {
		if notifies(s) {
			n := notificationStream(s)
			all[n.Name] = n
		}
	}
	return all
}

// notificationStream returns the stream of s's notifications: signed and pinned as s is, by a route of one.
func notificationStream(s *config.Stream) *config.Stream {
	return &config.Stream{
		Name: notificationPrefix + s.Name, Kind: s.Kind, Domains: s.Domains, Route: []string{s.DSNUpstream}, Egress: s.Egress,
		DKIM: s.DKIM, TTL: notificationTTL, Retry: s.Retry, Verdict: "queued", VerdictTimeout: s.VerdictTimeout, WhenDown: "queue",
		CommitTimeout: s.CommitTimeout, AnswerTimeout: s.AnswerTimeout,
	}
}

// wantsNotifications notes on m, which came from sender, that failures are to be reported there. Mail from the null
// sender is itself a report, or wants none (RFC 5321 §6.1).
func (p *plan) wantsNotifications(m *message.Message, sender string) {
	if notifies(p.stream) && sender != "" {
		m.SetNotifyTo(sender)
	}
}

// notify has the sender told of the recipients that ss end without delivery. Where all were refused and the client
// still waits for the answer, refusal is that answer and the client reports it (RFC 5321 §4.2.5): its channel comes
// back, and whoever has it must send on it.
func (t *try) notify(ss []message.Settlement, refusal *reply.Error) (client chan<- *reply.Error) {
	if t.msg.NotifyTo() == "" {
		return nil
	}
	if refusal != nil {
		if client = t.lane.bind(t.msg.ID); client != nil {
			return client
		}
	}
	var failed []message.Settlement
	for _, s := range ss {
		if s.Outcome == message.Bounced || s.Outcome == message.Unconfirmed {
			failed = append(failed, s)
		}
	}
	notification := t.r.notification(failed)
	for i := range ss {
		if ss[i].Outcome == message.Bounced || ss[i].Outcome == message.Unconfirmed {
			ss[i].Notification = notification
		}
	}
	return nil
}

// bind makes the client that waits for id's outcome wait until it is told on the channel, also beyond verdict_timeout;
// nil where nobody waits. Without it a client could be told 250 while its refusal is written, and no notification.
func (l *lane) bind(id message.ID) chan<- *reply.Error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := l.waiting[id]
	delete(l.waiting, id)
	return ch
}

// late ends the waiting for id at verdict_timeout, and returns the refusal if there was one: what has been told, or a
// try has bound itself to tell, counts. Where that takes longer than within to record, the client is to try again.
func (l *lane) late(id message.ID, answer <-chan *reply.Error, within time.Duration) *reply.Error {
	l.mu.Lock()
	_, open := l.waiting[id]
	delete(l.waiting, id)
	l.mu.Unlock()
	if open {
		return nil
	}
	t := time.NewTimer(within)
	defer t.Stop()
	select {
	case refusal := <-answer:
		return refusal
	case <-t.C:
		return reply.New(451, "4.3.0", "a refusal could not be recorded in time, please try again later")
	}
}

// notification makes the message that tells the sender of failed, all of one message that has a NotifyTo. It goes by
// the configuration that holds now: nil where that tells nobody any more.
func (r *Relay) notification(failed []message.Settlement) *message.Message {
	if len(failed) == 0 {
		return nil
	}
	m := failed[0].Message
	g := r.generation.Load()
	p := g.plan(notificationPrefix + m.Stream)
	to, err := message.ParseAddress(m.NotifyTo())
	if p == nil || err != nil { // no error: the address was parsed when the message was accepted
		return nil
	}
	now, name := time.Now(), p.stream.Name
	n := &message.Message{ID: r.spool.NewID(), Stream: name, Kind: p.stream.Kind, Client: m.Client, HeaderFrom: m.HeaderFrom,
		SMTPUTF8: to.UTF8(), AcceptedAt: now, ExpiresAt: now.Add(p.stream.TTL),
		Recipients: []message.Recipient{{Address: to.String(), Lane: name, Need: p.need}}}
	d := dsn{id: n.ID, at: now, hostname: g.config.Hostname, to: to, about: m, failed: failed, host: g.host}
	n.Raw = d.compose()
	n.Size = len(n.Raw)
	return n
}

// host returns the name of the host behind an upstream, "" where it has none.
func (g *Generation) host(upstream string) string {
	if u := g.config.Upstream[upstream]; u != nil {
		return u.Host
	}
	return ""
}
