package compose

import (
	"errors"
	"net/mail"
	"strings"

	"gatepost/message"
)

// sender is a template of a mailbox: a display name, an address, or both.
type sender struct{ name, address plain }

// parseSender reads `Name <address>`, an address, or, as Logto has it, a name alone. It is cut into name and address
// before values come in: no value can bring an address into the name's place.
func parseSender(s string) (*sender, error) {
	s = strings.TrimSpace(s)
	name, address := s, ""
	if i := strings.LastIndexByte(s, '<'); i >= 0 && strings.HasSuffix(s, ">") {
		name, address = s[:i], s[i+1:len(s)-1]
	} else if strings.Contains(s, "@") {
		name, address = "", s
	}
	name = strings.TrimSpace(name)
	if len(name) > 1 && name[0] == '"' && name[len(name)-1] == '"' {
		name = strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(name[1 : len(name)-1])
	}
	switch {
	case name == "" && address == "":
		return nil, errors.New("is empty")
	case strings.ContainsAny(name, "<>") || strings.Contains(name, "@"):
		return nil, errors.New("is no mailbox: write Name <address@example.com>")
	case address != "" && !placeholder.MatchString(address):
		if _, err := message.ParseAddress(address); err != nil {
			return nil, err
		}
	}
	return &sender{cut(name), cut(address)}, nil
}

// atSigns are what a display name must not show: a name that looks like an address passes for the sender's.
var atSigns = strings.NewReplacer("@", " at ", "＠", " at ", "﹫", " at ")

// mailbox fills s in over what stands for it otherwise. field is what to call it in an error.
func (s *sender) mailbox(v *values, field string, otherwise *mail.Address) (*mail.Address, error) {
	m := &mail.Address{}
	if otherwise != nil {
		*m = *otherwise
	}
	if s != nil && len(s.name) > 0 {
		if name := displayName(s.name, v); name != "" {
			m.Name = name
		}
	}
	if s != nil && len(s.address) > 0 {
		m.Address = s.address.fill(v)
	}
	if m.Address == "" {
		return nil, nil
	}
	a, err := message.ParseAddress(m.Address)
	if err != nil {
		return nil, bad(field, "cannot be used: %v", err)
	}
	m.Address = a.String()
	return m, nil
}

// parseMailbox reads a mailbox (RFC 5322 §3.4) that has no placeholders; nil where s is empty.
func parseMailbox(s, field string) (*mail.Address, error) {
	if s == "" {
		return nil, nil
	}
	m, err := mail.ParseAddress(s)
	if err != nil {
		return nil, bad(field, "is not an address, nor a name and an address in angle brackets")
	}
	m.Name = displayName(plain{{literal: m.Name}}, nil)
	return m, nil
}

// displayName fills p in as the name of a mailbox.
func displayName(p plain, v *values) string { return clean(atSigns.Replace(p.header(v))) }
