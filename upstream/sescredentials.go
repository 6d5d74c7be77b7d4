package upstream

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go/logging"
)

// credentialTime bounds one request for credentials.
const credentialTime = 10 * time.Second

// credentialChain finds credentials as the AWS SDK does: environment, profile, web identity, container, instance role.
// What it asks on the network it asks from the egress, but for the machine's own metadata service.
func credentialChain(region string, egress *Egress) (aws.CredentialsProvider, error) {
	ctx, cancel := context.WithTimeout(context.Background(), credentialTime)
	defer cancel()
	cfg, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region), awsconfig.WithHTTPClient(credentialClient(egress)),
		awsconfig.WithLogger(logging.Nop{}))
	if err != nil {
		return nil, err
	}
	return cfg.Credentials, nil
}

// credentialClient returns the SDK's own kind of client, which it wants to change in places (AWS_CA_BUNDLE), with our way
// out. It keeps no connections: credentials are asked for once an hour.
func credentialClient(egress *Egress) *awshttp.BuildableClient {
	// The SDK takes the dialer for instance metadata, and whatever host the environment says has them.
	client := awshttp.NewBuildableClient().WithTimeout(credentialTime).WithDialerOptions(func(d *net.Dialer) { d.Control = onlyMetadata })
	direct := client.GetDialer()
	return client.WithTransportOptions(func(t *http.Transport) {
		t.Proxy = nil
		t.DisableKeepAlives = true
		t.MaxResponseHeaderBytes = maxAnswer
		t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if isMetadata(address) {
				return direct.DialContext(ctx, network, address)
			}
			return egress.DialContext(ctx, network, address)
		}
	})
}

// onlyMetadata keeps a dialer that knows of no egress from leaving this machine.
func onlyMetadata(_, address string, _ syscall.RawConn) error {
	if !isMetadata(address) {
		return fmt.Errorf("%s is not a metadata service of this machine, and would not be asked from the egress", address)
	}
	return nil
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
