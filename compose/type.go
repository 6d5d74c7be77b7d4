package compose

import (
	"slices"
	"time"
)

// Generic is the type whose templates stand in for those of a type that is not known or has none in a language.
const Generic = "Generic"

// Type is what a mail is for.
type Type struct {
	Name     string
	Purpose  string        // "code", "invitation" or "notice", as message.Message has it
	Lifetime time.Duration // how long the mail is worth sending
	Needs    string        // the variable without which it is of no use: "code", "link" or ""
}

// types are those of Logto's connectors, in the order of its documentation. Its codes are good for ten minutes.
var types = []Type{
	code("SignIn"),
	code("Register"),
	code("ForgotPassword"),
	{"OrganizationInvitation", "invitation", 24 * time.Hour, "link"},
	code(Generic),
	code("UserPermissionValidation"),
	code("BindNewIdentifier"),
	code("MfaVerification"),
	code("BindMfa"),
}

func code(name string) Type { return Type{name, "code", 10 * time.Minute, "code"} }

// notice is a type that only a directory of templates has. What it needs is what its templates name.
func notice(name string) Type { return Type{name, "notice", 24 * time.Hour, ""} }

// Types returns the types that have built-in templates.
func Types() []Type { return slices.Clone(types) }

func builtInType(name string) (Type, bool) {
	i := slices.IndexFunc(types, func(t Type) bool { return t.Name == name })
	if i < 0 {
		return Type{}, false
	}
	return types[i], true
}
