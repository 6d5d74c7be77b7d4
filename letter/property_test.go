package letter_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"gatepost/letter"
	"gatepost/letter/lettertest"
	"gatepost/message"
	"gatepost/reply"
)

// said returns all that l says, and the header fields under their names.
func said(l *letter.Letter) []string {
	all := []string{l.From.Name, l.From.Address, l.Subject, l.Text, l.HTML}
	for _, b := range l.ReplyTo {
		all = append(all, b.Address)
	}
	for _, f := range l.Header {
		all = append(all, f.Value)
	}
	for _, a := range l.Alternatives {
		all = append(all, a.Text)
	}
	for _, f := range l.Files {
		all = append(all, f.Name, f.CID, string(f.Data))
	}
	return all
}

func TestEveryPieceOfAMailIsInItsLetterOrOnTheList(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	told := 0
	for range 800 {
		m := lettertest.Random(r)
		l, err := letter.Read(m.Raw)
		if m.Unfit != "" {
			if e, ok := errors.AsType[*reply.Error](err); !ok || e.Temporary() || !strings.HasPrefix(e.Enhanced, "5.6.") {
				t.Errorf("seed %d: with %s it is not refused, but %v\n%q", seed, m.Unfit, err, m.Raw)
			}
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: refused: %v\n%q", seed, err, m.Raw)
		}
		told++
		all := said(l)
		for _, p := range m.Pieces {
			if lost := p.What == "field" && letter.Lost(p.Name); p.In(all) == lost && !p.Over {
				t.Fatalf("seed %d: the %s is lost: %v\n%+v\n%q", seed, p, !lost, l, m.Raw)
			}
		}
		checkSound(t, l)
	}
	if told < 250 {
		t.Errorf("only %d of 800 mails could be told: the generator is broken", told)
	}
}

// checkSound checks what every Letter promises of its text.
func checkSound(t *testing.T, l *letter.Letter) {
	t.Helper()
	inFields := []string{l.From.Name, l.From.Address, l.Subject}
	for _, b := range append(append(l.ReplyTo, l.To...), l.Cc...) {
		inFields = append(inFields, b.Name, b.Address)
	}
	for _, f := range l.Header {
		inFields = append(inFields, f.Name, f.Value)
		if strings.ContainsFunc(f.Name+f.Value, func(r rune) bool { return r >= 0x80 }) || letter.Lost(f.Name) {
			t.Errorf("the letter has the field %q: %q", f.Name, f.Value)
		}
	}
	for _, f := range l.Files {
		inFields = append(inFields, f.Name, f.Type, f.CID)
		if f.Name == "" || f.Type == "" || f.Inline && f.CID == "" {
			t.Errorf("the letter has the file %q of type %q, inline %v with the id %q", f.Name, f.Type, f.Inline, f.CID)
		}
	}
	for _, s := range inFields {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			t.Errorf("%q would become part of a header field", s)
		}
	}
	for _, s := range []string{l.Text, l.HTML} {
		if !utf8.ValidString(s) {
			t.Errorf("%q is text", s)
		}
	}
}

// Whatever comes in is refused with a reason, or told in text that is safe to build a message from.
func FuzzRead(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		f.Add([]byte(lettertest.Random(r).Raw))
	}
	f.Add([]byte("From: a@b\r\nContent-Type: multipart/digest; boundary=b\r\n\r\n--b\r\n\r\n\r\n--b--"))
	f.Add([]byte("From: a@b\r\nContent-Disposition: x; filename*0*=iso-2022-jp''%1B$B; filename*1=\"\\\"\"; (a\r\n\r\n"))
	f.Add([]byte("From: a@b\r\nSubject: =?gb18030?q?=81?= =?gb18030?q?=30=81=30?=\r\nContent-Type: text/html; charset=utf-16\r\n\r\n\x00\xd8"))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), []byte("\r\n")) // the door sees to that
		l, err := letter.Read(message.Raw(b))
		if err != nil {
			e, ok := errors.AsType[*reply.Error](err)
			if !ok || e.Code != 554 || !strings.HasPrefix(e.Enhanced, "5.6.") || strings.ContainsFunc(e.Text, func(r rune) bool { return r < ' ' || r > '~' }) || len(e.Text) > 400 {
				t.Errorf("refused with %#v", err)
			}
			return
		}
		checkSound(t, l)
		for _, kind := range []message.Kind{message.Auth, message.Marketing} {
			checkCalls(t, l, kind)
		}
	})
}

// checkCalls checks that everybody is in one request.
func checkCalls(t *testing.T, l *letter.Letter, kind message.Kind) {
	t.Helper()
	e := message.Envelope{Kind: kind, To: []string{"a@b.example", "A@B.example"}}
	for _, b := range append(l.To, l.Cc...) {
		if len(e.To) < 10 {
			e.To = append(e.To, b.Address)
		}
	}
	seen := map[int]int{}
	for _, c := range l.Calls(e) {
		for _, r := range c.All() {
			seen[r.N]++
		}
		if len(c.To) == 0 || kind == message.Auth && len(c.All()) != 1 {
			t.Errorf("a request is for %+v", c)
		}
	}
	for n := range e.To {
		if seen[n] != 1 {
			t.Errorf("%q is in %d requests", e.To[n], seen[n])
		}
	}
}
