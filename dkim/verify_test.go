package dkim

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/message"
)

func TestRecordSplitsAt255(t *testing.T) {
	_, records := bothKeys(t)
	for _, r := range records {
		zone := r.Zone()
		parts := strings.Split(zone, `"`)
		var joined strings.Builder
		for i := 1; i < len(parts); i += 2 {
			if len(parts[i]) > 255 {
				t.Errorf("a string of %d octets in %s", len(parts[i]), zone)
			}
			joined.WriteString(parts[i])
		}
		if joined.String() != r.Value || !strings.HasPrefix(zone, r.Name+". IN TXT ( \"v=DKIM1; k=") {
			t.Errorf("zone form %q of %+v", zone, r)
		}
	}
	if records[0].Name != "gp1._domainkey.auth.example.com" || strings.Count(records[0].Zone(), `"`) != 4 {
		t.Errorf("RSA record %+v, want two strings under gp1._domainkey.auth.example.com", records[0])
	}
}

func TestVerifyTellsWhatIsWrong(t *testing.T) {
	s, records := bothKeys(t)
	raw := signedSample(t, s)
	for name, tt := range map[string]struct {
		raw    []byte
		lookup func(string) ([]string, error)
		want   string
	}{
		"a key that is not published": {raw, Published(), "no key for signature"},
		"a DNS that does not answer":  {raw, func(string) ([]string, error) { return nil, errors.New("timeout") }, "timeout"},
		"another key than published": {raw, Published(Record{records[0].Name, records[1].Value}, Record{records[1].Name, records[0].Value}),
			"inappropriate key algorithm"},
		"a revoked key":    {raw, func(string) ([]string, error) { return []string{"v=DKIM1; p="}, nil }, "revoked"},
		"a changed header": {bytes.Replace(raw, []byte("Your"), []byte("Our"), 1), Published(records...), "body hash"},
	} {
		t.Run(name, func(t *testing.T) {
			results, err := Verify(bytes.NewReader(tt.raw), tt.lookup)
			if err != nil || len(results) != 2 {
				t.Fatalf("Verify: %+v, %v", results, err)
			}
			for _, r := range results {
				if r.Err == nil || !strings.Contains(r.Err.Error(), tt.want) {
					t.Errorf("selector %s: %v, want %q", r.Selector, r.Err, tt.want)
				}
			}
		})
	}
}

func TestVerifyReadsFilesWithUnixLineEnds(t *testing.T) {
	s, records := bothKeys(t)
	unix := bytes.ReplaceAll(signedSample(t, s), []byte("\r\n"), []byte("\n"))
	results, err := Verify(bytes.NewReader(unix), Published(records...))
	if err != nil || len(results) != 2 || results[0].Err != nil || results[1].Err != nil {
		t.Errorf("Verify: %+v, %v", results, err)
	}
}

func TestVerifyOfUnsignedMailIsEmpty(t *testing.T) {
	for name, raw := range map[string]string{
		"a message":                  sample,
		"a header without a body":    "From: a@example.com\r\n",
		"nothing":                    "",
		"a message without a header": "\r\nbody\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if results, err := Verify(strings.NewReader(raw), Published()); err != nil || len(results) != 0 {
				t.Errorf("Verify: %+v, %v, want neither results nor an error", results, err)
			}
		})
	}
}

func TestVerifyLooksAtNoMoreThan20Signatures(t *testing.T) {
	fields := strings.Repeat("DKIM-Signature: v=1; a=rsa-sha256; b=; bh=; d=d.example; h=from; s=s\r\n", 30)
	results, err := Verify(strings.NewReader(fields+sample), Published())
	if err != nil || len(results) != maxVerified {
		t.Errorf("Verify: %d results, %v, want %d", len(results), err, maxVerified)
	}
}

func TestAlignment(t *testing.T) {
	s := newSigner(t, config.DKIM{Selector: "gp1", KeyFile: keyFile(t, "ed25519")})
	for name, tt := range map[string]struct {
		d, from string
		want    bool
	}{
		"the same domain":            {"auth.example.com", "a@auth.example.com", true},
		"a parent":                   {"example.com", "a@auth.example.com", true},
		"a sibling":                  {"mail.example.com", "a@auth.example.com", true},
		"upper case":                 {"auth.example.com", "A@AUTH.Example.COM", true},
		"another organisation":       {"example.org", "a@auth.example.com", false},
		"a public suffix in common":  {"one.co.uk", "a@two.co.uk", false},
		"a lookalike":                {"ample.com", "a@example.com", false},
		"two From domains":           {"auth.example.com", "a@auth.example.com, b@example.org", false},
		"a From that cannot be read": {"auth.example.com", "auth.example.com", false},
	} {
		t.Run(name, func(t *testing.T) {
			raw := message.Raw("From: " + tt.from + "\r\n\r\nbody\r\n")
			fields, err := s.Sign(raw, tt.d, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			records, err := s.Records(tt.d)
			if err != nil {
				t.Fatal(err)
			}
			results, err := Verify(bytes.NewReader(slices.Concat(fields, raw)), Published(records...))
			if err != nil || len(results) != 1 || results[0].Err != nil {
				t.Fatalf("Verify: %+v, %v", results, err)
			}
			if results[0].Aligned != tt.want {
				t.Errorf("aligned %v, want %v", results[0].Aligned, tt.want)
			}
		})
	}
}

// Whatever the file holds, there is one result for each signature field, and none is valid without its key.
func FuzzVerify(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("DKIM-Signature: v=1; a=rsa-sha256; b=; bh=; d=d.example; h=from; s=s\r\nDKIM-Signature:\r\n" + sample))
	f.Add([]byte("dkim-signature : v=1; a=ed25519-sha256; c=simple; b=AA==; bh=AA==; i=@x; d=; h=From:; s=; x=1\n\nbody"))
	f.Fuzz(func(t *testing.T, b []byte) {
		results, err := Verify(bytes.NewReader(b), Published())
		if err != nil {
			return
		}
		for _, r := range results {
			if r.Err == nil {
				t.Errorf("a valid signature without a key: %+v", r)
			}
		}
	})
}
