package hook

import (
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

const maxLink = 4096 // octets

// links says which links a mail may have.
type links struct{ schemes []string }

// check refuses a link at a field that is not https, http to this host, or of one of the schemes.
func (l links) check(field, link string) error {
	u, err := url.Parse(link)
	switch {
	case err != nil || len(link) > maxLink || clean(link, maxLink) != link || strings.ContainsAny(link, " \\\"<>`"):
		return invalid(field, "is not a link")
	case u.Scheme == "https" && u.Host != "" && u.User == nil:
		return nil
	case u.Scheme == "http" && isLoopback(u.Hostname()) && u.User == nil:
		return nil
	case slices.Contains(l.schemes, strings.ToLower(u.Scheme)):
		return nil
	}
	return invalid(field, "is a link that is not https, nor of a scheme in link_schemes")
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && a.IsLoopback() && net.ParseIP(host) != nil
}
