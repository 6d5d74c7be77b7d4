package upstream

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
)

// credentialTime bounds one request for credentials.
const credentialTime = 10 * time.Second

// credentialChain finds credentials as the AWS SDK does: environment, profile, web identity, container, instance role.
// What it asks on the network it asks from the egress, but for the machine's own metadata service.
func credentialChain(region string, egress *Egress) (aws.CredentialsProvider, error) {
	ctx, cancel := context.WithTimeout(context.Background(), credentialTime)
	defer cancel()
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region), awsconfig.WithHTTPClient(credentialClient(egress)))
	if err != nil {
		return nil, err
	}
	return cfg.Credentials, nil
}

// credentialClient returns the client for token services. It keeps no connections: they are asked once an hour.
func credentialClient(egress *Egress) *http.Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if isMetadata(address) {
				var d net.Dialer
				return d.DialContext(ctx, network, address)
			}
			return egress.DialContext(ctx, network, address)
		},
		DisableKeepAlives:      true,
		TLSHandshakeTimeout:    credentialTime,
		ResponseHeaderTimeout:  credentialTime,
		MaxResponseHeaderBytes: maxAnswer,
		ForceAttemptHTTP2:      true,
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// awsMetadata is where AWS has its link-local services in IPv6: unique local addresses.
var awsMetadata = netip.MustParsePrefix("fd00:ec2::/32")

// isMetadata reports whether address is a literal one that leads no further than this machine and what it runs on: the
// metadata services of instances and containers. A name never is: DNS decides nothing here.
func isMetadata(address string) bool {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return false
	}
	ip := a.Addr().Unmap()
	return ip.IsLinkLocalUnicast() || ip.IsLoopback() || awsMetadata.Contains(ip)
}
