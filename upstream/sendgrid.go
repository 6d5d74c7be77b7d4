package upstream

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
	"gatepost/reply"
)

const (
	sendgridSize       = 30 << 20 // octets of a request
	sendgridRecipients = 1000     // of a request
	sendgridQuota      = 15 * time.Minute
)

// sendgrid is Twilio SendGrid's API, POST /v3/mail/send: the service gets the pieces of the mail and builds it anew.
type sendgrid struct{ cfg *config.Upstream }

func newSendgrid(c *config.Upstream) *sendgrid { return &sendgrid{c} }

func (s *sendgrid) endpoint() string {
	switch {
	case s.cfg.Endpoint != "":
		return s.cfg.Endpoint
	case s.cfg.Region == "eu":
		return "https://api.eu.sendgrid.com"
	}
	return "https://api.sendgrid.com"
}

func (s *sendgrid) traits() Traits {
	return Traits{MaxSize: sendgridSize, MaxRecipients: sendgridRecipients, Captures: s.cfg.Sandbox}
}

func (s *sendgrid) caps() Caps {
	return Caps{EightBitMIME: true, Size: sendgridSize, MaxRecipients: sendgridRecipients}
}

// carries implements selective.
func (s *sendgrid) carries(m *message.Message) error {
	_, body, err := s.read(m.Raw, m.Kind)
	if err == nil {
		_, err = body.with(sendgridOwn{})
	}
	return err
}

// calls makes one request for each recipient of auth mail, and as few as the header allows for other mail.
func (s *sendgrid) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	key, err := s.cfg.APIKey.Read()
	if err != nil {
		return nil, err
	}
	l, m, err := s.read(wholeMail(wire), e.Kind)
	if err != nil {
		return nil, err
	}
	var calls []call
	for _, c := range l.Calls(e) {
		one, err := s.call(e, c, m, key)
		if err != nil {
			return nil, err
		}
		calls = append(calls, one)
	}
	return calls, nil
}

// call makes the request for the recipients of c.
func (s *sendgrid) call(e message.Envelope, c letter.Call, m jsonMail, key string) (call, error) {
	own := sendgridPersonalization{To: sendgridTo(c.To), Cc: sendgridTo(c.Cc), Bcc: sendgridTo(c.Bcc), Args: map[string]string{"gid": e.ID.String()}}
	if e.Provided != nil {
		own.Data = e.Provided.Variables
	}
	body, err := m.with(sendgridOwn{[]sendgridPersonalization{own}})
	return call{
		to:      positions(c),
		ask:     m.ask(s.endpoint()+"/v3/mail/send", map[string]string{"Authorization": "Bearer " + key}, body),
		meaning: func(a answer) []message.Verdict { return s.meaning(a, c) },
	}, err
}

// provided implements keeper. The subject is for a template that has none.
func (s *sendgrid) provided(e message.Envelope, wire net.Buffers) (call, error) {
	key, err := s.cfg.APIKey.Read()
	if err != nil {
		return call{}, err
	}
	l, err := letter.Read(wholeMail(wire))
	if err != nil {
		return call{}, err
	}
	about, err := s.about(l, e.Kind)
	if err != nil {
		return call{}, err
	}
	about.TemplateID = e.Provided.Template
	m, err := newJSONMail(sendgridSize, about, "", "", nil)
	if err != nil {
		return call{}, err
	}
	return s.call(e, l.Calls(e)[0], m, key)
}

// sendgridOwn is what the request for some of a mail's recipients has of its own.
type sendgridOwn struct {
	Personalizations []sendgridPersonalization `json:"personalizations"`
}

type sendgridPersonalization struct {
	To   []sendgridBox     `json:"to"`
	Cc   []sendgridBox     `json:"cc,omitempty"`
	Bcc  []sendgridBox     `json:"bcc,omitempty"`
	Args map[string]string `json:"custom_args"`
	Data json.RawMessage   `json:"dynamic_template_data,omitempty"`
}

type sendgridBox struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

// sendgridMail is what all requests for a mail share.
type sendgridMail struct {
	From        sendgridBox               `json:"from"`
	ReplyTo     *sendgridBox              `json:"reply_to,omitempty"`
	ReplyToList []sendgridBox             `json:"reply_to_list,omitempty"`
	Subject     string                    `json:"subject"`
	Content     []sendgridText            `json:"content,omitempty"`
	TemplateID  string                    `json:"template_id,omitempty"`
	Headers     map[string]string         `json:"headers,omitempty"`
	Categories  []string                  `json:"categories,omitempty"`
	IPPool      string                    `json:"ip_pool_name,omitempty"`
	Settings    map[string]sendgridSwitch `json:"mail_settings,omitempty"`
	Tracking    map[string]any            `json:"tracking_settings,omitempty"`
}

type sendgridText struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// sendgridFile is one of attachments; its content is the member that is missing here.
type sendgridFile struct {
	Type        string `json:"type"`
	Name        string `json:"filename"`
	Disposition string `json:"disposition"`
	ContentID   string `json:"content_id,omitempty"`
}

type sendgridSwitch struct {
	Enable bool `json:"enable"`
}

type sendgridClicks struct {
	Enable bool `json:"enable"`
	Text   bool `json:"enable_text"`
}

// read takes a mail apart and makes what its requests share. Its error is a *reply.Error where the service has no place
// for something in the mail.
func (s *sendgrid) read(raw message.Raw, kind message.Kind) (*letter.Letter, jsonMail, error) {
	l, err := letter.Read(raw)
	if err != nil {
		return nil, jsonMail{}, err
	}
	m, err := s.about(l, kind)
	if err != nil {
		return nil, jsonMail{}, err
	}
	if m.Content = sendgridContent(l); len(m.Content) == 0 {
		return nil, jsonMail{}, sendgridUnfit("without text")
	}
	files, err := sendgridFiles(l)
	if err != nil {
		return nil, jsonMail{}, err
	}
	shared, err := newJSONMail(sendgridSize, m, "attachments", "content", files)
	return l, shared, err
}

// about returns all that l has but its text and files.
func (s *sendgrid) about(l *letter.Letter, kind message.Kind) (sendgridMail, error) {
	m := sendgridMail{
		From: sendgridBox{l.From.Address, l.From.Name}, Subject: l.Subject,
		Categories: s.cfg.Categories, IPPool: s.cfg.IPPool, Settings: s.settings(kind), Tracking: s.tracking(kind),
	}
	switch boxes := uniqueBoxes(l.ReplyTo); len(boxes) {
	case 0:
	case 1:
		m.ReplyTo = &sendgridBox{boxes[0].Address, boxes[0].Name}
	default:
		for _, b := range boxes {
			m.ReplyToList = append(m.ReplyToList, sendgridBox{b.Address, b.Name})
		}
	}
	return m, m.fill(l)
}

// sendgridUnfit is the refusal of a mail that the service does not take.
func sendgridUnfit(format string, a ...any) error {
	return reply.New(554, "5.6.3", "SendGrid takes no mail "+format, a...)
}

// fill takes in what the service does not take in every form.
func (m *sendgridMail) fill(l *letter.Letter) error {
	if l.Subject == "" {
		return sendgridUnfit("without a subject")
	}
	m.Headers = map[string]string{}
	seen := map[string]bool{}
	for _, f := range l.Header {
		if name := strings.ToLower(f.Name); seen[name] {
			return sendgridUnfit("with more than one %s field", name)
		} else {
			seen[name] = true
		}
		m.Headers[f.Name] = f.Value
	}
	return nil
}

func sendgridFiles(l *letter.Letter) ([]jsonFile, error) {
	var files []jsonFile
	for _, f := range l.Files {
		if len(f.Data) == 0 {
			return nil, sendgridUnfit("with an empty file")
		}
		about := sendgridFile{Type: f.Type, Name: strings.ReplaceAll(f.Name, ";", "_"), Disposition: "attachment"}
		if f.Inline {
			about.Disposition, about.ContentID = "inline", f.CID
		}
		files = append(files, jsonFile{about, f.Data})
	}
	return files, nil
}

// sendgridContent returns the text in the order that the service wants: plain, HTML, whatever else.
func sendgridContent(l *letter.Letter) []sendgridText {
	var all []sendgridText
	if l.Text != "" {
		all = append(all, sendgridText{"text/plain", l.Text})
	}
	if l.HTML != "" {
		all = append(all, sendgridText{"text/html", l.HTML})
	}
	for _, a := range l.Alternatives {
		kind := a.Type
		if a.Method != "" && strings.Trim(strings.ToUpper(a.Method), "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") == "" {
			kind += "; method=" + a.Method // the one parameter that is taken
		}
		all = append(all, sendgridText{kind, a.Text})
	}
	return all
}

// settings says how a mail is to be treated. A sign-in code reaches who has unsubscribed from everything.
func (s *sendgrid) settings(kind message.Kind) map[string]sendgridSwitch {
	settings := map[string]sendgridSwitch{}
	if kind == message.Auth {
		settings["bypass_unsubscribe_management"] = sendgridSwitch{true}
	}
	if s.cfg.Sandbox {
		settings["sandbox_mode"] = sendgridSwitch{true}
	}
	return settings
}

// tracking says what the service may put into a mail. In auth mail that is nothing.
func (s *sendgrid) tracking(kind message.Kind) map[string]any {
	switch {
	case kind == message.Auth || s.cfg.Tracking == "off":
		return map[string]any{"click_tracking": sendgridClicks{}, "open_tracking": sendgridSwitch{}, "subscription_tracking": sendgridSwitch{}, "ganalytics": sendgridSwitch{}}
	case s.cfg.Tracking == "on":
		return map[string]any{"click_tracking": sendgridClicks{Enable: true}, "open_tracking": sendgridSwitch{true}}
	}
	return nil
}

// sendgridTo makes boxes of recipients. The service does not quote the names of these as it does others.
func sendgridTo(recipients []letter.Recipient) []sendgridBox {
	var boxes []sendgridBox
	for _, r := range recipients {
		name := r.Name
		if strings.ContainsAny(name, ",;") {
			name = quoted(name)
		}
		boxes = append(boxes, sendgridBox{r.Address.Address, name})
	}
	return boxes
}

// sendgridSaid is what the service says of a request that it does not take.
type sendgridSaid struct {
	Errors []sendgridError `json:"errors"`
}

type sendgridError struct {
	Message string `json:"message"`
	Field   string `json:"field"`
}

func (s sendgridSaid) words() string {
	var all []string
	for _, e := range s.Errors {
		all = append(all, e.Message)
	}
	return strings.Join(all, "; ")
}

// meaning follows SendGrid's statuses and the fields that its errors are about; its words decide only what a 401 is
// about.
//
//	202                                     accepted
//	200  in the sandbox                     accepted      captured
//	200                                     unknown       upstream   it says so of mail that it only looks at
//	400  personalizations.0.to.N and so on  permanent     recipient  of that one; the others have another turn
//	400  what the config sets               unauthorised  upstream   or a typing error there would bounce every mail
//	400  another field                      permanent     message
//	401  "credits exceeded"                 throttled     upstream
//	403  template_id                        permanent     message
//	403  from                               unauthorised  domain
//	415                                     permanent     message
//	429                                     throttled     upstream   until X-RateLimit-Reset
func (s *sendgrid) meaning(a answer, c letter.Call) []message.Verdict {
	var said sendgridSaid
	a.decode(&said)
	if a.status == http.StatusBadRequest && len(said.Errors) > 0 {
		return s.refusal(a, said, c)
	}
	return []message.Verdict{s.verdict(a, said)}
}

func (s *sendgrid) verdict(a answer, said sendgridSaid) message.Verdict {
	is := func(field string) bool {
		return slices.ContainsFunc(said.Errors, func(e sendgridError) bool { return e.Field == field || strings.HasPrefix(e.Field, field+".") })
	}
	switch {
	case a.status == http.StatusAccepted:
		return a.accepted(a.header.Get("X-Message-Id"))
	case a.status == http.StatusOK && s.cfg.Sandbox && !a.isPage():
		return message.Verdict{Class: message.Accepted, Code: a.status, Text: "looked at in sandbox mode, delivered to nobody"}
	case a.ok():
		v := upstreamDown(message.Unknown, fmt.Sprintf("%d, which SendGrid answers in sandbox mode only", a.status))
		v.Alarm = "SendGrid says that it has only looked at the mail: is endpoint right?"
		return v
	case a.status == http.StatusUnauthorized && strings.Contains(strings.ToLower(said.words()), "credits exceeded"):
		v := a.as(message.Throttled, message.ScopeUpstream, "", said.words())
		v.RetryAfter, v.Alarm = max(v.RetryAfter, sendgridQuota), "the credits of the SendGrid account are used up"
		return v
	case a.status == http.StatusForbidden && is("template_id"):
		return a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.words())
	case a.status == http.StatusForbidden && is("from"):
		return a.as(message.Unauthorised, message.ScopeDomain, "", said.words())
	case a.status == http.StatusUnsupportedMediaType && len(said.Errors) > 0:
		return a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.words())
	case a.status == http.StatusTooManyRequests:
		v := a.as(message.Throttled, message.ScopeUpstream, "", said.words())
		v.RetryAfter = sendgridReset(a.header.Get("X-RateLimit-Reset"), v.RetryAfter, time.Now())
		return v
	}
	return a.verdict(said.words())
}

// sendgridConfigured are the fields of a request that come from the config and not from the mail.
var sendgridConfigured = []string{"ip_pool_name", "categories", "mail_settings", "tracking_settings", "asm"}

// refusal says what a 400 means for each recipient of the request.
func (s *sendgrid) refusal(a answer, said sendgridSaid, c letter.Call) []message.Verdict {
	refused := map[int]bool{}
	for _, e := range said.Errors {
		top, _, _ := strings.Cut(e.Field, ".")
		if slices.Contains(sendgridConfigured, top) {
			v := a.as(message.Unauthorised, message.ScopeUpstream, "", said.words())
			v.Alarm = "SendGrid does not take what the config sets: " + top
			return []message.Verdict{v}
		}
		i, ok := sendgridRecipient(e.Field, c)
		if !ok {
			return []message.Verdict{a.as(message.Permanent, message.ScopeMessage, "5.6.0", said.words())}
		}
		refused[i] = true
	}
	v := a.as(message.Permanent, message.ScopeRecipient, "5.1.3", said.words())
	return refusedOnly(v, c.All(), func(i int, _ letter.Recipient) bool { return refused[i] })
}

// sendgridRecipient returns which recipient of c a field such as "personalizations.0.cc.1.email" is about.
func sendgridRecipient(field string, c letter.Call) (i int, ok bool) {
	parts := strings.Split(field, ".")
	if len(parts) < 4 || parts[0] != "personalizations" {
		return 0, false
	}
	n, err := strconv.Atoi(parts[3])
	for _, list := range []struct {
		name       string
		recipients []letter.Recipient
	}{{"to", c.To}, {"cc", c.Cc}, {"bcc", c.Bcc}} {
		if parts[2] == list.name {
			return i + n, err == nil && n >= 0 && n < len(list.recipients)
		}
		i += len(list.recipients)
	}
	return 0, false
}

// sendgridReset returns how long to wait after a 429: until the unix time in the header, else what Retry-After asked for.
func sendgridReset(header string, after time.Duration, now time.Time) time.Duration {
	at, err := strconv.ParseInt(strings.TrimSpace(header), 10, 64)
	if err != nil || at <= 0 {
		return after
	}
	return min(max(time.Unix(at, 0).Sub(now), 0), maxRetryAfter)
}

// get reads something of the account. Its error is *Paused, or do's.
func (s *sendgrid) get(ctx context.Context, do doer, path string) (answer, error) {
	key, err := s.cfg.APIKey.Read()
	if err != nil {
		return answer{}, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.endpoint()+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	return do(req)
}

// keeps implements keeper.
func (s *sendgrid) keeps(ctx context.Context, do doer, template string) (bool, error) {
	a, err := s.get(ctx, do, "/v3/templates/"+url.PathEscape(template))
	switch {
	case err != nil:
		return false, err
	case a.status == http.StatusUnauthorized, a.status == http.StatusForbidden: // the scope templates.read is not needed to send
		return false, ErrUnproven
	case a.status == http.StatusNotFound:
		return false, nil
	case !a.ok():
		return false, pausedFor(a.verdict(""))
	}
	return true, nil
}

// check reads what the key may do.
func (s *sendgrid) check(ctx context.Context, do doer) (Account, error) {
	a, err := s.get(ctx, do, "/v3/scopes")
	if err != nil {
		return Account{}, err
	}
	var said struct {
		sendgridSaid
		Scopes []string `json:"scopes"`
	}
	a.decode(&said)
	switch {
	case a.status == http.StatusForbidden:
		return Account{}, ErrUnproven
	case !a.ok():
		v := s.verdict(a, said.sendgridSaid)
		return Account{}, &Paused{Verdict: v, RetryAfter: v.RetryAfter}
	case a.isPage() || len(said.Scopes) == 0:
		return Account{}, &Paused{Verdict: upstreamDown(message.Temporary, "check call: the answer lists no scopes")}
	case !slices.Contains(said.Scopes, "mail.send"):
		return Account{}, &Paused{Verdict: a.as(message.Unauthorised, message.ScopeUpstream, "", "the key lacks the scope mail.send")}
	}
	return s.account(said.Scopes), nil
}

func (s *sendgrid) account(scopes []string) (acc Account) {
	acc.Facts = append(acc.Facts, fmt.Sprintf("the key may send (%d scopes)", len(scopes)))
	if s.cfg.Sandbox {
		acc.Traps = append(acc.Traps, "sandbox is on: SendGrid looks at mail and delivers none of it")
	}
	return acc
}
