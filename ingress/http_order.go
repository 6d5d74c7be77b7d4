package ingress

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/http"
	netmail "net/mail"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/hook"
	"gatepost/message"
	"gatepost/reply"
)

// order makes the mails that a request asks for and has them taken, all or none.
func (q *request) order(body []byte, mails []hook.Mail) (hook.Answer, error) {
	key, fingerprint, err := q.key(body)
	if err != nil {
		return hook.Answer{}, err
	}
	subs := make([]*message.Submission, len(mails))
	for i := range mails {
		if subs[i], err = q.submission(&mails[i]); err != nil {
			return hook.Answer{}, err
		}
	}
	subs[0].Order.Key, subs[0].Order.Fingerprint = key, fingerprint
	spent, err := q.spend(mails, subs)
	if err != nil {
		return hook.Answer{}, err
	}
	receipts, err := q.accept(subs)
	if errors.Is(err, errOverdue) {
		return hook.Answer{}, q.refused(err) // it may be sent yet, and counts
	}
	if err != nil {
		q.giveBack(spent)
		return hook.Answer{}, q.refused(err)
	}
	if receipts[0].Repeated {
		q.giveBack(spent)
	}
	for i, r := range receipts {
		q.say(slog.LevelDebug, "mail ordered", slog.String("msg_id", r.ID.String()), slog.String("type", subs[i].Order.Type),
			slog.Bool("repeated", r.Repeated), slog.Int("code", http.StatusOK))
	}
	return hook.Answer{Status: http.StatusOK, ID: receipts[0].ID}, nil
}

// overdue is how long after verdict_timeout an answer comes at the latest: callers give up. So much a refusal may take to be
// recorded, too.
const overdue = time.Second

var errOverdue = reply.New(451, "4.3.0", "the queue did not take the mail in time; it may do so yet")

// accept has subs taken. Where the queue stalls the caller is told to try again, and what became of them is lost on it: a
// repetition with their key finds out. Until then they hold their memory, and a stop waits for them as for a request.
func (q *request) accept(subs []*message.Submission) ([]message.Receipt, error) {
	var receipts []message.Receipt
	var err error
	done, held := make(chan struct{}), q.held
	q.held = 0
	q.door.places.begin()
	go func() {
		defer q.door.places.end()
		defer q.door.Budget.Release(held)
		defer close(done)
		defer recovered(&err)
		receipts, err = q.door.Caller.Accept(q.door.life, subs)
	}()
	t := time.NewTimer(max(overdue, time.Until(q.began.Add(q.hook.VerdictTimeout+overdue))))
	defer t.Stop()
	select {
	case <-done:
		return receipts, err
	case <-t.C:
		return nil, errOverdue
	}
}

// refused makes a problem of what the engine says.
func (q *request) refused(err error) error {
	if errors.Is(err, message.ErrReused) { // draft-ietf-httpapi-idempotency-key-header §2.7
		return fail(http.StatusUnprocessableEntity, "This Idempotency-Key was used for another request.", err)
	}
	e := reply.Of(err)
	p := &problem{Answer: hook.OfRefusal(e), err: e.Err}
	if p.err == nil {
		p.err = e
	}
	return p
}

// key returns what a repetition of the request has in common with it; nil where each is an order of its own. What says
// that it is one, and has another body, is told by the fingerprint.
func (q *request) key(body []byte) (key []byte, fingerprint int32, err error) {
	h := sha256.New()
	switch keys := q.r.Header.Values("Idempotency-Key"); {
	case q.hook.adapter.Retries():
		sum := sha256.Sum256(body)
		h.Write([]byte("body\x00" + q.hook.Name + "\x00"))
		h.Write(sum[:])
	case q.hook.Adapter != "native" || len(keys) == 0:
		return nil, 0, nil
	case len(keys) > 1 || keys[0] == "" || len(keys[0]) > maxKey:
		return nil, 0, &hook.Invalid{Field: "Idempotency-Key", Text: "is not one value of 1 to " + strconv.Itoa(maxKey) + " octets"}
	default:
		h.Write([]byte("key\x00" + q.hook.Client + "\x00" + keys[0]))
		// Of both: the database does not have the key, and a code in the body cannot be found without it.
		of := hmac.New(sha256.New, []byte("fingerprint\x00"+q.hook.Client+"\x00"+keys[0]))
		of.Write(body)
		fingerprint = int32(binary.BigEndian.Uint32(of.Sum(nil))>>2 | 1<<30)
	}
	return h.Sum(nil), fingerprint, nil
}

// submission makes the message of m.
func (q *request) submission(m *hook.Mail) (*message.Submission, error) {
	from, err := q.sender(m)
	if err != nil {
		return nil, err
	}
	sub := &message.Submission{
		Client: q.hook.Client, Listener: q.set.Name, Remote: q.remote, With: q.protocol(), To: []message.Address{m.To}, StartedAt: q.began,
		Order: &message.Order{Hook: q.hook.Name, Type: m.Type, Stream: q.hook.Stream, Purpose: m.Purpose, Application: m.Application,
			TTL: m.TTL, Wait: q.hook.VerdictTimeout},
	}
	author, err := addressOf(from)
	if err != nil {
		return nil, err
	}
	if sub.Raw = m.Raw; m.Raw == nil {
		if author, err = q.compose(m, from, sub); err != nil {
			return nil, err
		}
	}
	sub.MailFrom, sub.SMTPUTF8 = author.String(), author.UTF8() || m.To.UTF8()
	return sub, nil
}

// compose makes the message of m, from a template where the words are not there already, and returns who it is from.
func (q *request) compose(m *hook.Mail, from string, sub *message.Submission) (message.Address, error) {
	if m.Variables == nil || m.Rendered != nil && !q.set.templates.Knows(m.Type) {
		f, err := q.set.templates.Compose(m, from)
		if err != nil {
			return message.Address{}, err
		}
		sub.Raw = f.Raw
		return f.From, nil
	}
	f, err := q.set.templates.Fill(m, from, q.hook.LinkSchemes)
	if err != nil {
		return message.Address{}, err
	}
	if f.Unknown {
		q.say(slog.LevelInfo, "type of mail is not known, the template of another is used", slog.String("type", m.Type), slog.String("template", f.Type))
	}
	if len(f.TooMuch) > 0 {
		q.say(slog.LevelWarn, "the variables are too much for the templates of some upstreams, which are sent the local one",
			slog.String("type", f.Type), slog.String("upstreams", strings.Join(f.TooMuch, ",")))
	}
	o := sub.Order
	o.Type, o.Purpose, o.TTL = f.Type, f.Purpose, f.Lifetime
	if m.TTL > 0 {
		o.TTL = min(o.TTL, m.TTL)
	}
	sub.Raw, sub.Provided = f.Raw, f.Provided
	return f.From, nil
}

func (q *request) protocol() string {
	if q.r.TLS != nil {
		return "HTTPS"
	}
	return "HTTP"
}

// sender returns who a mail is from: the request's own where it names one, else the hook's. Whether that may be is for
// policy to say.
func (q *request) sender(m *hook.Mail) (string, error) {
	if m.ReplyTo != "" {
		if _, err := netmail.ParseAddress(m.ReplyTo); err != nil {
			return "", &hook.Invalid{Field: "reply_to", Text: "is not an address"}
		}
	}
	if m.From == "" {
		return q.hook.Sender(q.hook.stream), nil
	}
	return m.From, nil
}

// addressOf reads a mailbox with or without a name.
func addressOf(from string) (message.Address, error) {
	named, err := netmail.ParseAddress(from)
	if err != nil {
		return message.Address{}, &hook.Invalid{Field: "from", Text: "is not an address"}
	}
	a, err := message.ParseAddress(named.Address)
	if err != nil {
		return a, &hook.Invalid{Field: "from", Text: "is not an address: " + err.Error()}
	}
	return a, nil
}

// spending is a token that was taken.
type spending struct {
	key  bucketKey
	rate config.Rate
}

// spend takes a token of each limit for each mail, all or none.
func (q *request) spend(mails []hook.Mail, subs []*message.Submission) (spent []spending, err error) {
	for i := range mails {
		for _, l := range q.limitsOf(&mails[i]) {
			if l.rate.Count == 0 || l.who == "" {
				continue
			}
			key := keyOf(q.hook.Name, l.name, l.who)
			wait, first, ok := q.door.Limits.take(key, l.rate, time.Now())
			if ok {
				spent = append(spent, spending{key, l.rate})
				continue
			}
			q.giveBack(spent)
			why := l.name + " = \"" + l.rate.String() + "\""
			if first {
				q.door.Caller.Limited(subs[i], why)
			}
			return nil, &problem{Answer: hook.Answer{Status: http.StatusTooManyRequests, Text: "Too many mails, please wait a while.", RetryAfter: wait},
				err: errors.New(why)}
		}
	}
	return spent, nil
}

// limited is what one limit is asked.
type limited struct {
	name string // of the key in the config
	rate config.Rate
	who  string // "" where it does not apply
}

func (q *request) limitsOf(m *hook.Mail) []limited {
	person := ""
	if m.IP.IsValid() {
		person = networkOf(m.IP)
	}
	return []limited{
		{"recipient_limit", q.hook.RecipientLimit, strings.ToLower(m.To.String())},
		{"client_limit", q.hook.ClientLimit, q.hook.Client},
		{"network_limit", q.hook.NetworkLimit, networkOf(q.peer.Addr)},
		{"ip_limit", q.hook.IPLimit, person},
	}
}

// networkOf returns the addresses that one host commands: itself, for IPv6 a /64; "" on a unix socket.
func networkOf(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Is6():
		return netip.PrefixFrom(a, 64).Masked().String()
	}
	return a.String()
}

func (q *request) giveBack(spent []spending) {
	for _, s := range spent {
		q.door.Limits.giveBack(s.key, s.rate)
	}
}
