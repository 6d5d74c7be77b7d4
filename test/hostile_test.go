package test

import (
	"bytes"
	"fmt"
	"io"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatepost/message"
)

// smuggled is the mail that hostile input tries to make of octets inside another one.
const smuggled = "MAIL FROM:<ceo@auth.example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nFrom: ceo@auth.example.com\r\nMessage-ID: <smuggled@auth.example.com>\r\n\r\nx\r\n.\r\n"

// mailOf is a whole session that sends data, which holds everything up to its own end.
func mailOf(data string) string { return envelope + "DATA\r\n" + data + "QUIT\r\n" }

const (
	greeting = "EHLO attacker.example.com\r\n"
	envelope = greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<user@example.net>\r\n"
	start    = "From: no-reply@auth.example.com\r\nSubject: x\r\nMessage-ID: <host@auth.example.com>\r\n\r\n"
)

// withFrom is a session whose mail has this in the place of its From field.
func withFrom(header string) string { return mailOf(header + "Subject: x\r\n\r\nx\r\n.\r\n") }

// hostile are whole sessions, each named after its trick.
var hostile = map[string]string{
	// Ends of data that are none (RFC 5321 §2.3.8).
	"LF dot LF":                        mailOf(start + "a\n.\n" + smuggled + ".\r\n"),
	"CRLF dot LF":                      mailOf(start + "a\r\n.\n" + smuggled + ".\r\n"),
	"LF dot CRLF":                      mailOf(start + "a\n.\r\n" + smuggled + ".\r\n"),
	"CR dot CR":                        mailOf(start + "a\r.\r" + smuggled + ".\r\n"),
	"CRLF dot CR":                      mailOf(start + "a\r\n.\r" + smuggled + ".\r\n"),
	"CR dot CRLF":                      mailOf(start + "a\r.\r\n" + smuggled + ".\r\n"),
	"CR CRLF dot CRLF":                 mailOf(start + "a\r\r\n.\r\n" + smuggled),
	"CRLF NUL dot CRLF":                mailOf(start + "a\r\n\x00.\r\n" + smuggled + ".\r\n"),
	"CRLF dot NUL CRLF":                mailOf(start + "a\r\n.\x00\r\n" + smuggled + ".\r\n"),
	"CRLF dot CR CRLF":                 mailOf(start + "a\r\n.\r\r\n" + smuggled + ".\r\n"),
	"CRLF dot space CRLF":              mailOf(start + "a\r\n. \r\n" + smuggled + ".\r\n"),
	"CRLF dot vertical tab":            mailOf(start + "a\r\n.\v\r\n" + smuggled + ".\r\n"),
	"CRLF dot and a line separator":    mailOf(start + "a\r\n.\u2028" + smuggled + ".\r\n"),
	"bare CR in the body":              mailOf(start + "a\rb\r\n.\r\n"),
	"bare LF in the body":              mailOf(start + "a\nb\r\n.\r\n"),
	"NUL in the body":                  mailOf(start + "a\x00b\r\n.\r\n"),
	"bare LF in the header":            withFrom("From: no-reply@auth.example.com\nFrom: ceo@marketing.example.com\r\n"),
	"bare CR in the header":            withFrom("From: no-reply@auth.example.com\rFrom: ceo@marketing.example.com\r\n"),
	"NUL in From":                      withFrom("From: no-reply@auth.example.com\x00@marketing.example.com\r\n"),
	"an endless line":                  mailOf(start + strings.Repeat("a", 1<<20) + "\r\n.\r\n"),
	"an endless header line":           mailOf("From: no-reply@auth.example.com\r\nX: " + strings.Repeat("a", 1<<20) + "\r\n\r\nx\r\n.\r\n"),
	"ten thousand header fields":       mailOf("From: no-reply@auth.example.com\r\n" + strings.Repeat("X: y\r\n", 10000) + "\r\nx\r\n.\r\n"),
	"no blank line":                    mailOf("From: no-reply@auth.example.com\r\nSubject: x\r\n.\r\n"),
	"nothing":                          mailOf(".\r\n"),
	"a header that begins with a fold": mailOf(" From: ceo@marketing.example.com\r\n" + start + "x\r\n.\r\n"),
	"a space before the colon":         withFrom("From : ceo@marketing.example.com\r\nFrom: no-reply@auth.example.com\r\n"),
	"a folded field name":              withFrom("Fro\r\n m: ceo@marketing.example.com\r\nFrom: no-reply@auth.example.com\r\n"),
	"a line of spaces in the header":   withFrom("From: no-reply@auth.example.com\r\n \r\nFrom: ceo@marketing.example.com\r\n"),
	"an empty fold before the address": withFrom("From:\r\n ceo@marketing.example.com\r\n"),

	// From fields that readers read differently (RFC 5322 §3.4, §3.6.2).
	"no From":                              withFrom(""),
	"an empty From":                        withFrom("From: \r\n"),
	"two From":                             withFrom("From: no-reply@auth.example.com\r\nFrom: ceo@marketing.example.com\r\n"),
	"two From, in other cases":             withFrom("FROM: no-reply@auth.example.com\r\nfrom: ceo@marketing.example.com\r\n"),
	"a list over two streams":              withFrom("From: no-reply@auth.example.com, ceo@marketing.example.com\r\n"),
	"a list without a Sender":              withFrom("From: no-reply@auth.example.com, help@auth.example.com\r\n"),
	"a list with semicolons":               withFrom("From: no-reply@auth.example.com; ceo@marketing.example.com\r\n"),
	"a group":                              withFrom("From: all: no-reply@auth.example.com, ceo@marketing.example.com;\r\n"),
	"an empty group":                       withFrom("From: undisclosed:;\r\n"),
	"a comment with an address":            withFrom("From: no-reply@auth.example.com (ceo@marketing.example.com)\r\n"),
	"a comment inside the address":         withFrom("From: no-reply@auth.example.com(x).evil.example\r\n"),
	"an encoded address":                   withFrom("From: =?utf-8?q?ceo=40marketing.example.com?=\r\n"),
	"an encoded line end":                  withFrom("From: =?utf-8?q?x=0D=0AFrom:_ceo=40marketing.example.com?= <no-reply@auth.example.com>\r\n"),
	"an encoded address before the real":   withFrom("From: =?utf-8?q?ceo=40marketing.example.com=3C?= <no-reply@auth.example.com>\r\n"),
	"another address as display name":      withFrom("From: \"ceo@marketing.example.com\" <no-reply@auth.example.com>\r\n"),
	"two angle addresses":                  withFrom("From: <ceo@marketing.example.com> <no-reply@auth.example.com>\r\n"),
	"an unclosed quote":                    withFrom("From: \"ceo@marketing.example.com <no-reply@auth.example.com>\r\n"),
	"an unclosed angle":                    withFrom("From: x <no-reply@auth.example.com\r\n"),
	"a quoted local part":                  withFrom("From: \"ceo@marketing.example.com\"@auth.example.com\r\n"),
	"a quoted local part that breaks out":  withFrom("From: \"x> <ceo@marketing.example.com\"@auth.example.com\r\n"),
	"a source route":                       withFrom("From: <@auth.example.com:ceo@marketing.example.com>\r\n"),
	"an address literal":                   withFrom("From: ceo@[127.0.0.1]\r\n"),
	"a homograph":                          withFrom("From: no-reply@\u0430uth.example.com\r\n"),
	"a full-width domain":                  withFrom("From: no-reply@\uff41uth.example.com\r\n"),
	"a dot at the end of the domain":       withFrom("From: no-reply@auth.example.com.\r\n"),
	"a subdomain":                          withFrom("From: no-reply@x.auth.example.com\r\n"),
	"a lookalike":                          withFrom("From: no-reply@auth.example.com.evil.example\r\n"),
	"the other stream":                     withFrom("From: ceo@marketing.example.com\r\n"),
	"a Sender of the other stream":         withFrom("From: no-reply@auth.example.com\r\nSender: ceo@marketing.example.com\r\n"),
	"two Sender":                           withFrom("From: no-reply@auth.example.com\r\nSender: no-reply@auth.example.com\r\nSender: ceo@marketing.example.com\r\n"),
	"a Resent-From of the other stream":    withFrom("Resent-From: ceo@marketing.example.com\r\nFrom: no-reply@auth.example.com\r\n"),
	"a Resent-Sender of the other stream":  withFrom("Resent-Sender: ceo@marketing.example.com\r\nFrom: no-reply@auth.example.com\r\n"),
	"octets that are not UTF-8":            withFrom("From: \xff\xfe <no-reply@auth.example.com>\r\n"),
	"a right-to-left override in the name": withFrom("From: \u202emoc <no-reply@auth.example.com>\r\n"),

	// Commands.
	"a quoted recipient that breaks out":  greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<\"x> NOTIFY=NEVER\"@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a source route to the recipient":     greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<@evil.example:user@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a percent hack":                      greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<user%evil.example@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a bang path":                         greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<evil.example!user>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a NUL in an address":                 greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<us\x00er@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a bare LF in a command":              greeting + "MAIL FROM:<no-reply@auth.example.com>\nRCPT TO:<user@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a bare CR in a command":              greeting + "MAIL FROM:<no-reply@auth.example.com>\rRCPT TO:<user@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"SMTPUTF8 that was not declared":      greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<us\u00e9r@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"octets in an address":                greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nRCPT TO:<us\xe9r@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"nested MAIL":                         envelope + "MAIL FROM:<ceo@marketing.example.com>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"DATA without RCPT":                   greeting + "MAIL FROM:<no-reply@auth.example.com>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"RCPT without MAIL":                   greeting + "RCPT TO:<user@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"EHLO in the midst":                   envelope + greeting + "DATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"RSET in the midst":                   envelope + "RSET\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"BDAT that lies about its size":       envelope + "BDAT 10 LAST\r\n" + start + smuggled + "QUIT\r\n",
	"BDAT, then DATA":                     envelope + fmt.Sprintf("BDAT %d\r\n", len(start)) + start + "DATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"BDAT without transaction":            greeting + fmt.Sprintf("BDAT %d LAST\r\n", len(smuggled)) + smuggled + "QUIT\r\n",
	"BDAT with a size beyond all bounds":  envelope + "BDAT 99999999999999999999 LAST\r\n" + smuggled + "QUIT\r\n",
	"BDAT cut off":                        envelope + "BDAT 100000 LAST\r\n" + start + "x\r\n",
	"DATA cut off":                        envelope + "DATA\r\n" + start + "x\r\n.\r",
	"HTTP":                                "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n" + mailOf(start+"x\r\n.\r\n"),
	"TLS where none is":                   "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1" + mailOf(start+"x\r\n.\r\n"),
	"a PROXY header":                      "PROXY TCP4 127.0.1.7 127.0.0.1 1 25\r\n" + mailOf(start+"x\r\n.\r\n"),
	"ten thousand recipients":             greeting + "MAIL FROM:<no-reply@auth.example.com>\r\n" + strings.Repeat("RCPT TO:<user@example.net>\r\n", 10000) + "DATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"an endless command":                  greeting + "NOOP " + strings.Repeat("a", 1<<20) + "\r\n" + mailOf(start+"x\r\n.\r\n"),
	"parameters that nobody knows":        greeting + "MAIL FROM:<no-reply@auth.example.com> X=1\r\nRCPT TO:<user@example.net> ORCPT=x\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a size that is not kept":             greeting + "MAIL FROM:<no-reply@auth.example.com> SIZE=1\r\nRCPT TO:<user@example.net>\r\nDATA\r\n" + start + "x\r\n.\r\nQUIT\r\n",
	"a login where none is offered":       greeting + "AUTH PLAIN AHdlYgB3ZWI=\r\n" + mailOf(start+"x\r\n.\r\n"),
	"STARTTLS where none is":              greeting + "STARTTLS\r\n" + mailOf(start+"x\r\n.\r\n"),
	"a mail that is all right after all":  mailOf(start + ".\r\n..x\r\n.\r\n"),
	"a mail that is all right with an id": mailOf("Message-ID: <proper@auth.example.com>\r\n" + "From: \"Example\" <no-reply@auth.example.com>\r\nSubject: x\r\n\r\nx\r\n.\r\n"),
}

func TestWhateverIsSentWhatArrivesHasOneSenderOfTheStreamAndProperFraming(t *testing.T) {
	t.Parallel()
	needsPython(t, "dkim", "python3-dkim")
	s := newSite(t)
	s.start()
	var wg sync.WaitGroup
	var taken atomic.Int64
	for name, session := range hostile {
		wg.Go(func() {
			replies := s.sendRaw(t, name, session)
			n := strings.Count(replies, " queued as ")
			taken.Add(int64(n))
			if n > 1 {
				t.Errorf("%s: one session became two mails:\n%s", name, replies)
			}
		})
	}
	wg.Wait()
	accepted := int(taken.Load())
	s.waitEmpty(20 * time.Second)
	arrived := s.auth.all()
	if len(arrived) != accepted || len(s.bulk.all()) != 0 {
		t.Errorf("%d mails were taken, %d arrived, and %d at the other stream's upstream", accepted, len(arrived), len(s.bulk.all()))
	}
	if len(s.auth.copies()["proper"]) != 1 {
		t.Error("a mail that is all right did not arrive: the test shows nothing")
	}
	for _, a := range arrived {
		if wrong := improper(a); wrong != "" {
			t.Errorf("%s in a mail that arrived: %q", wrong, a.raw)
		}
	}
	wantSigned(t, s.records, authDomain, arrived...)
	t.Logf("%d sessions, %d mails taken", len(hostile), accepted)
}

// sendRaw writes a session in one go and returns the replies. It hangs up where gatepost says no more for a while.
func (s *site) sendRaw(t *testing.T, name, session string) string {
	t.Helper()
	conn, err := connect(s.listen, authClient)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return ""
	}
	defer conn.Close()
	go io.WriteString(conn, session) // gatepost may close before it has read it all
	var replies bytes.Buffer
	chunk := make([]byte, 4096)
	for {
		conn.SetReadDeadline(time.Now().Add(6 * time.Second))
		n, err := conn.Read(chunk)
		replies.Write(chunk[:n])
		if err != nil {
			return replies.String()
		}
	}
}

// improper says what is wrong with a mail of the auth stream that arrived, "" for nothing.
func improper(a arrival) string {
	rest := bytes.ReplaceAll(a.raw, []byte("\r\n"), nil)
	if bytes.ContainsAny(rest, "\r\n\x00") {
		return "a bare CR or LF, or NUL"
	}
	if !bytes.HasSuffix(a.raw, []byte("\r\n")) {
		return "no CRLF at the end"
	}
	for line := range bytes.SplitSeq(a.raw, []byte("\r\n")) {
		if len(line) > 998 {
			return "a line over 998 octets"
		}
	}
	if !strings.HasSuffix(a.from, "@"+authDomain) {
		return "envelope sender " + a.from
	}
	if a.id == "smuggled" || slices.Contains(a.to, "victim@example.net") {
		return "a smuggled envelope"
	}
	all := fields(a.raw)
	for _, f := range all {
		if name := message.Field(f).Name(); name == "" || strings.ContainsAny(name, " \t") || !strings.HasPrefix(f, name+":") {
			return fmt.Sprintf("the header line %q", f)
		}
	}
	if n := count(all, "From"); n != 1 {
		return fmt.Sprintf("%d From fields", n)
	}
	for _, f := range all {
		for _, name := range []string{"From", "Sender", "Resent-From", "Resent-Sender"} {
			if wrong := foreign(message.Field(f)); message.Field(f).Is(name) && wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

// foreign says what in a field with addresses is not the auth stream's, by another parser than gatepost's.
func foreign(f message.Field) string {
	list, err := mail.ParseAddressList(f.Value())
	if err != nil {
		return fmt.Sprintf("a field that net/mail cannot read (%v)", err)
	}
	for _, a := range list {
		if !strings.HasSuffix(a.Address, "@"+authDomain) || strings.Contains(a.Name, "@") || strings.ContainsAny(a.Name, "\r\n") {
			return fmt.Sprintf("the sender %v", a)
		}
	}
	return ""
}
