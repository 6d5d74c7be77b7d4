package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/text/language"

	"gatepost/compose"
	"gatepost/config"
	"gatepost/message"
)

func (a *app) templateCmd() *cobra.Command {
	return group("template", "Templates of sign-in mail: look, check, export, import",
		a.templateListCmd(), a.templatePreviewCmd(), a.templateLintCmd(), a.templateExportCmd(), a.templateImportCmd())
}

// templateSettings returns [templates] of the config and its upstreams, nil without a config: templates can
// be looked at before there is one.
func (a *app) templateSettings() (config.Templates, map[string]*config.Upstream, error) {
	if _, err := os.Stat(a.file()); errors.Is(err, fs.ErrNotExist) && a.configFile == "" {
		return config.DefaultTemplates(), nil, nil
	}
	cfg, err := a.load()
	if err != nil {
		return config.Templates{}, nil, err
	}
	return cfg.Templates, cfg.Upstream, nil
}

// templates loads the templates that the config names.
func (a *app) templates() (*compose.Templates, error) {
	s, upstreams, err := a.templateSettings()
	if err != nil {
		return nil, err
	}
	t, err := compose.Load(s, upstreams)
	if err != nil {
		return nil, err
	}
	a.printProblems(t.Warnings)
	return t, nil
}

// loadConfig reads a config with all that it names: a daemon runs with templates that can all be filled in, or not at all.
func loadConfig(file string) (*config.Config, error) {
	cfg, err := config.Load(file)
	if err != nil || cfg.Templates.Dir == "" {
		return cfg, err
	}
	t, err := compose.Load(cfg.Templates, cfg.Upstream)
	if err != nil {
		return nil, err
	}
	cfg.Warnings = append(cfg.Warnings, t.Warnings...)
	return cfg, nil
}

func (a *app) templateListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the templates by type and language, and where each is from",
		Args:  takesNothing,
		RunE: run(func(context.Context, []string) error {
			t, err := a.templates()
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(t.List())
			}
			w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TYPE\tLANGUAGE\tFROM\tSUBJECT") // which comes last since its letters may be twice as wide
			for _, l := range t.List() {
				from := "built in"
				if len(l.Files) > 0 {
					from = strings.Join(l.Files, " ")
				}
				for _, upstream := range slices.Sorted(maps.Keys(l.Kept)) {
					from += fmt.Sprintf(", %s: %s", upstream, l.Kept[upstream])
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Type, l.Locale, from, l.Subject)
			}
			return w.Flush()
		}),
	}
}

// preview is how a template is to be shown.
type preview struct {
	locale, variables string
	html, text, raw   bool
}

func (a *app) templatePreviewCmd() *cobra.Command {
	var p preview
	cmd := &cobra.Command{
		Use:   "preview TYPE",
		Short: "Print a mail of a type as it would be sent, with sample values",
		Long: `Print a mail of a type as it would be sent: subject, sender and the part in
plain text, or one of the flags below. Its values are samples, or those of a
file that has what an auth server would send (Logto's payload); so is a sender
that no template names.`,
		Example: "  gatepost template preview SignIn --locale ja --html >sign-in.html",
		Args:    takes("type"),
	}
	cmd.Flags().StringVar(&p.locale, "locale", "", "the reader's `languages`, best first")
	cmd.Flags().StringVar(&p.variables, "variables", "", "JSON `file` with the values to fill in")
	cmd.Flags().BoolVar(&p.html, "html", false, "the part in HTML")
	cmd.Flags().BoolVar(&p.text, "text", false, "the part in plain text")
	cmd.Flags().BoolVar(&p.raw, "raw", false, "the whole message, unsigned")
	cmd.MarkFlagsMutuallyExclusive("html", "text", "raw")
	cmd.RunE = run(func(_ context.Context, args []string) error {
		t, err := a.templates()
		if err != nil {
			return err
		}
		m, err := p.render(t, args[0])
		if err != nil {
			return err
		}
		if m.Unknown {
			fmt.Fprintf(a.err, "gatepost: there is no type %q: mail of it is sent as %s\n", args[0], m.Template)
		}
		return a.printMail(m, p)
	})
	return cmd
}

// render composes the mail of a type with sample values, or those of the file.
func (p *preview) render(t *compose.Templates, kind string) (*compose.Mail, error) {
	tags := compose.Locales(p.locale)
	if len(tags) == 0 && p.locale != "" {
		return nil, usage("--locale: %q is not a language: write ja, pt-BR or \"ja en\"", p.locale)
	}
	r := compose.Sample(kind, language.English)
	if r.Locales = tags; len(tags) > 0 {
		r.Variables["locale"], r.Variables["uiLocales"] = tags[0].String(), p.locale
	}
	if p.variables != "" {
		data, err := readFile(p.variables)
		if err != nil {
			return nil, err
		}
		r.Variables = nil
		if err := json.Unmarshal(data, &r.Variables); err != nil {
			return nil, fmt.Errorf("read the variables in %s: %w", p.variables, err)
		}
	}
	m, err := t.Render(r)
	if err != nil {
		return nil, &failure{exitFailed, fmt.Errorf("compose the mail: %w", err), "name a file with all values with --variables"}
	}
	return m, nil
}

// previewed is a mail for programs.
type previewed struct {
	Type     string                      `json:"type"`
	Template string                      `json:"template"`
	Locale   string                      `json:"locale"`
	From     string                      `json:"from"`
	Subject  string                      `json:"subject"`
	Text     string                      `json:"text"`
	HTML     string                      `json:"html,omitempty"`
	Upstream map[string]message.Provided `json:"upstream,omitempty"`
}

func (a *app) printMail(m *compose.Mail, p preview) error {
	text := ""
	switch {
	case a.json:
		return a.printJSON(previewed{m.Type.Name, m.Template, m.Locale.String(), m.From.String(), m.Subject, m.Text, m.HTML, m.Provided})
	case p.html && m.HTML == "":
		return &failure{exitFailed, fmt.Errorf("the template %s in %s has no HTML", m.Template, m.Locale), "see its text with --text"}
	case p.html:
		text = m.HTML
	case p.text:
		text = m.Text
	case p.raw:
		text = string(m.Raw)
	default:
		text = fmt.Sprintf("Template: %s in %s\n", m.Template, m.Locale)
		for _, upstream := range slices.Sorted(maps.Keys(m.Provided)) {
			text += fmt.Sprintf("Through %s: its template %s, in place of what follows\n", upstream, m.Provided[upstream].Template)
		}
		text += fmt.Sprintf("From: %s\nSubject: %s\n\n%s", m.From, m.Subject, m.Text)
	}
	_, err := fmt.Fprint(a.out, text)
	return err
}

func (a *app) templateLintCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "lint [DIR]",
		Short: "Check the templates of the config, or those in a directory",
		Long: `Check the templates of the config, or those in a directory, and print all
that is wrong as file:line: what. gatepost does not start with what this
refuses.`,
		Args: cobra.MaximumNArgs(1),
		RunE: run(func(_ context.Context, args []string) error {
			s, upstreams, err := a.templateSettings()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				s.Dir = args[0]
			}
			return a.lint(s, upstreams)
		}),
	}
}

// linted is what lint found, for programs.
type linted struct {
	Problems []*config.Problem `json:"problems"`
	Warnings []*config.Problem `json:"warnings"`
}

// lint tells of all that is wrong with the templates that s names.
func (a *app) lint(s config.Templates, upstreams map[string]*config.Upstream) error {
	t, err := compose.Load(s, upstreams)
	if err != nil {
		if problems := config.Problems(err); a.json && len(problems) > 0 {
			if err := a.printJSON(linted{problems, []*config.Problem{}}); err != nil {
				return err
			}
		}
		return err
	}
	if a.json {
		return a.printJSON(linted{[]*config.Problem{}, append([]*config.Problem{}, t.Warnings...)})
	}
	a.printProblems(t.Warnings)
	own := 0
	for _, l := range t.List() {
		if len(l.Files) > 0 {
			own++
		}
	}
	from := "all built in"
	if s.Dir != "" {
		from = fmt.Sprintf("%d of them from %s", own, s.Dir)
	}
	fmt.Fprintf(a.out, "%d templates, %s: no problems\n", len(t.List()), from)
	return nil
}

func (a *app) templateExportCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "export DIR",
		Short: "Write the built-in templates into a directory, to edit them",
		Long: `Write the built-in templates into a directory, to edit them there. Keep only
those that you change: what the directory does not have stays built in.
A file that is there already is never overwritten.`,
		Args: takes("directory"),
		RunE: run(func(_ context.Context, args []string) error {
			s, _, err := a.templateSettings()
			if err != nil {
				return err
			}
			return a.writeTemplates(args[0], compose.Export(s))
		}),
	}
}

func (a *app) templateImportCmd() *cobra.Command {
	var dir, locale, upstream string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Take over the templates of a Logto connector",
		Long: `Take over the templates of a Logto email connector from the JSON of its
config, or of the Management API (connectors, email-templates); - for
standard input. They are written as they are and then checked. A file that
is there already is never overwritten. What else the JSON holds, such as a
password, is not read.`,
		Args: takes("file, - for standard input"),
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to write into (default the config's)")
	cmd.Flags().StringVar(&locale, "locale", "", "their `language` where they say none")
	cmd.Flags().StringVar(&upstream, "upstream", "", "`name` of the upstream that keeps some of them")
	cmd.RunE = run(func(_ context.Context, args []string) error {
		s, upstreams, err := a.templateSettings()
		if err != nil {
			return err
		}
		if locale == "" {
			locale = s.DefaultLocale
		}
		switch {
		case dir != "":
			s.Dir = dir
		case s.Dir == "":
			s.Dir = "templates"
		}
		return a.importTemplates(args[0], locale, upstream, s, upstreams)
	})
	return cmd
}

func (a *app) importTemplates(file, locale, upstream string, s config.Templates, upstreams map[string]*config.Upstream) error {
	data, err := readFile(file)
	if err != nil {
		return err
	}
	files, notes, err := compose.Import(data, locale, upstream)
	for _, note := range notes {
		fmt.Fprintf(a.err, "gatepost: %s\n", note)
	}
	if err != nil {
		return &failure{exitFailed, fmt.Errorf("import %s: %w", file, err), "name the JSON of an email connector's config"}
	}
	if err := a.writeTemplates(s.Dir, files); err != nil {
		return err
	}
	return a.lint(s, upstreams)
}

// writeTemplates writes all files into dir, or none where one of them is there already.
func (a *app) writeTemplates(dir string, files []compose.File) error {
	for _, f := range files {
		name := filepath.Join(dir, filepath.FromSlash(f.Name))
		if _, err := os.Lstat(name); err == nil {
			return &failure{exitFailed, fmt.Errorf("%s is there already, so nothing was written", name), "name another directory, or move the file away"}
		}
	}
	for _, f := range files {
		name := filepath.FromSlash(f.Name)
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			return fmt.Errorf("make the directory: %w", err)
		}
		if err := (newFile{name, []byte(f.Content), 0o644}).write(dir); err != nil {
			return err
		}
	}
	if !a.json {
		fmt.Fprintf(a.out, "Wrote %d files into %s. To use them, set dir under [templates].\n", len(files), dir)
	}
	return nil
}
