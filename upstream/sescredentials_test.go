package upstream_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gatepost/config"
	"gatepost/message"
	"gatepost/upstream"
	"gatepost/upstream/upstreamtest"
)

// noAWS takes everything out of the environment that the SDK could find credentials by.
func noAWS(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CA_BUNDLE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
}

// sesBehindProxy makes an upstream that finds its own credentials and leaves through p, and the service behind it.
func sesBehindProxy(t *testing.T, p *socksProxy) upstream.Upstream {
	t.Helper()
	key := sesKey
	key.Token = "session"
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
		if err := upstreamtest.VerifySigV4(r, key, time.Now()); err != nil {
			return sesSays(403, "InvalidSignatureException", err.Error())
		}
		return upstreamtest.Reply{Body: `{"MessageId":"0107018fe5b7c2d4-aa11bb22-0000"}`}
	})
	c := sesConfig(t, s)
	c.AccessKeyID, c.SecretAccessKey = config.Secret{}, config.Secret{}
	u, err := upstream.New(c, "gw.example.com", upstream.NewEgress(&config.Egress{Name: "proxied", Proxy: p.addr}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeNow(t, u) })
	return u
}

func TestTheMetadataServiceOfTheMachineIsAskedDirectly(t *testing.T) {
	noAWS(t)
	metadata := upstreamtest.NewService(t, upstreamtest.ServiceOptions{Plain: true}, func(upstreamtest.Request) upstreamtest.Reply {
		return upstreamtest.Reply{Body: `{"AccessKeyId":"` + sesKey.ID + `","SecretAccessKey":"` + sesKey.Secret + `","Token":"session","Expiration":"` +
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `"}`}
	})
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata.URL()+"/v1/credentials")
	p := newSOCKSProxy(t)
	u := sesBehindProxy(t, p)
	for range 3 {
		wantClasses(t, send(t, u, envelope()), message.Accepted)
	}
	if n := len(metadata.All()); n != 1 {
		t.Errorf("credentials were fetched %d times for three mails, want once", n)
	}
	for _, peer := range metadata.Peers() {
		if peer.Addr() == behindProxy {
			t.Error("the metadata service was asked through the proxy")
		}
	}
	if got := p.names(); len(got) != 1 {
		t.Errorf("the proxy was asked for %q, want the service alone", got)
	}
}

func TestATokenServiceIsAskedFromTheEgress(t *testing.T) {
	noAWS(t)
	sts := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(upstreamtest.Request) upstreamtest.Reply {
		return upstreamtest.Reply{Header: map[string]string{"Content-Type": "text/xml"}, Body: `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
			<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>` + sesKey.ID + `</AccessKeyId><SecretAccessKey>` + sesKey.Secret + `</SecretAccessKey>
			<SessionToken>session</SessionToken><Expiration>` + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + `</Expiration></Credentials>
			</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`}
	})
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("identity"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", token)
	t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/mail")
	t.Setenv("AWS_CA_BUNDLE", sts.CAFile())
	t.Setenv("AWS_ENDPOINT_URL_STS", "https://localhost:"+sts.Port())
	p := newSOCKSProxy(t)
	u := sesBehindProxy(t, p)
	wantClasses(t, send(t, u, envelope()), message.Accepted)
	if got := p.names(); len(got) != 2 || !slices.Contains(got, "localhost") {
		t.Errorf("the proxy was asked for %q, want the service and the token service, by its name", got)
	}
	for _, peer := range sts.Peers() {
		if peer.Addr() != behindProxy {
			t.Errorf("the token service was asked from %s, want the egress", peer.Addr())
		}
	}
}
