package compose

import (
	"fmt"
	"html"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// isLink reports whether s is a URL that a mail may lead to: https, plain http to this machine, or a scheme that the
// caller allows. A user name in front of the host is how one host is dressed up as another.
func (v *values) isLink(s string) bool {
	if len(s) > maxLink || cleanUpTo(s, maxLink) != s || strings.ContainsAny(s, " \\\"'<>`{}|^") {
		return false
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return false
	}
	switch {
	case u.Scheme == "https":
		return u.Hostname() != ""
	case u.Scheme == "http":
		addr, err := netip.ParseAddr(u.Hostname())
		return u.Hostname() == "localhost" || err == nil && addr.IsLoopback()
	}
	return u.Scheme != "" && !isScript(u.Scheme) && slices.Contains(v.schemes, u.Scheme)
}

// isScript tells of the schemes whose URLs run or hold what they lead to.
func isScript(scheme string) bool {
	return slices.Contains([]string{"javascript", "vbscript", "data", "blob", "file", "about"}, strings.ToLower(scheme))
}

// schemeOf returns the scheme that the value of an attribute starts with, as browsers read it: white space and control
// characters do not count.
func schemeOf(value string) string {
	value = strings.Map(func(r rune) rune {
		if r <= ' ' {
			return -1
		}
		return r
	}, value)
	scheme, _, found := strings.Cut(value, ":")
	if !found {
		return ""
	}
	return strings.ToLower(scheme)
}

// url returns an attribute's value that is a URL. Where the template leaves open where it leads, the whole must be a link
// or becomes empty; behind that values are escaped as parts of a URL.
func (v *values) url(parts plain) string {
	var b strings.Builder
	open := true // where it leads is not settled
	for i, q := range parts {
		if q.path == "" {
			literal := html.UnescapeString(q.literal)
			b.WriteString(literal)
			open = open && (i > 0 || !settled(literal))
			continue
		}
		s, before := v.text(q.path), b.String()
		switch {
		case strings.TrimSpace(before) == "":
			b.WriteString(s)
		case !staysInHost(before, s):
			return ""
		case strings.ContainsAny(before, "?#"):
			b.WriteString(escapeURL(s, ""))
		default:
			b.WriteString(escapeURL(s, inPath(before)))
		}
	}
	s := strings.TrimSpace(b.String())
	if open && !v.isLink(s) {
		return ""
	}
	return s
}

// settled reports whether a URL that begins like this cannot be led elsewhere by what follows but its host, which
// staysInHost looks after.
func settled(begin string) bool {
	begin = strings.TrimSpace(begin)
	scheme, rest, found := strings.Cut(begin, ":")
	switch strings.ToLower(scheme) {
	case "http", "https":
		return strings.HasPrefix(rest, "//")
	}
	return found && !strings.ContainsAny(scheme, "/?#") || strings.HasPrefix(begin, "#")
}

// hostBegun is a URL that is written up to its host: group 1 is what there is of it.
var hostBegun = regexp.MustCompile(`(?i)^\s*(?:[a-z][a-z0-9+.-]*:)?//([^/?#]*)$`)

// hostValue is a host, with or without port.
var hostValue = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]+)?$`)

// staysInHost reports whether s may be written behind before without making another host of one that the template names.
func staysInHost(before, s string) bool {
	m := hostBegun.FindStringSubmatch(before)
	switch {
	case m == nil || s == "":
		return true
	case m[1] == "":
		return hostValue.MatchString(s)
	}
	return strings.IndexByte("/?#", s[0]) >= 0
}

// inPath returns the reserved characters that a value may hold behind before, outside of a query. An @ would make a user
// name of the host in front of it, but in a mail address it has its place.
func inPath(before string) string {
	if strings.HasPrefix(strings.ToLower(strings.TrimSpace(before)), "mailto:") {
		return "@+"
	}
	return "/:!$&'()*+,;="
}

// escaped is what percent-encoding looks like (RFC 3986 §2.1).
var escaped = regexp.MustCompile(`^%[0-9A-Fa-f]{2}`)

// escapeURL percent-encodes all of s but unreserved characters (RFC 3986 §2.3), those in also, and what is encoded
// already: auth servers send both.
func escapeURL(s, also string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && escaped.MatchString(s[i:]), isUnreserved(c), strings.IndexByte(also, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
