package hook

import "time"

// The types of mail that adapters know of: those of Logto that they need, and Notice for what tells of something that
// has happened.
const (
	signIn                   = "SignIn"
	register                 = "Register"
	forgotPassword           = "ForgotPassword"
	organizationInvitation   = "OrganizationInvitation"
	generic                  = "Generic"
	userPermissionValidation = "UserPermissionValidation"
	bindNewIdentifier        = "BindNewIdentifier"
	mfaVerification          = "MfaVerification"
	noticeType               = "Notice"
)

// Purposes of mail, as match rules have them.
const (
	code       = "code"
	invitation = "invitation"
	notice     = "notice"
)

// How long mail is worth sending: codes are worthless soon after.
const (
	codeTTL  = 10 * time.Minute
	otherTTL = 24 * time.Hour
)

// of makes m mail of a type whose words the request brings along, with the purpose and lifetime that go with it.
func (m *Mail) of(kind string) {
	m.Type = kind
	switch kind {
	case organizationInvitation:
		m.as(invitation)
	case noticeType:
		m.as(notice)
	default:
		m.as(code)
	}
}

// as gives m a purpose and the lifetime that goes with it.
func (m *Mail) as(purpose string) {
	m.Purpose, m.TTL = purpose, otherTTL
	if purpose == code {
		m.TTL = codeTTL
	}
}
