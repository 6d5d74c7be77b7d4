package relay

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"strings"
	"testing"

	gomessage "github.com/emersion/go-message"
	"github.com/emersion/go-message/mail"

	"gatepost/message"
	"gatepost/reply"
	"gatepost/upstream"
)

var (
	oldHost    = upstream.Caps{}
	eightBit   = upstream.Caps{EightBitMIME: true}
	modernHost = upstream.Caps{EightBitMIME: true, SMTPUTF8: true}
)

// crlf makes a message of lines.
func crlf(lines ...string) message.Raw { return message.Raw(strings.Join(lines, "\r\n") + "\r\n") }

func mustRender(t testing.TB, raw message.Raw, caps upstream.Caps, traits upstream.Traits) (message.Raw, bool) {
	t.Helper()
	out, eight, err := render(raw, caps, traits)
	if err != nil {
		t.Fatalf("render: %v", err)
	}
	return out, eight
}

func TestMailThatFitsIsNotTouched(t *testing.T) {
	japanese := crlf("From: =?UTF-8?B?44Oe?= <a@auth.example.com>", "Subject: =?UTF-8?B?56K66KqN?=", "Content-Transfer-Encoding: base64",
		"MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "", "56K66KqN44Kz44O844OJ44GvIDEyMzQ1Ng==")
	html := crlf("From: a@auth.example.com", "Content-Transfer-Encoding: quoted-printable", "Content-Type: text/html; charset=utf-8", "",
		"<p>=E7=A2=BA=E8=AA=8D=E3=82=B3=E3=83=BC=E3=83=89=E3=81=AF <b>123456</b> =", "=E3=81=A7=E3=81=99</p>")
	for name, tt := range map[string]struct {
		raw    message.Raw
		caps   upstream.Caps
		traits upstream.Traits
		eight  bool
	}{
		"nodemailer's Japanese text, to an old host": {japanese, oldHost, upstream.Traits{}, false},
		"nodemailer's Japanese HTML, to an old host": {html, oldHost, upstream.Traits{OneSignature: true}, false},
		"raw 8-bit text, to a host that takes it":    {crlf("From: a@b", "", "コード"), eightBit, upstream.Traits{}, true},
		"raw 8-bit header, to a host that takes it":  {crlf("Subject: コード", "", "x"), modernHost, upstream.Traits{}, false},
		"a line of 998 octets":                       {crlf("Subject: "+strings.Repeat("x", 989), "", strings.Repeat("x", 998)), oldHost, upstream.Traits{}, false},
		"signed 8-bit mail, to a host that takes it": {crlf("Content-Type: multipart/signed; boundary=b", "", "--b", "", "é", "--b--"), eightBit, upstream.Traits{}, true},
		"a foreign signature where it may stay":      {crlf("DKIM-Signature: v=1", "From: a@b", "", "x"), oldHost, upstream.Traits{DKIM: "sign"}, false},
		"no body":                                    {crlf("From: a@b", ""), oldHost, upstream.Traits{}, false},
		"no final line end":                          {message.Raw("From: a@b\r\n\r\nx"), oldHost, upstream.Traits{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			out, eight := mustRender(t, tt.raw, tt.caps, tt.traits)
			if &out[0] != &tt.raw[0] || len(out) != len(tt.raw) {
				t.Errorf("a copy or a change:\n%q", out)
			}
			if eight != tt.eight {
				t.Errorf("eightBit %v, want %v", eight, tt.eight)
			}
		})
	}
}

func TestBodiesAreEncodedWhereTheNextHopNeedsIt(t *testing.T) {
	long := strings.Repeat("word ", 300)
	for name, tt := range map[string]struct {
		raw  message.Raw
		caps upstream.Caps
		want message.Raw
	}{
		"raw 8-bit text": {
			crlf("From: a@b", "MIME-Version: 1.0", "Content-Transfer-Encoding: 8bit", "Content-Type: text/plain; charset=utf-8", "", "Código 123 ", "ende"),
			oldHost,
			crlf("From: a@b", "MIME-Version: 1.0", "Content-Transfer-Encoding: quoted-printable", "Content-Type: text/plain; charset=utf-8", "", "C=C3=B3digo 123=20", "ende"),
		},
		"8-bit text that calls itself 7bit": {
			crlf("MIME-Version: 1.0", "Content-Transfer-Encoding: 7bit", "Content-Type: text/html; charset=iso-8859-1", "", "caf\xe9"),
			oldHost,
			crlf("MIME-Version: 1.0", "Content-Transfer-Encoding: quoted-printable", "Content-Type: text/html; charset=iso-8859-1", "", "caf=E9"),
		},
		"8-bit text without MIME": {
			crlf("From: a@b", "", "Código"), oldHost,
			crlf("From: a@b", "Content-Type: text/plain; charset=utf-8", "MIME-Version: 1.0", "Content-Transfer-Encoding: quoted-printable", "", "C=C3=B3digo"),
		},
		"8-bit text of no charset": {
			crlf("From: a@b", "", "caf\xe9"), oldHost,
			crlf("From: a@b", "Content-Type: text/plain; charset=unknown-8bit", "MIME-Version: 1.0", "Content-Transfer-Encoding: quoted-printable", "", "caf=E9"),
		},
		"a binary attachment": {
			crlf("MIME-Version: 1.0", "Content-Type: application/pdf", "Content-Transfer-Encoding: binary", "", "\xff\xfe"), oldHost,
			crlf("MIME-Version: 1.0", "Content-Type: application/pdf", "Content-Transfer-Encoding: base64", "", "//4NCg=="),
		},
		"one part of several": {
			crlf("MIME-Version: 1.0", "Content-Type: multipart/alternative; boundary=\"b c\"", "Content-Transfer-Encoding: 8bit", "", "preamble", "--b c", "Content-Type: text/plain", "", "plain", "--b c  ", "content-type: text/html", "", "é", "", "--b c--", "epilogue"),
			oldHost,
			crlf("MIME-Version: 1.0", "Content-Type: multipart/alternative; boundary=\"b c\"", "Content-Transfer-Encoding: 7bit", "", "preamble", "--b c", "Content-Type: text/plain", "", "plain", "--b c", "content-type: text/html", "Content-Transfer-Encoding: quoted-printable", "", "=C3=A9", "", "--b c--", "epilogue"),
		},
		"a part of a part": {
			crlf("Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: multipart/related; boundary=oo", "", "--oo", "", "é", "--oo--", "--o--"),
			oldHost,
			crlf("Content-Type: multipart/mixed; boundary=o", "", "--o", "Content-Type: multipart/related; boundary=oo", "", "--oo",
				"Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "", "=C3=A9", "--oo--", "--o--"),
		},
		"a message in a message": {
			crlf("Content-Type: message/rfc822", "Content-Transfer-Encoding: 8bit", "", "Subject: é", "From: x@y", "", "é"), oldHost,
			crlf("Content-Type: message/rfc822", "Content-Transfer-Encoding: 7bit", "", "Subject: =?utf-8?B?w6k=?=", "From: x@y",
				"Content-Type: text/plain; charset=utf-8", "MIME-Version: 1.0", "Content-Transfer-Encoding: quoted-printable", "", "=C3=A9"),
		},
		"a message in a digest": {
			crlf("Content-Type: multipart/digest; boundary=b", "", "--b", "", "Subject: x", "", "é", "--b--"), oldHost,
			crlf("Content-Type: multipart/digest; boundary=b", "", "--b", "", "Subject: x", "Content-Type: text/plain; charset=utf-8", "MIME-Version: 1.0",
				"Content-Transfer-Encoding: quoted-printable", "", "=C3=A9", "--b--"),
		},
		"raw file names": {
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Disposition: attachment; filename=\"é.txt\"", "Content-Description: é", "", "x", "--b--"), oldHost,
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Disposition: attachment; filename*=utf-8''%C3%A9.txt", "Content-Description: =?utf-8?B?w6k=?=", "", "x", "--b--"),
		},
		"an 8-bit preamble and epilogue are dropped": {
			crlf("Content-Type: multipart/mixed; boundary=b", "", "é", "--b", "", "x", "--b--", "é"), oldHost,
			message.Raw("Content-Type: multipart/mixed; boundary=b\r\n\r\n\r\n--b\r\n\r\nx\r\n--b--\r\n"),
		},
		"a multipart that is never closed": {
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: text/plain", "", "é"), oldHost,
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: text/plain", "Content-Transfer-Encoding: quoted-printable", "", "=C3=A9"),
		},
		"empty parts, and what only looks like a boundary": {
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "--b", "", "--bb é", " --b", "--b-", "--b--"), oldHost,
			crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "--b", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "",
				"--bb =C3=A9", " --b", "--b-", "--b--"),
		},
		"base64 on one line": {
			crlf("Content-Transfer-Encoding: BASE64", "Content-Type: image/png", "", strings.Repeat("QUJD", 300)), eightBit,
			crlf("Content-Transfer-Encoding: BASE64", "Content-Type: image/png", "", strings.Repeat(strings.Repeat("QUJD", 19)+"\r\n", 15)+strings.Repeat("QUJD", 15)),
		},
		"base64 with stray octets": {
			crlf("Content-Transfer-Encoding: base64", "", "QU\xa0JD", "QUJD"), oldHost,
			crlf("Content-Transfer-Encoding: base64", "", "QUJD", "QUJD"),
		},
		"quoted-printable with stray octets": {
			crlf("Content-Transfer-Encoding: quoted-printable", "Content-Type: text/plain", "", "a=C3=A9 é =zz=", "b"), oldHost,
			crlf("Content-Transfer-Encoding: quoted-printable", "Content-Type: text/plain", "", "a=C3=A9 =C3=A9 =zz=", "b"),
		},
		"a long line of text": {
			crlf("MIME-Version: 1.0", "Content-Type: text/plain", "", long+"end"), modernHost,
			crlf("MIME-Version: 1.0", "Content-Type: text/plain", "Content-Transfer-Encoding: quoted-printable", "", strings.Repeat(strings.Repeat("word ", 15)+"=\r\n", 20)+"end"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			out, eight := mustRender(t, tt.raw, tt.caps, upstream.Traits{})
			if !bytes.Equal(out, tt.want) {
				t.Errorf("message\n%q\nwant\n%q", out, tt.want)
			}
			if eight {
				t.Error("8BITMIME is asked for without need")
			}
		})
	}
}

func TestQuotedPrintableOnOneLineIsBrokenSoftly(t *testing.T) {
	raw := crlf("Content-Transfer-Encoding: quoted-printable", "Content-Type: text/plain", "", strings.Repeat("=C3=A9 x", 200))
	out, _ := mustRender(t, raw, eightBit, upstream.Traits{})
	for line := range strings.SplitSeq(string(out), "\r\n") {
		if len(line) > encodedWidth {
			t.Errorf("a line of %d octets", len(line))
		}
	}
	checkSameText(t, raw, out)
}

func TestHeadersAreEncodedWhereTheNextHopNeedsIt(t *testing.T) {
	for name, tt := range map[string]struct{ field, want string }{
		"a subject":                         {"Subject: Código de acceso", "Subject: =?utf-8?B?Q8OzZGlnbw==?= de acceso"},
		"a run of words is one":             {"Subject: é è x", "Subject: =?utf-8?B?w6kgw6g=?= x"},
		"words that are encoded stay":       {"Subject: =?utf-8?Q?=C3=A9?= é", "Subject: =?utf-8?Q?=C3=A9?= =?utf-8?B?IMOp?="},
		"also behind it":                    {"Subject: é =?utf-8?Q?=C3=A9?=", "Subject: =?utf-8?B?w6kg?= =?utf-8?Q?=C3=A9?="},
		"white space between them survives": {"Subject: é  \t=?utf-8?Q?=C3=A9?=  è   ü x", "Subject: =?utf-8?B?w6kgIAk=?= =?utf-8?Q?=C3=A9?= =?utf-8?B?ICDDqCAgIMO8?= x"},
		"Zitadel's half-encoded subject":    {"Subject: =?utf-8?q?Código de acceso?=", "Subject: =?utf-8?B?Q8OzZGlnbw==?= de acceso"},
		"text in no charset":                {"Subject: caf\xe9", "Subject: =?unknown-8bit?B?Y2Fm6Q==?="},
		"an unknown field":                  {"X-App: é", "X-App: =?utf-8?B?w6k=?="},
		"a display name":                    {"From: Añb C <a@example.com>", "From: =?utf-8?B?QcOxYg==?= C <a@example.com>"},
		"a quoted display name":             {`From: "Añb, \"C\"" <a@example.com>`, "From: =?utf-8?B?QcOxYiwgIkMi?= <a@example.com>"},
		"one without a space behind":        {`To: "é"<a@example.com>,"x"<b@example.com>`, `To: =?utf-8?B?w6k=?= <a@example.com>,"x"<b@example.com>`},
		"a comment":                         {"To: a@example.com (é (x))", "To: a@example.com (=?utf-8?B?w6k=?= (x))"},
		"a group":                           {"To: é: a@example.com, x <b@example.com>;", "To: =?utf-8?B?w6k=?= : a@example.com, x <b@example.com>;"},
		"an internationalised domain":       {"Reply-To: x <a@bücher.example>", "Reply-To: x <a@xn--bcher-kva.example>"},
		"the same without brackets":         {"Cc: a@bücher.example, b@example.com", "Cc: a@xn--bcher-kva.example, b@example.com"},
		"a List-Id":                         {"List-Id: é <l.example.com>", "List-Id: =?utf-8?B?w6k=?= <l.example.com>"},
		"a parameter":                       {`Content-Type: text/plain; name="é.txt"`, "Content-Type: text/plain; name*=utf-8''%C3%A9.txt"},
		"another host's trace":              {"Received: from é by x; y", "Received: from ? by x; y"},
		"a short field keeps its fold":      {"X-A: a\r\n\tb", "X-A: a\r\n\tb"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _ := mustRender(t, crlf(tt.field, "Subject2: é", "", "x"), eightBit, upstream.Traits{})
			if want := string(crlf(tt.want, "Subject2: =?utf-8?B?w6k=?=", "", "x")); string(out) != want {
				t.Errorf("message\n%q\nwant\n%q", out, want)
			}
		})
	}
}

func TestLongEncodedSubjectsAreFoldedAndReadTheSame(t *testing.T) {
	subject := strings.Repeat("確認コード 123 ", 60) + "é"
	out, _ := mustRender(t, crlf("Subject: "+subject, "", "x"), oldHost, upstream.Traits{})
	for line := range strings.SplitSeq(string(out), "\r\n") {
		if len(line) > 78 {
			t.Errorf("a line of %d octets", len(line))
		}
	}
	if got := decodedHeader(t, out, "Subject"); got != subject {
		t.Errorf("subject %q, want %q", got, subject)
	}
}

func TestLongFieldsAreFolded(t *testing.T) {
	ids := strings.TrimSpace(strings.Repeat("<0123456789@example.com> ", 100))
	raw := crlf("References: "+ids, "X-Kept:  two  spaces ", "", "x")
	out, _ := mustRender(t, raw, modernHost, upstream.Traits{})
	for f := range message.Fields(out.Header()) {
		if f.Is("References") && (f.Value() != ids || look(f).long || len(f) > len(ids)+200) {
			t.Errorf("References became %q", f)
		}
	}
	if !bytes.Contains(out, []byte("\r\nX-Kept:  two  spaces \r\n\r\nx\r\n")) {
		t.Errorf("what was short was changed:\n%q", out)
	}
}

func TestForeignSignaturesGoWhereOneOnlyMayBe(t *testing.T) {
	raw := crlf("DKIM-Signature: v=1;", " b=x", "ARC-Seal: i=1", "From: a@b", "dkim-signature: v=1", "X-Dkim-Signature: kept", "", "DKIM-Signature: body")
	want := crlf("From: a@b", "X-Dkim-Signature: kept", "", "DKIM-Signature: body")
	for name, traits := range map[string]upstream.Traits{"an upstream that takes one": {DKIM: "sign", OneSignature: true}, "an upstream that strips": {DKIM: "strip"}} {
		t.Run(name, func(t *testing.T) {
			if out, _ := mustRender(t, raw, modernHost, traits); !bytes.Equal(out, want) {
				t.Errorf("message\n%q\nwant\n%q", out, want)
			}
		})
	}
}

func TestWhatCannotBeExpressedIsRefusedForGood(t *testing.T) {
	deep := "Content-Type: message/rfc822\r\n\r\n"
	for name, tt := range map[string]struct {
		raw  message.Raw
		want string
	}{
		"a signed part that would change":        {crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "Content-Type: multipart/signed; boundary=c", "", "--c", "", "é", "--c--", "--b--"), "5.6.3"},
		"an encrypted one":                       {crlf("Content-Type: multipart/encrypted; boundary=c", "", "--c", "", "é", "--c--"), "5.6.3"},
		"a partial message":                      {crlf("Content-Type: message/partial; id=x; number=1", "", "é"), "5.6.3"},
		"an encoding we do not know":             {crlf("Content-Transfer-Encoding: x-uuencode", "", "é"), "5.6.3"},
		"an encoded multipart":                   {crlf("Content-Type: multipart/mixed; boundary=b", "Content-Transfer-Encoding: base64", "", "--b", "", "é", "--b--"), "5.6.0"},
		"a multipart without a boundary":         {crlf("Content-Type: multipart/mixed", "", "é"), "5.6.0"},
		"a multipart with two boundaries":        {crlf("Content-Type: multipart/mixed; boundary=b; boundary=c", "", "--b", "", "é", "--b--"), "5.6.0"},
		"a multipart without parts":              {crlf("Content-Type: multipart/mixed; boundary=b", "", "é"), "5.6.0"},
		"a part that is no MIME":                 {crlf("Content-Type: multipart/mixed; boundary=b", "", "--b", "é", "--b--"), "5.6.0"},
		"nested too deep":                        {message.Raw(strings.Repeat(deep, 30) + "\r\né"), "5.6.0"},
		"a UTF-8 address":                        {crlf("To: 用户@example.com", "", "x"), "5.6.7"},
		"one in brackets":                        {crlf("To: x <用户@example.com>", "", "x"), "5.6.7"},
		"one in quotes":                          {crlf("To: \"用户\" @example.com", "", "x"), "5.6.7"},
		"a domain that is no name":               {crlf("To: x <a@\xff.example>", "", "x"), "5.6.7"},
		"an open quote":                          {crlf("To: \"é <a@example.com>", "", "x"), "5.6.0"},
		"a Message-ID that is not ASCII":         {crlf("Message-ID: <é@example.com>", "", "x"), "5.6.3"},
		"parameters that cannot be read":         {crlf("Content-Type: é", "", "x"), "5.6.0"},
		"a field with a word of over 998 octets": {crlf("X-Token: "+strings.Repeat("x", 1000), "", "x"), "5.6.0"},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := render(tt.raw, oldHost, upstream.Traits{})
			e, ok := errors.AsType[*reply.Error](err)
			if !ok || e.Code != 554 || e.Enhanced != tt.want || out != nil {
				t.Errorf("render: %q, %v, want nothing and 554 %s", out, err, tt.want)
			}
		})
	}
}

// decodedHeader returns a header field as a reader sees it.
func decodedHeader(t testing.TB, raw message.Raw, name string) string {
	t.Helper()
	e, err := gomessage.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	v, err := (&mime.WordDecoder{}).DecodeHeader(e.Header.Get(name))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// texts returns the decoded leaves of a message as go-message reads them.
func texts(raw message.Raw) ([]string, error) {
	e, err := gomessage.ReadWithOptions(bytes.NewReader(raw), &gomessage.ReadOptions{MaxHeaderBytes: -1})
	if err != nil {
		return nil, err
	}
	var leaves []string
	err = e.Walk(func(_ []int, part *gomessage.Entity, err error) error {
		if err != nil || part.MultipartReader() != nil {
			return err
		}
		b, err := io.ReadAll(part.Body)
		leaves = append(leaves, string(b))
		return err
	})
	return leaves, err
}

func checkSameText(t testing.TB, before, after message.Raw) {
	t.Helper()
	want, err := texts(before)
	if err != nil {
		t.Fatalf("read %q: %v", before, err)
	}
	got, err := texts(after)
	if err != nil {
		t.Fatalf("read %q: %v", after, err)
	}
	if strings.Join(got, "\x00") != strings.Join(want, "\x00") {
		t.Errorf("decoded\n%q\nwant\n%q", got, want)
	}
}

// Whatever comes in, what goes out is within what the next hop takes; what fits is not touched.
func FuzzRender(f *testing.F) {
	f.Add([]byte(crlf("From: é <a@b>", "Content-Type: multipart/mixed; boundary=b", "", "--b", "", "é", "--b", "Content-Type: message/rfc822", "", "Subject: é", "", "x", "--b--")), false)
	f.Add([]byte(crlf("Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable", "", "=C3é", strings.Repeat("=41", 400))), true)
	f.Add([]byte(crlf("Content-Transfer-Encoding: base64", "", strings.Repeat("QUJD", 300)+"é")), false)
	f.Add([]byte(crlf("To: \"é\" (é) <a@é.example>, é", "Content-Disposition: x; filename=\"é\"", "Subject: =?utf-8?q?é?=", "", "x")), false)
	f.Add([]byte("To: \xe9\r\n\r\n"), false)
	f.Add([]byte("\r\n\xe9"), false)
	f.Fuzz(func(t *testing.T, b []byte, takes8 bool) {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), []byte("\r\n")) // the door sees to that
		raw, caps := message.Raw(b), upstream.Caps{EightBitMIME: takes8}
		out, eight, err := render(raw, caps, upstream.Traits{})
		if err != nil {
			if e, ok := errors.AsType[*reply.Error](err); !ok || e.Temporary() || !strings.HasPrefix(e.Enhanced, "5.6.") || !isASCIIString(e.Text) {
				t.Errorf("refused with %v", err)
			}
			return
		}
		o := look(out.Body())
		if o.long || o.eightBit != eight || eight && !takes8 || !look(out.Header()).fits(false) {
			t.Errorf("eightBit %v, body %+v, header %+v:\n%q", eight, o, look(out.Header()), out)
		}
		if bytes.Count(out, []byte("\r\n")) != bytes.Count(out, []byte("\n")) || bytes.Count(out, []byte("\r")) != bytes.Count(out, []byte("\n")) {
			t.Errorf("bare CR or LF in\n%q", out)
		}
		if again, _, err := render(out, caps, upstream.Traits{}); err != nil || !bytes.Equal(again, out) {
			t.Errorf("rendered twice it changes: %v", err)
		}
	})
}

// The text of well-formed mail is the same before and after, in a body of its own and as a part.
func FuzzTextSurvives(f *testing.F) {
	f.Add("Código 123 \nnext\n", "é", true)
	f.Add(strings.Repeat("long ", 400), "subject  with  spaces", false)
	f.Add(" \t\n.\n--b\n=3D=\n", "=?utf-8?q?é?= é", true)
	f.Fuzz(func(t *testing.T, text, subject string, html bool) {
		clean := func(s, end string) string {
			s = strings.Map(func(r rune) rune {
				if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
					return -1
				}
				return r
			}, strings.ToValidUTF8(s, ""))
			return strings.ReplaceAll(s, "\n", end)
		}
		text, subject = clean(text, "\r\n"), strings.TrimSpace(clean(subject, " "))
		if strings.Contains(text, "--b") || strings.Contains(subject, "=?") {
			return // would be MIME of its own
		}
		kind := map[bool]string{false: "text/plain", true: "text/html"}[html]
		for _, raw := range []message.Raw{
			message.Raw("Subject: " + subject + "\r\nMIME-Version: 1.0\r\nContent-Type: " + kind + "; charset=utf-8\r\n\r\n" + text),
			message.Raw("Subject: " + subject + "\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: " + kind +
				"; charset=utf-8\r\n\r\n" + text + "\r\n--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + text + "\r\n--b--\r\n"),
		} {
			out, _, err := render(raw, oldHost, upstream.Traits{})
			if err != nil {
				if len(subject) < 900 { // a longer one may have no place to fold
					t.Errorf("refused: %v", err)
				}
				return
			}
			checkSameText(t, raw, out)
			if got := decodedHeader(t, out, "Subject"); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(subject), " ") {
				t.Errorf("subject %q became %q", subject, got)
			}
		}
	})
}

func TestReadersAgreeOnEncodedSenders(t *testing.T) {
	out, _ := mustRender(t, crlf(`From: "確認, コード" <a@example.com>, é è <b@bücher.example>`, "", "x"), oldHost, upstream.Traits{})
	r, err := mail.CreateReader(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.Header.AddressList("From")
	if err != nil || len(list) != 2 || *list[0] != (mail.Address{Name: "確認, コード", Address: "a@example.com"}) ||
		*list[1] != (mail.Address{Name: "é è", Address: "b@xn--bcher-kva.example"}) {
		t.Errorf("go-message reads %v, %v in\n%q", list, err, out)
	}
}

func BenchmarkRenderOfMailThatFits(b *testing.B) {
	raw := crlf("From: a@auth.example.com", "Subject: x", "", strings.Repeat(strings.Repeat("x", 70)+"\r\n", 3000))
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, _, err := render(raw, oldHost, upstream.Traits{}); err != nil {
			b.Fatal(err)
		}
	}
}
