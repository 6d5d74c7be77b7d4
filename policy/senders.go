package policy

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"gatepost/message"
	"gatepost/reply"
)

// maxMailboxes bounds the mailboxes of one sender field.
const maxMailboxes = 20

// senders returns the mailboxes of a From, Sender, Resent-From or Resent-Sender field: at least one.
func senders(f message.Field) ([]mailbox, error) {
	_, value, _ := strings.Cut(string(f), ":")
	as, err := parseMailboxes(strings.ReplaceAll(value, "\r\n", ""))
	if err != nil {
		return nil, reply.New(550, "5.6.0", "The %s field cannot be read: %v", f.Name(), err)
	}
	return as, nil
}

// parseMailboxes reads an RFC 5322 mailbox-list in its narrow, unambiguous form:
//
//	mailbox = address | [words and quoted strings] "<" address ">"
//
// Groups, comments, source routes, quoted local parts and empty entries are refused: parsers differ over whom they
// name, and what we take for the sender must be what the recipient's DMARC check takes for it. Display names may be
// raw UTF-8 or RFC 2047 words. Errors name the rule and are fit to show to a client.
func parseMailboxes(s string) ([]mailbox, error) {
	if err := plainText(s); err != nil {
		return nil, err
	}
	var as []mailbox
	for {
		a, rest, err := parseMailbox(s)
		if err != nil {
			return nil, err
		}
		as = append(as, a)
		switch {
		case rest == "":
			return as, nil
		case len(as) == maxMailboxes:
			return nil, fmt.Errorf("it names more than %d addresses", maxMailboxes)
		case rest[0] != ',':
			return nil, errors.New("text follows an address; put the display name in front of it")
		}
		s = rest[1:]
	}
}

// plainText refuses what no sender field holds, whatever its structure.
func plainText(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("it is not valid UTF-8; encode the display name (RFC 2047)")
	}
	for _, c := range []byte(s) {
		if c < ' ' && c != '\t' || c == 0x7f {
			return errors.New("it has a control character")
		}
	}
	return nil
}

// parseMailbox reads one mailbox and returns what follows it: a comma or other text, without leading white space.
func parseMailbox(s string) (a mailbox, rest string, err error) {
	var words []string // of the display name, or the address itself
	quoted, start := false, s
	for s = trimLeft(s); s != ""; s = trimLeft(s) {
		switch s[0] {
		case '<':
			a, rest, err = angleAddress(s, words)
			a.name = unquote.Replace(start[:len(start)-len(s)])
			return a, rest, err
		case ',':
			return bareAddress(words, quoted, s)
		case '"':
			if s, err = afterQuoted(s); err != nil {
				return a, "", err
			}
			quoted = true
		case '(', ')':
			return a, "", errors.New("it has a comment in parentheses; put the display name in double quotes")
		case ':', ';':
			return a, "", errors.New("it has a colon or semicolon, as address groups do; put the display name in double quotes")
		case '>', '[', ']', '\\':
			return a, "", fmt.Errorf("it has a %q outside of double quotes", s[0])
		default:
			end := strings.IndexAny(s, specials)
			if end < 0 {
				end = len(s)
			}
			words = append(words, s[:end])
			s = s[end:]
		}
	}
	return bareAddress(words, quoted, "")
}

// unquote makes of a display name what is shown of it.
var unquote = strings.NewReplacer(`"`, "", `\`, "")

// specials end a word: white space and the RFC 5322 specials but for the dot, which display names may hold, and the @.
const specials = " \t<>()[]:;\\,\""

func trimLeft(s string) string { return strings.TrimLeft(s, " \t") }

// angleAddress reads "<address>" behind the words of a display name.
func angleAddress(s string, words []string) (a mailbox, rest string, err error) {
	for _, w := range words {
		if strings.Contains(w, "@") {
			return a, "", errors.New("its display name looks like an address; put it in double quotes")
		}
	}
	addr, rest, ok := strings.Cut(s[1:], ">")
	if !ok {
		return a, "", errors.New("it has a \"<\" without a \">\"")
	}
	a.Address, err = message.ParseAddress(addr)
	return a, trimLeft(rest), err
}

// bareAddress takes the one word in front of a comma or the end for an address.
func bareAddress(words []string, quoted bool, rest string) (a mailbox, _ string, err error) {
	switch {
	case len(words) == 0 && !quoted:
		return a, "", errors.New("it has an empty entry where an address belongs")
	case len(words) != 1 || quoted:
		return a, "", errors.New("an entry has no address in angle brackets; a display name with a comma needs double quotes")
	}
	a.Address, err = message.ParseAddress(words[0])
	return a, rest, err
}

// afterQuoted returns what follows the quoted string that s starts with.
func afterQuoted(s string) (string, error) {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[i+1:], nil
		}
	}
	return "", errors.New("a double quote is not closed")
}
