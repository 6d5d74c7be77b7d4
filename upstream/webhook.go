package upstream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"gatepost/config"
	"gatepost/message"
)

// The header fields of a request in format "raw" that say what the mail itself does not.
const (
	webhookStream = "X-Gatepost-Stream"
	webhookFrom   = "X-Gatepost-From" // envelope sender; empty for the null sender
	webhookTo     = "X-Gatepost-To"   // envelope recipients, with commas between
)

// webhookRecipients is how many recipients a request names at most: web servers take header lines of 8 KB.
const webhookRecipients = 20

// webhook hands mail to a web service of the user's own, signed as Standard Webhooks 1.0.0 says: the message as it is
// with its envelope beside it, or both in JSON.
type webhook struct {
	cfg  *config.Upstream
	base string // scheme://host of the URL
}

// newWebhook fails where the secret could not sign: better now than with the first code.
func newWebhook(c *config.Upstream) (*webhook, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("upstream %s: url: not the URL of a web service", c.Name) // which may hold a secret
	}
	w := &webhook{c, u.Scheme + "://" + u.Host}
	if _, err := w.keys(); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", c.Name, err)
	}
	return w, nil
}

func (w *webhook) endpoint() string { return w.base }

func (w *webhook) traits() Traits { return Traits{} }

func (w *webhook) caps() Caps { return Caps{EightBitMIME: true, SMTPUTF8: true} }

// check finds nothing out: a receiver of mail need not know anything else.
func (w *webhook) check(context.Context, doer) (Account, error) { return Account{}, ErrUnproven }

// calls makes a request for each recipient of auth mail, so that each has a verdict of its own, and as few as can be for
// other mail.
func (w *webhook) calls(e message.Envelope, wire net.Buffers) ([]call, error) {
	keys, err := w.keys()
	if err != nil {
		return nil, err
	}
	raw := wholeMail(wire)
	var calls []call
	for _, to := range perCall(e, webhookRecipients) {
		one := e
		one.To = make([]string, len(to))
		for i, n := range to {
			one.To[i] = e.To[n]
		}
		calls = append(calls, call{to: to, meaning: webhookMeaning, ask: func(ctx context.Context, x *exchange) error {
			body, err := w.body(one, raw) // not before: one in memory at a time
			if err != nil {
				return err
			}
			req, err := w.request(ctx, one, body, keys, time.Now())
			if err != nil {
				return err
			}
			_, err = x.Do(req)
			return err
		}})
	}
	return calls, nil
}

// keys reads what requests are signed with: one secret, or two while receivers change from one to the other.
func (w *webhook) keys() ([]*standardwebhooks.Webhook, error) {
	secrets, err := w.cfg.Secret.Lines(2)
	if err != nil {
		return nil, err
	}
	var keys []*standardwebhooks.Webhook
	for _, s := range secrets {
		text, ok := strings.CutPrefix(s, "whsec_")
		octets, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil || len(octets) < 24 || len(octets) > 64 {
			return nil, fmt.Errorf("read secret %s: a line is not whsec_ and the base64 of 24 to 64 octets: make one with "+
				"echo whsec_$(head -c 32 /dev/urandom | base64)", w.cfg.Secret.File)
		}
		key, err := standardwebhooks.NewWebhookRaw(octets)
		if err != nil {
			return nil, fmt.Errorf("read secret %s: it cannot be used", w.cfg.Secret.File)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// webhookMail is a request in format "json".
type webhookMail struct {
	ID     string   `json:"id"`
	Stream string   `json:"stream"`
	From   string   `json:"from"`
	To     []string `json:"to"`
	Size   int      `json:"size"`
	Raw    []byte   `json:"raw"`
}

func (w *webhook) body(e message.Envelope, raw []byte) ([]byte, error) {
	if w.cfg.Format == "raw" {
		return raw, nil
	}
	return json.Marshal(webhookMail{e.ID.String(), e.Stream, e.From, e.To, len(raw), raw})
}

// request makes and signs the request that hands body to all of e's recipients.
func (w *webhook) request(ctx context.Context, e message.Envelope, body []byte, keys []*standardwebhooks.Webhook, now time.Time) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.cfg.URL, bytes.NewReader(body))
	if err != nil {
		return nil, errors.New("make the request: url cannot be used") // and may hold a secret
	}
	req.Header.Set("Content-Type", "application/json")
	if w.cfg.Format == "raw" {
		req.Header.Set("Content-Type", "message/rfc822")
		req.Header.Set(webhookStream, e.Stream)
		req.Header.Set(webhookFrom, e.From)
		req.Header.Set(webhookTo, strings.Join(e.To, ","))
	}
	id, signatures := webhookID(e), make([]string, len(keys))
	for i, key := range keys {
		if signatures[i], err = key.Sign(id, now, body); err != nil {
			return nil, fmt.Errorf("sign the request: %w", err)
		}
	}
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	return req, nil
}

// webhookID names a hand-over: the same on every try, another one for other recipients, whom a receiver that drops
// duplicates would leave out otherwise. The signature covers it, and so the envelope too: behind the message's id comes
// the beginning of the SHA-256 of sender and recipients, each with a line end.
func webhookID(e message.Envelope) string {
	hash := sha256.Sum256([]byte(e.From + "\n" + strings.Join(e.To, "\n") + "\n"))
	return e.ID.String() + "." + hex.EncodeToString(hash[:8])
}

// webhookMeaning says what the receiver's status means. It is the user's own program, which may well say so in HTML.
//
//	status     class         scope
//	2xx        accepted
//	410        unauthorised  upstream   it does not want any more
//	422        permanent     message
//	any other  as for every service
func webhookMeaning(a answer) []message.Verdict {
	var v message.Verdict
	switch {
	case a.ok():
		v = message.Verdict{Class: message.Accepted, Code: a.status, Text: a.words("")}
	case a.status == http.StatusGone:
		v = a.as(message.Unauthorised, message.ScopeUpstream, "", "")
		v.Alarm = "the receiver of the webhook takes no more mail"
	case a.status == http.StatusUnprocessableEntity:
		v = a.as(message.Permanent, message.ScopeMessage, "5.6.0", "")
	default:
		v = a.verdict("")
	}
	return []message.Verdict{v}
}
