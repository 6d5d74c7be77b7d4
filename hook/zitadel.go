package hook

import (
	"net/http"
	"strings"
	"time"
)

// zitadel is the HTTP email provider of Zitadel. It has translated and filled in its texts already; we give them a form.
type zitadel struct{ links links }

func (zitadel) Retries() bool            { return true }
func (zitadel) Answer(a Answer) Response { return plainly(a) }

func (zitadel) Verify(h http.Header, body []byte, keys []string, now time.Time) error {
	return verifyZitadel(h, body, keys, now)
}

func (z zitadel) Parse(body []byte) ([]Mail, error) {
	var r struct {
		Context struct {
			EventType string `json:"eventType"`
			Recipient string `json:"recipientEmailAddress"`
		} `json:"contextInfo"`
		Template form `json:"templateData"`
	}
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	if err := r.Template.plain(); err != nil {
		return nil, err
	}
	to, err := address("contextInfo.recipientEmailAddress", r.Context.Recipient)
	switch {
	case err != nil:
		return nil, err
	case clean(r.Template.Subject, maxSubject) == "":
		return nil, invalid("templateData.subject", "is missing")
	case strings.TrimSpace(r.Template.Text) == "":
		return nil, invalid("templateData.text", "is missing")
	}
	if r.Template.URL != "" {
		if err := z.links.check("templateData.url", r.Template.URL); err != nil {
			return nil, err
		}
	}
	m := Mail{To: to, Rendered: r.Template.render()}
	m.of(zitadelType(r.Context.EventType))
	return []Mail{m}, nil
}

// zitadelType tells by the event that a mail is about what it is for.
func zitadelType(event string) string {
	has := func(word string) bool { return strings.Contains(event, word) }
	switch {
	case has("invite"), has("initialization"):
		return organizationInvitation
	case has("otp"):
		return mfaVerification
	case has("password.code"):
		return forgotPassword
	case has("email.code"):
		return bindNewIdentifier
	case strings.HasSuffix(event, "code.added"), has("challenged"):
		return generic
	}
	return noticeType
}
