package cli

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"gatepost/dkim"
	"gatepost/message"
)

//go:embed starter.toml
var starterText string

var starterTemplate = template.Must(template.New("starter").Parse(starterText))

// What config init writes, beside the config itself.
const (
	starterSelector = "gp1"
	starterKey      = "auth.gp1.pem"
	starterPassword = "esp.password"
	noPasswordYet   = "put the password of the upstream here\n"
)

func (a *app) configInitCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "init DOMAIN",
		Short: "Write a starter config and a key, print DNS records",
		Long: `Write a commented config for sign-in mail from addresses @DOMAIN, a DKIM key
and a file for the upstream's password, and print the DNS records to publish.
Nothing is overwritten: a file that is there already stops it.`,
		Example: "  gatepost config init auth.example.com --dir /etc/gatepost",
		Args:    takes("domain"),
	}
	cmd.Flags().StringVar(&dir, "dir", ".", "`directory` to write into")
	cmd.RunE = run(func(_ context.Context, args []string) error {
		domain, err := message.ParseDomain(args[0])
		if err != nil {
			return usage("%q is not a domain: %w", args[0], err)
		}
		if !strings.Contains(domain, ".") {
			return usage("%q is not a domain that mail can come from: it has no dot", args[0])
		}
		s := &starter{dir: dir, Domain: domain, Key: starterKey, Password: starterPassword}
		records, err := s.write()
		if err != nil {
			return err
		}
		if !a.json {
			fmt.Fprintf(a.out, "Wrote %s. Edit what it marks with ->, then run\n  gatepost check -c %[1]s\n\n%s\n",
				filepath.Join(dir, localConfig), recordsAdvice)
		}
		return a.printRecords(records)
	})
	return cmd
}

const recordsAdvice = `Publish these records. In the one for SPF, put what your service tells you
to include. Once reports show that all your mail passes, make DMARC's p=none
into p=quarantine or p=reject.
`

// starter is a config that is about to be written. Its exported fields are what the template names.
type starter struct {
	dir                   string
	Domain, Key, Password string
}

// write makes all files, or none where one of them is there already, and returns the DNS records that go with them.
func (s *starter) write() ([]dkim.Record, error) {
	key, err := dkim.GenerateKey("rsa", 0)
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if err := starterTemplate.Execute(&text, s); err != nil {
		return nil, fmt.Errorf("fill in the config: %w", err)
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory: %w", err)
	}
	files := []newFile{{s.Key, key, 0o600}, {s.Password, []byte(noPasswordYet), 0o600}, {localConfig, []byte(text.String()), 0o644}}
	for i, f := range files {
		if err := f.write(s.dir); err != nil {
			for _, made := range files[:i] {
				err = errors.Join(err, os.Remove(filepath.Join(s.dir, made.name)))
			}
			return nil, err
		}
	}
	return s.records()
}

// newFile is a file that must not be there yet.
type newFile struct {
	name    string
	content []byte
	mode    fs.FileMode
}

func (f newFile) write(dir string) error {
	path := filepath.Join(dir, f.name)
	w, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
	if errors.Is(err, fs.ErrExist) {
		return &failure{exitFailed, fmt.Errorf("%s is there already, so nothing was written", path), "name another directory with --dir, or move the file away"}
	}
	if err != nil {
		return fmt.Errorf("write the starter config: %w", err)
	}
	_, err = w.Write(f.content)
	if err := errors.Join(err, w.Sync(), w.Close()); err != nil {
		return fmt.Errorf("write the starter config: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// records returns what DNS must say of the domain: the key, who may send for it (SPF, RFC 7208), and what receivers do
// with mail that fails (DMARC, RFC 7489).
func (s *starter) records() ([]dkim.Record, error) {
	signer, err := dkim.ReadKey(filepath.Join(s.dir, s.Key))
	if err != nil {
		return nil, err
	}
	key, err := dkim.NewRecord(starterSelector, s.Domain, signer.Public())
	if err != nil {
		return nil, err
	}
	return []dkim.Record{
		key,
		{Name: s.Domain, Value: "v=spf1 include:esp.example -all"},
		{Name: "_dmarc." + s.Domain, Value: "v=DMARC1; p=none; rua=mailto:postmaster@" + s.Domain},
	}, nil
}
