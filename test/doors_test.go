package test

import (
	"crypto/tls"
	"encoding/base64"
	"net/textproto"
	"strings"
	"testing"
)

// Logins of doorsText. Their clients are bound to networks too: web and remote may send auth mail, letters marketing.
var (
	webLogin     = login{"web", "correct horse battery"}
	lettersLogin = login{"letters", "staple of the day"}
	remoteLogin  = login{"remote", "yet another secret"}
)

type login struct{ user, password string }

const doorsText = `
[listen.starttls]
protocol = "smtp"
address  = "STARTTLS"
clients  = ["web", "letters", "remote"]
tls           = "starttls"
tls_cert_file = "gw.crt"
tls_key_file  = "gw.key"
[listen.implicit]
protocol = "smtp"
address  = "IMPLICIT"
clients  = ["web", "letters", "remote"]
tls           = "implicit"
tls_cert_file = "gw.crt"
tls_key_file  = "gw.key"
[listen.any]
protocol = "smtp"
address  = "ANYLOGIN"
clients  = ["logto", "news"]
auth     = "any"
[client.web]
username      = "web"
password_file = "web.password"
networks      = ["127.0.0.0/24"]
streams       = ["auth"]
[client.letters]
username      = "letters"
password_file = "letters.password"
networks      = ["127.0.1.0/24"]
streams       = ["marketing"]
[client.remote]
username      = "remote"
password_file = "remote.password"
networks      = ["127.0.2.0/24"]
streams       = ["auth"]
`

// doors are the listeners of a site beside the plain one that knows clients by their address.
type doors struct {
	*site
	ca       *authority
	starttls string // address: logins, TLS on demand
	implicit string // address: logins, TLS from the start
	any      string // address: no TLS, every login is accepted and the client's address decides
}

// newDoors makes a site with them.
func newDoors(t *testing.T) *doors {
	t.Helper()
	d := &doors{newSite(t), newAuthority(t), freeAddress(t), freeAddress(t), freeAddress(t)}
	cert, key := d.ca.issue("gw.auth.example.com", "localhost")
	d.write("ca.crt", d.ca.pem())
	d.write("gw.crt", cert)
	d.write("gw.key", key)
	d.write("web.password", webLogin.password+"\n")
	d.write("letters.password", lettersLogin.password+"\n")
	d.write("remote.password", remoteLogin.password+"\n")
	d.addConfig(strings.NewReplacer("STARTTLS", d.starttls, "IMPLICIT", d.implicit, "ANYLOGIN", d.any).Replace(doorsText))
	return d
}

// addConfig appends sections to the config.
func (s *site) addConfig(text string) { s.write("gatepost.toml", s.read("gatepost.toml")+text) }

// dialTLS is dial with TLS: from the start for the implicit door, else after STARTTLS.
func (d *doors) dialTLS(addr, local string) (*client, error) {
	if addr == d.implicit {
		return d.dialImplicit(addr, local)
	}
	c, err := dial(addr, local)
	if err != nil {
		return nil, err
	}
	if err := c.startTLS(d.ca.trust()); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (d *doors) dialImplicit(addr, local string) (*client, error) {
	conn, err := connect(addr, local)
	if err != nil {
		return nil, err
	}
	return greet(tls.Client(conn, d.ca.trust()))
}

// startTLS upgrades the connection and greets anew (RFC 3207).
func (c *client) startTLS(config *tls.Config) error {
	if _, err := c.command(220, "STARTTLS"); err != nil {
		return err
	}
	c.conn = tls.Client(c.conn, config)
	c.text = textproto.NewConn(c.conn)
	_, err := c.command(250, "EHLO test.example.com")
	return err
}

// login logs in with PLAIN.
func (c *client) login(l login) error {
	_, err := c.command(235, "AUTH PLAIN %s", base64.StdEncoding.EncodeToString([]byte("\x00"+l.user+"\x00"+l.password)))
	return err
}

// dialLogin connects over TLS and logs in.
func (d *doors) dialLogin(addr, local string, l login) (*client, error) {
	c, err := d.dialTLS(addr, local)
	if err != nil {
		return nil, err
	}
	if err := c.login(l); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}
