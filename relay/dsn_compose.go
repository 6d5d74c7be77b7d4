package relay

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"gatepost/message"
)

const (
	maxReturned = 32 << 10 // octets of the failed message's header that come back
	mailDate    = "Mon, 02 Jan 2006 15:04:05 -0700"
)

// dsn is a delivery status notification (RFC 3464) about recipients of one message. What other servers said is masked
// in it, as it is in history, and of the message only the header comes back (RFC 6522 §4).
type dsn struct {
	id       message.ID
	at       time.Time
	hostname string
	to       message.Address
	about    *message.Message
	failed   []message.Settlement
	host     func(upstream string) string
}

// compose returns the notification as a multipart/report: for people, for programs, and the header of what failed.
func (d *dsn) compose() message.Raw {
	boundary := rand.Text()
	human, machine, header := d.human(), d.machine(), returnedHeader(d.about.Raw)
	eightBit := !isASCIIString(human) || !isASCII(header)
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: Mail Delivery System <MAILER-DAEMON@%s>\r\n", d.about.HeaderFrom)
	fmt.Fprintf(&b, "To: <%s>\r\n", d.to)
	b.WriteString("Subject: Undelivered mail\r\n")
	fmt.Fprintf(&b, "Date: %s\r\n", d.at.UTC().Format(mailDate))
	fmt.Fprintf(&b, "Message-ID: <%s@%s>\r\n", d.id, d.about.HeaderFrom)
	b.WriteString("Auto-Submitted: auto-replied\r\n") // RFC 3834 §5
	b.WriteString("MIME-Version: 1.0\r\n")
	fmt.Fprintf(&b, "Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"%s\"\r\n", boundary)
	if eightBit {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
	}
	writePart(&b, boundary, "text/plain; charset=utf-8", []byte(human))
	writePart(&b, boundary, "message/delivery-status", []byte(machine))
	writePart(&b, boundary, "text/rfc822-headers", header)
	fmt.Fprintf(&b, "\r\n--%s--\r\n", boundary)
	return b.Bytes()
}

func writePart(b *bytes.Buffer, boundary, contentType string, body []byte) {
	fmt.Fprintf(b, "\r\n--%s\r\nContent-Type: %s\r\n", boundary, contentType)
	if !isASCII(body) {
		b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
	}
	b.WriteString("\r\n")
	b.Write(body)
}

// human says in plain words what happened.
func (d *dsn) human() string {
	var b strings.Builder
	fmt.Fprintf(&b, "This is the mail gateway at %s.\r\n\r\n", d.hostname)
	fmt.Fprintf(&b, "Your message of %s (id %s)\r\ncould not be delivered to everybody. No further attempt is made for:\r\n",
		d.about.AcceptedAt.UTC().Format(mailDate), d.about.ID)
	for i := range d.failed {
		r := &d.failed[i].Recipient
		fmt.Fprintf(&b, "\r\n<%s>\r\n    %s\r\n", r.Address, fate(d.failed[i].Outcome))
		if said := message.Mask(r.LastReply); said != "" {
			fmt.Fprintf(&b, "    The last answer was: %s\r\n", said)
		}
	}
	b.WriteString("\r\nThe header of your message is attached.\r\n")
	return b.String()
}

// fate says how a recipient ended.
func fate(o message.Outcome) string {
	switch o {
	case message.Expired:
		return "It could not be delivered in time."
	case message.Unconfirmed:
		return "It was handed on, but no answer came: it may or may not have arrived."
	}
	return "It was refused."
}

// machine writes the fields of RFC 3464 §2: a group about the message, and one for each recipient. All is ASCII.
func (d *dsn) machine() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Reporting-MTA: dns; %s\r\n", d.hostname)
	fmt.Fprintf(&b, "Arrival-Date: %s\r\n", d.about.AcceptedAt.UTC().Format(mailDate))
	for i := range d.failed {
		s := &d.failed[i]
		fmt.Fprintf(&b, "\r\nFinal-Recipient: %s\r\n", typedAddress(s.Recipient.Address))
		fmt.Fprintf(&b, "Action: failed\r\nStatus: %s\r\n", status(s))
		if host := d.host(s.Recipient.LastUpstream); host != "" {
			fmt.Fprintf(&b, "Remote-MTA: dns; %s\r\n", mtaName(host))
		}
		if said := diagnostic(s.Recipient.LastReply); said != "" {
			fmt.Fprintf(&b, "Diagnostic-Code: %s\r\n", said)
		}
	}
	return b.String()
}

// permanentStatus is a status code (RFC 3463 §2) of the class that means failure.
var permanentStatus = regexp.MustCompile(`^5\.[0-9]{1,3}\.[0-9]{1,3}$`)

// status returns the code for how s ended: what the upstream said, or 4.4.7 (delivery time expired).
func status(s *message.Settlement) string {
	switch {
	case s.Outcome != message.Bounced:
		return "4.4.7"
	case s.Attempt != nil && permanentStatus.MatchString(s.Attempt.Verdict.Enhanced):
		return s.Attempt.Verdict.Enhanced
	}
	return "5.0.0"
}

// smtpReply is how the reply of an SMTP server begins.
var smtpReply = regexp.MustCompile(`^[2-5][0-9]{2}( |$)`)

// diagnostic returns a reply, masked, with its type: an SMTP server's, or a cause of our own.
func diagnostic(said string) string {
	said = strings.Map(func(r rune) rune {
		if r >= 0x7f {
			return '?'
		}
		return r
	}, strings.ReplaceAll(message.Mask(said), "…", "..."))
	switch {
	case said == "":
		return ""
	case smtpReply.MatchString(said):
		return "smtp; " + said
	}
	return "x-gatepost; " + said
}

// mtaName writes a host as RFC 3464 §2.1.2 has it: an address goes in brackets.
func mtaName(host string) string {
	if a, err := netip.ParseAddr(host); err == nil {
		return "[" + a.String() + "]"
	}
	return host
}

// typedAddress returns an address with its type; one beyond ASCII in the escaped form that any mail system can carry
// (utf-8-addr-xtext, RFC 6533 §3).
func typedAddress(address string) string {
	if isASCIIString(address) {
		return "rfc822; " + address
	}
	var b strings.Builder
	for _, r := range address {
		if r > '~' || r <= ' ' || r == '\\' || r == '+' || r == '=' {
			fmt.Fprintf(&b, `\x{%X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return "utf-8; " + b.String()
}

// returnedHeader returns as many whole fields of raw's header as are to come back.
func returnedHeader(raw message.Raw) []byte {
	header := raw.Header()
	n := 0
	for f := range message.Fields(header) {
		if n+len(f) > maxReturned {
			break
		}
		n += len(f)
	}
	return header[:n]
}
