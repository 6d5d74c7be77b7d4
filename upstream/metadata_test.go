package upstream

import (
	"net/netip"
	"testing"

	"gatepost/config"
)

func TestOnlyLiteralAddressesOfThisMachinesSurroundingsAreMetadata(t *testing.T) {
	for address, want := range map[string]bool{
		"169.254.169.254:80": true, "169.254.170.2:80": true, "[fd00:ec2::254]:80": true, "[fd00:ec2::23]:80": true, "[fe80::1%eth0]:80": true, "127.0.0.1:9911": true,
		"metadata.google.internal:80": false, "localhost:80": false, "10.0.0.1:80": false, "192.0.2.1:443": false, "[fd00:ec3::254]:80": false, "[2001:db8::1]:443": false, "": false,
	} {
		if isMetadata(address) != want {
			t.Errorf("isMetadata(%q) = %v", address, !want)
		}
	}
}

func TestTheDialerForInstanceMetadataGoesNowhereElse(t *testing.T) {
	client := credentialClient(NewEgress(&config.Egress{Name: "auth", IPv4: netip.MustParseAddr("127.0.0.3")}))
	if conn, err := client.GetDialer().DialContext(t.Context(), "tcp", "192.0.2.1:80"); err == nil {
		conn.Close()
		t.Error("it connected to a host that is not of this machine")
	}
	if client.GetTransport().Proxy != nil {
		t.Error("a proxy of the environment would be used")
	}
}
