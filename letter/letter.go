// Package letter takes mail apart for services that take its pieces and put them together themselves: From, recipients,
// subject, text, files and the rest of the header, decoded, instead of the message as it is.
//
// What a mail says is in its Letter, or the mail is refused. Left out are only the fields that Lost names, since the
// service writes its own or nobody past it may see them, and of the body what Content names.
package letter

import (
	"mime"
	"net/mail"
	"slices"
	"strings"

	"gatepost/message"
	"gatepost/reply"
)

// Letter is a mail taken apart. Its text is valid UTF-8, and nothing of what becomes a header field again has a control
// character or line end in it.
type Letter struct {
	From    mail.Address
	ReplyTo []mail.Address
	To, Cc  []mail.Address // as the header shows them, whoever the envelope names
	Subject string
	Header  []Field // what has no place of its own, in the mail's order
	Content
}

// Field is a header field as it stands in the mail: unfolded, in ASCII, its encoded-words left as they are.
type Field struct{ Name, Value string }

// lost holds the header fields that a Letter leaves out: the service writes its own, they tell of the way here, or they
// would steer a service behind the configuration's back. A name that ends in a hyphen stands for all that start with it.
var lost = []string{
	"date", "mime-version", "content-", "received", "received-spf", "return-path", "bcc", "resent-",
	"dkim-signature", "domainkey-signature", "arc-", "authentication-results",
	"x-ses-", "x-mailgun-", "x-pm-", "x-smtpapi", "x-sg-", "x-msys-", "x-alidm-", "x-gatepost-",
}

// Lost reports whether a Letter leaves out the header field called name.
func Lost(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(lost, func(l string) bool {
		return name == l || strings.HasSuffix(l, "-") && strings.HasPrefix(name, l)
	})
}

// placed holds the header fields that have a place of their own in a Letter.
var placed = []string{"From", "Reply-To", "To", "Cc", "Subject"}

func isPlaced(name string) bool {
	return slices.ContainsFunc(placed, func(p string) bool { return strings.EqualFold(p, name) })
}

// unfit makes the permanent verdict about a mail that does not fit into a Letter.
func unfit(enhanced, format string, a ...any) *reply.Error {
	return reply.New(554, enhanced, format, a...)
}

// Read takes raw apart. Its error is a *reply.Error (554 5.6.x) that says what does not fit: what is signed or encrypted
// or in an unknown character set, parts that mean something together, and what is malformed.
func Read(raw message.Raw) (*Letter, error) {
	l := &Letter{}
	f, err := readFields(raw.Header())
	if err != nil {
		return nil, err
	}
	if err := l.place(f); err != nil {
		return nil, err
	}
	for field := range message.Fields(raw.Header()) {
		if isPlaced(field.Name()) || Lost(field.Name()) {
			continue
		}
		if err := l.keep(field.Name(), field.Value()); err != nil {
			return nil, err
		}
	}
	l.Content, err = readContent(f, raw.Body())
	if err != nil {
		return nil, err
	}
	return l, nil
}

// keep takes in a field that has no place of its own.
func (l *Letter) keep(name, value string) error {
	if !isASCII(value) {
		// Mail comes with its header in ASCII to those who send it on; this is for those who ask beforehand.
		if sound(value) != nil {
			return unfit("5.6.0", "The %s field is neither ASCII nor UTF-8", printable(name))
		}
		value = mime.BEncoding.Encode("utf-8", value)
	}
	l.Header = append(l.Header, Field{name, spaced(value)})
	return nil
}

// place fills in what has a place of its own.
func (l *Letter) place(f fields) error {
	for _, name := range placed {
		if len(f[strings.ToLower(name)]) > 1 {
			return unfit("5.6.0", "The message has more than one %s field", name)
		}
	}
	var from []mail.Address
	for i, list := range []*[]mail.Address{&from, &l.ReplyTo, &l.To, &l.Cc} {
		var err error
		if *list, err = mailboxes(placed[i], f.first(strings.ToLower(placed[i]))); err != nil {
			return err
		}
	}
	if len(from) != 1 {
		return unfit("5.6.3", "The From field names %d mailboxes; this service takes one", len(from))
	}
	l.From = from[0]
	for _, box := range append(from, l.ReplyTo...) {
		if err := reachable(box); err != nil {
			return err
		}
	}
	subject, err := decodeWords(f.first("subject"))
	if err != nil {
		return unfit("5.6.3", "The subject cannot be decoded: %v", err)
	}
	l.Subject = spaced(subject)
	return nil
}

// mailboxes reads an address field, which may be absent. Addresses come back in their canonical form where they have
// one.
func mailboxes(name, value string) ([]mail.Address, error) {
	if value == "" {
		return nil, nil
	}
	list, err := addressParser.ParseList(value)
	if err != nil {
		return nil, unfit("5.6.0", "The %s field is not a list of addresses, or is in a character set that is not known", name)
	}
	var boxes []mail.Address
	for _, box := range list {
		if err := sound(box.Name); err != nil {
			return nil, unfit("5.6.3", "A name in the %s field cannot be decoded: %v", name, err)
		}
		address := box.Address
		if a, err := message.ParseAddress(address); err == nil {
			address = a.String()
		}
		boxes = append(boxes, mail.Address{Name: spaced(box.Name), Address: address})
	}
	return boxes, nil
}

// reachable checks that box is a plain ASCII mailbox: services take no other.
func reachable(box mail.Address) error {
	switch a, err := message.ParseAddress(box.Address); {
	case err != nil:
		return unfit("5.6.0", "The From or Reply-To field has an address that is not valid: %v", err)
	case a.UTF8():
		return unfit("5.6.7", "The From or Reply-To field has an address with 8-bit characters before the @")
	}
	return nil
}

func isASCII(s string) bool { return !strings.ContainsFunc(s, func(r rune) bool { return r >= 0x80 }) }
