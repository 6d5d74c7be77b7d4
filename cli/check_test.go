package cli

import (
	"bytes"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/doctor"
)

func TestCheckEndsWithATableForTheServicesAllowLists(t *testing.T) {
	var out bytes.Buffer
	a := &app{out: &out, err: &out}
	err := a.printFindings(&config.Config{File: "gatepost.toml"}, []doctor.Finding{
		{Level: doctor.OK, Check: "egress", Subject: "out", Text: "its addresses are on this host"},
		{Level: doctor.OK, Check: "upstream", Subject: "ses", Text: "it let us in", Way: &doctor.Way{Type: "ses", Egress: "auth", Local: "10.0.0.3", Result: "works", Allow: []string{"203.0.113.10"}}},
		{Level: doctor.Warn, Check: "upstream", Subject: "own", Text: "it can be reached", Hint: "send one", Way: &doctor.Way{Type: "webhook", Egress: "bulk", Result: "not proven", Note: "not verified: 10.0.0.4 is private"}},
		{Level: doctor.OK, Check: "upstream", Subject: "keep", Text: "it let us in", Way: &doctor.Way{Type: "capture", Egress: "any", Result: "works"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(out.String(), "\n\n")
	want := "UPSTREAM  TYPE     EGRESS  RESULT      FOR THE ALLOW-LIST OF THE SERVICE\n" +
		"ses       ses      auth    works       203.0.113.10\n" +
		"own       webhook  bulk    not proven  not verified: 10.0.0.4 is private\n" +
		"keep      capture  any     works       -\n\n" +
		"gatepost.toml: no problems in the config, 4 checks, none failed, 1 with a warning\n"
	if !ok || table != want {
		t.Errorf("printed\n%s\nwant\n%s", table, want)
	}
}
