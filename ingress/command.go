package ingress

import (
	"bytes"
	"math"
	"regexp"
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
	errNoAUTH      = reply.New(502, "5.5.1", "AUTH is not offered, clients are known by their address here")
	errLongHelo    = reply.New(501, "5.5.4", "The name is longer than %d octets", maxHelo)
	errStrikes     = reply.New(421, "4.7.0", "Too many bad commands, closing the connection")
)

// verbs are the commands that a conversation may begin with. Something else is another protocol (an HTTP request whose
// body holds SMTP commands, say), which is not listened to any further.
var verbs = map[string]bool{
	"EHLO": true, "HELO": true, "LHLO": true, "MAIL": true, "RCPT": true, "DATA": true, "BDAT": true, "RSET": true,
	"NOOP": true, "QUIT": true, "VRFY": true, "EXPN": true, "HELP": true, "AUTH": true, "STAR": true, // STARTTLS
}

// sizeParameter finds SIZE= of MAIL (RFC 1870).
var sizeParameter = regexp.MustCompile(`(?i)\sSIZE=([0-9]{1,20})(?:\s|$)`)

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
	case verb == "BDAT":
		c.hangUp(errNoBDAT) // its chunk must not be read as commands
	case verb == "AUTH":
		c.refuse(errNoAUTH)
	case verb == "MAIL" && exceedsSize(line):
		c.refuse(errTooBig)
	case (verb == "EHLO" || verb == "HELO") && len(line) > len("EHLO ")+maxHelo:
		c.refuse(errLongHelo)
	default:
		if verb == "EHLO" || verb == "HELO" {
			c.extended = verb == "EHLO"
		}
		return true
	}
	return false
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

// exceedsSize reports whether MAIL declares a size that go-smtp could not even parse. It compares smaller ones itself.
func exceedsSize(line []byte) bool {
	m := sizeParameter.FindSubmatch(line)
	if m == nil {
		return false
	}
	n, err := strconv.ParseUint(string(m[1]), 10, 64)
	return err != nil || n > math.MaxUint32
}

func isControl(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }

func isLetter(b byte) bool { return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }
