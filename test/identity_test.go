package test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// wantMail sends one mail over c, which must be taken.
func wantMail(t *testing.T, c *client, id string) {
	t.Helper()
	if _, err := c.send(authStream.sender(), id+"@example.net", authStream.letter(id, "246810")); err != nil {
		t.Errorf("mail %s: %v", id, err)
	}
}

func (d *doors) hash(password string) string {
	d.t.Helper()
	r := d.runWith(password+"\n", "hash-password")
	if r.code != 0 || !strings.HasPrefix(r.stdout, "$argon2id$") {
		d.t.Fatalf("hash-password ended with %d: %q, %s", r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

func TestAPasswordIsRotatedWithoutAMomentInWhichNeitherWorks(t *testing.T) {
	d := newDoors(t)
	old, next := login{webLogin.user, "the one before"}, login{webLogin.user, "the one after"}
	d.write("web.password", d.hash(old.password))
	d.start()
	try := func(l login) bool {
		c, err := d.dialLogin(d.starttls, authClient, l)
		if err != nil {
			return false
		}
		defer c.close()
		wantMail(t, c, fmt.Sprintf("r%d", time.Now().UnixNano()))
		return true
	}
	for _, step := range []struct {
		name, file     string
		oldOK, afterOK bool
	}{
		{"at first", d.read("web.password"), true, false},
		{"with both in the file", d.hash(next.password) + d.hash(old.password), true, true},
		{"at last", d.hash(next.password), false, true},
	} {
		d.write("web.password", step.file)
		if status, answer := d.reload(); status != 200 {
			t.Fatalf("%s: reload: %d %s", step.name, status, answer)
		}
		if old, after := try(old), try(next); old != step.oldOK || after != step.afterOK {
			t.Errorf("%s the old password works: %v, the new one: %v; want %v, %v", step.name, old, after, step.oldOK, step.afterOK)
		}
	}
}

func TestAClientCertificateSaysWhoItIs(t *testing.T) {
	d := newDoors(t)
	address := freeAddress(t)
	d.addConfig(`
[listen.mutual]
protocol = "smtp"
address  = "` + address + `"
clients  = ["billing"]
tls                = "implicit"
tls_cert_file      = "gw.crt"
tls_key_file       = "gw.key"
tls_client_ca_file = "ca.crt"
[client.billing]
tls_names = ["billing.internal"]
streams   = ["auth"]
`)
	d.start()
	stranger := newAuthority(t)
	for name, tt := range map[string]struct {
		by   *authority
		dns  string
		want string
	}{
		"a certificate with the name":   {d.ca, "billing.internal", ""},
		"a certificate of another name": {d.ca, "evil-billing.internal", "refused"},
		"the name, signed by another":   {stranger, "billing.internal", "refused"},
		"no certificate":                {nil, "", "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			trust := d.ca.trust()
			if tt.by != nil {
				cert, key := tt.by.issue(tt.dns)
				pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
				if err != nil {
					t.Fatal(err)
				}
				trust.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			err := d.sendMutual(address, trust)
			if refused := err != nil; refused != (tt.want == "refused") {
				t.Errorf("the mail's answer is %v, want it %s", err, tt.want)
			}
		})
	}
	if n := len(d.auth.wait(1, 5*time.Second)); n != 1 {
		t.Errorf("%d mails arrived, want 1", n)
	}
}

func (d *doors) sendMutual(address string, trust *tls.Config) error {
	conn, err := connect(address, authClient)
	if err != nil {
		return err
	}
	c, err := greet(tls.Client(conn, trust))
	if err != nil {
		return err
	}
	defer c.close()
	_, err = c.send(authStream.sender(), "u@example.net", authStream.letter("m1", "246810"))
	return err
}

func TestAReloadCountsTheMailOfAStreamThatIsGoneAndItGoesOnceTheStreamIsBack(t *testing.T) {
	s := newSite(t)
	s.bulk.stop()
	s.start()
	c, err := dial(s.listen, bulkClient)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for i := range 3 {
		id := fmt.Sprintf("h%d", i)
		if _, err := c.send(bulkStream.sender(), id+"@example.net", bulkStream.letter(id, "1")); err != nil {
			t.Fatal(err)
		}
	}
	whole := s.read("gatepost.toml")
	gone, rest, _ := strings.Cut(whole, "[stream.marketing]")
	_, rest, _ = strings.Cut(rest, "[egress.auth]")
	without := strings.Replace(gone, "[client.news]\nnetworks = [\"127.0.1.0/24\"]\nstreams  = [\"marketing\"]\n", "", 1)
	without = strings.Replace(without, ", \"news\"", "", 1)
	s.replace(without + "[egress.auth]" + rest)
	status, answer := s.reload()
	var told struct{ Held int }
	if err := json.Unmarshal([]byte(answer), &told); status != 200 || err != nil || told.Held != 3 {
		t.Fatalf("reload without the stream: %d %s", status, answer)
	}
	if rows := s.queue(); len(rows) != 3 || rows[0].State != "held" {
		t.Errorf("the queue shows %+v, want three held", rows)
	}
	s.replace(whole)
	if status, answer := s.reload(); status != 200 {
		t.Fatalf("reload with the stream: %d %s", status, answer)
	}
	s.bulk.start()
	s.waitEmpty(20 * time.Second)
	if n := len(s.bulk.all()); n != 3 {
		t.Errorf("%d arrived, want 3", n)
	}
}
