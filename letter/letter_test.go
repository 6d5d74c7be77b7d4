package letter

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net/mail"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"

	"gatepost/message"
	"gatepost/reply"
)

// crlf joins the lines of a message.
func crlf(lines ...string) message.Raw { return message.Raw(strings.Join(lines, "\r\n") + "\r\n") }

func mustRead(t testing.TB, raw message.Raw) *Letter {
	t.Helper()
	l, err := Read(raw)
	if err != nil {
		t.Fatalf("read %q: %v", raw, err)
	}
	return l
}

// encoded returns text in another character set.
func encoded(t testing.TB, e encoding.Encoding, text string) string {
	t.Helper()
	s, err := e.NewEncoder().String(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const code = "確認コードは 123456 です"

func TestTheUsualSignInMailIsToldInFull(t *testing.T) {
	l := mustRead(t, crlf(
		`From: "確認, コード" <no-reply@auth.example.com>`,
		"To: User <user@Example.NET>",
		"Reply-To: a@example.com, =?utf-8?q?B=C3=A9?= <b@example.com>, c@example.com",
		"Subject: =?utf-8?B?"+base64.StdEncoding.EncodeToString([]byte("確認コード"))+"?=",
		"Date: Mon, 05 Jan 2026 10:00:00 +0000",
		"Message-ID: <a@auth.example.com>",
		"X-Entity-Ref-ID: 42",
		"MIME-Version: 1.0",
		"Content-Type: multipart/mixed; boundary=m", "",
		"--m", "Content-Type: multipart/related; boundary=r", "",
		"--r", "Content-Type: multipart/alternative; boundary=a", "",
		"--a", "Content-Type: text/plain; charset=utf-8", "", code, "--a",
		"Content-Type: text/html; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "", `<img src=3D"cid:logo">`+"=E7=A2=BA", "--a--",
		"--r", "Content-Type: image/png; name=l.png", "Content-ID: <logo>", "Content-Transfer-Encoding: base64", "", "iVBO", "Rw==", "--r--",
		"--m", "Content-Type: application/pdf", "Content-Disposition: attachment; filename*=UTF-8''%E7%A2%BA.pdf", "", "%PDF", "--m--",
	))
	want := &Letter{
		From:    mail.Address{Name: "確認, コード", Address: "no-reply@auth.example.com"},
		To:      []mail.Address{{Name: "User", Address: "user@example.net"}},
		ReplyTo: []mail.Address{{Address: "a@example.com"}, {Name: "Bé", Address: "b@example.com"}, {Address: "c@example.com"}},
		Subject: "確認コード",
		Header:  []Field{{"Message-ID", "<a@auth.example.com>"}, {"X-Entity-Ref-ID", "42"}},
		Content: Content{
			Text: code, HTML: `<img src="cid:logo">確`,
			Files: []File{
				{Name: "l.png", Type: "image/png", CID: "logo", Inline: true, Data: []byte("\x89PNG")},
				{Name: "確.pdf", Type: "application/pdf", Data: []byte("%PDF")},
			},
		},
	}
	if !reflect.DeepEqual(l, want) {
		t.Errorf("got %+v\nwant %+v", l, want)
	}
}

func TestTextOfEveryCharacterSetBecomesUTF8(t *testing.T) {
	for charset, body := range map[string]string{
		"ISO-2022-JP": encoded(t, japanese.ISO2022JP, code),
		"Shift_JIS":   encoded(t, japanese.ShiftJIS, code),
		"EUC-JP":      encoded(t, japanese.EUCJP, code),
		"GB18030":     encoded(t, simplifiedchinese.GB18030, code),
		"gbk":         encoded(t, simplifiedchinese.GBK, code),
		"utf-8":       code,
		"us-ascii":    code, // it says so and is not
	} {
		for encoding, encode := range map[string]func(string) string{
			"8bit":   func(s string) string { return s },
			"base64": func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		} {
			l := mustRead(t, crlf("From: a@b.example", `Content-Type: text/plain; charset="`+charset+`"`, "Content-Transfer-Encoding: "+encoding, "", encode(body)))
			if strings.TrimSpace(l.Text) != code {
				t.Errorf("%s in %s reads %q", charset, encoding, l.Text)
			}
		}
	}
	if l := mustRead(t, crlf("From: a@b.example", "", code)); l.Text != code+"\r\n" {
		t.Errorf("UTF-8 without a word about it reads %q", l.Text)
	}
}

func TestEveryPartHasItsPlace(t *testing.T) {
	multi := func(kind string, parts ...string) message.Raw {
		return crlf("From: a@b.example", "Content-Type: multipart/"+kind+"; boundary=b", "", "--b\r\n"+strings.Join(parts, "\r\n--b\r\n")+"\r\n--b--")
	}
	leaf := func(kind, text string) string { return "Content-Type: " + kind + "\r\n\r\n" + text }
	nested := func(kind string, parts ...string) string {
		return "Content-Type: multipart/" + kind + "; boundary=c\r\n\r\n--c\r\n" + strings.Join(parts, "\r\n--c\r\n") + "\r\n--c--"
	}
	plain, html := leaf("text/plain", "plain"), leaf("text/html", "html")
	for name, tt := range map[string]struct {
		raw  message.Raw
		want Content
	}{
		"the last alternative of a type stands for the others": {
			multi("alternative", leaf("text/plain", "first"), html, plain), Content{Text: "plain", HTML: "html"}},
		"an invitation is an alternative": {
			multi("alternative", plain, leaf("text/calendar; method=REQUEST; name=i.ics", "BEGIN")),
			Content{Text: "plain", Alternatives: []Alternative{{"text/calendar", "REQUEST", "BEGIN"}}}},
		"an invitation elsewhere is a file": {
			multi("mixed", plain, leaf("text/calendar; method=REQUEST", "BEGIN")),
			Content{Text: "plain", Files: []File{{Name: "invite.ics", Type: "text/calendar", Data: []byte("BEGIN")}}}},
		"text of one type is read on": {
			multi("mixed", plain, plain+"\r\n", plain), Content{Text: "plain\r\nplain\r\nplain"}},
		"text of another type is a file": {
			multi("mixed", plain, html), Content{Text: "plain", Files: []File{{Name: "text.html", Type: "text/html", Data: []byte("html")}}}},
		"and so is a footer to both": {
			multi("mixed", nested("alternative", plain, html), leaf("text/plain", "footer")),
			Content{Text: "plain", HTML: "html", Files: []File{{Name: "text.txt", Type: "text/plain", Data: []byte("footer")}}}},
		"an empty text leaves its place to the other": {
			multi("mixed", leaf("text/plain", " \r\n"), html), Content{HTML: "html"}},
		"text with a name is a file": {
			multi("mixed", plain, leaf("text/plain; name=a.txt", "text")),
			Content{Text: "plain", Files: []File{{Name: "a.txt", Type: "text/plain", Data: []byte("text")}}}},
		"the root of a related is named": {
			multi("related; start=\"<r>\"", "Content-ID: <i>\r\n"+leaf("image/gif", "GIF"), "Content-ID: <r>\r\n"+html),
			Content{HTML: "html", Files: []File{{Name: "image.gif", Type: "image/gif", CID: "i", Inline: true, Data: []byte("GIF")}}}},
		"a style sheet beside it is no text": {
			multi("related", html, "Content-ID: <c>\r\n"+leaf("text/css", "b{}"), "Content-ID: <d>\r\n"+plain),
			Content{HTML: "html", Files: []File{{"attachment", "text/css", "c", true, []byte("b{}")}, {"text.txt", "text/plain", "d", true, []byte("plain")}}}},
		"what the text shows is inline wherever it stands": {
			multi("mixed", leaf("text/html", `<img src='cid:a%40b'>`), "Content-ID: <a@b>\r\nContent-Disposition: attachment\r\n"+leaf("image/gif", "GIF")),
			Content{HTML: `<img src='cid:a%40b'>`, Files: []File{{"image.gif", "image/gif", "a@b", true, []byte("GIF")}}}},
		"an image shown twice is sent once": {
			multi("related", leaf("text/html", `<img src="cid:i"><img src="cid:i">`), "Content-ID: <i>\r\n"+leaf("image/gif", "GIF")),
			Content{HTML: `<img src="cid:i"><img src="cid:i">`, Files: []File{{"image.gif", "image/gif", "i", true, []byte("GIF")}}}},
		"two images of one id are both sent": {
			multi("related", html, "Content-ID: <i>\r\n"+leaf("image/gif", "GIF"), "Content-ID: <i>\r\n"+leaf("image/gif", "GIF8")),
			Content{HTML: "html", Files: []File{{"image.gif", "image/gif", "i", true, []byte("GIF")}, {"image.gif", "image/gif", "i", true, []byte("GIF8")}}}},
		"nothing is shown without an id": {
			multi("mixed", html, "Content-Disposition: inline\r\n"+leaf("image/gif", "GIF")),
			Content{HTML: "html", Files: []File{{Name: "image.gif", Type: "image/gif", Data: []byte("GIF")}}}},
		"an end that is missing ends nothing": {
			crlf("From: a@b.example", "Content-Type: multipart/mixed; boundary=b", "", "--b", "", "plain"), Content{Text: "plain\r\n"}},
		"a message is a file": {
			multi("mixed", plain, leaf("message/rfc822", "Content-Type: multipart/signed\r\n\r\nx")),
			Content{Text: "plain", Files: []File{{Name: "message.eml", Type: "message/rfc822", Data: []byte("Content-Type: multipart/signed\r\n\r\nx")}}}},
		"so are those of a digest": {
			multi("digest", "\r\nSubject: x\r\n\r\nx"), Content{Files: []File{{Name: "message.eml", Type: "message/rfc822", Data: []byte("Subject: x\r\n\r\nx")}}}},
		"an image is a file among alternatives too": {
			multi("alternative", plain, leaf("image/gif", "GIF")),
			Content{Text: "plain", Files: []File{{Name: "image.gif", Type: "image/gif", Data: []byte("GIF")}}}},
		"a mail may be a file alone": {
			crlf("From: a@b.example", "Content-Type: image/gif", "", "GIF"), Content{Files: []File{{Name: "image.gif", Type: "image/gif", Data: []byte("GIF\r\n")}}}},
		"nesting does not matter": {
			multi("mixed", nested("related", "Content-Type: multipart/alternative; boundary=d\r\n\r\n--d\r\n"+plain+"\r\n--d\r\n"+html+"\r\n--d--", "Content-ID: <i>\r\n"+leaf("image/gif", "GIF"))),
			Content{Text: "plain", HTML: "html", Files: []File{{"image.gif", "image/gif", "i", true, []byte("GIF")}}}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := mustRead(t, tt.raw).Content; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestWhatCannotBeToldIsRefused(t *testing.T) {
	const from = "From: a@b.example"
	part := func(lines ...string) message.Raw {
		return crlf(slices.Concat([]string{from, "Content-Type: multipart/mixed; boundary=b", "", "--b"}, lines, []string{"--b--"})...)
	}
	deep, depth := crlf(from), "x"
	for range maxDepth + 2 {
		deep = append(deep, "Content-Type: multipart/mixed; boundary="+depth+"\r\n\r\n--"+depth+"\r\n"...)
		depth += "x"
	}
	for name, tt := range map[string]struct {
		raw  message.Raw
		want string
	}{
		"a signed message":                        {crlf(from, "Content-Type: multipart/signed; boundary=b", "", "--b", "", "x", "--b--"), "5.6.3"},
		"an encrypted one":                        {crlf(from, "Content-Type: multipart/encrypted; boundary=b", "", "--b", "", "x", "--b--"), "5.6.3"},
		"a report":                                {crlf(from, "Content-Type: multipart/report; boundary=b", "", "--b", "", "x", "--b--"), "5.6.3"},
		"a multipart that nobody knows":           {crlf(from, "Content-Type: multipart/x-new; boundary=b", "", "--b", "", "x", "--b--"), "5.6.3"},
		"S/MIME":                                  {crlf(from, "Content-Type: application/pkcs7-mime; smime-type=signed-data", "", "x"), "5.6.3"},
		"S/MIME in a part":                        {part("Content-Type: application/x-pkcs7-mime; name=smime.p7m", "", "x"), "5.6.3"},
		"a piece of a message":                    {crlf(from, "Content-Type: message/partial; id=x; number=1", "", "x"), "5.6.3"},
		"an unknown character set":                {crlf(from, "Content-Type: text/plain; charset=x-klingon", "", "x"), "5.6.3"},
		"a character set that is a trap":          {crlf(from, "Content-Type: text/plain; charset=iso-2022-kr", "", "x"), "5.6.3"},
		"text that is not in its character set":   {crlf(from, "Content-Type: text/plain; charset=shift_jis", "", "\x81\xff"), "5.6.3"},
		"UTF-8 that is none":                      {crlf(from, "Content-Type: text/plain; charset=utf-8", "", "\xff"), "5.6.3"},
		"8-bit text of which nothing is known":    {crlf(from, "", "caf\xe9"), "5.6.3"},
		"an unknown transfer encoding":            {crlf(from, "Content-Transfer-Encoding: x-uuencode", "", "x"), "5.6.1"},
		"base64 that is none":                     {crlf(from, "Content-Transfer-Encoding: base64", "", "QUJ"), "5.6.0"},
		"an encoded multipart":                    {crlf(from, "Content-Type: multipart/mixed; boundary=b", "Content-Transfer-Encoding: base64", "", "--b", "", "x", "--b--"), "5.6.0"},
		"a multipart without a part":              {crlf(from, "Content-Type: multipart/mixed; boundary=b", "", "x"), "5.6.0"},
		"a part that is no MIME":                  {part("no field"), "5.6.0"},
		"a multipart without a boundary":          {crlf(from, "Content-Type: multipart/mixed", "", "x"), "5.6.0"},
		"a related without a root":                {crlf(from, "Content-Type: multipart/related; boundary=b; start=x", "", "--b", "", "x", "--b--"), "5.6.0"},
		"a part shown by its location":            {crlf(from, "Content-Type: multipart/related; boundary=b", "", "--b", "Content-Type: text/html", "", "x", "--b", "Content-Type: image/gif", "Content-Location: a.gif", "", "GIF", "--b--"), "5.6.3"},
		"a type that is none":                     {part("Content-Type: text", "", "x"), "5.6.0"},
		"two types":                               {part("Content-Type: text/plain", "Content-Type: text/html", "", "x"), "5.6.0"},
		"two boundaries":                          {crlf(from, "Content-Type: multipart/mixed; boundary=b; boundary=c", "", "--b", "", "x", "--b--"), "5.6.0"},
		"a file name in an unknown character set": {part("Content-Disposition: attachment; filename*=x-klingon''%80", "", "x"), "5.6.3"},
		"nested too deep":                         {deep, "5.6.3"},
		"too many parts":                          {part(strings.Repeat("\r\nx\r\n--b\r\n", maxParts), "", "x"), "5.6.3"},
		"a long header of a part":                 {part("X: "+strings.Repeat("x", maxPartHeader), "", "x"), "5.6.0"},
		"no From":                                 {crlf("Subject: x", "", "x"), "5.6.3"},
		"two authors":                             {crlf("From: a@b.example, c@d.example", "", "x"), "5.6.3"},
		"two From fields":                         {crlf(from, from, "", "x"), "5.6.0"},
		"two Reply-To fields":                     {crlf(from, "Reply-To: a@b.example", "Reply-To: c@d.example", "", "x"), "5.6.0"},
		"a From that is no address":               {crlf("From: nobody", "", "x"), "5.6.0"},
		"a From of an address literal":            {crlf("From: a@[192.0.2.1]", "", "x"), "5.6.0"},
		"a quoted From":                           {crlf(`From: "a b"@c.example`, "", "x"), "5.6.0"},
		"a UTF-8 mailbox":                         {crlf("From: é@c.example", "", "x"), "5.6.7"},
		"an unknown character set in a name":      {crlf("From: =?x-klingon?q?x?= <a@b.example>", "", "x"), "5.6.0"},
		"a name that is not in its character set": {crlf("From: =?utf-8?q?=FF?= <a@b.example>", "", "x"), "5.6.3"},
		"an unknown character set in the subject": {crlf(from, "Subject: =?x-klingon?q?x?=", "", "x"), "5.6.3"},
		"a subject that is not in its own":        {crlf(from, "Subject: =?gb18030?q?=FF?=", "", "x"), "5.6.3"},
		"a field of octets":                       {crlf(from, "X-A: \xff", "", "x"), "5.6.0"},
		"a line that is no field":                 {crlf(from, "X A: x", "", "x"), "5.6.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Read(tt.raw)
			checkRefused(t, err)
			if e := reply.Of(err); err != nil && (e.Code != 554 || e.Enhanced != tt.want) || l != nil {
				t.Errorf("Read: %+v, %v, want nothing and 554 %s", l, err, tt.want)
			}
		})
	}
}

// checkRefused checks that err is a refusal fit for a reply line.
func checkRefused(t testing.TB, err error) {
	t.Helper()
	e, ok := errors.AsType[*reply.Error](err)
	if !ok || e.Temporary() || !strings.HasPrefix(e.Enhanced, "5.6.") || e.Text == "" || len(e.Text) > 400 || spaced(e.Text) != e.Text || !isASCII(e.Text) {
		t.Errorf("refused with %#v", err)
	}
}

func TestNothingGetsAFieldOfItsOwnThroughAnotherOne(t *testing.T) {
	const evil = "=?utf-8?q?a=0D=0ABcc=3A_evil=00?="
	l := mustRead(t, crlf("From: "+evil+" <a@b.example>", "Subject: "+evil, "To: "+evil+" <c@d.example>", "X-A: b\r\n Bcc: c",
		"Content-Type: multipart/mixed; boundary=b", "",
		"--b", "Content-Type: image/gif", "Content-ID: <a\x00b>", "Content-Disposition: attachment; filename*=utf-8''a%0D%0ABcc%3A%20evil", "", "GIF",
		"--b", "Content-Type: image/gif; name=\""+evil+"\"", "", "GIF", "--b--"))
	all := []string{l.From.Name, l.Subject, l.To[0].Name, l.Header[0].Value, l.Files[0].Name, l.Files[0].CID, l.Files[1].Name}
	for _, s := range all {
		if s == "" || s != spaced(s) {
			t.Errorf("a control character stays in %q", s)
		}
	}
	if len(l.Header) != 1 {
		t.Errorf("the header is %+v, want X-A alone", l.Header)
	}
}

func TestFieldsThatSteerAServiceAreLeftOut(t *testing.T) {
	l := mustRead(t, crlf("From: a@b.example", "X-SMTPAPI: {}", "X-PM-Tag: x", "X-SES-CONFIGURATION-SET: x", "X-Mailgun-Tag: x", "X-MSYS-API: {}",
		"X-AliDM-Trace: x", "X-SG-EID: x", "Bcc: c@d.example", "DKIM-Signature: v=1", "ARC-Seal: i=1", "Received: from x", "Return-Path: <>",
		"Resent-To: c@d.example", "X-Gatepost-TTL: 5m", "Authentication-Results: x", "List-ID: <l.b.example>", "Precedence: bulk", "Auto-Submitted: auto-generated", "", "x"))
	if want := []Field{{"List-ID", "<l.b.example>"}, {"Precedence", "bulk"}, {"Auto-Submitted", "auto-generated"}}; !slices.Equal(l.Header, want) {
		t.Errorf("the header is %+v, want %+v", l.Header, want)
	}
}

func TestEveryFieldThatIsLeftOutIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/upstreams.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(strings.ToLower(string(page)), "\n## services that build the message\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, name := range lost {
		if !strings.Contains(section, strings.TrimSuffix(name, "-")) {
			t.Errorf("the page does not say that %s is left out", name)
		}
	}
}

func TestLongLinesStayWhole(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	l := mustRead(t, crlf("From: a@b.example", "References: "+long, "Content-Transfer-Encoding: quoted-printable", "", long))
	if l.Text != long+"\r\n" || l.Header[0].Value != long {
		t.Errorf("of %d octets the text has %d, the field %d", len(long), len(l.Text), len(l.Header[0].Value))
	}
}

// shape is a Call in addresses alone.
type shape struct{ To, Cc, Bcc []string }

func addresses(recipients []Recipient) (found []string) {
	for _, r := range recipients {
		found = append(found, r.Address.Address)
	}
	return found
}

func TestHostileMailTakesNoLongerThanItsSize(t *testing.T) {
	const size = 1 << 20
	fill := func(s string) string { return strings.Repeat(s, size/len(s)) }
	const from, multipart = "From: a@b.example", "Content-Type: multipart/mixed; boundary=b"
	for name, raw := range map[string]message.Raw{
		"recipients":             crlf(from, "To: "+fill("a@b.example, ")+"c@d.example", "", "x"),
		"comments":               crlf(from, "To: "+fill("(")+" c@d.example", "", "x"),
		"encoded words":          crlf(from, "Subject: "+fill("=?utf-8?q?a?= "), "", "x"),
		"half of encoded words":  crlf(from, "Subject: "+fill("=?utf-8?q?a "), "", "x"),
		"references":             crlf(from, multipart, "", "--b", "Content-Type: text/html", "", fill("cid:a\r\n"), "--b", "Content-Type: image/gif", "Content-ID: <a>", "", "x", "--b--"),
		"what is nearly an end":  crlf(from, multipart, "", "--b", "", fill("\r\n--bx"), "--b--"),
		"what comes before":      crlf(from, multipart, "", fill("\r\n--x"), "--b", "", "x", "--b--"),
		"header fields of parts": crlf(from, multipart, "", "--b", fill("X: y\r\n"), "", "x", "--b--"),
		"a folded field":         crlf(from, multipart, "", "--b", "X: y\r\n"+fill(" y\r\n"), "", "x", "--b--"),
		"header fields":          crlf(from, fill("X: y\r\n")+"Y: z", "", "x"),
		"parts":                  crlf(from, multipart, "", "--b", fill("\r\n--b\r\n"), "", "x", "--b--"),
		"soft line breaks":       crlf(from, "Content-Transfer-Encoding: quoted-printable", "", fill("=\r\n")),
		"one line of them":       crlf(from, "Content-Transfer-Encoding: quoted-printable", "", fill("=3D")),
		"shifts":                 crlf(from, "Content-Type: text/plain; charset=iso-2022-jp", "", fill("\x1b$B\x1b(B")),
		"parameters":             crlf(from, "Content-Type: text/plain"+fill(";a*9=b"), "", "x"),
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Read(raw)
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("%d octets took %v (%v)", len(raw), took, err)
			}
			if err != nil {
				checkRefused(t, err)
			}
		})
	}
}

func TestTheEnvelopeDecidesWhoGetsIt(t *testing.T) {
	to := func(addresses ...string) []string { return addresses }
	const a, b, c, d = "a@x.example", "b@x.example", "c@x.example", "d@x.example"
	for name, tt := range map[string]struct {
		header message.Raw
		kind   message.Kind
		to     []string
		want   []shape
	}{
		"a code goes to each alone": {
			crlf("To: "+a, "Cc: "+b), message.Auth, []string{a, b}, []shape{{To: to(a)}, {To: to(b)}}},
		"other mail shows who else got it": {
			crlf("To: "+b+", "+a, "Cc: "+c), message.Marketing, []string{a, b, c, d}, []shape{{To: to(a, b), Cc: to(c), Bcc: to(d)}}},
		"who is not in the envelope is not shown": {
			crlf("To: "+a+", "+b, "Cc: "+c), message.Marketing, []string{a}, []shape{{To: to(a)}}},
		"the first copy is addressed where nobody else is": {
			crlf("To: "+a, "Cc: "+b+", "+c), message.Marketing, []string{b, c}, []shape{{To: to(b), Cc: to(c)}}},
		"blind copies do not know each other": {
			crlf("To: list@x.example"), message.Marketing, []string{a, b}, []shape{{To: to(a)}, {To: to(b)}}},
		"nor do they without a To": {
			crlf("X: x"), message.Marketing, []string{a, b}, []shape{{To: to(a)}, {To: to(b)}}},
		"a group of nobody shows nobody": {
			crlf("To: undisclosed-recipients:;"), message.Marketing, []string{a}, []shape{{To: to(a)}}},
		"one address twice is two requests": {
			crlf("To: " + a), message.Marketing, []string{a, "A@x.example"}, []shape{{To: to(a)}, {To: to("A@x.example")}}},
		"who is in To and Cc is in To": {
			crlf("To: "+a, "Cc: "+a+", "+b), message.Marketing, []string{a, b}, []shape{{To: to(a), Cc: to(b)}}},
		"an IDN is the same in letters and in ASCII": {
			crlf("To: A@BÜCHER.example"), message.Marketing, []string{"a@xn--bcher-kva.example", b}, []shape{{To: to("a@xn--bcher-kva.example"), Bcc: to(b)}}},
	} {
		t.Run(name, func(t *testing.T) {
			l := mustRead(t, append(bytes.Clone([]byte("From: f@x.example\r\n")), append(tt.header, "\r\nx\r\n"...)...))
			var got []shape
			for _, c := range l.Calls(message.Envelope{Kind: tt.kind, To: tt.to}) {
				got = append(got, shape{addresses(c.To), addresses(c.Cc), addresses(c.Bcc)})
				for _, r := range c.All() {
					if tt.to[r.N] != r.Address.Address {
						t.Errorf("%q is recipient %d of %q", r.Address.Address, r.N, tt.to)
					}
				}
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
	l := mustRead(t, crlf("From: f@x.example", "To: =?utf-8?q?A=C3=A9?= <"+a+">", "", "x"))
	if got := l.Calls(message.Envelope{Kind: message.Auth, To: []string{a}}); got[0].To[0].Name != "Aé" {
		t.Errorf("the name in the header is %q in the request", got[0].To[0].Name)
	}
}
