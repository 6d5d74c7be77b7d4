package ingress

import (
	"bytes"
	"encoding/base64"
	"errors"
	"log/slog"
	"strings"

	"gatepost/reply"
)

const (
	maxFailures   = 10   // logins that are refused until the connection is closed
	maxCredential = 1024 // octets of a user name, and of a password
)

// The answers to AUTH (RFC 4954 §4 and §6).
var (
	errNoAUTH        = reply.New(502, "5.5.1", "AUTH is not offered, clients are known by their address here")
	errAuthAgain     = reply.New(503, "5.5.1", "You are logged in already")
	errAuthInMail    = reply.New(503, "5.5.1", "AUTH is not possible inside a mail")
	errAuthInClear   = reply.New(538, "5.7.11", "Encryption is required for AUTH, use STARTTLS or the port for implicit TLS")
	errAuthSyntax    = reply.New(501, "5.5.4", "AUTH takes a mechanism and at most one initial response")
	errMechanism     = reply.New(504, "5.5.4", "That mechanism is not offered, PLAIN and LOGIN are")
	errAuthCancelled = reply.New(501, "5.7.0", "Authentication cancelled")
	errBase64        = reply.New(501, "5.5.2", "The response is not valid base64")
	errPlain         = reply.New(501, "5.5.2", "The response is not of the form of PLAIN (RFC 4616)")
	errCredential    = reply.New(501, "5.5.2", "The user name or password has a NUL in it or more than %d octets", maxCredential)
	errAuthFailed    = reply.New(535, "5.7.8", "Authentication failed") // whatever the reason
	errAuthBroken    = reply.New(454, "4.7.0", "Temporary authentication failure, please try again later")
	errFailures      = reply.New(421, "4.7.0", "Too many failed logins, closing the connection")
	errNobody        = reply.New(530, "5.7.0", "Authentication required")
	errNobodyInClear = reply.New(530, "5.7.0", "Authentication required, it is offered after STARTTLS")
)

func (c *conn) offersAuth() bool { return c.smtp.Acceptor.Offers(c.smtp.Listen.Name) }

// private reports whether credentials may be sent: nobody can listen on the way. What a balancer on this host passes on
// came to it over a network.
func (c *conn) private() bool {
	return c.secure || c.peer.UID >= 0 || c.peer.Addr.IsLoopback() && addrPort(c.raw.RemoteAddr()).Addr().IsLoopback()
}

// refuseNobody answers MAIL where a login is due.
func (c *conn) refuseNobody() {
	e := errNobody
	if c.offersTLS() && !c.private() {
		e = errNobodyInClear
	}
	c.refuse(e)
	c.logTurned("sender refused", e)
}

// authenticate answers AUTH. go-smtp does not see it: its parser and its log are no places for passwords.
func (c *conn) authenticate(line []byte) {
	words := bytes.Fields(line)
	if e := c.authRefusal(words); e != nil {
		c.refuse(e)
		return
	}
	user, password, e := c.credentials(words)
	defer clear(password)
	switch {
	case c.over: // the client has left
	case e != nil:
		c.refuse(e)
	default:
		c.login(string(user), string(password))
	}
}

// authRefusal returns why AUTH is not possible now, or nil.
func (c *conn) authRefusal(words [][]byte) *reply.Error {
	switch {
	case !c.offersAuth():
		return errNoAUTH
	case !c.extended:
		return errNoGreeting
	case c.loggedIn:
		return errAuthAgain
	case c.session.open:
		return errAuthInMail
	case !c.private():
		return errAuthInClear
	case len(words) < 2 || len(words) > 3 || !bytes.EqualFold(words[0], []byte("AUTH")):
		return errAuthSyntax
	}
	return nil
}

// credentials speaks the mechanism that words of an AUTH command ask for. Where c.over is set, the client has left
// meanwhile.
func (c *conn) credentials(words [][]byte) (user, password []byte, e *reply.Error) {
	switch strings.ToUpper(string(words[1])) {
	case "PLAIN":
		return c.plain(words[2:])
	case "LOGIN":
		return c.loginMechanism(words[2:])
	}
	return nil, nil, errMechanism
}

// plain is PLAIN (RFC 4616). Nobody may act for another.
func (c *conn) plain(initial [][]byte) (user, password []byte, e *reply.Error) {
	response, e := c.response("", initial)
	if e != nil {
		return nil, nil, e
	}
	parts := bytes.Split(response, []byte{0})
	if len(parts) != 3 {
		clear(response)
		return nil, nil, errPlain
	}
	if as := parts[0]; len(as) > 0 && !bytes.Equal(as, parts[1]) {
		clear(response)
		return nil, nil, errAuthFailed
	}
	return check(parts[1], parts[2])
}

// loginMechanism is LOGIN, which no RFC has. Clients compare the prompts octet by octet.
func (c *conn) loginMechanism(initial [][]byte) (user, password []byte, e *reply.Error) {
	if user, e = c.response("Username:", initial); e != nil {
		return nil, nil, e
	}
	if password, e = c.response("Password:", nil); e != nil {
		return nil, nil, e
	}
	return check(user, password)
}

func check(user, password []byte) (_, _ []byte, e *reply.Error) {
	if max(len(user), len(password)) > maxCredential || bytes.IndexByte(user, 0) >= 0 || bytes.IndexByte(password, 0) >= 0 {
		clear(password)
		return nil, nil, errCredential
	}
	return user, password, nil
}

// response returns the initial response, "=" for an empty one, or asks for one with prompt. The line it came in is
// wiped.
func (c *conn) response(prompt string, initial [][]byte) ([]byte, *reply.Error) {
	if len(initial) > 0 {
		return decodeResponse(initial[0])
	}
	c.out = append(c.out, "334 "+base64.StdEncoding.EncodeToString([]byte(prompt))+"\r\n"...)
	line, ok := c.readLine()
	if !ok {
		return nil, errAuthCancelled
	}
	line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
	if string(line) == "*" {
		return nil, errAuthCancelled
	}
	return decodeResponse(line)
}

// decodeResponse decodes and wipes line.
func decodeResponse(line []byte) ([]byte, *reply.Error) {
	defer clear(line)
	if string(line) == "=" {
		return nil, nil
	}
	if bytes.IndexByte(line, '\r') >= 0 { // which the decoder would skip
		return nil, errBase64
	}
	decoded := make([]byte, base64.StdEncoding.DecodedLen(len(line)))
	n, err := base64.StdEncoding.Strict().Decode(decoded, line)
	if err != nil {
		clear(decoded)
		return nil, errBase64
	}
	return decoded[:n], nil
}

// login asks whose credentials these are, and takes the client for that one from now on.
func (c *conn) login(user, password string) {
	client, err := c.askLogin(user, password)
	if err != nil {
		c.failLogin(err)
		return
	}
	if err := c.become(client); err != nil {
		c.hangUp(reply.Of(err))
		return
	}
	c.loggedIn, c.authenticated = true, c.set.Auth != "any"
	c.say(reply.New(235, "2.7.0", "Authentication succeeded"))
}

func (c *conn) askLogin(user, password string) (client string, err error) {
	defer recovered(&err)
	return c.smtp.Acceptor.Login(c.smtp.serving, c.smtp.Listen.Name, c.peer, user, password)
}

// failLogin answers a login that was refused. The log tells why, as far as the Acceptor says; the client learns only
// whether to try again.
func (c *conn) failLogin(err error) {
	e := errAuthFailed
	if why := reply.Of(err); why.Temporary() {
		if e = errAuthBroken; why.Code == 454 {
			e = why
		}
	}
	level := slog.LevelInfo
	if errors.Is(err, errPanic) {
		level = slog.LevelError
	}
	c.failures++
	c.say(e)
	c.log(level, "login refused", slog.Int("code", e.Code), slog.String("err", err.Error()))
	if c.failures >= maxFailures {
		c.hangUp(errFailures)
	}
}
