package hook

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

// supabase is the Send Email Hook of Supabase Auth. Its requests hold tokens; the links are built here.
type supabase struct {
	links links
	base  string // of the API, as https://PROJECT.supabase.co/auth/v1
}

func (supabase) Retries() bool { return true }

func (supabase) Verify(h http.Header, body []byte, keys []string, now time.Time) error {
	return verifyWebhook(h, body, keys, now)
}

// Answer tells of trouble inside a 200: Supabase Auth repeats what gets 429 or 503 three times at once, and shows the
// error object to the person. What is wrong with the request itself it shows to nobody.
func (supabase) Answer(a Answer) Response {
	type failure struct {
		Code int    `json:"http_code"`
		Text string `json:"message"`
	}
	switch a.Status {
	case http.StatusOK:
		return Response{Status: http.StatusOK, JSON: struct{}{}}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusUnprocessableEntity:
		return Response{Status: http.StatusOK, JSON: map[string]failure{"error": {a.Status, a.Text}}}
	}
	return Response{Status: a.Status, JSON: map[string]failure{"error": {a.Status, a.Text}}}
}

// supabaseRequest is what Supabase Auth sends, as far as it matters.
type supabaseRequest struct {
	Metadata struct {
		IP string `json:"ip_address"`
	} `json:"metadata"`
	User struct {
		Email    string         `json:"email"`
		NewEmail string         `json:"new_email"`
		EmailNew string         `json:"email_new"` // as its documentation has it
		Metadata map[string]any `json:"user_metadata"`
	} `json:"user"`
	Data struct {
		Token        string `json:"token"`
		TokenHash    string `json:"token_hash"`
		TokenNew     string `json:"token_new"`
		TokenHashNew string `json:"token_hash_new"`
		RedirectTo   string `json:"redirect_to"`
		Action       string `json:"email_action_type"`
		OldEmail     string `json:"old_email"`
	} `json:"email_data"`
}

func (s supabase) Parse(body []byte) ([]Mail, error) {
	var r supabaseRequest
	if err := decode(body, &r); err != nil {
		return nil, err
	}
	d := &r.Data
	fresh := r.User.NewEmail
	if fresh == "" {
		fresh = r.User.EmailNew
	}
	switch {
	case d.Action == "":
		return nil, invalid("email_data.email_action_type", "is missing")
	case strings.HasSuffix(d.Action, "_notification"):
		return s.notice(&r)
	case d.Action != "email_change" || fresh == "":
		m, err := s.mail(&r, "user.email", r.User.Email, "token", d.Token, d.TokenHash)
		return []Mail{m}, err
	}
	// An e-mail change names its tokens the other way round, for compatibility: token_hash is that of the new address.
	if d.TokenHashNew == "" {
		m, err := s.mail(&r, "user.new_email", fresh, "token", either(d.Token, d.TokenNew), d.TokenHash)
		return []Mail{m}, err
	}
	old, err := s.mail(&r, "user.email", r.User.Email, "token", d.Token, d.TokenHashNew)
	if err != nil {
		return nil, err
	}
	now, err := s.mail(&r, "user.new_email", fresh, "token_new", d.TokenNew, d.TokenHash)
	return []Mail{old, now}, err
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

var supabaseTypes = map[string]string{
	"signup": register, "recovery": forgotPassword, "invite": organizationInvitation, "magiclink": signIn, "email": signIn,
	"email_change": bindNewIdentifier, "email_change_current": bindNewIdentifier, "email_change_new": bindNewIdentifier,
	"reauthentication": userPermissionValidation,
}

// mail makes the mail with one code, and the link that stands for it where there is a hash.
func (s supabase) mail(r *supabaseRequest, field, to, codeField, code, hash string) (m Mail, err error) {
	if m.To, err = address(field, to); err != nil {
		return m, err
	}
	if code == "" {
		return m, invalid("email_data."+codeField, "is missing")
	}
	m.Variables = map[string]any{"code": code, "email": m.To.String(), "user": r.person()}
	if hash != "" && r.Data.Action != "reauthentication" { // whose code is not for a link
		m.Variables["link"] = s.link(hash, linkType(r.Data.Action), r.Data.RedirectTo)
	}
	m.Locales = r.locales()
	m.IP = personIP(r.Metadata.IP)
	m.Type = either(supabaseTypes[r.Data.Action], clean(r.Data.Action, maxType))
	return m, nil
}

// person is what templates see as user.
func (r *supabaseRequest) person() map[string]any {
	return map[string]any{"primaryEmail": r.User.Email, "metadata": r.User.Metadata}
}

// locales returns the languages of a person, as far as the application noted one.
func (r *supabaseRequest) locales() []string {
	return locales(text(r.User.Metadata, "locale"), text(r.User.Metadata, "lang"), text(r.User.Metadata, "language"))
}

// linkType is what the link's end takes as type: the sides of an e-mail change share one.
func linkType(action string) string {
	if strings.HasPrefix(action, "email_change") {
		return "email_change"
	}
	return action
}

func (s supabase) link(hash, action, redirect string) string {
	q := url.Values{"token": {hash}, "type": {action}}
	if redirect != "" {
		q.Set("redirect_to", redirect)
	}
	return s.base + "/verify?" + q.Encode()
}

// notices are what people are told of changes to their account. Supabase Auth sends no texts.
var notices = map[string]string{
	"password_changed_notification":      "The password of your account was changed.",
	"email_changed_notification":         "The email address of your account was changed.",
	"phone_changed_notification":         "The phone number of your account was changed.",
	"identity_linked_notification":       "A sign-in method was added to your account.",
	"identity_unlinked_notification":     "A sign-in method was removed from your account.",
	"mfa_factor_enrolled_notification":   "A second factor was added to your account.",
	"mfa_factor_unenrolled_notification": "A second factor was removed from your account.",
}

// notice makes the mail that tells of a change. That of an address goes to the old one, whose owner may not know.
func (s supabase) notice(r *supabaseRequest) ([]Mail, error) {
	what := either(notices[r.Data.Action], "Something about your account was changed.")
	field, to := "user.email", r.User.Email
	if r.Data.Action == "email_changed_notification" && r.Data.OldEmail != "" {
		field, to = "email_data.old_email", r.Data.OldEmail
	}
	a, err := address(field, to)
	if err != nil {
		return nil, err
	}
	f := form{Subject: strings.TrimSuffix(what, "."), Title: strings.TrimSuffix(what, "."), Text: what + "\nIf this was not you, contact support at once."}
	m := Mail{To: a, Rendered: f.render()}
	m.Rendered.Language = "en"
	m.of(noticeType)
	m.Type, m.Variables = clean(r.Data.Action, maxType), map[string]any{"email": a.String(), "user": r.person()}
	m.Locales = r.locales()
	return []Mail{m}, nil
}
