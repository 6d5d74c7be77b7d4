package hook

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"gatepost/message"
)

// native is gatepost's own form, for callers that can be written to fit: POST /v1/send.
type native struct{ unsigned }

func (native) Retries() bool { return false }

// nativeRequest holds one of type, subject and raw.
type nativeRequest struct {
	To          string         `json:"to"`
	From        string         `json:"from"`
	ReplyTo     string         `json:"reply_to"`
	Type        string         `json:"type"`
	Locale      string         `json:"locale"`
	Locales     []string       `json:"locales"`
	Variables   map[string]any `json:"variables"`
	Subject     string         `json:"subject"`
	Text        string         `json:"text"`
	HTML        string         `json:"html"`
	Raw         string         `json:"raw"`
	Purpose     string         `json:"purpose"`
	TTL         string         `json:"ttl"`
	Application string         `json:"application"`
	IP          string         `json:"ip"`
}

func (native) Answer(a Answer) Response {
	r := plainly(a)
	if r.JSON == nil {
		r.JSON = map[string]string{"error": a.Text}
	}
	return r
}

func (native) Parse(body []byte) ([]Mail, error) {
	var r nativeRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	to, err := address("to", r.To)
	if err != nil {
		return nil, err
	}
	m := Mail{To: to, From: r.From, ReplyTo: r.ReplyTo, Application: clean(r.Application, 128), IP: personIP(r.IP),
		Locales: locales(slices.Concat([]string{r.Locale}, r.Locales[:min(len(r.Locales), maxLocales)])...)}
	m.of(noticeType)
	for _, fill := range []func(*Mail) error{r.content, r.words, r.lifetime} {
		if err := fill(&m); err != nil {
			return nil, err
		}
	}
	return []Mail{m}, nil
}

// content fills in the one of the three forms that the request has.
func (r *nativeRequest) content(m *Mail) error {
	switch {
	case (r.Type != "") == (r.Raw != "" || r.Subject != "") || r.Raw != "" && r.Subject != "":
		return invalid("type", "or subject or raw: exactly one of them says what the mail is")
	case r.Raw != "":
		return r.raw(m)
	case r.Type != "":
		if r.Text != "" || r.HTML != "" {
			return invalid("text", "and html go with subject, not with type")
		}
		if m.Variables = r.Variables; m.Variables == nil {
			m.Variables = map[string]any{}
		}
		m.Type, m.Purpose, m.TTL = clean(r.Type, maxType), "", 0
		return nil
	}
	return nil
}

// words fills in mail that the request has rendered.
func (r *nativeRequest) words(m *Mail) error {
	if r.Subject == "" {
		return nil
	}
	subject := clean(r.Subject, maxSubject)
	switch {
	case subject == "":
		return invalid("subject", "is empty")
	case strings.TrimSpace(r.Text+r.HTML) == "":
		return invalid("text", "and html are both missing")
	}
	m.Rendered = &Rendered{Subject: subject, Text: r.Text, HTML: r.HTML}
	if len(m.Locales) > 0 {
		m.Rendered.Language = m.Locales[0]
	}
	return nil
}

// raw takes a whole message (RFC 5322). Lines may end in LF alone, all of them.
func (r *nativeRequest) raw(m *Mail) error {
	raw, err := base64.StdEncoding.DecodeString(r.Raw)
	if err != nil {
		return invalid("raw", "is not base64")
	}
	crlf := bytes.Count(raw, []byte("\r\n"))
	if crlf == 0 {
		raw = bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n"))
		crlf = bytes.Count(raw, []byte("\r\n"))
	}
	switch {
	case len(raw) == 0 || bytes.IndexByte(raw, 0) >= 0:
		return invalid("raw", "is empty or has a NUL in it")
	case bytes.Count(raw, []byte("\n")) != crlf || bytes.Count(raw, []byte("\r")) != crlf:
		return invalid("raw", "has a bare CR or LF in it")
	}
	m.Raw = message.Raw(raw)
	if !bytes.HasSuffix(raw, []byte("\r\n")) {
		m.Raw = append(m.Raw, "\r\n"...)
	}
	return nil
}

// lifetime fills in what the request says about how long the mail is worth sending: never longer than its purpose.
func (r *nativeRequest) lifetime(m *Mail) error {
	switch {
	case r.Purpose == "":
	case m.Variables != nil:
		return invalid("purpose", "goes with subject and raw: a type has its own")
	case r.Purpose == code, r.Purpose == invitation, r.Purpose == notice:
		m.as(r.Purpose)
	default:
		return invalid("purpose", "is none of code, invitation and notice")
	}
	if r.TTL == "" {
		return nil
	}
	ttl, err := time.ParseDuration(r.TTL)
	if err != nil || ttl < time.Second {
		return invalid("ttl", `is not a duration such as "10m"`)
	}
	if m.TTL == 0 || ttl < m.TTL {
		m.TTL = ttl
	}
	return nil
}
