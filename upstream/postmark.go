package upstream

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	netmail "net/mail"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"gatepost/config"
	"gatepost/letter"
	"gatepost/message"
	"gatepost/reply"
)

const (
	postmarkSize       = 10 << 20 // octets of a request
	postmarkText       = 5 << 20  // octets of plain text, and of HTML
	postmarkRecipients = 50       // of a request
	postmarkQuota      = 15 * time.Minute
)

// postmark is Postmark's API, POST /email: the service gets the pieces of the mail and builds it anew.
type postmark struct {
	cfg     *config.Upstream
	testing atomic.Bool // the token is the one for tests
	sandbox atomic.Bool // the token's server delivers nothing; known once it was asked
}

func newPostmark(c *config.Upstream) *postmark {
	s := &postmark{cfg: c}
	s.token() // an error is told when a mail wants it
	return s
}

// token reads the credentials, and notes whether they are those for tests.
func (s *postmark) token() (string, error) {
	token, err := s.cfg.ServerToken.Read()
	if err == nil {
		s.testing.Store(token == config.PostmarkTestToken)
	}
	return token, err
}

func (s *postmark) endpoint() string {
	if s.cfg.Endpoint != "" {
		return s.cfg.Endpoint
	}
	return "https://api.postmarkapp.com"
}

func (s *postmark) traits() Traits {
	return Traits{MaxSize: postmarkSize, MaxRecipients: postmarkRecipients, Captures: s.testing.Load() || s.sandbox.Load()}
}

func (s *postmark) caps() Caps {
	return Caps{EightBitMIME: true, Size: postmarkSize, MaxRecipients: postmarkRecipients}
}

// carries implements selective.
func (s *postmark) carries(m *message.Message) error {
	_, body, err := s.read(m.Raw, message.Envelope{Kind: m.Kind})
	if err == nil {
		_, err = body.with(postmarkOwn{})
	}
	return err
}

// toMeet implements acquaintance: a server of type Sandbox takes mail as any other does.
func (s *postmark) toMeet() bool { return !s.testing.Load() }

// calls makes one request for each recipient of auth mail, and as few as the header allows for other mail.
func (s *postmark) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	token, err := s.token()
	if err != nil {
		return nil, err
	}
	l, m, err := s.read(wholeMail(wire), e)
	if err != nil {
		return nil, err
	}
	var calls []call
	for _, c := range l.Calls(e) {
		one, err := s.call(e, c, m, "/email", token)
		if err != nil {
			return nil, err
		}
		calls = append(calls, one)
	}
	return calls, nil
}

// call makes the request for the recipients of c.
func (s *postmark) call(e message.Envelope, c letter.Call, m jsonMail, path, token string) (call, error) {
	body, err := m.with(postmarkOwn{To: postmarkTo(c.To), Cc: postmarkTo(c.Cc), Bcc: postmarkTo(c.Bcc)})
	return call{
		to:      positions(c),
		ask:     m.ask(s.endpoint()+path, map[string]string{"X-Postmark-Server-Token": token}, body),
		meaning: func(a answer) []message.Verdict { return s.meaning(a, e.Kind, c) },
	}, err
}

// provided implements keeper: POST /email/withTemplate.
func (s *postmark) provided(e message.Envelope, wire net.Buffers) (call, error) {
	token, err := s.token()
	if err != nil {
		return call{}, err
	}
	l, err := letter.Read(wholeMail(wire))
	if err != nil {
		return call{}, err
	}
	m, err := newJSONMail(postmarkSize, postmarkProvided{s.about(l, e), postmarkTemplateOf(e.Provided)}, "", "", nil)
	if err != nil {
		return call{}, err
	}
	return s.call(e, l.Calls(e)[0], m, "/email/withTemplate", token)
}

// postmarkProvided is a mail that the service makes of a template: subject and text are that's.
type postmarkProvided struct {
	postmarkMail
	postmarkTemplate
}

type postmarkTemplate struct {
	ID    int64           `json:"TemplateId,omitempty"`
	Alias string          `json:"TemplateAlias,omitempty"`
	Model json.RawMessage `json:"TemplateModel"`
}

// postmarkTemplateOf names p by its id where that is a number: an alias begins with a letter.
func postmarkTemplateOf(p *message.Provided) postmarkTemplate {
	if id, err := strconv.ParseInt(p.Template, 10, 64); err == nil {
		return postmarkTemplate{ID: id, Model: p.Variables}
	}
	return postmarkTemplate{Alias: p.Template, Model: p.Variables}
}

// postmarkOwn is what the request for some of a mail's recipients has of its own.
type postmarkOwn struct {
	To  string
	Cc  string `json:",omitempty"`
	Bcc string `json:",omitempty"`
}

// postmarkMail is what all requests for a mail share.
type postmarkMail struct {
	From          string
	ReplyTo       string            `json:",omitempty"`
	Subject       *string           `json:",omitempty"`
	TextBody      string            `json:",omitempty"`
	HTMLBody      string            `json:"HtmlBody,omitempty"`
	MessageStream string            `json:",omitempty"`
	Tag           string            `json:",omitempty"`
	Metadata      map[string]string `json:",omitempty"`
	TrackOpens    *bool             `json:",omitempty"`
	TrackLinks    string            `json:",omitempty"`
	Headers       []postmarkField   `json:",omitempty"`
}

type postmarkField struct{ Name, Value string }

// postmarkFile is one of Attachments; its Content is the member that is missing here.
type postmarkFile struct {
	Name        string
	ContentType string
	ContentID   string `json:",omitempty"`
}

// read takes a mail apart and makes what its requests share. Its error is a *reply.Error where the service has no place
// for something in the mail.
func (s *postmark) read(raw message.Raw, e message.Envelope) (*letter.Letter, jsonMail, error) {
	l, err := letter.Read(raw)
	if err != nil {
		return nil, jsonMail{}, err
	}
	m := s.about(l, e)
	m.Subject, m.TextBody, m.HTMLBody = &l.Subject, l.Text, l.HTML
	files, err := postmarkFiles(l)
	if err != nil {
		return nil, jsonMail{}, err
	}
	shared, err := newJSONMail(postmarkSize, m, "Attachments", "Content", files)
	return l, shared, err
}

// about returns all that l has but its words and files.
func (s *postmark) about(l *letter.Letter, e message.Envelope) postmarkMail {
	m := postmarkMail{From: boxText(l.From), ReplyTo: boxesText(uniqueBoxes(l.ReplyTo)),
		MessageStream: s.cfg.MessageStream, Tag: s.cfg.Tag, Metadata: s.metadata(e), Headers: s.headers(l)}
	m.track(e.Kind, s.cfg.Tracking)
	return m
}

// metadata returns what events about the mail will carry: the spool's id, and what the config has.
func (s *postmark) metadata(e message.Envelope) map[string]string {
	all := map[string]string{}
	for _, pair := range s.cfg.Metadata {
		name, value, _ := strings.Cut(pair, "=")
		all[name] = value
	}
	all["gid"] = e.ID.String()
	return all
}

// headers returns the fields of their own. Postmark puts its own Message-ID over ours unless it is told to keep that.
func (s *postmark) headers(l *letter.Letter) []postmarkField {
	var all []postmarkField
	for _, f := range l.Header {
		isID := strings.EqualFold(f.Name, "Message-ID")
		if isID && !s.cfg.KeepID {
			continue
		}
		all = append(all, postmarkField{f.Name, f.Value})
		if isID {
			all = append(all, postmarkField{"X-PM-KeepID", "true"})
		}
	}
	return all
}

// track says what the service may put into the mail. In auth mail that is nothing.
func (m *postmarkMail) track(kind message.Kind, tracking string) {
	switch {
	case kind == message.Auth || tracking == "off":
		m.TrackOpens, m.TrackLinks = new(false), "None"
	case tracking == "on":
		m.TrackOpens, m.TrackLinks = new(true), "HtmlAndText"
	}
}

// postmarkFiles returns the files, of which an invitation is one. Its error says what the service does not take.
func postmarkFiles(l *letter.Letter) ([]jsonFile, error) {
	all := slices.Clip(l.Files)
	for _, a := range l.Alternatives {
		if a.Type != "text/calendar" {
			return nil, reply.New(554, "5.6.3", "Postmark takes no mail with an alternative text other than HTML")
		}
		all = append(all, a.File())
	}
	switch {
	case l.Text == "" && l.HTML == "":
		return nil, reply.New(554, "5.6.3", "Postmark takes no mail without text")
	case max(len(l.Text), len(l.HTML)) > postmarkText:
		return nil, reply.New(552, "5.3.4", "The text of the message has more than the %d octets that Postmark takes", postmarkText)
	}
	var files []jsonFile
	for _, f := range all {
		about := postmarkFile{Name: f.Name, ContentType: f.Type}
		if f.Inline {
			about.ContentID = "cid:" + f.CID
		}
		files = append(files, jsonFile{about, f.Data})
	}
	return files, nil
}

func postmarkTo(recipients []letter.Recipient) string {
	var boxes []netmail.Address
	for _, r := range recipients {
		boxes = append(boxes, r.Address)
	}
	return boxesText(boxes)
}

// postmarkSaid is what the service says of a request, taken or not.
type postmarkSaid struct {
	ErrorCode int
	Message   string
	MessageID string
}

// meaning follows Postmark's error codes, which come with status 422 but for a few; its words decide only whose address
// a request is about that has several.
//
//	200  0 or none                          accepted      but for those that the words name as inactive
//	     10                                 unauthorised  upstream
//	     100                                temporary     upstream   maintenance
//	     300  about To, Cc or Bcc           permanent     recipient
//	     300, 402, 403, 409, 411            permanent     message
//	     400, 401                           unauthorised  domain     the sender is not known, or not confirmed
//	     405                                throttled     upstream   out of credits
//	     406                                permanent     recipient  on its list of bounces and complaints; auth: message
//	     412                                permanent     message    a new account: to its own domain only
//	     413, 1200 to 1299                  unauthorised  upstream   may not send; no such message stream
//	     429                                throttled     upstream
func (s *postmark) meaning(a answer, kind message.Kind, c letter.Call) []message.Verdict {
	var said postmarkSaid
	a.decode(&said)
	inactive := a.as(message.Permanent, message.ScopeRecipient, "5.7.1", said.Message)
	if kind == message.Auth {
		inactive.Scope = message.ScopeMessage // on the service's own list: another one may deliver
	}
	switch {
	case a.ok() && said.ErrorCode == 0:
		vs := a.accepted(said.MessageID).Verdicts(len(c.All()))
		for i, r := range c.All() {
			if vs[i].Class == message.Accepted && postmarkNames(postmarkInactive, said.Message, r) {
				vs[i] = inactive
			}
		}
		return vs
	case said.ErrorCode == 406:
		return []message.Verdict{inactive}
	case said.ErrorCode == 300 && postmarkAddress.MatchString(said.Message):
		v := a.as(message.Permanent, message.ScopeRecipient, "5.1.3", said.Message)
		all := c.All()
		if len(all) > 1 && !slices.ContainsFunc(all, func(r letter.Recipient) bool { return postmarkNames(postmarkAddress, said.Message, r) }) {
			v.Scope = message.ScopeMessage
			return []message.Verdict{v}
		}
		return refusedOnly(v, all, func(_ int, r letter.Recipient) bool {
			return len(all) == 1 || postmarkNames(postmarkAddress, said.Message, r)
		})
	}
	return []message.Verdict{s.verdict(a, said)}
}

// Where Postmark's words name addresses of a request.
var (
	postmarkInactive = regexp.MustCompile(`(?is)inactive addresses:(.*)`)
	postmarkAddress  = regexp.MustCompile(`(?is)^(?:invalid|error\s+parsing)\s+'(?:to|cc|bcc)'(.*)`)
)

// postmarkNames reports whether the words name r in that place.
func postmarkNames(place *regexp.Regexp, words string, r letter.Recipient) bool {
	found := place.FindStringSubmatch(words)
	return found != nil && slices.ContainsFunc(strings.FieldsFunc(found[1], func(c rune) bool { return strings.ContainsRune(" ,;'\"<>\r\n\t", c) }),
		func(word string) bool { return strings.EqualFold(strings.TrimRight(word, "."), r.Address.Address) })
}

// noStream reports whether an error code is about message streams: that there is none of that name, or none for sending.
func noStream(code int) bool { return code >= 1200 && code < 1300 }

func (s *postmark) verdict(a answer, said postmarkSaid) message.Verdict {
	as := func(class message.Class, scope message.Scope, enhanced string) message.Verdict {
		return a.as(class, scope, enhanced, said.Message)
	}
	switch code := said.ErrorCode; {
	case code == 10, code == 413, noStream(code):
		return as(message.Unauthorised, message.ScopeUpstream, "")
	case code == 100:
		return as(message.Temporary, message.ScopeUpstream, "")
	case code == 300, code == 402, code == 403, code == 409, code == 411:
		return as(message.Permanent, message.ScopeMessage, "5.6.0")
	case code == 400, code == 401:
		return as(message.Unauthorised, message.ScopeDomain, "")
	case code == 405:
		v := as(message.Throttled, message.ScopeUpstream, "")
		v.RetryAfter, v.Alarm = max(v.RetryAfter, postmarkQuota), "the credits of the Postmark account are used up"
		return v
	case code == 412:
		v := as(message.Permanent, message.ScopeMessage, "5.7.1")
		v.Alarm = "the Postmark account waits for approval: it sends to its own domain only"
		return v
	case code == 429:
		return as(message.Throttled, message.ScopeUpstream, "")
	}
	return a.verdict(said.Message)
}

// postmarkServer is what Postmark tells of the server that a token belongs to.
type postmarkServer struct {
	postmarkSaid
	Name         string
	DeliveryType string
	TrackOpens   bool
}

// postmarkStream is what it tells of a message stream.
type postmarkStream struct {
	postmarkSaid
	MessageStreamType string
	ArchivedAt        string
}

// check reads the server and the message stream. The token for tests has none.
func (s *postmark) check(ctx context.Context, do doer) (Account, error) {
	token, err := s.token()
	if err != nil {
		return Account{}, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	if token == config.PostmarkTestToken {
		return Account{Traps: []string{"the token is " + config.PostmarkTestToken + ": Postmark looks at mail and delivers none of it"}}, nil
	}
	a, err := s.get(ctx, do, token, "/server")
	if err != nil {
		return Account{}, err
	}
	var server postmarkServer
	a.decode(&server)
	switch {
	case !a.ok():
		return Account{}, s.paused(a, server.postmarkSaid)
	case a.isPage() || server.Name == "" && server.DeliveryType == "":
		return Account{}, &Paused{Verdict: upstreamDown(message.Temporary, "check call: the answer tells of no server")}
	}
	if a, err = s.get(ctx, do, token, "/message-streams/"+url.PathEscape(s.cfg.MessageStream)); err != nil {
		return Account{}, err
	}
	var stream postmarkStream
	a.decode(&stream)
	if noStream(stream.ErrorCode) {
		return Account{}, s.paused(a, stream.postmarkSaid)
	}
	return s.account(server, stream), nil
}

func (s *postmark) get(ctx context.Context, do doer, token, path string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.endpoint()+path, nil)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("X-Postmark-Server-Token", token)
	return do(req)
}

// keeps implements keeper. 1101 says that there is no such template.
func (s *postmark) keeps(ctx context.Context, do doer, template string) (bool, error) {
	token, err := s.token()
	if err != nil {
		return false, &Paused{Verdict: upstreamDown(message.Unauthorised, err.Error())}
	}
	if token == config.PostmarkTestToken {
		return false, ErrUnproven
	}
	a, err := s.get(ctx, do, token, "/templates/"+url.PathEscape(template))
	var said postmarkSaid
	a.decode(&said)
	switch {
	case err != nil:
		return false, err
	case said.ErrorCode == 1101 || a.status == http.StatusNotFound:
		return false, nil
	case !a.ok():
		return false, s.paused(a, said)
	}
	return true, nil
}

// paused makes of an answer what it means for the account: no mail was concerned.
func (s *postmark) paused(a answer, said postmarkSaid) *Paused {
	v := s.verdict(a, said)
	v.Scope = message.ScopeUpstream
	return &Paused{Verdict: v, RetryAfter: v.RetryAfter}
}

func (s *postmark) account(server postmarkServer, stream postmarkStream) (acc Account) {
	acc.Facts = append(acc.Facts, "server "+server.Name)
	if stream.MessageStreamType != "" {
		acc.Facts = append(acc.Facts, "message stream of type "+stream.MessageStreamType)
	}
	s.sandbox.Store(server.DeliveryType == "Sandbox")
	if s.sandbox.Load() {
		acc.Traps = append(acc.Traps, "a sandbox server: Postmark looks at mail and delivers none of it")
	}
	if server.TrackOpens {
		acc.Traps = append(acc.Traps, "the server tracks opens, which a message cannot switch off: switch it off in the server's settings")
	}
	if stream.ArchivedAt != "" {
		acc.Traps = append(acc.Traps, "the message stream "+s.cfg.MessageStream+" is archived")
	}
	return acc
}
