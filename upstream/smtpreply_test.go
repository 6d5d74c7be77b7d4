package upstream

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"gatepost/message"
)

func parse(r io.Reader) (smtpReply, *bufio.Reader, error) {
	br := bufio.NewReaderSize(r, maxReplyLine)
	reply, err := readReply(br)
	return reply, br, err
}

func TestAReplyReadsAsWritten(t *testing.T) {
	for in, want := range map[string]smtpReply{
		"250 ok\r\n":                          {250, "", []string{"ok"}},
		"250\r\n":                             {250, "", []string{""}},
		"250 \r\n":                            {250, "", []string{""}},
		"220 2.0.0\r\n":                       {220, "2.0.0", []string{""}},
		"250 line end is bare\n":              {250, "", []string{"line end is bare"}},
		"550 5.1.1 no such user\r\n":          {550, "5.1.1", []string{"no such user"}},
		"550-5.1.1 no\r\n550 5.1.1 user\r\n":  {550, "5.1.1", []string{"no", "user"}},
		"421-4.7.28 too\r\n421-\r\n421 x\r\n": {421, "4.7.28", []string{"too", "", "x"}},
		"250 1.2.3 is no enhanced code\r\n":   {250, "", []string{"1.2.3 is no enhanced code"}},
		"250 2.1234.0 nor is this\r\n":        {250, "", []string{"2.1234.0 nor is this"}},
	} {
		got, _, err := parse(strings.NewReader(in))
		if err != nil || got.code != want.code || got.enhanced != want.enhanced || !slices.Equal(got.lines, want.lines) {
			t.Errorf("%q reads as %+v, %v; want %+v", in, got, err, want)
		}
	}
}

func TestAReplyKeepsItsBoundsAndForm(t *testing.T) {
	for _, in := range []string{
		"", "2", "250", "250 no line end", "\r\n", "25\r\n", "abc\r\n", "2x0 ok\r\n", "150 preliminary\r\n", "650 ok\r\n", "250ok\r\n", "250_ok\r\n",
		"250-first\r\n", "250-first\r\n251 other code\r\n", "250-first\r\nsecond\r\n",
		"250 " + strings.Repeat("x", maxReplyLine) + "\r\n",
		strings.Repeat("250-x\r\n", maxReplyLines) + "250 x\r\n",
		strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", 100) + "250 x\r\n",
	} {
		if got, _, err := parse(strings.NewReader(in)); err == nil {
			t.Errorf("%.40q reads as %+v, want an error", in, got)
		}
	}
}

func TestProviderIDsOfKnownFormsAreFound(t *testing.T) {
	for text, want := range map[string]string{
		"Ok: queued as 4XyZ123":                 "4XyZ123",
		"queued as 06b7v2c80g000.":              "06b7v2c80g000",
		"OK id=1abcDE-0001Xy-2Z":                "1abcDE-0001Xy-2Z",
		"Ok 0100018f3b2a7c1e-8d4f-000000":       "0100018f3b2a7c1e-8d4f-000000",
		"ok":                                    "",
		"Ok thanks":                             "",
		"queued as":                             "",
		"queued as " + strings.Repeat("x", 200): "",
		"OK id=\u00fc":                          "",
		"mail queued as soon as a runner comes back": "soon",
	} {
		if got := providerID(text); got != want {
			t.Errorf("providerID(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestRefusalsAreClassifiedByCode(t *testing.T) {
	const (
		mail, rcpt, data, dot = stageMail, stageRcpt, stageData, stageDot
		temporary, permanent  = message.Temporary, message.Permanent
		throttled, unauth     = message.Throttled, message.Unauthorised
		recipient, msg        = message.ScopeRecipient, message.ScopeMessage
		domain, account       = message.ScopeDomain, message.ScopeUpstream
	)
	for _, tt := range []struct {
		at    stage
		reply string
		class message.Class
		scope message.Scope
	}{
		{mail, "421 4.7.0", throttled, account},
		{rcpt, "421", throttled, account},
		{data, "421", throttled, account},
		{dot, "421 4.3.2", throttled, account},
		{mail, "454 4.7.0", throttled, account},
		{rcpt, "454 4.7.1", throttled, account},
		{dot, "454", throttled, account},

		{mail, "530 5.7.0", unauth, account},
		{mail, "530", unauth, account},
		{rcpt, "530 5.7.1", unauth, account},
		{mail, "535 5.7.8", unauth, account},
		{mail, "535 4.7.8", unauth, account},
		{dot, "534", unauth, account},
		{mail, "538", unauth, account},
		{mail, "550 5.7.0", unauth, account},

		{mail, "451 4.7.0", throttled, account},
		{mail, "450 4.7.1", throttled, account},
		{mail, "451 4.3.0", temporary, msg},
		{mail, "452 4.3.1", temporary, msg},
		{mail, "450 4.1.8", temporary, msg},
		{mail, "550 5.7.1", permanent, domain},
		{mail, "553 5.7.1", permanent, domain},
		{mail, "554 5.7.26", permanent, domain},
		{mail, "550 5.1.8", permanent, domain},
		{mail, "501 5.1.7", permanent, domain},
		{mail, "552 5.3.4", permanent, msg},
		{mail, "552", permanent, msg},
		{mail, "550", permanent, msg},
		{mail, "555 5.5.4", permanent, msg},
		{mail, "503 5.5.1", temporary, msg},

		{rcpt, "450 4.2.1", temporary, recipient},
		{rcpt, "451 4.7.1", temporary, recipient},
		{rcpt, "452 4.5.3", temporary, recipient},
		{rcpt, "452 4.2.2", temporary, recipient},
		{rcpt, "552", temporary, recipient},
		{rcpt, "552 5.5.3", temporary, recipient},
		{rcpt, "552 5.2.2", permanent, recipient},
		{rcpt, "552 5.3.4", permanent, msg},
		{rcpt, "550 5.1.1", permanent, recipient},
		{rcpt, "550", permanent, recipient},
		{rcpt, "553 5.1.3", permanent, recipient},
		{rcpt, "551 5.1.6", permanent, recipient},
		{rcpt, "554 5.7.1", permanent, msg},
		{rcpt, "550 5.1.8", permanent, domain},
		{rcpt, "550 5.7.26", permanent, domain},
		{rcpt, "500 5.5.2", temporary, recipient},
		{rcpt, "503 5.5.1", temporary, recipient},

		{data, "451 4.3.0", temporary, msg},
		{data, "554 5.5.1", permanent, msg},
		{data, "502 5.5.1", temporary, msg},

		{dot, "451 4.3.0", temporary, msg},
		{dot, "452 4.3.1", temporary, msg},
		{dot, "451 4.7.1", temporary, msg},
		{dot, "552 5.3.4", permanent, msg},
		{dot, "554 5.6.0", permanent, msg},
		{dot, "554", permanent, msg},
		{dot, "550 5.7.1", permanent, msg},
		{dot, "550 5.7.20", permanent, domain},
	} {
		r, _, err := parse(strings.NewReader(tt.reply + " words that decide nothing: 550 5.1.1\r\n"))
		if err != nil {
			t.Fatal(err)
		}
		v := classify(tt.at, r)
		if v.Class != tt.class || v.Scope != tt.scope {
			t.Errorf("stage %d, %s: %s about the %s, want %s about the %s", tt.at, tt.reply, v.Class, v.Scope, tt.class, tt.scope)
		}
		if want := strings.TrimSpace(fmt.Sprint(v.Code, " ", v.Enhanced)); want != tt.reply {
			t.Errorf("the verdict has %q, want %q", want, tt.reply)
		}
	}
}

func TestDotsAreStuffedWhereverThePiecesEnd(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"a\r\n":                  "a\r\n",
		"no line end":            "no line end\r\n",
		".\r\n":                  "..\r\n",
		".":                      "..\r\n",
		"a\r\n.\r\n.b\r\n..\r\n": "a\r\n..\r\n..b\r\n...\r\n",
		"a.b\r\n c.\r\n":         "a.b\r\n c.\r\n",
		"bare\n.\nfeed\r\n":      "bare\n..\nfeed\r\n",
	} {
		for cut := range len(in) + 1 {
			for cut2 := cut; cut2 <= len(in); cut2++ {
				pieces := net.Buffers{[]byte(in[:cut]), []byte(in[cut:cut2]), []byte(in[cut2:])}
				size := octets(pieces)
				var out bytes.Buffer
				if err := writeBody(bufio.NewWriter(&out), pieces); err != nil || out.String() != want {
					t.Errorf("%q goes out as %q, %v; want %q", pieces, out.String(), err, want)
				}
				if unstuffed := len(want) - strings.Count("\n"+want, "\n.."); int(size) != unstuffed {
					t.Errorf("%q counts as %d octets, want %d", pieces, size, unstuffed)
				}
			}
		}
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "550 5.1.1 no\r\n", "421-4.7.28 x\n421 \n", "250-\r\n25", "354\r\n", "\x00\xff\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, br, err := parse(bytes.NewReader(b))
		// However the octets come, they mean the same.
		slow, _, slowErr := parse(iotest.OneByteReader(bytes.NewReader(b)))
		if (err == nil) != (slowErr == nil) || slow.code != got.code || !slices.Equal(slow.lines, got.lines) {
			t.Errorf("at once %+v, %v; octet by octet %+v, %v", got, err, slow, slowErr)
		}
		if err != nil {
			return
		}
		if got.code < 200 || got.code > 599 || len(got.lines) == 0 || len(got.lines) > maxReplyLines || len(got.text()) > 3*maxReplyText {
			t.Errorf("reply out of bounds: %+v", got)
		}
		rest, _ := io.ReadAll(br)
		if used := b[:len(b)-len(rest)]; bytes.Count(used, []byte("\n")) != len(got.lines) {
			t.Errorf("%d lines from %q", len(got.lines), used)
		}
	})
}
