package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"gatepost/config"
	"gatepost/dkim"
)

func TestTheReadmesConfigLoads(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(readme), "```toml\n")
	text, _, found := strings.Cut(rest, "```")
	if !found {
		t.Fatal("the README shows no config")
	}
	dir := t.TempDir()
	key, err := dkim.GenerateKey("ed25519", 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"gatepost.toml": []byte(text), "auth.pem": key, "esp.password": []byte("secret\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "gatepost.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Warnings) > 0 {
		t.Errorf("the README's config has warnings: %v", cfg.Warnings)
	}
}

// ofAllClients is what the pages about clients leave out.
const ofAllClients = `
[stream.auth]
kind    = "auth"
domains = ["auth.example.com"]
route   = ["esp"]
egress  = "any"
dkim    = { selector = "gp1", key_file = "auth.pem" }
[upstream.esp]
type = "capture"
`

func TestTheConfigsOfTheClientPagesLoadWithoutWarnings(t *testing.T) {
	pages, err := filepath.Glob("../docs/clients/*.md")
	if err != nil || len(pages) != 11 {
		t.Fatalf("pages about clients: %q, %v", pages, err)
	}
	dir := t.TempDir()
	key, err := dkim.GenerateKey("ed25519", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := dkim.WriteKey(filepath.Join(dir, "auth.pem"), key); err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, dir, "gw.example.com")
	secret := regexp.MustCompile(`(?:password_file|token_files|signing_secret_files) *= \[?"([^"]*)"`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		blocks := strings.Split(string(text), "```toml\n")[1:]
		if len(blocks) == 0 && filepath.Base(page) != "README.md" {
			t.Errorf("%s shows no config", page)
		}
		for n, block := range blocks {
			block, _, _ = strings.Cut(block, "```")
			for _, m := range secret.FindAllStringSubmatch(block, -1) {
				if err := os.WriteFile(filepath.Join(dir, m[1]), []byte("v1,whsec_YSBsb25nIGVub3VnaCBwYXNzd29yZA==\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(dir, "gatepost.toml")
			head := "hostname = \"gw.example.com\"\nstate_dir = \"state\"\n"
			if err := os.WriteFile(file, []byte(head+block+ofAllClients), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := config.Load(file)
			if err != nil {
				t.Errorf("%s, block %d: %v", page, n+1, err)
			} else if len(cfg.Warnings) > 0 {
				t.Errorf("%s, block %d has warnings: %v", page, n+1, cfg.Warnings)
			}
		}
	}
}

func TestEveryFileThatTheDocsLinkToIsThere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)\)`)
	pages, err := filepath.Glob("../docs/clients/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range append(pages, "../README.md", "../CONTRIBUTING.md", "../docs/cli.md", "../docs/config.md", "../docs/operating.md", "../docs/architecture.md", "../docs/logto.md", "../docs/templates.md", "../docs/postgres.md") {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
				t.Errorf("%s: %v", doc, err)
			}
		}
	}
}

func TestEveryCommandIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	root := (&app{}).root()
	for _, c := range root.Commands() {
		names := []string{c.Name()}
		for _, sub := range c.Commands() {
			names = append(names, c.Name()+" "+sub.Name())
		}
		if len(names) > 1 {
			names = names[1:]
		}
		for _, name := range names {
			if !strings.Contains(string(text), "`"+name) {
				t.Errorf("docs/cli.md does not tell of `%s`", name)
			}
		}
	}
}

func TestEveryHelpFitsATerminal(t *testing.T) {
	commands := []*cobra.Command{(&app{}).root()}
	for len(commands) > 0 {
		c := commands[0]
		commands = append(commands[1:], c.Commands()...)
		var help bytes.Buffer
		c.SetOut(&help)
		c.InitDefaultHelpFlag()
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(help.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
				t.Errorf("%s --help has a line of %d columns: %s", c.CommandPath(), n, line)
			}
		}
	}
}

func TestTheServicesExposureIsLow(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "security", "--offline=true", "--threshold=15", "../systemd/gatepost.service").CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security of the unit, with 1.5 allowed (apt-get install systemd): %v\n%s", err, out)
	}
}
