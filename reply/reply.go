// Package reply carries an SMTP verdict through the program as an error. Whoever knows why mail cannot proceed
// returns an *Error; only the ingress turns it into a line on the wire. An error without a verdict means 451:
// a bug or a full disk of ours must never bounce somebody's sign-in code.
package reply

import (
	"errors"
	"fmt"
)

// Error is an SMTP reply (RFC 5321 §4.2, RFC 3463) that says no.
type Error struct {
	Code     int    // 421 to 556
	Enhanced string // "5.7.1"
	Text     string // for the client: short, no path, host, address or secret
	Err      error  // for the log; also what Unwrap returns
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%d %s %s", e.Code, e.Enhanced, e.Text)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Temporary reports whether trying again later may help.
func (e *Error) Temporary() bool { return e.Code < 500 }

// New makes a verdict; the text is formatted and shown to the client.
func New(code int, enhanced, format string, a ...any) *Error {
	return &Error{Code: code, Enhanced: enhanced, Text: fmt.Sprintf(format, a...)}
}

// Of returns the verdict inside err, however deeply wrapped, or the safe default. err must not be nil.
func Of(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{451, "4.3.0", "Temporary failure, please try again later", err}
}
