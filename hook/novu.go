package hook

import (
	"net/http"
	"strings"
	"time"
)

// novu is the email-webhook provider of Novu. Its requests are whole mails.
type novu struct{}

func (novu) Retries() bool            { return true }
func (novu) Answer(a Answer) Response { return plainly(a) }

func (novu) Verify(h http.Header, body []byte, keys []string, _ time.Time) error {
	return verifyNovu(h, body, keys)
}

func (novu) Parse(body []byte) ([]Mail, error) {
	var r struct {
		To          []string `json:"to"`
		From        string   `json:"from"`
		Subject     string   `json:"subject"`
		HTML        string   `json:"html"`
		Text        string   `json:"text"`
		ReplyTo     string   `json:"replyTo"`
		SenderName  string   `json:"senderName"`
		Cc          any      `json:"cc"`
		Bcc         any      `json:"bcc"`
		Attachments []any    `json:"attachments"`
	}
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if len(r.To) != 1 {
		return nil, invalid("to", "must name one address")
	}
	to, err := address("to", r.To[0])
	switch {
	case err != nil:
		return nil, err
	case !isEmpty(r.Cc), !isEmpty(r.Bcc):
		return nil, invalid("cc or bcc", "is not supported: each mail has one recipient")
	case len(r.Attachments) > 0:
		return nil, invalid("attachments", "are not supported")
	case clean(r.Subject, maxSubject) == "":
		return nil, invalid("subject", "is missing")
	case strings.TrimSpace(r.HTML+r.Text) == "":
		return nil, invalid("html", "is missing")
	}
	m := Mail{To: to, From: sender(r.From, r.SenderName), ReplyTo: r.ReplyTo,
		Rendered: &Rendered{Subject: clean(r.Subject, maxSubject), Text: r.Text, HTML: r.HTML}}
	m.of(noticeType)
	return []Mail{m}, nil
}

// isEmpty reports whether a JSON value names nobody.
func isEmpty(v any) bool {
	list, isList := v.([]any)
	return v == nil || v == "" || isList && len(list) == 0
}

// sender joins an address and the name that goes with it.
func sender(from, name string) string {
	if from == "" || name == "" || strings.Contains(from, "<") {
		return from
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(clean(name, 256)) + `" <` + from + ">"
}
