package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"gatepost/config"
	"gatepost/dkim"
)

// keys checks that every key of every stream can be used.
func keys(cfg *config.Config) []Finding {
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		for _, k := range cfg.Stream[name].DKIM {
			found = append(found, checkKey("stream "+name+", selector "+k.Selector, k)...)
		}
	}
	return found
}

func checkKey(subject string, k config.DKIM) []Finding {
	f := Finding{Level: OK, Check: "dkim key", Subject: subject, Text: "the key can be used"}
	signer, err := dkim.NewSigner([]config.DKIM{k})
	if err != nil {
		f.Level, f.Text = Fail, err.Error()
		for _, p := range config.Problems(err) {
			f.Hint = p.Hint
		}
		return []Finding{f}
	}
	found := []Finding{f}
	for _, w := range signer.Warnings() {
		found = append(found, Finding{Level: Warn, Check: "dkim key", Subject: subject, Text: w,
			Hint: "gatepost dkim generate makes a better one; publish it under a new selector first"})
	}
	return found
}

// publishedRecords checks that what DNS says of each key is what the key needs.
func publishedRecords(ctx context.Context, cfg *config.Config, resolver Resolver) []Finding {
	var records []dkim.Record
	var wild []Finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		s := cfg.Stream[name]
		for _, k := range s.DKIM {
			rs, unknown := recordsFor(name, s, k)
			records, wild = append(records, rs...), append(wild, unknown...)
		}
	}
	slices.SortFunc(records, func(a, b dkim.Record) int { return strings.Compare(a.Name+a.Value, b.Name+b.Value) })
	records = slices.Compact(records)
	return append(together(records, func(r dkim.Record) Finding { return lookUp(ctx, resolver, r) }), wild...)
}

// recordsFor returns the records that key k of stream s needs. A key whose d= is the sender's own subdomain needs one
// for each, and which there will be cannot be known.
func recordsFor(name string, s *config.Stream, k config.DKIM) (records []dkim.Record, unknown []Finding) {
	signer, err := dkim.NewSigner([]config.DKIM{k})
	if err != nil {
		return nil, nil // keys has told
	}
	for _, domain := range s.Domains {
		parent, isWild := strings.CutPrefix(domain, "*.")
		if isWild && k.Domain == "" {
			unknown = append(unknown, Finding{Level: Warn, Check: "dkim record", Subject: k.Selector + "._domainkey." + domain,
				Text: "stream " + name + ": every subdomain that sends needs a record of its own; none was looked up",
				Hint: fmt.Sprintf("domain = %q inside dkim = { … } signs for all of them with one record", parent)})
			continue
		}
		rs, err := signer.Records(parent)
		if err != nil {
			unknown = append(unknown, Finding{Level: Fail, Check: "dkim record", Subject: k.Selector + "._domainkey." + domain,
				Text: err.Error(), Hint: "correct domain inside dkim = { … }"})
		}
		records = append(records, rs...)
	}
	return records, unknown
}

func lookUp(ctx context.Context, resolver Resolver, r dkim.Record) Finding {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	f := Finding{Level: OK, Check: "dkim record", Subject: r.Name, Text: "it is published and matches the key"}
	values, err := resolver.LookupTXT(ctx, r.Name+".")
	missing, ok := errors.AsType[*net.DNSError](err)
	switch {
	case ok && missing.IsNotFound:
		f.Level, f.Text, f.Hint = Fail, "it is not published", "publish "+r.Zone()
	case err != nil:
		f.Level, f.Text, f.Hint = Warn, "it could not be looked up: "+err.Error(), "look again, or ask your DNS for it: dig TXT "+r.Name
	case !slices.ContainsFunc(values, func(v string) bool { return sameKey(v, r.Value) }):
		f.Level, f.Text, f.Hint = Fail, "what is published is not this key", "replace it by "+r.Zone()+", or use another selector"
	}
	return f
}

// sameKey reports whether two key records publish the same key (RFC 6376 §3.6.1).
func sameKey(a, b string) bool {
	ta, tb := tags(a), tags(b)
	return ta["p"] != "" && ta["p"] == tb["p"] && ta["k"] == tb["k"]
}

func tags(record string) map[string]string {
	t := map[string]string{"k": "rsa"}
	for part := range strings.SplitSeq(record, ";") {
		name, value, _ := strings.Cut(part, "=")
		t[strings.TrimSpace(name)] = strings.Join(strings.Fields(value), "")
	}
	return t
}
