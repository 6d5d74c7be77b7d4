package hook

import (
	"bytes"
	"crypto/rand"
	"fmt"
	netmail "net/mail"
	"strings"

	"github.com/wneessen/go-mail"

	"gatepost/message"
)

// Compose makes the message of a mail that is Rendered. from is its sender, with or without a name.
func (m *Mail) Compose(from string) (message.Raw, error) {
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := msg.From(from); err != nil {
		return nil, invalid("from", "is not an address")
	}
	if err := msg.To(m.To.String()); err != nil {
		return nil, invalid("to", "cannot be written in a header field")
	}
	if m.ReplyTo != "" {
		if err := msg.ReplyTo(m.ReplyTo); err != nil {
			return nil, invalid("reply_to", "is not an address")
		}
	}
	msg.SetMessageIDWithValue(strings.ToLower(rand.Text()) + "@" + domainOf(from))
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.Subject(m.Rendered.Subject)
	switch r := m.Rendered; {
	case r.HTML == "":
		msg.SetBodyString(mail.TypeTextPlain, withoutNUL(r.Text))
	case strings.TrimSpace(r.Text) == "":
		msg.SetBodyString(mail.TypeTextHTML, withoutNUL(r.HTML))
	default:
		msg.SetBodyString(mail.TypeTextPlain, withoutNUL(r.Text))
		msg.AddAlternativeString(mail.TypeTextHTML, withoutNUL(r.HTML))
	}
	var b bytes.Buffer
	if _, err := msg.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("compose a mail: %w", err)
	}
	return b.Bytes(), nil
}

// domainOf returns the domain of an address with or without a name, which has been parsed before.
func domainOf(from string) string {
	a, err := netmail.ParseAddress(from)
	if err != nil {
		return "localhost"
	}
	return a.Address[strings.LastIndexByte(a.Address, '@')+1:]
}

func withoutNUL(s string) string { return strings.ReplaceAll(s, "\x00", "") }
