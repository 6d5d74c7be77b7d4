package doctor

import (
	"net/netip"
	"slices"

	"gatepost/config"
)

// Way is how one upstream was reached from one egress, and what its service sees of us.
type Way struct {
	Type   string   `json:"type"`
	Egress string   `json:"egress"`
	Local  string   `json:"local_ip,omitempty"` // as connected; "" where no connection was had, or through a proxy
	Result string   `json:"result"`             // "works", "fails", or "not proven" where only a mail can tell
	Allow  []string `json:"allow,omitempty"`    // the addresses that belong on the service's allow-list, if it has one
	Note   string   `json:"note,omitempty"`     // why an address that belongs there is not known
}

// What became of a Way.
const (
	works     = "works"
	fails     = "fails"
	notProven = "not proven" // neither good nor bad
)

// carrierGrade is shared address space (RFC 6598), which the world does not see either.
var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// see notes what the service sees: the addresses of the egress, or local where the host chose one. What is behind address
// translation is only known where public_ipv4 says it.
func (w *Way) see(e *config.Egress, local string) {
	w.Local = local
	var from []netip.Addr
	switch a, err := netip.ParseAddr(local); {
	case e != nil && e.Proxy != "":
		if w.Note = "the proxy's own address: set public_ipv4 of [egress." + e.Name + "]"; e.PublicIPv4.IsValid() {
			w.Note, w.Allow = "", []string{e.PublicIPv4.String()}
		}
		return
	case e != nil:
		from = slices.DeleteFunc([]netip.Addr{e.IPv4, e.IPv6}, func(a netip.Addr) bool { return !a.IsValid() })
	case err == nil:
		from = []netip.Addr{a}
	}
	for _, a := range from {
		switch {
		case a.Is4() && e != nil && e.PublicIPv4.IsValid():
			w.Allow = append(w.Allow, e.PublicIPv4.String())
		case a.IsPrivate() || a.IsLinkLocalUnicast() || carrierGrade.Contains(a):
			w.Note = "not verified: " + a.String() + " is private"
			if e != nil && a.Is4() {
				w.Note += ", set public_ipv4 of [egress." + e.Name + "]"
			}
		default:
			w.Allow = append(w.Allow, a.String())
		}
	}
}
