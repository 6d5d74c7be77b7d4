package dkim

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatepost/config"
	"gatepost/message"
)

const sample = "From: Example <no-reply@auth.example.com>\r\n" +
	"To: user@example.net\r\n" +
	"Subject: =?utf-8?B?44K144Kk44Oz44Kk44Oz?=\r\n" +
	"Message-ID: <1@auth.example.com>\r\n" +
	"Date: Sun, 22 Nov 2026 09:00:00 +0000\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Content-Transfer-Encoding: 8bit\r\n" +
	"References: <a@example.com>\r\n\t<b@example.com>\r\n" +
	"\r\n" +
	"Your code is  123456. \r\n\r\n.leading dot\r\nJapanese: 確認コード\r\n\r\n\r\n"

// keyFile writes a fresh key and returns its file.
func keyFile(t testing.TB, algorithm string) string {
	t.Helper()
	pem, err := GenerateKey(algorithm, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), algorithm+".pem")
	if err := WriteKey(file, pem); err != nil {
		t.Fatal(err)
	}
	return file
}

func newSigner(t testing.TB, keys ...config.DKIM) *Signer {
	t.Helper()
	s, err := NewSigner(keys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bothKeys returns a signer with an RSA and an Ed25519 key, and its records for auth.example.com.
func bothKeys(t testing.TB) (*Signer, []Record) {
	t.Helper()
	s := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: keyFile(t, "rsa")}, config.DKIM{Selector: "gp2", KeyFile: keyFile(t, "ed25519")})
	records, err := s.Records("auth.example.com")
	if err != nil {
		t.Fatal(err)
	}
	return s, records
}

// signedSample returns sample with the signatures of s in front.
func signedSample(t testing.TB, s *Signer) message.Raw {
	t.Helper()
	fields, err := s.Sign(message.Raw(sample), "auth.example.com", nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(message.Raw(fields), message.Raw(sample))
}

func TestSignaturesOfBothKindsVerify(t *testing.T) {
	s, records := bothKeys(t)
	results, err := Verify(bytes.NewReader(signedSample(t, s)), Published(records...))
	if err != nil || len(results) != 2 {
		t.Fatalf("Verify: %d results, %v, want 2", len(results), err)
	}
	for i, want := range []struct{ selector, algorithm string }{{"gp1", "rsa-sha256"}, {"gp2", "ed25519-sha256"}} {
		r := results[i]
		if r.Err != nil || r.Domain != "auth.example.com" || r.Selector != want.selector || r.Algorithm != want.algorithm || !r.Aligned {
			t.Errorf("signature %d: %+v, want a valid and aligned %+v", i, r, want)
		}
	}
}

func TestDkimpyAcceptsBothSignatures(t *testing.T) {
	s, records := bothKeys(t)
	raw := signedSample(t, s)
	want := []string{"valid rsa-sha256 auth.example.com", "valid ed25519-sha256 auth.example.com"}
	if got := dkimpy(t, raw, records); !slices.Equal(got, want) {
		t.Errorf("dkimpy says %q, want %q", got, want)
	}
	changed := bytes.Replace(raw, []byte("123456"), []byte("654321"), 1)
	for i := range want {
		want[i] = "in" + want[i]
	}
	if got := dkimpy(t, changed, records); !slices.Equal(got, want) {
		t.Errorf("dkimpy says %q of a changed body, want %q", got, want)
	}
}

// dkimpy verifies raw with an implementation that shares no code with ours: one line for each signature.
func dkimpy(t *testing.T, raw []byte, records []Record) []string {
	t.Helper()
	const python = "/usr/bin/python3" // the one that Debian's packages belong to
	args := []string{"testdata/verify.py"}
	for _, r := range records {
		args = append(args, r.Name+"="+r.Value)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), python, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(raw), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("run dkimpy: %v\n%s\nhint: apt-get install python3-dkim python3-nacl", err, &stderr)
	}
	return strings.Split(strings.TrimSpace(stdout.String()), "\n")
}

func TestNoSignedFieldCanBeAddedOrChanged(t *testing.T) {
	s, records := bothKeys(t)
	raw := signedSample(t, s)
	bare := bytes.Replace(raw, []byte("References: <a@example.com>\r\n\t<b@example.com>\r\n"), nil, 1)
	for name, altered := range map[string][]byte{
		"a second From":                         prepend("From: evil@example.org\r\n", raw),
		"a second Subject":                      prepend("Subject: other\r\n", raw),
		"a Cc where none was":                   prepend("Cc: evil@example.org\r\n", raw),
		"a Reply-To where none was":             prepend("Reply-To: evil@example.org\r\n", raw),
		"a List-Unsubscribe where none was":     prepend("List-Unsubscribe: <https://example.org>\r\n", raw),
		"a List-Unsubscribe-Post of its own":    prepend("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n", raw),
		"a second Content-Type":                 prepend("Content-Type: text/html\r\n", raw),
		"a second Content-Transfer-Encoding":    prepend("Content-Transfer-Encoding: base64\r\n", raw),
		"a second Date":                         prepend("Date: Mon, 23 Nov 2026 09:00:00 +0000\r\n", raw),
		"a References field that was taken out": bare,
		"another To":                            bytes.Replace(raw, []byte("user@example.net"), []byte("user@example.org"), 1),
		"text after the end":                    append(slices.Clone(raw), "more\r\n"...),
	} {
		t.Run(name, func(t *testing.T) {
			results, err := Verify(bytes.NewReader(altered), Published(records...))
			if err != nil || len(results) != 2 {
				t.Fatalf("Verify: %d results, %v", len(results), err)
			}
			for _, r := range results {
				if r.Err == nil {
					t.Errorf("selector %s: still valid", r.Selector)
				}
			}
		})
	}
}

func prepend(field string, raw []byte) []byte { return append([]byte(field), raw...) }

func TestWhatRelaysDoToMailKeepsSignaturesValid(t *testing.T) {
	s, records := bothKeys(t)
	raw := signedSample(t, s)
	for name, relayed := range map[string][]byte{
		"Received in front":          prepend("Received: from a by b; Sun, 22 Nov 2026 09:00:01 +0000\r\n", raw),
		"Return-Path in front":       prepend("Return-Path: <b@example.com>\r\n", raw),
		"white space at line ends":   bytes.Replace(raw, []byte("dot\r\n"), []byte("dot \t\r\n"), 1),
		"fewer blank lines at end":   bytes.TrimSuffix(raw, []byte("\r\n\r\n")),
		"a field folded elsewhere":   bytes.Replace(raw, []byte("To: user"), []byte("To:\r\n user"), 1),
		"a field name in lower case": bytes.Replace(raw, []byte("\r\nSubject:"), []byte("\r\nsubject:"), 1),
	} {
		t.Run(name, func(t *testing.T) {
			results, err := Verify(bytes.NewReader(relayed), Published(records...))
			if err != nil || len(results) != 2 {
				t.Fatalf("Verify: %d results, %v", len(results), err)
			}
			for _, r := range results {
				if r.Err != nil {
					t.Errorf("selector %s: %v", r.Selector, r.Err)
				}
			}
		})
	}
}

func TestSignatureIsRelaxedTimedAndOversigned(t *testing.T) {
	s, _ := bothKeys(t)
	raw := signedSample(t, s)
	for f := range message.Fields(raw.Header()) {
		if !f.Is("DKIM-Signature") {
			continue
		}
		tags := tagsOf(f)
		if tags["c"] != "relaxed/relaxed" || tags["t"] == "" || tags["l"] != "" {
			t.Errorf("c=%s t=%s l=%s, want relaxed/relaxed, a time and no length", tags["c"], tags["t"], tags["l"])
		}
		names := strings.Split(tags["h"], ":")
		for name, want := range map[string]int{"From": 2, "Subject": 2, "Cc": 1, "List-Unsubscribe": 1, "References": 1,
			"Sender": 0, "Received": 0, "Bcc": 0, "Return-Path": 0} {
			if got := len(names) - len(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })); got != want {
				t.Errorf("h= has %s %d times, want %d", name, got, want)
			}
		}
		for line := range strings.SplitSeq(string(f), "\r\n") {
			if len(line) > 998 {
				t.Errorf("a line of %d octets", len(line))
			}
		}
	}
}

func TestFieldsTheNextHopRewritesAreLeftOut(t *testing.T) {
	s, records := bothKeys(t)
	fields, err := s.Sign(message.Raw(sample), "auth.example.com", []string{"date", "Message-ID"}, true)
	if err != nil {
		t.Fatal(err)
	}
	raw := append(fields, strings.Replace(sample, "<1@auth.example.com>", "<2@ses.example.org>", 1)...)
	results, err := Verify(bytes.NewReader(raw), Published(records...))
	if err != nil || len(results) != 1 || results[0].Err != nil {
		t.Fatalf("Verify: %+v, %v, want one valid signature over a rewritten Message-ID", results, err)
	}
}

func TestSigningDomain(t *testing.T) {
	file := keyFile(t, "ed25519")
	for name, tt := range map[string]struct {
		domain, from, want string // want "" for refused
	}{
		"the From domain by default":      {"", "auth.example.com", "auth.example.com"},
		"a parent that is configured":     {"example.com", "auth.example.com", "example.com"},
		"the domain itself":               {"auth.example.com", "auth.example.com", "auth.example.com"},
		"a lookalike is not a subdomain":  {"example.com", "evil-example.com", ""},
		"a subdomain signs for no parent": {"auth.example.com", "example.com", ""},
		"another domain":                  {"example.org", "auth.example.com", ""},
		"no From domain":                  {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: file, Domain: tt.domain})
			fields, err := s.Sign(message.Raw(sample), tt.from, nil, false)
			if (err != nil) != (tt.want == "") {
				t.Fatalf("Sign: %v", err)
			}
			if err != nil {
				if len(fields) > 0 {
					t.Errorf("an error and a signature")
				}
				return
			}
			if d := tagsOf(message.Field(fields))["d"]; d != tt.want {
				t.Errorf("d=%s, want %s", d, tt.want)
			}
		})
	}
}

func TestUnsignedNeverPassesForSigned(t *testing.T) {
	ed := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: keyFile(t, "ed25519")})
	for name, sign := range map[string]func() ([]byte, error){
		"without a key": func() ([]byte, error) { return newSigner(t).Sign(message.Raw(sample), "auth.example.com", nil, false) },
		"without a blank line": func() ([]byte, error) {
			return ed.Sign(message.Raw("From: a@auth.example.com\r\n"), "auth.example.com", nil, false)
		},
		"with From left out": func() ([]byte, error) {
			return ed.Sign(message.Raw(sample), "auth.example.com", []string{"From"}, false)
		},
		"with more fields than a signature holds": func() ([]byte, error) {
			return ed.Sign(message.Raw(strings.Repeat("References: <a@b>\r\n", 100)+sample), "auth.example.com", nil, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if fields, err := sign(); err == nil || len(fields) > 0 {
				t.Errorf("Sign returned %q, %v, want an error and nothing else", fields, err)
			}
		})
	}
}

func TestManySignAtOnce(t *testing.T) {
	s, records := bothKeys(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			results, err := Verify(bytes.NewReader(signedSample(t, s)), Published(records...))
			if err != nil || len(results) != 2 || results[0].Err != nil || results[1].Err != nil {
				t.Errorf("Verify: %+v, %v", results, err)
			}
		})
	}
	wg.Wait()
}

// sized returns a mail with about so many KB of body.
func sized(kb int) message.Raw {
	return message.Raw(sample + strings.Repeat("0123456789 abcdefghijklmnopqrstuvwxyz 0123456789 abcdefghijk\r\n", kb<<10/62))
}

func TestSigningAllocatesLittleHoweverLongTheMail(t *testing.T) {
	s := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: keyFile(t, "ed25519")})
	for _, kb := range []int{2, 20, 200} {
		raw := sized(kb)
		if n := testing.AllocsPerRun(20, func() {
			if _, err := s.Sign(raw, "auth.example.com", nil, false); err != nil {
				t.Fatal(err)
			}
		}); n > 25 {
			t.Errorf("%d KB: %v allocations, want 25 at most", kb, n)
		}
	}
}

func TestAProfileChangesWithWhatItIsMadeWith(t *testing.T) {
	one, other := keyFile(t, "ed25519"), keyFile(t, "ed25519")
	profile := func(from string, never []string, single bool, raw string, keys ...config.DKIM) [32]byte {
		u, err := newSigner(t, keys...).Prepare(message.Raw(raw), from, never, single)
		if err != nil {
			t.Fatal(err)
		}
		return u.Profile()
	}
	key, second := config.DKIM{Selector: "gp1", KeyFile: one}, config.DKIM{Selector: "gp2", KeyFile: other}
	base := profile("auth.example.com", nil, false, sample, key)
	if again := profile("auth.example.com", nil, false, sample, key); again != base {
		t.Error("the same gives another profile")
	}
	for name, p := range map[string][32]byte{
		"another key":            profile("auth.example.com", nil, false, sample, config.DKIM{Selector: "gp1", KeyFile: other}),
		"another selector":       profile("auth.example.com", nil, false, sample, config.DKIM{Selector: "gp2", KeyFile: one}),
		"another domain":         profile("auth.example.com", nil, false, sample, config.DKIM{Selector: "gp1", KeyFile: one, Domain: "example.com"}),
		"another From":           profile("www.example.com", nil, false, sample, key),
		"fields left out":        profile("auth.example.com", []string{"Date"}, false, sample, key),
		"a field more":           profile("auth.example.com", nil, false, "Sender: a@auth.example.com\r\n"+sample, key),
		"a second key":           profile("auth.example.com", nil, false, sample, key, second),
		"two keys the other way": profile("auth.example.com", nil, false, sample, second, key),
	} {
		if p == base {
			t.Errorf("%s: the same profile", name)
		}
	}
	if p := profile("auth.example.com", nil, true, sample, key, second); p != base {
		t.Error("with one signature of two keys: another profile than the first key's")
	}
}

func BenchmarkSign(b *testing.B) {
	for _, algorithm := range []string{"rsa", "ed25519"} {
		s := newSigner(b, config.DKIM{Selector: "gp1", KeyFile: keyFile(b, algorithm)})
		for _, kb := range []int{2, 20, 200} {
			raw := sized(kb)
			b.Run(fmt.Sprintf("%s/%dKB", algorithm, kb), func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := s.Sign(raw, "auth.example.com", nil, false); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// What a try costs whose signature is there already.
func BenchmarkProfile(b *testing.B) {
	s := newSigner(b, config.DKIM{Selector: "gp1", KeyFile: keyFile(b, "rsa")})
	raw := sized(2)
	b.ReportAllocs()
	for b.Loop() {
		u, err := s.Prepare(raw, "auth.example.com", nil, false)
		if err != nil {
			b.Fatal(err)
		}
		u.Profile()
	}
}

func BenchmarkBodyHash(b *testing.B) {
	for _, kb := range []int{2, 20, 200} {
		body := sized(kb).Body()
		b.Run(fmt.Sprintf("%dKB", kb), func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				BodyHash(body)
			}
		})
	}
}

func TestMain(m *testing.M) {
	os.Unsetenv("CREDENTIALS_DIRECTORY") // under systemd it would exempt files that these tests want refused
	os.Exit(m.Run())
}
