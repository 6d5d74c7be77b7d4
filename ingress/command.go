package ingress

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gatepost/reply"
)

// maxHelo bounds what a client calls itself (RFC 5321 §4.5.3.1.2).
const maxHelo = 255

// The answers to lines that go-smtp never sees.
var (
	errNotSMTP     = reply.New(500, "5.5.2", "This is an SMTP server, and that is no SMTP command")
	errLongCommand = reply.New(500, "5.5.2", "The line is longer than %d octets", maxCommand)
	errNotUTF8     = reply.New(501, "5.5.2", "The command is not valid UTF-8")
	errControl     = reply.New(501, "5.5.2", "The command has a control character in it")
	errNoBDAT      = reply.New(502, "5.5.1", "BDAT is not offered, closing the connection")
	errNoGreeting  = reply.New(503, "5.5.1", "EHLO comes first")
	errNoMail      = reply.New(503, "5.5.1", "MAIL comes first")
	errNoRcpt      = reply.New(503, "5.5.1", "DATA needs a recipient that was accepted")
	errNoHelo      = reply.New(501, "5.5.2", "A name must follow EHLO or HELO")
	errLongHelo    = reply.New(501, "5.5.4", "The name is longer than %d octets", maxHelo)
	errStrikes     = reply.New(421, "4.7.0", "Too many bad commands, closing the connection")
)

// verbs are the commands that a conversation may begin with. Something else is another protocol (an HTTP request whose
// body holds SMTP commands, say), which is not listened to any further.
var verbs = map[string]bool{
	"EHLO": true, "HELO": true, "LHLO": true, "MAIL": true, "RCPT": true, "DATA": true, "BDAT": true, "RSET": true,
	"NOOP": true, "QUIT": true, "VRFY": true, "EXPN": true, "HELP": true, "AUTH": true, "STAR": true, // STARTTLS
}

// vet reports whether go-smtp may see the command line. If not, it has answered it, and closes the connection where
// what follows cannot be told for a command. A bare LF ends a line too: people type into netcat, and nothing that
// was refused as a message is ever read as commands.
func (c *conn) vet(line []byte) bool {
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	verb := verbOf(line)
	if !c.spoken && !verbs[verb] {
		c.hangUp(errNotSMTP)
		return false
	}
	c.spoken = true
	switch {
	case !utf8.Valid(line):
		c.refuse(errNotUTF8)
	case bytes.ContainsFunc(line, isControl):
		c.refuse(errControl)
	default:
		return c.vetCommand(verb, line)
	}
	return false
}

// vetCommand is vet for a command that is text.
func (c *conn) vetCommand(verb string, line []byte) bool {
	switch verb {
	case "EHLO", "HELO":
		return c.greet(verb, line)
	case "MAIL", "RCPT", "DATA":
		if e := c.outOfOrder(verb); e != nil {
			c.say(e)
			return false
		}
		if c.client == "" {
			c.refuseNobody()
			return false
		}
		if e := vetPath(verb, string(line)); verb != "DATA" && e != nil {
			c.refuse(e)
			return false
		}
	case "BDAT":
		c.hangUp(errNoBDAT) // its chunk must not be read as commands
		return false
	case "AUTH":
		c.authenticate(line)
		return false
	case "STAR":
		c.startTLS(line)
		return false
	}
	return true
}

// greet notes what the client calls itself: all of it, where go-smtp takes the first word.
func (c *conn) greet(verb string, line []byte) bool {
	name := strings.TrimSpace(string(line[len(verb):]))
	switch {
	case len(line) > len(verb) && line[len(verb)] != ' ':
		return true // go-smtp does not take it for a greeting
	case name == "":
		c.refuse(errNoHelo)
		return false
	case len(line) > len("EHLO ")+maxHelo:
		c.refuse(errLongHelo)
		return false
	}
	c.helo, c.extended = name, verb == "EHLO"
	return true
}

// outOfOrder returns what a command of a transaction is answered with that comes too early (RFC 5321 §4.1.4). A client
// that pipelines meets it after every refusal, so it is no strike.
func (c *conn) outOfOrder(verb string) *reply.Error {
	switch {
	case c.helo == "":
		return errNoGreeting
	case verb == "RCPT" && !c.session.open:
		return errNoMail
	case verb == "DATA" && len(c.session.to) == 0:
		return errNoRcpt
	}
	return nil
}

// parameters are those that MAIL and RCPT may have. AUTH= is read and forgotten (RFC 4954 §5): nobody is trusted to
// speak for others.
var parameters = map[string][]string{"MAIL": {"SIZE", "BODY", "SMTPUTF8", "AUTH"}}

// wrongAddress are the enhanced codes for an address that is not taken (RFC 3463 §3.2).
var wrongAddress = map[string]string{"MAIL": "5.1.7", "RCPT": "5.1.3"}

// vetPath refuses the source routes that go-smtp would take off silently (RFC 5321 §4.1.2), parameters that are not
// offered (§4.1.1.11), and sizes that go-smtp can't read. What is wrong otherwise is left to it.
func vetPath(verb, line string) *reply.Error {
	_, rest, ok := strings.Cut(line, ":")
	if !ok {
		return nil
	}
	path, args := splitPath(strings.TrimSpace(rest))
	if strings.HasPrefix(strings.TrimPrefix(path, "<"), "@") {
		return reply.New(553, wrongAddress[verb], "Address refused: source routes are not accepted")
	}
	for arg := range strings.FieldsSeq(args) {
		name, value, _ := strings.Cut(strings.ToUpper(arg), "=")
		switch {
		case !slices.Contains(parameters[verb], name):
			return reply.New(555, "5.5.4", "%s has a parameter that is not offered", verb)
		case name == "SIZE" && isNumber(value) && beyond32Bits(value):
			return errTooBig
		}
	}
	return nil
}

// splitPath splits behind the path: at the angle bracket that closes it, or, where it has none, at the first blank.
// What is in quotes does not count.
func splitPath(s string) (path, args string) {
	ends := " \t"
	if strings.HasPrefix(s, "<") {
		ends = ">"
	}
	quoted := false
	for i := 0; i < len(s); i++ {
		switch b := s[i]; {
		case b == '\\' && quoted:
			i++
		case b == '"':
			quoted = !quoted
		case !quoted && strings.IndexByte(ends, b) >= 0:
			return s[:i+1], s[i+1:]
		}
	}
	return s, ""
}

// refuse answers a line that go-smtp must not see. A client that does nothing but that is sent away.
func (c *conn) refuse(e *reply.Error) {
	if c.strikes++; c.strikes > maxStrikes {
		c.hangUp(errStrikes)
		return
	}
	c.say(e)
}

// verbOf returns the first four octets of a line in upper case, which is what go-smtp tells commands apart by.
func verbOf(line []byte) string {
	return strings.ToUpper(string(line[:min(4, len(line))]))
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// beyond32Bits reports whether go-smtp could not even parse a number of MAIL's SIZE (RFC 1870).
func beyond32Bits(digits string) bool {
	_, err := strconv.ParseUint(digits, 10, 32)
	return err != nil
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func isLetter(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }
