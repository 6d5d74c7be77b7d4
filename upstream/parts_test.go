package upstream_test

import (
	"bytes"
	"encoding/json"
	"io"
	"reflect"
	"strings"
	"testing"

	gomessage "github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// decodedMail is what somebody sees who reads a mail.
type decodedMail struct {
	From, Subject, Text, HTML string
	Files                     map[string]string // what is in them, by name, type and Content-ID
}

func (d *decodedMail) add(name, kind, cid string, data []byte) {
	if d.Files == nil {
		d.Files = map[string]string{}
	}
	d.Files[strings.Join([]string{name, kind, cid}, " | ")] = string(data)
}

// readMIME reads a mail with go-message alone.
func readMIME(t *testing.T, raw []byte) (d decodedMail) {
	t.Helper()
	e, err := gomessage.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	d.From, _ = e.Header.Text("From")
	d.Subject, _ = e.Header.Text("Subject")
	err = e.Walk(func(_ []int, part *gomessage.Entity, err error) error {
		if err != nil || part.MultipartReader() != nil {
			return err
		}
		b, err := io.ReadAll(part.Body)
		kind, params, _ := part.Header.ContentType()
		_, disposition, _ := part.Header.ContentDisposition()
		switch {
		case kind == "text/plain":
			d.Text = string(b)
		case kind == "text/html":
			d.HTML = string(b)
		default:
			d.add(disposition["filename"]+params["name"], kind, strings.Trim(part.Header.Get("Content-ID"), "<>"), b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// pictureRead is what picture says. A file name in ISO-2022-JP is more than package mime reads.
var pictureRead = decodedMail{
	From: "確認 <no-reply@auth.example.com>", Subject: "確認", Text: "コード 482913", HTML: `<p>コード 482913 <img src="cid:logo"></p>`,
	Files: map[string]string{"logo.png | image/png | logo": "\x89PNG", "確.pdf | application/pdf | ": "%PDF"},
}

func TestTheSamePartsArriveThroughEveryTypeThatCarriesThem(t *testing.T) {
	for name, tt := range map[string]struct {
		host   func(upstreamtest.Request) upstreamtest.Reply
		config func(t *testing.T, s *upstreamtest.Service) *config.Upstream
		read   func(t *testing.T, s *upstreamtest.Service) decodedMail
	}{
		"ses": {sesHost, sesConfig, func(t *testing.T, s *upstreamtest.Service) decodedMail { return readMIME(t, sesMails(t, s)[0].Data) }},
		"mailgun": {mailgunHost, mailgunConfig, func(t *testing.T, s *upstreamtest.Service) decodedMail {
			return readMIME(t, mailgunMails(t, s)[0].Data)
		}},
		"webhook raw": {takesAll, webhookOf("raw"), func(t *testing.T, s *upstreamtest.Service) decodedMail {
			return readMIME(t, webhookMails(t, s)[0].Data)
		}},
		"webhook json": {takesAll, webhookOf("json"), func(t *testing.T, s *upstreamtest.Service) decodedMail {
			return readMIME(t, webhookMails(t, s)[0].Data)
		}},
		"sendgrid": {sendgridHost, sendgridConfig, readSendgrid},
		"postmark": {postmarkHost, postmarkConfig, readPostmark},
	} {
		t.Run(name, func(t *testing.T) {
			s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, tt.host)
			if v := handOver(t, open(t, tt.config(t, s)), signIn("ann@example.org"), picture)[0]; v.Class != message.Accepted {
				t.Fatalf("verdict %+v", v)
			}
			checkPicture(t, tt.read(t, s))
		})
	}
	h := upstreamtest.NewHost(t, upstreamtest.HostOptions{})
	u := open(t, configFor(t, h, upstreamtest.HostOptions{}))
	if v := handOver(t, u, signIn("ann@example.org"), picture)[0]; v.Class != message.Accepted {
		t.Fatalf("smtp: verdict %+v", v)
	}
	checkPicture(t, readMIME(t, h.Wait(1)[0].Data))
	if _, ok := u.(upstream.Carrier); ok {
		t.Error("an SMTP host is said to choose its mail")
	}
}

func checkPicture(t *testing.T, got decodedMail) {
	t.Helper()
	want := pictureRead
	if content, ok := got.Files[" | application/pdf | "]; ok { // the reader's loss
		delete(got.Files, " | application/pdf | ")
		got.Files["確.pdf | application/pdf | "] = content
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func takesAll(upstreamtest.Request) upstreamtest.Reply { return upstreamtest.Reply{} }

func webhookOf(format string) func(*testing.T, *upstreamtest.Service) *config.Upstream {
	return func(t *testing.T, s *upstreamtest.Service) *config.Upstream { return webhookConfig(t, s, format) }
}

func readSendgrid(t *testing.T, s *upstreamtest.Service) (d decodedMail) {
	var b sendgridBody
	if err := json.Unmarshal(s.Wait(1)[0].Body, &b); err != nil {
		t.Fatal(err)
	}
	d.From, d.Subject, d.Text, d.HTML = b.From.Name+" <"+b.From.Email+">", b.Subject, b.Content[0].Value, b.Content[1].Value
	for _, a := range b.Attachments {
		d.add(a.Filename, a.Type, a.ContentID, a.Content)
	}
	return d
}

func readPostmark(t *testing.T, s *upstreamtest.Service) (d decodedMail) {
	b := postmarkRead(t, s.Wait(1)[0])
	d.From, d.Subject, d.Text, d.HTML = strings.ReplaceAll(b.From, `"`, ""), b.Subject, b.TextBody, b.HtmlBody
	for _, a := range b.Attachments {
		d.add(a.Name, a.ContentType, strings.TrimPrefix(a.ContentID, "cid:"), a.Content)
	}
	return d
}
