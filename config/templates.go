package config

import (
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/text/language"
)

// defaultColor has a contrast of more than 4.5:1 to white (WCAG 2.2 §1.4.3).
const defaultColor = "#2456d6"

var rgb = regexp.MustCompile(`^#[0-9a-fA-F]{6}$`)

// DefaultTemplates is [templates] where a config says nothing.
func DefaultTemplates() Templates { return Templates{DefaultLocale: "en", Color: defaultColor} }

// templates reads [templates]. What is in the directory is for compose.Load to look at.
func (l *loader) templates(t *table) Templates {
	p := DefaultTemplates()
	p.Dir = l.templateDir(t)
	p.ChineseFallback = t.flag("chinese_fallback")
	p.SenderName = t.text("sender_name")
	p.CompanyInformation = t.text("company_information")
	p.AppLogo = t.text("app_logo")
	if s := t.text("default_locale"); s != "" {
		tag, err := language.Parse(s)
		if err != nil || tag == language.Und {
			t.bad(t.at("default_locale"), `write a BCP 47 tag, as in "en" or "pt-BR"`, "%q is not a language", s)
		}
		p.DefaultLocale = tag.String()
	}
	if strings.ContainsAny(p.SenderName, "@＠﹫") {
		t.bad(t.at("sender_name"), "leave the address out; it is the sender's own already", "%q looks like an address, which no display name may", p.SenderName)
	}
	if u, err := url.Parse(p.AppLogo); p.AppLogo != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil) {
		t.bad(t.at("app_logo"), `mail programs load pictures from the web: app_logo = "https://example.com/logo.png"`, "%q is not an https URL", p.AppLogo)
	}
	if s := t.text("color"); s != "" {
		if !rgb.MatchString(s) {
			t.bad(t.at("color"), `write six hexadecimal digits: color = "#2456d6"`, "%q is not a colour", s)
		}
		p.Color = s
	}
	return p
}

// templateDir returns the absolute path of the directory named at dir, which must be there.
func (l *loader) templateDir(t *table) string {
	dir := t.text("dir")
	if dir == "" {
		return ""
	}
	looked := ""
	if !filepath.IsAbs(dir) {
		dir, looked = filepath.Join(l.c.Dir, dir), "relative paths start at "+l.c.Dir+"; "
	}
	dir = filepath.Clean(dir)
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.bad(t.at("dir"), looked+"gatepost template export DIR writes the built-in templates", "%s does not exist", dir)
	case err != nil:
		t.bad(t.at("dir"), "", "%s cannot be looked at: %v", dir, cause(err))
	case !info.IsDir():
		t.bad(t.at("dir"), "name the directory that holds SignIn, Register and so on", "%s is not a directory", dir)
	}
	return dir
}
