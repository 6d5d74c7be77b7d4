package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/smtp"
	"net/textproto"
	"testing"

	"gatepost/upstream/upstreamtest"
)

func TestTheSinkRefusesWhatItIsToldToAndTakesTheRest(t *testing.T) {
	var o options
	for _, s := range []string{"RCPT=100:451", "mail=0:554"} {
		if err := o.refuse.Set(s); err != nil {
			t.Fatal(err)
		}
	}
	s := newSink(t, o)
	c, err := smtp.Dial(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Mail("a@example.com"); err != nil {
		t.Errorf("MAIL, of which none are to be refused: %v", err)
	}
	err = c.Rcpt("b@example.org")
	if refusal, ok := errors.AsType[*textproto.Error](err); !ok || refusal.Code != 451 {
		t.Errorf("RCPT, of which all are to be refused: %v", err)
	}
	if n := s.refused.Load(); n != 1 {
		t.Errorf("%d commands counted as refused, want 1", n)
	}
}

func TestCommandsOutOfABodyAreCounted(t *testing.T) {
	s := newSink(t, options{host: upstreamtest.HostOptions{Chunking: true, ReadsRefused: true}})
	c, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// No MAIL before: the chunk is refused, and what is in it taken for commands.
	fmt.Fprintf(c, "EHLO x\r\nBDAT 60 LAST\r\nSubject: x\r\n\r\nMAIL FROM:<a@%s>\r\nNOOP\r\nQUIT\r\n", inBody)
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	if n := s.executed.Load(); n != 3 {
		t.Errorf("%d lines counted, want 3: all of the body but NOOP, which clients send too", n)
	}
}

func TestWrongRefusalsAreRefused(t *testing.T) {
	for _, s := range []string{"", "RCPT", "RCPT=10", "RCPT=x:451", "RCPT=101:451", "RCPT=10:250", "VRFY=10:451"} {
		if err := new(refusals).Set(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}
