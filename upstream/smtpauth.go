package upstream

import (
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"gatepost/config"
	"gatepost/message"
)

const (
	maxCommandLine = 512 // octets of a command, CRLF included (RFC 5321 §4.5.3.1.4)
	maxChallenges  = 4   // LOGIN has two
)

// login does AUTH (RFC 4954) with the secret as it is on disk now. Its error is *Paused.
func (c *smtpConn) login(cfg *config.Upstream) error {
	client, secret, err := credentials(cfg)
	if err != nil {
		return loginImpossible(err)
	}
	mech, first, err := client.Start()
	if err != nil {
		return loginImpossible(err)
	}
	if offered := c.extensions["AUTH"]; !slices.Contains(strings.Fields(strings.ToUpper(offered)), mech) {
		return loginImpossible(fmt.Errorf("the host does not offer AUTH %s (it offers %q): look at auth and tls of [upstream.%s]", mech, offered, cfg.Name))
	}
	said := []string{secret}
	r, err := c.authenticate(client, mech, first, &said)
	if err != nil {
		return c.paused("AUTH", err)
	}
	if r.class() != 2 {
		// Some hosts repeat what they did not like.
		for i, l := range r.lines {
			r.lines[i] = redact(l, said)
		}
		return pausedBy("AUTH", r)
	}
	return nil
}

// loginImpossible is the error of a login that cannot even be tried until an operator acts.
func loginImpossible(err error) *Paused {
	return &Paused{Verdict: upstreamDown(message.Unauthorised, "AUTH: "+err.Error())}
}

// credentials reads the secret and returns the client side of the configured mechanism.
func credentials(cfg *config.Upstream) (client sasl.Client, secret string, err error) {
	if cfg.Auth == "xoauth2" {
		secret, err = cfg.Token.Read()
		return &xoauth2{cfg.Username, secret}, secret, err
	}
	secret, err = cfg.Password.Read()
	if cfg.Auth == "login" {
		return sasl.NewLoginClient(cfg.Username, secret), secret, err
	}
	return sasl.NewPlainClient("", cfg.Username, secret), secret, err
}

// authenticate leads the exchange and returns the reply that ends it. What it sends is appended to said.
func (c *smtpConn) authenticate(client sasl.Client, mech string, first []byte, said *[]string) (smtpReply, error) {
	line := "AUTH " + mech
	// LOGIN has no specified initial response, and a long one does not fit the line: both go after a 334.
	if ir := line + " " + encode(first); mech != sasl.Login && len(ir)+2 <= maxCommandLine {
		*said = append(*said, encode(first))
		line, first = ir, nil
	}
	r, err := c.command(line)
	for n := 0; err == nil && r.code == 334 && n < maxChallenges; n++ {
		var answer []byte
		if answer, err = respond(client, &first, r); err != nil {
			break
		}
		*said = append(*said, encode(answer))
		r, err = c.command(base64.StdEncoding.EncodeToString(answer))
	}
	if err == nil && r.class() == 3 {
		err = fmt.Errorf("malformed reply: code %d", r.code)
	}
	return r, err
}

// respond returns the answer to a 334: the initial response where it is still to be sent, else what client says.
func respond(client sasl.Client, first *[]byte, r smtpReply) ([]byte, error) {
	if answer := *first; answer != nil {
		*first = nil
		return answer, nil
	}
	challenge, err := base64.StdEncoding.DecodeString(r.text())
	if err != nil {
		return nil, errors.New("malformed reply: the challenge is not base64")
	}
	return client.Next(challenge)
}

// encode writes an initial response; an empty one is "=" (RFC 4954 §4).
func encode(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// redact removes secrets from text.
func redact(text string, secrets []string) string {
	for _, s := range secrets {
		if len(s) > 1 {
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	return text
}

// xoauth2 is the client side of XOAUTH2, as Google and Microsoft specify it.
type xoauth2 struct{ username, token string }

// Start implements sasl.Client.
func (a *xoauth2) Start() (mech string, ir []byte, err error) {
	return "XOAUTH2", []byte("user=" + a.username + "\x01auth=Bearer " + a.token + "\x01\x01"), nil
}

// Next implements sasl.Client. The only challenge tells an error in JSON; an empty answer asks for the reply to it.
func (a *xoauth2) Next([]byte) ([]byte, error) { return []byte{}, nil }
