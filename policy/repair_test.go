package policy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/message"
)

// nodemailer is what Logto's SMTP connector sends for a Japanese text template.
const nodemailer = "From: =?UTF-8?B?44Oe44Kk44Ki44OX44Oq?= <no-reply@auth.example.com>\r\n" +
	"To: user@example.net\r\n" +
	"Subject: =?UTF-8?B?56K66KqN44Kz44O844OJ?=\r\n =?UTF-8?B?IDEyMzQ1Ng==?=\r\n" +
	"Message-ID: <2f6c1b7e-1111-4222-8333-944455556666@auth.example.com>\r\n" +
	"Content-Transfer-Encoding: base64\r\n" +
	"Date: Sun, 22 Nov 2026 08:59:59 +0000\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"\r\n" +
	"56K66KqN44Kz44O844OJ44GvIDEyMzQ1NiDjgafjgZnjgII=\r\n"

const receivedForTests = "Received: from app.internal\r\n\tby gw.example.com with ESMTP id %s;\r\n\tSun, 22 Nov 2026 09:00:00 +0000\r\n"

func check(t *testing.T, s *message.Submission) *message.Message {
	t.Helper()
	m, err := newPolicy(t).Check(s, testID, testTime)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEveryByteStaysBehindOurReceived(t *testing.T) {
	for name, raw := range map[string]string{
		"nodemailer's Japanese mail": nodemailer,
		"odd order, case and folds":  "DATE: x\r\nmessage-id:\r\n\t<a@b>\r\nX-Odd:\t a  b \r\n \r\n\tc\r\nFROM:a@auth.example.com\r\nX-Odd: again\r\n\r\nb",
		"a body like a header":       "From: a@auth.example.com\r\nDate: x\r\nMessage-ID: <a@b>\r\n\r\nBcc: x@example.org\r\n\r\nReturn-Path: <>\r\n.\r\n",
		"raw 8-bit and a signature":  "DKIM-Signature: v=1; b=x\r\nFrom: a@auth.example.com\r\nDate: x\r\nMessage-ID: <a@b>\r\nSubject: caf\xe9\r\n\r\n\xe9\xff\r\n",
		"an empty body":              "From: a@auth.example.com\r\nDate: x\r\nMessage-ID: <a@b>\r\n\r\n",
		"other clients' fields":      "Received: from a by b; x\r\nX-Sesame: 1\r\nX-PMX: 1\r\nX-Entity-Ref-ID: 1\r\nCc: a@example.org\r\nList-Unsubscribe: <https://x>\r\nFrom: a@auth.example.com\r\nDate: x\r\nMessage-ID: <a@b>\r\nComments: 1\r\nComments: 2\r\n\r\nb\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "no-reply@auth.example.com")
			s.Raw = message.Raw(raw)
			m := check(t, s)
			if want := fmt.Sprintf(receivedForTests, testID) + raw; string(m.Raw) != want {
				t.Errorf("message\n%q\nwant\n%q", m.Raw, want)
			}
			if m.Size != len(m.Raw) || string(s.Raw) != raw {
				t.Errorf("size %d of %d, or the submission itself was changed", m.Size, len(m.Raw))
			}
		})
	}
}

func TestNoHashIsKeptOfMailThatIsSealed(t *testing.T) {
	code := submission("both", "a@auth.example.com", "From: a@auth.example.com")
	news := submission("both", "a@news.example.com", "From: a@news.example.com")
	filled := submission("both", "a@news.example.com", "From: a@news.example.com")
	filled.Provided = map[string]message.Provided{"postmark": {Template: "sign-in"}}
	for _, s := range []*message.Submission{code, filled} {
		if m := check(t, s); m.BodyHash != nil {
			t.Errorf("%s mail has the hash %x: a code in it could be found by trying all", m.Kind, m.BodyHash)
		}
	}
	m := check(t, news)
	if hash := sha256.Sum256(m.Raw); !bytes.Equal(m.BodyHash, hash[:]) {
		t.Errorf("a newsletter has the hash %x", m.BodyHash)
	}
}

func TestAMessageWithRoomIsRepairedInPlaceToTheSameBytes(t *testing.T) {
	const raw = "X-Gatepost-TTL: 60\r\nFrom: a@auth.example.com\r\nBcc: x@example.org\r\nSubject: y\r\n\r\nbody\r\n"
	copied := submission("logto", "no-reply@auth.example.com")
	copied.Raw = message.Raw(raw)
	want := check(t, copied).Raw
	for name, tt := range map[string]struct {
		room    int
		inPlace bool
	}{
		"plenty":          {1024, true},
		"just enough":     {len(want) - len(raw), true},
		"one too few":     {len(want) - len(raw) - 1, false},
		"none":            {0, false},
		"more than a lot": {1 << 20, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "no-reply@auth.example.com")
			s.Room = append(make([]byte, tt.room), raw...)
			s.Raw = s.Room[tt.room:]
			end := &s.Room[len(s.Room)-1]
			m := check(t, s)
			if string(m.Raw) != string(want) {
				t.Errorf("message\n%q\nwant\n%q", m.Raw, want)
			}
			if inPlace := &m.Raw[len(m.Raw)-1] == end; inPlace != tt.inPlace {
				t.Errorf("in place: %v, want %v", inPlace, tt.inPlace)
			}
		})
	}
}

func TestRepairs(t *testing.T) {
	id := "Message-ID: <" + testID.String() + "@auth.example.com>\r\n"
	const date, from = "Date: Sun, 22 Nov 2026 09:00:00 +0000\r\n", "From: a@auth.example.com\r\n"
	for name, tt := range map[string]struct{ raw, want string }{
		"Message-ID and Date are added":     {from + "\r\nb", id + date + from + "\r\nb"},
		"Date alone":                        {"Message-Id: <x@y>\r\n" + from + "\r\nb", date + "Message-Id: <x@y>\r\n" + from + "\r\nb"},
		"Message-ID alone":                  {"date: x\r\n" + from + "\r\nb", id + "date: x\r\n" + from + "\r\nb"},
		"Bcc and its resent form go":        {"Bcc: x@y\r\n" + from + "RESENT-BCC: x@y,\r\n z@y\r\n\r\nb", id + date + from + "\r\nb"},
		"Return-Path goes":                  {from + "Return-Path: <x@y>\r\n\r\nb", id + date + from + "\r\nb"},
		"an empty Cc goes":                  {"Cc: \r\n" + from + "\r\nb", id + date + from + "\r\nb"},
		"a Cc that is folded and empty":     {"Cc:\r\n \t\r\n" + from + "\r\nb", id + date + from + "\r\nb"},
		"a full Cc stays":                   {"Cc: x@y\r\n" + from + "\r\nb", id + date + "Cc: x@y\r\n" + from + "\r\nb"},
		"upstream control fields go":        {"X-SES-CONFIGURATION-SET: x\r\nX-Mailgun-Tag: x\r\nx-pm-message-stream: x\r\n" + from + "X-SMTPAPI: {}\r\nX-MSYS-API: {}\r\nX-AliDM-Trace: x\r\n\r\nb", id + date + from + "\r\nb"},
		"our own control fields go":         {"X-Gatepost-TTL: 60\r\nX-Gatepost-Other: x\r\n" + from + "\r\nb", id + date + from + "\r\nb"},
		"a missing blank line":              {from, id + date + from + "\r\n"},
		"a missing blank line and line end": {"From: a@auth.example.com", id + date + from + "\r\n"},
		"the same behind a dropped field":   {from + "Bcc: x@y", id + date + from + "\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "")
			s.Raw = message.Raw(tt.raw)
			if got, want := string(check(t, s).Raw), fmt.Sprintf(receivedForTests, testID)+tt.want; got != want {
				t.Errorf("message\n%q\nwant\n%q", got, want)
			}
		})
	}
}

func TestMalformedHeaders(t *testing.T) {
	p := newPolicy(t)
	const from = "From: a@auth.example.com\r\n"
	for name, tt := range map[string]struct{ header, refusal string }{
		"no From":                              {"Subject: x\r\n", "550 5.6.0 The message has no From field; set the sender to an address in auth.example.com"},
		"no header at all":                     {"", "no From"},
		"two From fields":                      {from + from, "more than one From field; RFC 5322 section 3.6 allows one"},
		"two in different case":                {from + "FROM: b@auth.example.com\r\n", "more than one FROM field"},
		"a From that hides behind a space":     {from + "From : b@evil.example\r\n", "550 5.6.0"},
		"an empty From":                        {"From: \r\n", "The From field cannot be read"},
		"two Sender fields":                    {from + "Sender: a@auth.example.com\r\nSender: a@auth.example.com\r\n", "more than one Sender"},
		"two Subject fields":                   {from + "Subject: a\r\nsubject: b\r\n", "more than one"},
		"two To fields":                        {from + "To: a@b\r\nTo: a@b\r\n", "more than one To"},
		"two Cc fields":                        {from + "Cc: a@b\r\nCc: a@b\r\n", "more than one Cc"},
		"two Reply-To fields":                  {from + "Reply-To: a@b\r\nReply-To: a@b\r\n", "more than one Reply-To"},
		"two Date fields":                      {from + "Date: a\r\nDate: a\r\n", "more than one Date"},
		"two Message-ID fields":                {from + "Message-ID: a\r\nMessage-Id: a\r\n", "more than one Message-Id"},
		"two MIME-Version fields":              {from + "MIME-Version: 1.0\r\nMIME-Version: 1.0\r\n", "more than one MIME-Version field; RFC 2045"},
		"two Content-Type fields":              {from + "Content-Type: text/plain\r\nContent-Type: text/html\r\n", "more than one Content-Type"},
		"two Content-Transfer-Encoding fields": {from + "Content-Transfer-Encoding: 7bit\r\nContent-Transfer-Encoding: 8bit\r\n", "more than one Content-Transfer-Encoding"},
		"a line without a colon":               {from + "hello\r\n", "without a field name and colon"},
		"an empty name":                        {from + ": x\r\n", "without a field name and colon"},
		"a continuation line first":            {" folded\r\n" + from, "starts with a continuation line"},
		"a control character in a name":        {from + "X\x01Y: x\r\n", "character that is not allowed"},
		"8-bit text in a name":                 {from + "Ünï: x\r\n", "character that is not allowed"},
		"a space in a name":                    {from + "Subject line: x\r\n", "character that is not allowed"},
		"a NUL":                                {from + "X: \x00\r\n", "NUL"},
		"a bare CR":                            {from + "X: a\rFrom: b@evil.example\r\n", "CR or LF"},
		"a bare LF":                            {from + "X: a\nFrom: b@evil.example\r\n", "CR or LF"},
		"more than a signature can cover":      {from + strings.Repeat("Resent-To: a@example.com\r\n", 26), "more than 25 Resent-"},
		"a thousand fields too many":           {from + strings.Repeat("X: y\r\n", 1000), "more than 1000"},
		"Received and Comments may repeat":     {from + "Received: a; b\r\nReceived: a; b\r\nComments: a\r\nComments: b\r\nKeywords: a\r\nKeywords: b\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "")
			s.Raw = message.Raw(tt.header + "\r\nbody\r\n")
			_, err := p.Check(s, testID, testTime)
			checkRefusal(t, err, tt.refusal)
		})
	}
}

func TestLifetime(t *testing.T) {
	p := newPolicy(t)
	for name, tt := range map[string]struct {
		field   string
		want    time.Duration // from the end of data
		refusal string
	}{
		"the stream's by default":        {"X-Other: 1", time.Hour, ""},
		"seconds":                        {"X-Gatepost-TTL: 600", 10 * time.Minute, ""},
		"a duration":                     {"x-gatepost-ttl: 1m30s", 90 * time.Second, ""},
		"never more than the stream's":   {"X-Gatepost-TTL: 24h", time.Hour, ""},
		"a very large number of seconds": {"X-Gatepost-TTL: 4294967295", time.Hour, ""},
		"zero":                           {"X-Gatepost-TTL: 0", 0, "550 5.6.0 X-Gatepost-TTL"},
		"a negative duration":            {"X-Gatepost-TTL: -5m", 0, "550 5.6.0"},
		"no number":                      {"X-Gatepost-TTL: soon", 0, "550 5.6.0"},
		"an empty value":                 {"X-Gatepost-TTL:", 0, "550 5.6.0"},
		"more seconds than there are":    {"X-Gatepost-TTL: 99999999999999999999", 0, "550 5.6.0"},
		"two of them":                    {"X-Gatepost-TTL: 60\r\nX-Gatepost-TTL: 600", 0, "550 5.6.0 The message has more than one X-Gatepost-TTL"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := p.Check(submission("logto", "", "From: a@auth.example.com", tt.field), testID, testTime.Add(time.Second))
			checkRefusal(t, err, tt.refusal)
			if err == nil && (m.ExpiresAt.Sub(testTime) != tt.want || !m.AcceptedAt.Equal(testTime.Add(time.Second))) {
				t.Errorf("ends %v after the data, accepted at %v, want %v", m.ExpiresAt.Sub(testTime), m.AcceptedAt, tt.want)
			}
		})
	}
}

func TestReceivedTellsOnlyWhatItMay(t *testing.T) {
	for name, tt := range map[string]struct{ listener, remote, helo, want string }{
		"a private address stays unnamed":      {"smtp", "10.1.2.3", "app.example.com", "from app.example.com\r\n"},
		"loopback too":                         {"smtp", "127.0.0.1", "app.example.com", "from app.example.com\r\n"},
		"carrier-grade NAT too":                {"smtp", "100.64.1.1", "app.example.com", "from app.example.com\r\n"},
		"a unique local address too":           {"smtp", "fd00::1", "app.example.com", "from app.example.com\r\n"},
		"a private one in IPv6 form too":       {"smtp", "::ffff:10.1.2.3", "app.example.com", "from app.example.com\r\n"},
		"a public address is named":            {"smtp", "203.0.113.9", "app.example.com", "from app.example.com ([203.0.113.9])\r\n"},
		"a public IPv6 address is named":       {"smtp", "2001:db8::1", "app.example.com", "from app.example.com ([IPv6:2001:db8::1])\r\n"},
		"always names a private one":           {"open", "10.1.2.3", "app.example.com", "from app.example.com ([10.1.2.3])\r\n"},
		"never names a public one":             {"quiet", "203.0.113.9", "app.example.com", "from app.example.com\r\n"},
		"an unknown listener is a public one":  {"admin", "10.1.2.3", "localhost", "from localhost\r\n"},
		"nodemailer's literal gives none away": {"smtp", "127.0.0.1", "[127.0.0.1]", "from unknown\r\n"},
		"nor does a bare address":              {"smtp", "10.1.2.3", "10.1.2.3", "from unknown\r\n"},
		"nor an IPv6 literal":                  {"smtp", "10.1.2.3", "[IPv6:fd00::1]", "from unknown\r\n"},
		"a public literal may stand":           {"smtp", "127.0.0.1", "[203.0.113.9]", "from [203.0.113.9]\r\n"},
		"a name with spaces":                   {"smtp", "127.0.0.1", "My App", "from unknown\r\n"},
		"a name with line ends":                {"smtp", "127.0.0.1", "a\r\nBcc: x", "from unknown\r\n"},
		"a name in UTF-8":                      {"smtp", "127.0.0.1", "私のアプリ", "from unknown\r\n"},
		"a name with a comment":                {"smtp", "127.0.0.1", "a(b)", "from unknown\r\n"},
		"no name":                              {"smtp", "127.0.0.1", "", "from unknown\r\n"},
		"an endless name":                      {"smtp", "127.0.0.1", strings.Repeat("a", 256), "from unknown\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			s := submission("logto", "", "From: a@auth.example.com")
			s.Listener, s.Helo, s.Remote = tt.listener, tt.helo, netip.AddrPortFrom(netip.MustParseAddr(tt.remote), 40000)
			raw := string(check(t, s).Raw)
			if !strings.HasPrefix(raw, "Received: "+tt.want+"\tby gw.example.com with ESMTP id ") {
				t.Errorf("message starts %q, want Received: %q", raw[:min(len(raw), 120)], tt.want)
			}
		})
	}
}

func TestReceivedNamesTheProtocol(t *testing.T) {
	for with, want := range map[string]string{"ESMTPS": "ESMTPS", "HTTP": "HTTP", "": "ESMTP", "x; y": "ESMTP"} {
		s := submission("logto", "", "From: a@auth.example.com")
		s.With, s.Remote = with, netip.AddrPort{}
		if raw := string(check(t, s).Raw); !strings.Contains(raw, " with "+want+" id ") {
			t.Errorf("with %q: %q", with, raw[:80])
		}
	}
}

// Whatever is let through has one From in a domain of the client's stream, framing that everybody reads alike, and the
// body and fields it came with.
func FuzzCheck(f *testing.F) {
	f.Add("From: a@auth.example.com\r\n\r\nbody")
	f.Add(nodemailer)
	f.Add("From: a@auth.example.com, b@news.example.com\r\nSender: x\r\n\r\n")
	f.Add("Bcc: x\r\nFrom: a@auth.example.com\r\nX-Gatepost-TTL: 1m\r\nCc:\r\n \r\n")
	f.Add("From:\r\n a@auth.example.com\r\nFrom : x@evil.example\r\n\r\n\r\n")
	f.Add("\r\nFrom: a@auth.example.com\r\n")
	f.Add(logtoNameOnly)
	f.Add(zitadel)
	f.Add("From: \"x@\xef\xbc\xa0evil.example\" <a@auth.example.com>\r\nSubject: =?utf-8?q?code?=\r\nX-Template: SignIn\r\n\r\n")
	c := ruleConfig()
	c.Stream["auth"].DefaultFrom = "a@auth.example.com"
	p, err := New(c)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in string) {
		s := submission("logto", "")
		header, body, _ := strings.Cut(in, "\r\n\r\n")
		body = strings.Map(func(r rune) rune { // the door lets no other body through
			if r == '\r' || r == '\n' || r == 0 {
				return ' '
			}
			return r
		}, body)
		s.Raw = message.Raw(header + "\r\n\r\n" + body)
		if ends := bytes.Count(s.Raw.Body(), []byte("\r\n")); bytes.Count(s.Raw.Body(), []byte("\n")) != ends || bytes.Count(s.Raw.Body(), []byte("\r")) != ends {
			return // the header was empty, and what should have been one is body
		}
		m, err := p.Check(s, testID, testTime)
		if err != nil {
			return
		}
		if lines := bytes.Count(m.Raw, []byte("\r\n")); bytes.Count(m.Raw, []byte("\r")) != lines || bytes.Count(m.Raw, []byte("\n")) != lines {
			t.Errorf("bare CR or LF in %q", m.Raw)
		}
		if string(m.Raw.Body()) != string(s.Raw.Body()) {
			t.Errorf("body %q became %q", s.Raw.Body(), m.Raw.Body())
		}
		checkFields(t, p, s.Raw, m)
	})
}

// checkFields compares the fields of m with those of the submission, and looks at From once more.
func checkFields(t *testing.T, p *Policy, raw message.Raw, m *message.Message) {
	t.Helper()
	var froms, kept, want []string
	for f := range message.Fields(m.Raw.Header()) {
		if f.Is("From") {
			froms = append(froms, f.Value())
		}
		kept = append(kept, string(f))
	}
	for f := range message.Fields(raw.Header()) {
		if !isDropped(strings.ToLower(f.Name()), f) {
			want = append(want, string(f))
		}
	}
	if added := len(kept) - len(want); added < 1 || added > 4 || !slices.Equal(kept[added:], want) {
		t.Errorf("fields %q became %q", want, kept)
	}
	if len(froms) != 1 {
		t.Fatalf("%d From fields", len(froms))
	}
	as, err := parseMailboxes(froms[0])
	if err != nil {
		t.Fatalf("From %q: %v", froms[0], err)
	}
	for _, a := range as {
		if s := p.domains.stream(a.Domain); s == nil || s.Name != "auth" || m.Stream != "auth" {
			t.Errorf("From %q went into stream %s", froms[0], m.Stream)
		}
		for _, d := range shownDomains(a.name) {
			if own, err := message.ParseDomain(d); err != nil || p.domains.stream(own) != p.domains.stream(a.Domain) {
				t.Errorf("From %q shows an address in %s", froms[0], d)
			}
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	p := newPolicy(b)
	for _, kb := range []int{2, 200} {
		s := submission("logto", "no-reply@auth.example.com")
		s.Raw = message.Raw(nodemailer + strings.Repeat("0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijk\r\n", kb<<10/62))
		b.Run(fmt.Sprintf("%dKB", kb), func(b *testing.B) {
			b.SetBytes(int64(len(s.Raw)))
			for b.Loop() {
				if _, err := p.Check(s, testID, testTime); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
