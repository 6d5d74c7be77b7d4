package upstream

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
)

// scripted is a host that takes one mail in two flights: it says early once DATA has come, and late once the final dot has.
// It tells whether that came. With split it writes octet by octet.
func scripted(conn net.Conn, early, late []byte, split bool) (ended bool) {
	defer conn.Close()
	say := func(b []byte) {
		for len(b) > 0 {
			n := len(b)
			if split {
				n = 1
			}
			conn.Write(b[:n])
			b = b[n:]
		}
	}
	r := bufio.NewReader(conn)
	until := func(what string) bool {
		for {
			line, err := r.ReadString('\n')
			if line == what || err != nil {
				return err == nil
			}
		}
	}
	io.WriteString(conn, "220 x\r\n")
	r.ReadString('\n')
	io.WriteString(conn, "250-x\r\n250 PIPELINING\r\n")
	if !until("DATA\r\n") {
		return false
	}
	say(early)
	if _, good, _ := answered(early, "250", "250", "354"); !good {
		return false // nothing more comes from here
	}
	ended = until(".\r\n")
	say(late)
	return ended
}

// answered reports whether b begins with good replies of these classes, and whether anything follows them.
func answered(b []byte, classes ...string) (rest []byte, good, more bool) {
	br := bufio.NewReaderSize(bytes.NewReader(b), maxReplyLine)
	for _, class := range classes {
		r, err := readReply(br)
		if err != nil || r.class() != int(class[0]-'0') || class == "354" && r.code != 354 {
			return nil, false, false
		}
	}
	rest, _ = io.ReadAll(br)
	return rest, true, len(rest) > 0
}

// FuzzDialogue lets a host answer the envelope and the mail with anything, in one piece or in many. A mail is accepted only
// where each command got its answer in its turn, the mail's own came after its end, and nothing hangs.
func FuzzDialogue(f *testing.F) {
	const envelope = "250 a\r\n250 b\r\n354 c\r\n"
	for _, s := range [][2]string{
		{envelope, "250 2.0.0 taken\r\n"},
		{"250-a\r\n250 a\r\n250-5.1.1\r\n250 b\r\n354-go\r\n354 on\r\n", "250-x\r\n250 taken\r\n"},
		{envelope + "250 early\r\n", ""},
		{envelope, "250 taken\r\n250 and one more\r\n"},
		{"250 a\r\n354 c\r\n", ""},
		{"250 a\r\n421 4.3.2 going\r\n", ""},
		{"250 a\r\n550 5.1.1 no\r\n354 c\r\n", ""},
		{"250 a\r\n550 5.1.1 no\r\n554 c\r\n", ""},
		{envelope, "421 4.3.2 going\r\n"},
		{envelope, "354 go\r\n250 taken\r\n"},
		{envelope, "25"},
		{"421 a\r\n421 b\r\n421 c\r\n", ""},
	} {
		f.Add([]byte(s[0]), []byte(s[1]), false)
		f.Add([]byte(s[0]), []byte(s[1]), true)
	}
	f.Fuzz(func(t *testing.T, early, late []byte, split bool) {
		if len(early)+len(late) > 1<<10 {
			return
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ended := make(chan bool, 4)
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				ended <- scripted(conn, early, late, split)
			}
		}()
		dial := func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", l.Addr().String())
		}
		u, err := newSMTPOver(&config.Upstream{Name: "sink", TLS: "none", Connections: 1}, "gw.example.com", dial, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		defer u.Close(ctx)
		slot, err := u.Reserve(ctx, "auth")
		if err != nil {
			t.Fatal(err)
		}
		committed := false
		e := message.Envelope{From: "no-reply@auth.example.com", To: []string{"user@example.net"}}
		vs := slot.Send(ctx, e, net.Buffers{[]byte("Subject: x\r\n\r\nDATA\r\nx\r\n")}, func() error { committed = true; return nil })
		slot.Release()
		if ctx.Err() != nil {
			t.Fatalf("it hung at %q, %q", early, late)
		}
		if len(vs) != 1 || vs[0].Class == "" {
			t.Fatalf("verdicts %+v", vs)
		}
		rest, invited, tooMuch := answered(early, "250", "250", "354")
		_, taken, _ := answered(late, "250")
		_, ahead, _ := answered(slices.Concat(rest, late), "250") // what dribbles in may come after the mail's end, and counts as its answer
		switch class := vs[0].Class; {
		case class == message.Accepted && !(invited && committed && (taken || split && ahead)):
			t.Errorf("accepted on %q, %q", early, late)
		case class == message.Accepted && !<-ended:
			t.Error("accepted before its end")
		case class == message.Accepted && tooMuch && !split:
			t.Errorf("accepted though %q came ahead of its end", strings.TrimSpace(string(early)))
		case class != message.Accepted && invited && taken && !tooMuch:
			t.Errorf("%+v on %q, %q", vs[0], early, late)
		case class == message.Unknown && !committed:
			t.Errorf("unknown without a commit on %q, %q", early, late)
		}
	})
}
