package ingress

import (
	"crypto/rand"
	"errors"
	"strings"
	"time"

	"gatepost/compose"
	"gatepost/hook"
)

// templates is a set of package compose as the HTTP door uses it.
type templates struct{ *compose.Templates }

// NewTemplates returns t for an HTTP door.
func NewTemplates(t *compose.Templates) Templates { return templates{t} }

func (t templates) Fill(m *hook.Mail, from string, schemes []string) (*Filled, error) {
	r, err := composition(m, from)
	if err != nil {
		return nil, err
	}
	r.LinkSchemes = schemes
	mail, err := t.Render(r)
	if err != nil {
		return nil, invalid(err)
	}
	return &Filled{Type: mail.Type.Name, Unknown: mail.Unknown, Purpose: mail.Type.Purpose, Lifetime: mail.Type.Lifetime, From: mail.From, Raw: mail.Raw,
		Provided: mail.Provided, TooMuch: mail.TooMuch}, nil
}

func (t templates) Compose(m *hook.Mail, from string) (*Filled, error) {
	r, err := composition(m, from)
	if err != nil {
		return nil, err
	}
	r.Locales = compose.Locales(m.Rendered.Language)
	mail, err := t.Rendered(r, m.Rendered.Subject, m.Rendered.Text, m.Rendered.HTML)
	if err != nil {
		return nil, invalid(err)
	}
	return &Filled{From: mail.From, Raw: mail.Raw}, nil
}

// composition is what package compose is asked for.
func composition(m *hook.Mail, from string) (compose.Request, error) {
	sender, err := addressOf(from)
	return compose.Request{Type: m.Type, Locales: compose.Locales(m.Locales...), Variables: m.Variables, From: from, ReplyTo: m.ReplyTo,
		To: m.To.String(), MessageID: strings.ToLower(rand.Text()) + "@" + sender.Domain, Date: time.Now()}, err
}

// invalid makes the request's fault of what package compose says.
func invalid(err error) error {
	if bad, ok := errors.AsType[*compose.Error](err); ok {
		return &hook.Invalid{Field: bad.Field, Text: bad.Text}
	}
	return err
}
