package dkim

import (
	"bytes"
	"crypto"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	msgauth "github.com/emersion/go-msgauth/dkim"

	"gatepost/config"
	"gatepost/message"
)

// names returns what s would put into h=.
func names(t *testing.T, s *Signer, raw message.Raw) []string {
	u, err := s.Prepare(raw, "auth.example.com", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(u.names), ":")
}

// byMsgauth signs raw as Sign does, with go-msgauth.
func byMsgauth(t *testing.T, s *Signer, raw message.Raw, domain string) string {
	t.Helper()
	var fields strings.Builder
	for _, k := range s.keys {
		w, err := msgauth.NewSigner(&msgauth.SignOptions{
			Domain: domain, Selector: k.selector, Signer: k.signer, Hash: crypto.SHA256, HeaderKeys: names(t, s, raw),
			HeaderCanonicalization: msgauth.CanonicalizationRelaxed, BodyCanonicalization: msgauth.CanonicalizationRelaxed,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(raw); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		fields.WriteString(w.Signature())
	}
	return fields.String()
}

// compareWithMsgauth fails where the two differ in an octet. In a bubble both have the same time.
func compareWithMsgauth(t *testing.T, s *Signer, raw message.Raw) {
	synctest.Test(t, func(t *testing.T) {
		got, err := s.Sign(raw, "auth.example.com", nil, false)
		if err != nil {
			t.Fatal(err)
		}
		if want := byMsgauth(t, s, raw, "auth.example.com"); string(got) != want {
			t.Errorf("of %q\n%s\nwant\n%s", raw, got, want)
		}
	})
}

func TestSignaturesAreThoseOfGoMsgauthToTheOctet(t *testing.T) {
	s, _ := bothKeys(t)
	for name, raw := range map[string]string{
		"the sample":            sample,
		"an empty body":         "From: a@auth.example.com\r\n\r\n",
		"blank lines only":      "From: a@auth.example.com\r\n\r\n\r\n \t\r\n\r\n",
		"no line end at last":   "From: a@auth.example.com\r\n\r\na",
		"white space":           "From:  \t a@auth.example.com \r\nSubject:\r\n\t a \t b\r\n  c \r\n\r\n a\t\tb  c \r\n\t\r\n \r\nd \t\r\n\r\n \r\n",
		"bare CR and LF":        "From: a@auth.example.com\r\n\r\na\nb\rc\r\r\n\n\r\n \rd\r e\n\n\r",
		"fields again":          "From: a@auth.example.com\r\nReferences: <1>\r\nReferences: <2>\r\nTO: x\r\nTo : y\r\nto:z\r\n\r\nb\r\n",
		"8 bit and odd octets":  "From: a@auth.example.com\r\nSubject: caf\xe9 \xc2\xa0 \xe3\x80\x80x\r\n\r\n\xe9\xff \x00\x0b\x0c \xa0\r\n",
		"a long From domain":    "From: a@auth.example.com\r\nCc: " + strings.Repeat("a@b, ", 300) + "\r\n\r\n" + strings.Repeat("x", 5000) + "\r\n",
		"lines that grow alike": "From: a@auth.example.com\r\n\r\n" + strings.Repeat("one two\r\n\r\nthree  four\r\n", 3000),
	} {
		t.Run(name, func(t *testing.T) { compareWithMsgauth(t, s, message.Raw(raw)) })
	}
}

// FuzzSignLikeMsgauth signs mails of any body and any values with both.
func FuzzSignLikeMsgauth(f *testing.F) {
	f.Add("Hello", "user@example.net", "body  with \t space \r\n\r\n")
	f.Add("a\r\n\tb", " ", "\n\r\r\n \r\n.")
	f.Add("\xff\xfe", "\t\r\n x", strings.Repeat(" \r\n", 40)+"end")
	s := newSigner(f, config.DKIM{Selector: "gp1", KeyFile: keyFile(f, "ed25519")})
	f.Fuzz(func(t *testing.T, subject, to, body string) {
		raw := message.Raw("From: a@auth.example.com\r\nSubject: " + unbroken(subject) + "\r\nTo:" + unbroken(to) + "\r\n\r\n" + body)
		compareWithMsgauth(t, s, raw)
	})
}

// unbroken makes a field's value of s: its line ends are folds, and no line of it is blank.
func unbroken(s string) string {
	lines := bytes.FieldsFunc([]byte(s), func(r rune) bool { return r == '\r' || r == '\n' })
	lines = slices.DeleteFunc(lines, func(l []byte) bool { return len(bytes.Trim(l, " \t")) == 0 })
	return string(bytes.Join(lines, []byte("\r\n ")))
}
