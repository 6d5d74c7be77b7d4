package upstream_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// echo refuses a request and repeats all of its header, in the words of every service at once.
func echo(status int) func(upstreamtest.Request) upstreamtest.Reply {
	return func(r upstreamtest.Request) upstreamtest.Reply {
		words := fmt.Sprint("this does not match\n", r.Header)
		body, _ := json.Marshal(map[string]any{"message": words, "Message": words, "Code": "SignatureDoesNotMatch " + words, "MessageId": words, "id": words,
			"errors": []map[string]string{{"message": words}}})
		return upstreamtest.Reply{Status: status, Body: string(body)}
	}
}

func TestNoCredentialComesBackFromAServiceThatRepeatsWhatItGot(t *testing.T) {
	plain := []byte("Message-ID: <a@auth.example.com>\r\nFrom: a@auth.example.com\r\nTo: user@example.net\r\nSubject: hello\r\n\r\nHello\r\n")
	for name, tt := range map[string]struct {
		config  func(t *testing.T, s *upstreamtest.Service) *config.Upstream
		secrets []string
	}{
		"ses": {func(t *testing.T, s *upstreamtest.Service) *config.Upstream {
			c := sesConfig(t, s)
			c.SessionToken = secretFile(t, "IQoJb3JpZ2luX2VjECanary")
			return c
		}, []string{"IQoJb3JpZ2luX2VjECanary", sesKey.Secret}},
		"mailgun":  {mailgunConfig, []string{"key-1234", base64.StdEncoding.EncodeToString([]byte("api:key-1234"))}},
		"sendgrid": {sendgridConfig, []string{sendgridKey}},
		"postmark": {postmarkConfig, []string{postmarkToken}},
		"aliyun":   {aliyunConfig, []string{aliyunSecret}},
		"webhook": {func(t *testing.T, s *upstreamtest.Service) *config.Upstream { return webhookConfig(t, s, "raw") },
			[]string{strings.TrimPrefix(webhookSecret, "whsec_"), "tenant=1"}},
	} {
		for _, status := range []int{200, 202, 400, 401, 403, 404, 422, 429, 500} {
			t.Run(fmt.Sprintf("%s, %d", name, status), func(t *testing.T) {
				s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{HTTP1: true}, echo(status))
				u := open(t, tt.config(t, s))
				slot := reserve(t, u)
				vs := slot.Send(t.Context(), envelope(), net.Buffers{plain}, commit)
				slot.Release()
				said := fmt.Sprintf("%+v", vs)
				if account, err := u.(upstream.Checker).Check(t.Context()); true {
					said += fmt.Sprintf("%+v", account)
					if p, ok := errors.AsType[*upstream.Paused](err); ok {
						said += fmt.Sprintf("%+v", p.Verdict)
					}
				}
				if len(vs) != 1 || len(s.Requests()) == 0 {
					t.Fatalf("%d requests brought the verdicts %+v", len(s.Requests()), vs)
				}
				for _, secret := range tt.secrets {
					if strings.Contains(said, secret) {
						t.Errorf("%q is in %s", secret, said)
					}
				}
			})
		}
	}
}

// TestWhatAWSWantedToBeSignedIsNotTold: the request with all its header fields follows the first line.
func TestWhatAWSWantedToBeSignedIsNotTold(t *testing.T) {
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, sesHost)
	u := open(t, sesConfig(t, s))
	s.Reply(upstreamtest.Reply{Status: 403, Header: map[string]string{"X-Amzn-Errortype": "InvalidSignatureException"},
		Body: `{"message":"The request signature does not match.\n\nThe Canonical String for this request should have been\n'POST\n/v2/email'"}`})
	v := send(t, u, envelope())[0]
	if v.Class != message.Unauthorised || v.Text != "The request signature does not match." {
		t.Errorf("verdict %+v, want the first line alone", v)
	}
}
