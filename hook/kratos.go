package hook

import (
	"net/http"
	"strings"
)

// kratos is the courier of Ory Kratos with delivery strategy http. It repeats whatever is not answered with 2xx, so a
// refusal for good is a 200 there, and a bounced event here.
type kratos struct {
	unsigned
	links links
}

func (kratos) Retries() bool { return true }

func (kratos) Answer(a Answer) Response {
	if a.Refused {
		return Response{Status: http.StatusOK, JSON: map[string]string{"refused": a.Text}}
	}
	return plainly(a)
}

// kratosRequest is what the default of request_config.body makes, and what our page about Kratos adds to it.
type kratosRequest struct {
	Recipient string         `json:"recipient"`
	To        string         `json:"to"`
	Template  string         `json:"template_type"`
	Subject   string         `json:"subject"`
	Body      string         `json:"body"`
	HTML      string         `json:"html_body"`
	Data      map[string]any `json:"template_data"`

	RecoveryCode     string `json:"recovery_code"`
	VerificationCode string `json:"verification_code"`
	RecoveryURL      string `json:"recovery_url"`
	VerificationURL  string `json:"verification_url"`
}

var kratosTypes = map[string]string{
	"recovery_code_valid": forgotPassword, "recovery_valid": forgotPassword, "login_code_valid": signIn, "registration_code_valid": register,
	"verification_code_valid": bindNewIdentifier, "verification_valid": bindNewIdentifier,
}

func (k kratos) Parse(body []byte) ([]Mail, error) {
	var r kratosRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	to, err := address("recipient", either(r.Recipient, r.To))
	if err != nil {
		return nil, err
	}
	if r.Template == "" {
		return nil, invalid("template_type", "is missing")
	}
	m := Mail{To: to, Locales: locales(text(r.Data, "identity", "traits", "locale"), text(r.Data, "transient_payload", "locale"))}
	kind := kratosTypes[r.Template]
	if kind == "" {
		kind = noticeType
	}
	m.of(kind)
	if subject := clean(r.Subject, maxSubject); subject != "" && strings.TrimSpace(r.Body+r.HTML) != "" {
		m.Rendered = &Rendered{Subject: subject, Text: r.Body, HTML: r.HTML}
		return []Mail{m}, nil
	}
	if m.Variables, err = k.variables(&r, kind); err != nil {
		return nil, err
	}
	m.Purpose, m.TTL = "", 0
	return []Mail{m}, nil
}

// variables returns what a template of ours is filled with, where Kratos sent no words of its own.
func (k kratos) variables(r *kratosRequest, kind string) (map[string]any, error) {
	secret := either(either(r.RecoveryCode, r.VerificationCode), either(text(r.Data, "login_code"), text(r.Data, "registration_code")))
	secret = either(secret, either(text(r.Data, "recovery_code"), text(r.Data, "verification_code")))
	switch {
	case kind == noticeType:
		return nil, invalid("subject", "or body is missing, and template_type %q needs them", clean(r.Template, 64))
	case secret == "":
		return nil, invalid("subject", "or body is missing, and so is the code in template_data that would do for template_type %q", clean(r.Template, 64))
	}
	v := map[string]any{"code": secret, "identity": r.Data["identity"]}
	if link := either(r.RecoveryURL, r.VerificationURL); link != "" {
		if err := k.links.check("recovery_url or verification_url", link); err != nil {
			return nil, err
		}
		v["link"] = link
	}
	return v, nil
}
