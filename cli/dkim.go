package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"gatepost/config"
	"gatepost/dkim"
	"gatepost/message"
)

func (a *app) dkimCmd() *cobra.Command {
	return group("dkim", "Make DKIM keys, show their DNS records, verify signatures", a.dkimGenerateCmd(), a.dkimShowCmd(), a.dkimVerifyCmd())
}

// keyName is what a key is published under.
type keyName struct{ selector, domain string }

func (k *keyName) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.selector, "selector", "gp1", "`name` of the key below the domain")
	cmd.Flags().StringVar(&k.domain, "domain", "", "`domain` that the key signs for (d=)")
}

func (k *keyName) check() error {
	if k.domain == "" {
		return usage("--domain is missing: the domain that the key signs for")
	}
	if _, err := message.ParseDomain(k.selector + "._domainkey." + k.domain); err != nil {
		return usage("--selector and --domain make no DNS name: %w", err)
	}
	return nil
}

func (a *app) dkimGenerateCmd() *cobra.Command {
	var name keyName
	var algorithm string
	var bits int
	cmd := &cobra.Command{
		Use:   "generate FILE --domain DOMAIN",
		Short: "Make a private key (mode 0600) and print the DNS record to publish",
		Long: `Make a private key in a new file (mode 0600) and print the DNS record to
publish. An existing file is never overwritten. Not every receiver knows
ed25519: use such a key beside an RSA one, not instead.`,
		Args: takes("file"),
	}
	name.flags(cmd)
	cmd.Flags().StringVar(&algorithm, "type", "rsa", "`kind` of key: rsa or ed25519")
	cmd.Flags().IntVar(&bits, "bits", 0, "size of an RSA key, 2048 to 4096 `bits` (default 2048)")
	cmd.RunE = run(func(_ context.Context, args []string) error {
		if err := name.check(); err != nil {
			return err
		}
		key, err := dkim.GenerateKey(algorithm, bits)
		if err != nil {
			return usage("%w", err)
		}
		if err := dkim.WriteKey(args[0], key); err != nil {
			return aboutKey(err)
		}
		if !a.json {
			fmt.Fprintf(a.out, "Wrote %s. Publish this record, then add\n  dkim = { selector = %q, key_file = %q }\nto the stream of %s.\n\n",
				args[0], name.selector, args[0], name.domain)
		}
		return a.showKey(args[0], name)
	})
	return cmd
}

func (a *app) dkimShowCmd() *cobra.Command {
	var name keyName
	cmd := &cobra.Command{
		Use:   "show [FILE --domain DOMAIN]",
		Short: "Print the DNS records of the config's keys, or of one key file",
		Args:  cobra.MaximumNArgs(1),
	}
	name.flags(cmd)
	cmd.RunE = run(func(_ context.Context, args []string) error {
		if len(args) == 1 {
			if err := name.check(); err != nil {
				return err
			}
			return a.showKey(args[0], name)
		}
		cfg, err := a.load()
		if err != nil {
			return err
		}
		records, err := recordsOf(cfg)
		if err != nil {
			return err
		}
		return a.printRecords(records)
	})
	return cmd
}

func (a *app) showKey(file string, name keyName) error {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return notFound(fmt.Sprintf("make a key with: gatepost dkim generate %s --domain %s", file, name.domain), "there is no key file %s", file)
	}
	key, err := dkim.ReadKey(file)
	if err != nil {
		return aboutKey(err)
	}
	r, err := dkim.NewRecord(name.selector, name.domain, key.Public())
	if err != nil {
		return err
	}
	return a.printRecords([]dkim.Record{r})
}

// aboutKey tells of a key file that was named on the command line: its problems are not the config's.
func aboutKey(err error) error {
	if p, ok := errors.AsType[*config.Problem](err); ok {
		return &failure{exitFailed, errors.New(p.Error()), p.Hint}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &failure{exitFailed, err, "make the directory first: gatepost makes the file only"}
	}
	return err
}

// recordsOf returns the DNS records of every key in the config. A wildcard domain stands for itself without the star.
func recordsOf(cfg *config.Config) ([]dkim.Record, error) {
	var records []dkim.Record
	for _, name := range slices.Sorted(maps.Keys(cfg.Stream)) {
		s := cfg.Stream[name]
		signer, err := dkim.NewSigner(s.DKIM)
		if err != nil {
			return nil, err
		}
		for _, domain := range s.Domains {
			rs, err := signer.Records(strings.TrimPrefix(domain, "*."))
			if err != nil {
				return nil, err
			}
			records = append(records, rs...)
		}
	}
	slices.SortFunc(records, func(a, b dkim.Record) int { return strings.Compare(a.Name, b.Name) })
	return slices.Compact(records), nil
}

func (a *app) printRecords(records []dkim.Record) error {
	if a.json {
		return a.printJSON(records)
	}
	for _, r := range records {
		if _, err := fmt.Fprintln(a.out, r.Zone()); err != nil {
			return err
		}
	}
	return nil
}

// signature is a result of verification as it is printed.
type signature struct {
	Domain    string `json:"domain"`
	Selector  string `json:"selector"`
	Algorithm string `json:"algorithm"`
	Valid     bool   `json:"valid"`
	Aligned   bool   `json:"aligned"`
	Problem   string `json:"problem,omitempty"`
}

func (s signature) String() string {
	text := fmt.Sprintf("d=%s s=%s %s: ", s.Domain, s.Selector, s.Algorithm)
	switch {
	case !s.Valid:
		return text + "INVALID: " + s.Problem
	case !s.Aligned:
		return text + "valid, but not aligned with the header From"
	}
	return text + "valid, aligned with the header From"
}

func (a *app) dkimVerifyCmd() *cobra.Command {
	var local bool
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Verify the signatures of a message (- for standard input)",
		Args:  takes("file, - for standard input"),
	}
	cmd.Flags().BoolVar(&local, "local", false, "take public keys from the config's key files, not from DNS")
	cmd.RunE = run(func(_ context.Context, args []string) error {
		lookup := net.LookupTXT
		if local {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			records, err := recordsOf(cfg)
			if err != nil {
				return err
			}
			lookup = dkim.Published(records...)
		}
		raw, err := readFile(args[0])
		if err != nil {
			return err
		}
		found, err := verify(raw, lookup)
		if err != nil {
			return err
		}
		return a.printSignatures(found)
	})
	return cmd
}

func readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(os.Stdin)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, notFound("name a file that is there, or - for standard input", "read the file: %w", err)
	}
	return raw, nil
}

func verify(raw []byte, lookup func(string) ([]string, error)) ([]signature, error) {
	results, err := dkim.Verify(bytes.NewReader(raw), lookup)
	if err != nil {
		return nil, err
	}
	found := make([]signature, 0, len(results))
	for _, r := range results {
		s := signature{Domain: r.Domain, Selector: r.Selector, Algorithm: r.Algorithm, Valid: r.Err == nil, Aligned: r.Aligned}
		if r.Err != nil {
			s.Problem = r.Err.Error()
		}
		found = append(found, s)
	}
	return found, nil
}

// printSignatures fails unless one of found would make DMARC pass.
func (a *app) printSignatures(found []signature) error {
	if a.json {
		if err := a.printJSON(found); err != nil {
			return err
		}
	} else {
		for _, s := range found {
			fmt.Fprintln(a.out, s)
		}
	}
	if slices.ContainsFunc(found, func(s signature) bool { return s.Valid && s.Aligned }) {
		return nil
	}
	if len(found) == 0 {
		return &failure{exitFailed, errors.New("the message is not signed"), "look at the mail as it arrived: gatepost signs on the way out"}
	}
	return &failure{exitFailed, errors.New("no signature is valid and aligned with the header From"),
		"compare the published record with `gatepost dkim show`, or verify with --local if it is not published yet"}
}
