package compose

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"mime"
	"net/mail"
	"strings"
	"time"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"
	"golang.org/x/text/language"

	"gatepost/message"
)

// write makes the MIME of m, the same for the same request: what is composed again for a retry is no second mail.
func (t *Templates) write(m *Mail, from *template, v *values, r *Request) error {
	if !isMessageID(r.MessageID) {
		return bad("message_id", "is not of the form left@right, in ASCII without white space")
	}
	to, err := message.ParseAddress(r.To)
	if err != nil {
		return bad("to", "cannot be used: %v", err)
	}
	author, replies, err := t.mailboxes(from, v, r)
	if err != nil {
		return err
	}
	m.To = to
	if m.From, err = message.ParseAddress(author.Address); err != nil {
		return bad("from", "cannot be used: %v", err)
	}
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	msg.FromMailAddress(author)
	msg.ToMailAddress(&mail.Address{Address: to.String()})
	if replies != nil {
		msg.ReplyToMailAddress(replies)
	}
	msg.Subject(encodedSubject(m.Subject))
	msg.SetDateWithValue(r.date())
	msg.SetMessageIDWithValue(r.MessageID)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834 §5
	if m.Locale != language.Und {
		msg.SetGenHeader("Content-Language", m.Locale.String()) // RFC 3282
	}
	msg.SetBoundary(boundary(r.MessageID))
	setParts(msg, m)
	var b bytes.Buffer
	if _, err := msg.WriteTo(&b); err != nil {
		return bad("", "cannot be written: %v", err)
	}
	m.Raw = b.Bytes()
	return nil
}

// encodedSubject returns s as words of which the first fits on the line of the field's name, as encoded-words (RFC 2047)
// where need be. A field that begins with an empty line is read by some with a space in front.
func encodedSubject(s string) string {
	const first, others = 36, 45 // octets that make 60 and 72
	if fields := strings.Fields(mime.QEncoding.Encode("utf-8", s)); len(fields) == 0 || len(fields[0]) <= 60 {
		return s
	}
	var words []string
	for n := first; s != ""; n = others {
		for n = min(n, len(s)); n < len(s) && !utf8.RuneStart(s[n]); n-- {
		}
		words = append(words, "=?utf-8?b?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, " ")
}

// mailboxes returns the author, and where replies go, nil for the author.
func (t *Templates) mailboxes(from *template, v *values, r *Request) (author, replies *mail.Address, err error) {
	if author, err = parseMailbox(r.From, "from"); err != nil {
		return nil, nil, err
	}
	if author != nil && author.Name == "" {
		author.Name = t.settings.SenderName
	}
	if author, err = from.from.mailbox(v, "from", author); err != nil {
		return nil, nil, err
	}
	if author == nil {
		return nil, nil, bad("from", "has no address")
	}
	if replies, err = parseMailbox(r.ReplyTo, "reply_to"); err != nil {
		return nil, nil, err
	}
	replies, err = from.replyTo.mailbox(v, "reply_to", replies)
	if r.ReplyTo == "" {
		err = nil // a value that is no address is no reason to refuse a code
	}
	return author, replies, err
}

func (r *Request) date() time.Time {
	if r.Date.IsZero() {
		return time.Now()
	}
	return r.Date
}

// setParts adds the parts, plainest first (RFC 2046 §5.1.4).
func setParts(msg *gomail.Msg, m *Mail) {
	text, html := crlf(m.Text), crlf(m.HTML)
	msg.SetBodyString(gomail.TypeTextPlain, text, gomail.WithPartEncoding(encodingOf(text)))
	if m.HTML != "" {
		msg.AddAlternativeString(gomail.TypeTextHTML, html, gomail.WithPartEncoding(encodingOf(html)))
	}
}

// encodingOf chooses what is shorter: quoted-printable costs two octets for each that is not ASCII, base64 a third of all.
func encodingOf(s string) gomail.Encoding {
	high := 0
	for _, c := range []byte(s) {
		if c >= 0x80 {
			high++
		}
	}
	if 6*high > len(s) {
		return gomail.EncodingB64
	}
	return gomail.EncodingQP
}

func crlf(s string) string {
	return strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\n", "\r\n")
}

// boundary returns one that follows from the Message-ID and that nobody can have put into a value.
func boundary(messageID string) string {
	sum := sha256.Sum256([]byte("boundary " + messageID))
	return "gp" + hex.EncodeToString(sum[:16])
}

// isMessageID reports whether s is an RFC 5322 §3.6.4 msg-id without its angle brackets, as far as it can do harm.
func isMessageID(s string) bool {
	left, right, ok := strings.Cut(s, "@")
	if !ok || left == "" || right == "" || len(s) > maxLine {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '<' || c == '>' {
			return false
		}
	}
	return true
}
