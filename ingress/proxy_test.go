package ingress

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// v2 makes a binary header; rest are the addresses and what else follows the length.
func v2(command, family byte, rest string) string {
	head := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	return string(binary.BigEndian.AppendUint16(head, uint16(len(rest)))) + rest
}

const (
	ends4 = "\xc0\x00\x02\x01\x7f\x00\x00\x01\x04\xd2\x00\x19" // 192.0.2.1:1234 to 127.0.0.1:25
	ends6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x04\xd2\x00\x19"
)

var proxyHeaders = map[string]struct{ header, want string }{ // want "" is refused, "-" is the balancer itself
	"v1 TCP4":                       {"PROXY TCP4 192.0.2.1 127.0.0.1 1234 25\r\n", "192.0.2.1:1234"},
	"v1 TCP6":                       {"PROXY TCP6 2001:db8::1 ::1 1234 25\r\n", "[2001:db8::1]:1234"},
	"v1 TCP6 with mapped addresses": {"PROXY TCP6 ::ffff:192.0.2.1 ::1 1234 25\r\n", "192.0.2.1:1234"},
	"v1 UNKNOWN":                    {"PROXY UNKNOWN\r\n", "-"},
	"v1 UNKNOWN with addresses":     {"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", "-"},
	"v1 of 107 octets":              {"PROXY UNKNOWN " + strings.Repeat("x", 91) + "\r\n", "-"},
	"v2 TCP4":                       {v2(0x21, 0x11, ends4), "192.0.2.1:1234"},
	"v2 TCP4 with extensions":       {v2(0x21, 0x11, ends4+"\x04\x00\x01x"), "192.0.2.1:1234"},
	"v2 TCP6":                       {v2(0x21, 0x21, ends6), "[2001:db8::1]:1234"},
	"v2 LOCAL":                      {v2(0x20, 0x00, ""), "-"},
	"v2 LOCAL with addresses":       {v2(0x20, 0x11, ends4), "-"},
	"v2 UNSPEC":                     {v2(0x21, 0x00, ""), "-"},
	"v2 of 536 octets":              {v2(0x21, 0x11, ends4+strings.Repeat("x", 520-12)), "192.0.2.1:1234"},

	"v1 of 108 octets":                 {"PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", ""},
	"v1 with a bare LF":                {"PROXY TCP4 192.0.2.1 127.0.0.1 1234 25\n", ""},
	"v1 with IPv6 under TCP4":          {"PROXY TCP4 2001:db8::1 ::1 1234 25\r\n", ""},
	"v1 with IPv4 under TCP6":          {"PROXY TCP6 192.0.2.1 127.0.0.1 1234 25\r\n", ""},
	"v1 with a zone":                   {"PROXY TCP6 fe80::1%eth0 ::1 1234 25\r\n", ""},
	"v1 with a name for an address":    {"PROXY TCP4 localhost 127.0.0.1 1234 25\r\n", ""},
	"v1 with an address too long":      {"PROXY TCP4 192.0.2.1.1 127.0.0.1 1234 25\r\n", ""},
	"v1 with a bad destination":        {"PROXY TCP4 192.0.2.1 x 1234 25\r\n", ""},
	"v1 with a port too high":          {"PROXY TCP4 192.0.2.1 127.0.0.1 65536 25\r\n", ""},
	"v1 with a negative port":          {"PROXY TCP4 192.0.2.1 127.0.0.1 -1 25\r\n", ""},
	"v1 with two blanks":               {"PROXY  TCP4 192.0.2.1 127.0.0.1 1234 25\r\n", ""},
	"v1 with a word too many":          {"PROXY TCP4 192.0.2.1 127.0.0.1 1234 25 x\r\n", ""},
	"v1 UDP4":                          {"PROXY UDP4 192.0.2.1 127.0.0.1 1234 25\r\n", ""},
	"v1 in lower case":                 {"proxy TCP4 192.0.2.1 127.0.0.1 1234 25\r\n", ""},
	"v1 that ends early":               {"PROXY TCP4 192.0.2.1", ""},
	"v2 UDP4":                          {v2(0x21, 0x12, ends4), ""},
	"v2 UDP6":                          {v2(0x21, 0x22, ends6), ""},
	"v2 UNIX":                          {v2(0x21, 0x31, strings.Repeat("x", 216)), ""},
	"v2 with another version":          {v2(0x11, 0x11, ends4), ""},
	"v2 with an unknown command":       {v2(0x22, 0x11, ends4), ""},
	"v2 that is too short for TCP4":    {v2(0x21, 0x11, ends4[:11]), ""},
	"v2 that is too short for TCP6":    {v2(0x21, 0x21, ends6[:35]), ""},
	"v2 of 537 octets":                 {v2(0x21, 0x11, ends4+strings.Repeat("x", 521-12)), ""},
	"v2 that ends early":               {v2(0x21, 0x11, ends4)[:20], ""},
	"v2 whose signature has a mistake": {strings.Replace(v2(0x21, 0x11, ends4), "QUIT", "QUIZ", 1), ""},
	"no header":                        {"EHLO client.example\r\n", ""},
	"a TLS hello":                      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00", ""},
}

func TestPROXYHeadersAreReadStrictlyAndNotBeyondTheirEnd(t *testing.T) {
	for name, tt := range proxyHeaders {
		t.Run(name, func(t *testing.T) {
			r := strings.NewReader(tt.header + "EHLO")
			if strings.HasSuffix(name, "ends early") {
				r = strings.NewReader(tt.header)
			}
			got, err := readProxy(r)
			switch {
			case tt.want == "" && err == nil:
				t.Errorf("taken for %v", got)
			case tt.want == "":
			case err != nil:
				t.Error(err)
			case tt.want == "-" && got.IsValid(), tt.want != "-" && got.String() != tt.want:
				t.Errorf("read as %v, want %v", got, tt.want)
			case r.Len() != len("EHLO"):
				t.Errorf("%d octets are left behind the header", r.Len())
			}
		})
	}
}

// behind is a door whose balancer is at 127.0.0.0/30.
func behind(o *SMTPOptions, f *fakeRelay) {
	o.Listen.ProxyFrom = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/30")}
	f.identify = func(_ string, p message.Peer) (string, error) {
		if p.Addr == netip.MustParseAddr("192.0.2.1") {
			return "logto", nil
		}
		return "", errStranger
	}
}

func TestABalancerSpeaksForItsClients(t *testing.T) {
	a := newAuthority(t)
	for _, name := range []string{"v1 TCP4", "v2 TCP4"} {
		for _, mode := range []string{"none", "implicit"} {
			t.Run(name+", "+mode, func(t *testing.T) {
				change := behind
				if mode == "implicit" {
					change = withTLS(t, a, mode, behind)
				}
				d := openTCP(t, change)
				c := d.dialFrom(t, "127.0.0.2")
				c.send(proxyHeaders[name].header)
				if mode == "implicit" {
					c = c.tls(a.trust(t))
				}
				c.hello()
				c.toData()
				c.do(mail+".", "250 ")
				if s := d.relay.submissions()[0]; s.Client != "logto" || s.Remote.String() != "192.0.2.1:1234" {
					t.Errorf("client %q from %v", s.Client, s.Remote)
				}
				if !strings.Contains(d.log.String(), "remote=192.0.2.1:1234") {
					t.Errorf("the log tells of somebody else:\n%s", d.log)
				}
			})
		}
	}
}

func TestBalancersMustIntroduceAndOthersMayNot(t *testing.T) {
	session := "EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
	for name, tt := range map[string]struct{ source, send, want string }{
		"a balancer that forgets":          {"127.0.0.2", session, ""},
		"a balancer that is malformed":     {"127.0.0.2", "PROXY TCP4 192.0.2.1\r\n" + session, ""},
		"a balancer with a stranger":       {"127.0.0.2", "PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\n" + session, "554 5.7.1 gw.example.com listener \"smtp\": your address is in no"},
		"a balancer that speaks of itself": {"127.0.0.2", "PROXY UNKNOWN\r\n" + session, "554 5.7.1 "},
		"a second header":                  {"127.0.0.2", proxyHeaders["v1 TCP4"].header + proxyHeaders["v1 TCP4"].header + session, "220 gw.example.com ESMTP Service Ready\r\n500 5.5.2 "},
		"somebody else":                    {"127.0.0.9", proxyHeaders["v1 TCP4"].header + session, "554 5.7.1 "},
	} {
		t.Run(name, func(t *testing.T) {
			d := openTCP(t, behind)
			c := d.dialFrom(t, tt.source)
			c.send(tt.send)
			if rest := c.rest(); !strings.HasPrefix(rest, tt.want) || tt.want == "" && rest != "" || strings.Contains(rest, "250") {
				t.Errorf("answered %q, want %q", rest, tt.want)
			}
			if len(d.relay.submissions()) != 0 {
				t.Error("a message was accepted")
			}
		})
	}
}

func TestLimitsPerSourceHoldBehindABalancer(t *testing.T) {
	d := openTCP(t, func(o *SMTPOptions, f *fakeRelay) {
		behind(o, f)
		f.identify = nil
		o.Listen.MaxPerSource = 2
	})
	var open []*client
	for i := range 6 {
		c := d.dialFrom(t, "127.0.0.1")
		c.send(fmt.Sprintf("PROXY TCP4 192.0.2.%d 127.0.0.1 1 2\r\n", i%3))
		c.hello()
		open = append(open, c)
	}
	c := d.dialFrom(t, "127.0.0.1")
	c.send("PROXY TCP4 192.0.2.0 127.0.0.1 1 2\r\n")
	if rest := c.rest(); !strings.HasPrefix(rest, "421 4.7.0 gw.example.com too many connections from your address") {
		t.Errorf("the third of one source was greeted with %q", rest)
	}
	open[0].do("QUIT", "221 ")
	d.until(t, "a place is free", func() bool { return d.count() == 5 })
	c = d.dialFrom(t, "127.0.0.1")
	c.send("PROXY TCP4 192.0.2.0 127.0.0.1 1 2\r\n")
	c.hello()
}

func TestAPROXYHeaderMayTakeFiveSeconds(t *testing.T) {
	inBubble(t, behind, func(t *testing.T, d *door, l *connListener) {
		c := l.from(t, addr("127.0.0.1:1000"))
		c.drip(proxyHeaders["v1 TCP4"].header, 1, time.Second)
		start := time.Now()
		synctest.Wait()
		for d.count() > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start).Round(time.Second); took != 5*time.Second {
			t.Errorf("cut off after %v", took)
		}
	})
}

// FuzzProxy checks that a header is read to its own end and no further, however it comes, and that what it names is a
// plain address.
func FuzzProxy(f *testing.F) {
	for _, tt := range proxyHeaders {
		f.Add([]byte(tt.header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		got, err := readProxy(r)
		used := len(b) - r.Len()
		if used > maxProxyV2 {
			t.Fatalf("%d octets were read", used)
		}
		if err != nil {
			return
		}
		if a := got.Addr(); a.Zone() != "" || a.Is4In6() {
			t.Errorf("%q names %v", b[:used], got)
		}
		again, err := readProxy(io.MultiReader(bytes.NewReader(b[:used]), strings.NewReader("EHLO x\r\n")))
		if err != nil || again != got {
			t.Errorf("%q is %v, and %v, %v when something else follows", b[:used], got, again, err)
		}
		if text := string(b[:used]); strings.HasPrefix(text, "PROXY") && strings.Index(text, "\n") != used-1 {
			t.Errorf("%q was read beyond its line", text)
		}
	})
}
