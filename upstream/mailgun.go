package upstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
	"gatepost/reply"
)

const (
	mailgunSize       = 25 << 20 // octets of a message
	mailgunRecipients = 1000     // of a call
	mailgunOptions    = 16 << 10 // octets of the fields whose names have a colon
	mailgunPause      = time.Minute
)

// mailgun is Mailgun's HTTP API, POST /v3/DOMAIN/messages.mime: the message travels as it is.
type mailgun struct{ cfg *config.Upstream }

func newMailgun(c *config.Upstream) *mailgun { return &mailgun{c} }

func (m *mailgun) endpoint() string {
	switch {
	case m.cfg.Endpoint != "":
		return m.cfg.Endpoint
	case m.cfg.Region == "eu":
		return "https://api.eu.mailgun.net"
	}
	return "https://api.mailgun.net"
}

// traits: Mailgun replaces the envelope sender, so Return-Path is never ours.
func (m *mailgun) traits() Traits {
	return Traits{MaxSize: mailgunSize, MaxRecipients: mailgunRecipients, NeverSign: []string{"Return-Path"}, Captures: m.cfg.TestMode}
}

func (m *mailgun) caps() Caps { return Caps{Size: mailgunSize, MaxRecipients: mailgunRecipients} }

// calls makes one request for each recipient of auth mail, since a refusal concerns the whole request.
func (m *mailgun) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	key, err := m.cfg.APIKey.Read()
	if err != nil {
		return nil, err
	}
	return splittable(e, mailgunRecipients, func(to []int) call {
		return call{to: to, meaning: m.meaning, ask: func(ctx context.Context, x *exchange) error {
			return m.ask(ctx, x, key, "/messages.mime", m.form(e, to, wire))
		}}
	}), nil
}

// provided implements keeper: POST /v3/DOMAIN/messages. The service makes the plain text of the template's HTML; t:variables
// are for the template alone, those of v: anybody sees.
func (m *mailgun) provided(e message.Envelope, wire net.Buffers) (call, error) {
	key, err := m.cfg.APIKey.Read()
	if err != nil {
		return call{}, err
	}
	l, err := letter.Read(wholeMail(wire))
	if err != nil {
		return call{}, err
	}
	fields := [][2]string{{"from", boxText(l.From)}, {"subject", l.Subject}, {"template", e.Provided.Template}, {"t:variables", string(e.Provided.Variables)}, {"t:text", "yes"}}
	var replies []string // in ASCII, as header fields are
	for _, b := range uniqueBoxes(l.ReplyTo) {
		replies = append(replies, b.String())
	}
	if replies != nil {
		fields = append(fields, [2]string{"h:Reply-To", strings.Join(replies, ", ")})
	}
	for _, f := range l.Header {
		fields = append(fields, [2]string{"h:" + f.Name, f.Value})
	}
	fields = append(fields, m.options(e)...)
	n := 0
	for _, f := range fields {
		if strings.Contains(f[0], ":") {
			n += len(f[0]) + len(f[1])
		}
	}
	if n > mailgunOptions {
		return call{}, reply.New(552, "5.3.4", "The variables of the message are too much for Mailgun: %d octets with all options, %d are taken", n, mailgunOptions)
	}
	return call{to: []int{0}, meaning: m.meaning, ask: func(ctx context.Context, x *exchange) error {
		return m.ask(ctx, x, key, "/messages", newMailgunForm(e.To, fields).end())
	}}, nil
}

// form makes the form of one call: the envelope's recipients, the options, and the message as a file.
func (m *mailgun) form(e message.Envelope, to []int, wire net.Buffers) mailgunForm {
	var recipients []string
	for _, i := range to {
		recipients = append(recipients, e.To[i])
	}
	f := newMailgunForm(recipients, m.options(e))
	f.writer.CreateFormFile("message", "message.eml") // into memory, which does not fail
	return f.end(wire...)
}

// mailgunForm is multipart/form-data with one file at most.
type mailgunForm struct {
	head   *bytes.Buffer
	writer *multipart.Writer
	body   net.Buffers
}

// newMailgunForm begins a form for recipients.
func newMailgunForm(to []string, fields [][2]string) mailgunForm {
	head := &bytes.Buffer{}
	f := mailgunForm{head: head, writer: multipart.NewWriter(head)}
	for _, address := range to {
		f.writer.WriteField("to", address)
	}
	for _, field := range fields {
		f.writer.WriteField(field[0], field[1])
	}
	return f
}

// end completes f with the content of its file, which is not copied.
func (f mailgunForm) end(file ...[]byte) mailgunForm {
	tail := fmt.Appendf(nil, "\r\n--%s--\r\n", f.writer.Boundary())
	f.body = slices.Concat(net.Buffers{f.head.Bytes()}, file, net.Buffers{tail})
	return f
}

// ask posts f to one of the domain's paths.
func (m *mailgun) ask(ctx context.Context, x *exchange, key, path string, f mailgunForm) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.endpoint()+"/v3/"+url.PathEscape(m.cfg.Domain)+path, io.NopCloser(&f.body))
	if err != nil {
		return err
	}
	req.ContentLength = int64(length(f.body))
	req.Header.Set("Content-Type", f.writer.FormDataContentType())
	req.SetBasicAuth("api", key)
	_, err = x.Do(req)
	return err
}

// options says how the message is to be treated. Auth mail is never tracked, and only sent over TLS; the id that events
// will carry is the spool's.
func (m *mailgun) options(e message.Envelope) [][2]string {
	var all [][2]string
	set := func(name, value string) { all = append(all, [2]string{name, value}) }
	switch {
	case e.Kind == message.Auth || m.cfg.Tracking == "off":
		set("o:tracking", "no")
		set("o:tracking-clicks", "no")
		set("o:tracking-opens", "no")
	case m.cfg.Tracking == "on":
		set("o:tracking", "yes")
	}
	if e.Kind == message.Auth {
		set("o:require-tls", "yes")
	}
	if m.cfg.ServiceDKIM != "" {
		set("o:dkim", m.cfg.ServiceDKIM)
	}
	if m.cfg.IPPool != "" {
		set("o:sending-ip-pool", m.cfg.IPPool)
	}
	for _, tag := range m.cfg.Tags {
		set("o:tag", tag)
	}
	if m.cfg.TestMode {
		set("o:testmode", "yes")
	}
	set("v:gid", e.ID.String())
	return all
}

// mailgunSaid is what Mailgun says of a request. A 401 is not in this form.
type mailgunSaid struct {
	ID      string `json:"id"`
	Message string `json:"message"`
}

// meaning follows Mailgun's statuses; its words decide only where the status stands for two things.
//
//	403       "large batches"                throttled     upstream
//	400, 403  "not allowed to send"          unauthorised  domain     not verified, disabled, or a sandbox
//	400       "is not a valid address"       permanent     recipient  where the call is for one, and not about the sender
//	400                                      permanent     message
//	404       "domain not found"             unauthorised  domain     a new domain takes minutes to be known everywhere
//	429                                      throttled     upstream   the time is in the words
func (m *mailgun) meaning(a answer) []message.Verdict {
	return []message.Verdict{m.verdict(a, mailgunWords(a))}
}

func (m *mailgun) verdict(a answer, said mailgunSaid) message.Verdict {
	has := func(words string) bool { return strings.Contains(strings.ToLower(said.Message), words) }
	switch {
	case a.ok():
		return a.accepted(said.ID)
	case a.status == 403 && has("large batches"):
		return a.as(message.Throttled, message.ScopeUpstream, "", said.Message)
	case (a.status == 400 || a.status == 403) && has("not allowed to send"), a.status == 404 && has("domain not found"):
		return a.as(message.Unauthorised, message.ScopeDomain, "", said.Message)
	case a.status == 400 && has("is not a valid address") && !has("'from'"):
		return a.as(message.Permanent, message.ScopeRecipient, "5.1.3", said.Message)
	case a.status == 400:
		return a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.Message)
	case a.status == 429:
		v := a.as(message.Throttled, message.ScopeUpstream, "", said.Message)
		v.RetryAfter = mailgunRetryAfter(said.Message, v.RetryAfter, time.Now())
		return v
	}
	return a.verdict(said.Message)
}

var (
	mailgunSeconds = regexp.MustCompile(`try again after (\d{1,9}) seconds`)
	mailgunDate    = regexp.MustCompile(`try again after (\w{3}, \d{1,2} \w{3} \d{4} \d{2}:\d{2}:\d{2}) (?:UTC|GMT)`)
)

// mailgunRetryAfter returns how long to wait after a 429: what the words say, else the header, else a minute.
func mailgunRetryAfter(words string, header time.Duration, now time.Time) time.Duration {
	if found := mailgunSeconds.FindStringSubmatch(words); found != nil {
		return parseRetryAfter(found[1], now)
	}
	if found := mailgunDate.FindStringSubmatch(words); found != nil {
		if at, err := time.Parse("Mon, 2 Jan 2006 15:04:05", found[1]); err == nil {
			return min(max(at.Sub(now), 0), maxRetryAfter)
		}
	}
	if header > 0 {
		return header
	}
	return mailgunPause
}

// mailgunDomain is what Mailgun tells of a domain.
type mailgunDomain struct {
	Domain struct {
		State string `json:"state"`
		Type  string `json:"type"`
	} `json:"domain"`
}

// check reads the domain. A sending key may not do that; that it may send shows from the answer to a message without
// any content, which asks for what is missing.
func (m *mailgun) check(ctx context.Context, do doer) (Account, error) {
	key, err := m.cfg.APIKey.Read()
	if err != nil {
		return Account{}, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	a, err := m.get(ctx, do, http.MethodGet, "/v4/domains/"+url.PathEscape(m.cfg.Domain), key)
	var said mailgunDomain
	switch {
	case err != nil:
		return Account{}, err
	case a.ok():
		a.decode(&said)
		return mailgunAccount(said), nil
	case a.status != 401 && a.status != 403:
		return Account{}, pausedFor(m.verdict(a, mailgunWords(a)))
	}
	a, err = m.get(ctx, do, http.MethodPost, "/v3/"+url.PathEscape(m.cfg.Domain)+"/messages.mime", key)
	switch {
	case err != nil:
		return Account{}, err
	case a.status == 400:
		return Account{Facts: []string{"a sending key"}}, nil
	}
	return Account{}, pausedFor(m.verdict(a, mailgunWords(a)))
}

// keeps implements keeper. A sending key may not read templates.
func (m *mailgun) keeps(ctx context.Context, do doer, template string) (bool, error) {
	key, err := m.cfg.APIKey.Read()
	if err != nil {
		return false, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	a, err := m.get(ctx, do, http.MethodGet, "/v3/"+url.PathEscape(m.cfg.Domain)+"/templates/"+url.PathEscape(template), key)
	switch {
	case err != nil:
		return false, err
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden:
		return false, ErrUnproven
	case a.status == http.StatusNotFound:
		return false, nil
	case !a.ok():
		return false, pausedFor(m.verdict(a, mailgunWords(a)))
	}
	return true, nil
}

// get makes a request that brings nothing.
func (m *mailgun) get(ctx context.Context, do doer, method, path, key string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, m.endpoint()+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.SetBasicAuth("api", key)
	return do(req)
}

func mailgunWords(a answer) (said mailgunSaid) {
	a.decode(&said)
	return said
}

func mailgunAccount(said mailgunDomain) (acc Account) {
	if state := said.Domain.State; state != "" {
		acc.Facts = append(acc.Facts, "domain "+state)
		if state != "active" {
			acc.Traps = append(acc.Traps, "the domain is "+state+": Mailgun sends nothing from it until its DNS records are verified")
		}
	}
	if said.Domain.Type == "sandbox" {
		acc.Traps = append(acc.Traps, "a sandbox domain: only authorised recipients get mail")
	}
	return acc
}
