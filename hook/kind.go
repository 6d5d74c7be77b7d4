package hook

import (
	"slices"
	"time"
)

// The types of mail: those of Logto, and Notice for what tells of something that has happened.
const (
	SignIn                   = "SignIn"
	Register                 = "Register"
	ForgotPassword           = "ForgotPassword"
	OrganizationInvitation   = "OrganizationInvitation"
	Generic                  = "Generic"
	UserPermissionValidation = "UserPermissionValidation"
	BindNewIdentifier        = "BindNewIdentifier"
	MfaVerification          = "MfaVerification"
	BindMfa                  = "BindMfa"
	Notice                   = "Notice"
)

// templated are the types that templates are for.
var templated = []string{SignIn, Register, ForgotPassword, OrganizationInvitation, Generic, UserPermissionValidation, BindNewIdentifier,
	MfaVerification, BindMfa}

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

// of makes m mail of a type, with the purpose and lifetime that go with it.
func (m *Mail) of(kind string) {
	m.Type = kind
	switch kind {
	case OrganizationInvitation:
		m.as(invitation)
	case Notice:
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

// ofSaid is of for a type that a request names: one that is not known is Generic.
func (m *Mail) ofSaid(kind string) {
	if !slices.Contains(templated, kind) {
		m.Said = clean(kind, 64)
		kind = Generic
	}
	m.of(kind)
}
