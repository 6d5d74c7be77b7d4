package compose

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/language"

	"gatepost/config"
)

// Bounds of a directory of templates.
const (
	maxFile  = 256 << 10 // octets of one file
	clipped  = 100 << 10 // octets from which Gmail shows only the beginning
	maxFiles = 10000
)

// Load makes the built-in templates for the brand in s, and reads those of its directory over them. upstreams are those
// that templates may name; nil allows any name. Its error joins *config.Problem, all there are.
func Load(s config.Templates, upstreams map[string]*config.Upstream) (*Templates, error) {
	l := &loader{settings: s, upstreams: upstreams, builtIns: newBuiltIns(s), sources: map[string]map[language.Tag]*source{}, sums: Sums{}}
	if s.Dir != "" {
		l.directory()
	}
	t := &Templates{types: map[string]*family{}, settings: s, brand: brandOf(s), sums: l.sums}
	for _, kind := range types {
		t.types[kind.Name] = l.family(kind)
	}
	for _, name := range slices.Sorted(maps.Keys(l.sources)) {
		if t.types[name] == nil {
			t.types[name] = l.family(notice(name))
		}
	}
	l.checkDefault(t)
	l.try(t)
	t.Warnings = ordered(l.warnings)
	if len(l.problems) == 0 {
		return t, nil
	}
	var errs []error
	for _, p := range ordered(l.problems) {
		errs = append(errs, p)
	}
	return nil, errors.Join(errs...)
}

// brandOf returns what the names of the brand stand for. They are Logto's.
func brandOf(s config.Templates) map[string]string {
	return map[string]string{"senderName": s.SenderName, "companyInformation": s.CompanyInformation, "appLogo": s.AppLogo, "brandColor": s.Color}
}

func ordered(ps []*config.Problem) []*config.Problem {
	slices.SortStableFunc(ps, func(a, b *config.Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return ps
}

// loader gathers templates and all that is wrong with them.
type loader struct {
	settings  config.Templates
	upstreams map[string]*config.Upstream
	builtIns  *builtIns
	sources   map[string]map[language.Tag]*source // of the directory, over the built-in ones
	sums      Sums
	problems  []*config.Problem
	warnings  []*config.Problem
}

// source is a template before it is cut up.
type source struct {
	html, text document
	about      settings
	files      []string // of the directory
	linked     *source  // of a built-in code: the same with a link beside it
}

// document is the text of one file.
type document struct{ file, content string }

// lineOf returns the line, from 1, of what stands at offset.
func (d document) lineOf(offset int) int { return 1 + strings.Count(d.content[:offset], "\n") }

func (l *loader) bad(file string, line int, key, hint, format string, a ...any) {
	l.problems = append(l.problems, &config.Problem{File: file, Line: line, Key: key, Text: fmt.Sprintf(format, a...), Hint: hint})
}

func (l *loader) warn(file string, line int, hint, format string, a ...any) {
	l.warnings = append(l.warnings, &config.Problem{File: file, Line: line, Text: fmt.Sprintf(format, a...), Hint: hint})
}

// directory reads the templates in settings.Dir. Nothing outside of it is opened, whatever links say.
func (l *loader) directory() {
	root, err := os.OpenRoot(l.settings.Dir)
	if err != nil {
		l.bad(l.settings.Dir, 0, "", "gatepost template export DIR writes the built-in templates", "cannot be opened: %v", err)
		return
	}
	defer root.Close()
	all := root.FS()
	entries, err := fs.ReadDir(all, ".")
	if err != nil {
		l.bad(l.settings.Dir, 0, "", "", "cannot be read: %v", err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case isPrivate(name):
		case !e.IsDir():
			l.warn(l.at(name), 0, "", "is not used: templates are TYPE/LOCALE.html, .txt and .toml")
		case l.checkType(name):
			l.typeDirectory(all, name)
		}
	}
}

// isPrivate tells of files that editors and version control leave behind.
func isPrivate(name string) bool { return strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") }

// at returns where a file of the directory is for the one who reads of it.
func (l *loader) at(name string) string {
	return filepath.Join(l.settings.Dir, filepath.FromSlash(name))
}

// checkType reports whether name may be a type: one of the built-in, or one that only this directory has.
func (l *loader) checkType(name string) bool {
	if _, known := builtInType(name); known {
		return true
	}
	var names []string
	for _, t := range types {
		names = append(names, t.Name)
		if strings.EqualFold(t.Name, name) {
			l.bad(l.at(name), 0, "", fmt.Sprintf("rename it to %s", t.Name), "is the type %s but for its case, so it would never be used", t.Name)
			return false
		}
	}
	if strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || len(name) > 64 {
		l.bad(l.at(name), 0, "", "use up to 64 letters, digits, -, _ and .", "cannot be a type")
		return false
	}
	l.warn(l.at(name), 0, "the types of Logto are "+strings.Join(names, ", "), "is a type of your own: only mail of exactly this type uses it")
	return true
}

// typeDirectory reads the templates of one type.
func (l *loader) typeDirectory(all fs.FS, name string) {
	entries, err := fs.ReadDir(all, name)
	if err != nil {
		l.bad(l.at(name), 0, "", "", "cannot be read: %v", err)
	}
	if len(entries) > maxFiles {
		l.bad(l.at(name), 0, "", "", "has more than %d files", maxFiles)
		return
	}
	isSettings := func(e fs.DirEntry) int { return strings.Count(path.Ext(e.Name()), ".toml") }
	slices.SortStableFunc(entries, func(a, b fs.DirEntry) int { return isSettings(a) - isSettings(b) }) // they win over what bodies bring
	spelt := map[language.Tag]string{}
	for _, e := range entries {
		file := path.Join(name, e.Name())
		ext := path.Ext(file)
		locale := strings.TrimSuffix(e.Name(), ext)
		if isPrivate(e.Name()) {
			continue
		}
		if ext != ".html" && ext != ".txt" && ext != ".toml" || e.IsDir() {
			l.warn(l.at(file), 0, "", "is not used: templates are TYPE/LOCALE.html, .txt and .toml")
			continue
		}
		tag, err := language.Parse(locale)
		if err != nil || tag == language.Und {
			l.bad(l.at(file), 0, "", "name it after a BCP 47 tag, as in en.html or pt-BR.html", "%q is not a language", locale)
			continue
		}
		if before := spelt[tag]; before != "" && before != locale {
			l.bad(l.at(file), 0, "", "keep one spelling", "%q is the same language as %q", locale, before)
			continue
		}
		spelt[tag] = locale
		l.file(all, name, tag, file)
	}
}

// file reads one file over what is there for its type and language.
func (l *loader) file(all fs.FS, name string, tag language.Tag, file string) {
	content, ok := l.read(all, file)
	if !ok {
		return
	}
	if l.sources[name] == nil {
		l.sources[name] = map[language.Tag]*source{}
	}
	s := l.sources[name][tag]
	if s == nil {
		if s = l.builtIns.source(name, tag); s == nil {
			s = &source{}
		}
		l.sources[name][tag] = s
	}
	if ext := path.Ext(file); ext == ".toml" {
		d := document{l.at(file), content}
		s.about.override(l.parseSettings(d))
		l.checkPlaceholders(d)
	} else {
		if s.html.file == "" && s.text.file == "" { // what is built in goes as a whole: its parts say the same
			s.html, s.text, s.about.preheader, s.linked = document{}, document{}, entry{}, nil
		}
		if ext == ".html" {
			s.html = document{l.at(file), content}
		} else {
			s.text = document{l.at(file), content}
		}
	}
	s.files = append(s.files, l.at(file))
}

// read returns the text of one file with LF line ends; false where it is none.
func (l *loader) read(all fs.FS, file string) (string, bool) {
	info, err := fs.Stat(all, file)
	if err == nil && !info.Mode().IsRegular() { // opening a pipe could wait forever
		l.bad(l.at(file), 0, "", "", "is not a regular file")
		return "", false
	}
	f, err := all.Open(file)
	if err != nil {
		l.bad(l.at(file), 0, "", "", "cannot be opened: %v", err)
		return "", false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	l.sums[file] = new(sha256.Sum256(data))
	content := strings.ReplaceAll(strings.TrimPrefix(string(data), "\ufeff"), "\r\n", "\n")
	at := strings.IndexByte(content, 0)
	switch {
	case err != nil:
		l.bad(l.at(file), 0, "", "", "cannot be read: %v", err)
	case len(data) > maxFile:
		l.bad(l.at(file), 0, "", "", "is larger than %d KB", maxFile>>10)
	case !utf8.ValidString(content):
		l.bad(l.at(file), 0, "", "save it as UTF-8", "is not valid UTF-8")
	case at >= 0:
		l.bad(l.at(file), document{content: content}.lineOf(at), "", "", "has a NUL character")
	default:
		return content, true
	}
	return "", false
}

// family cuts up the templates of one type.
func (l *loader) family(kind Type) *family {
	f := &family{Type: kind, byLocale: map[language.Tag]func() *template{}}
	if _, known := builtInType(kind.Name); known {
		for tag := range l.builtIns.names {
			f.byLocale[tag] = l.builtIns.template(kind, tag)
		}
	}
	for tag, s := range l.sources[kind.Name] {
		t := l.template(kind, tag, s)
		f.byLocale[tag] = func() *template { return t }
	}
	f.arrange()
	return f
}

// checkDefault refuses a default language that no mail could be written in.
func (l *loader) checkDefault(t *Templates) {
	tag := language.Make(l.settings.DefaultLocale)
	if t.types[Generic].match([]language.Tag{tag}, false, l.settings.ChineseFallback) == nil {
		l.bad("[templates]", 0, "default_locale", "add Generic/"+tag.String()+".html to the directory of templates", "there is no Generic template in %q", tag)
	}
}

// try renders every template of the directory with sample values: whatever could go wrong later goes wrong now.
func (l *loader) try(t *Templates) {
	if len(l.problems) > 0 {
		return
	}
	for name, sources := range l.sources {
		f := t.types[name]
		for tag := range sources {
			in := f.byLocale[tag]()
			r := Sample(name, tag)
			if _, err := t.render(f, in, &r); err != nil {
				l.bad(in.files[0], 1, "", "", "cannot be filled in with sample values: %v", err)
			}
		}
	}
}

// Sample returns a request with values for everything that auth servers send, to look at templates with.
func Sample(kind string, locale language.Tag) Request {
	person := func(name, address string) map[string]any {
		return map[string]any{"id": "u1", "name": name, "username": strings.ToLower(strings.Fields(name)[0]), "primaryEmail": address}
	}
	r := Request{
		Type: kind, Locales: []language.Tag{locale}, From: "no-reply@example.com", To: "ann@example.org",
		MessageID: "sample@example.com", Date: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Variables: map[string]any{
			"code": "607596", "link": "https://app.example.com/invitation?token=4n1hp6", "locale": locale.String(), "uiLocales": locale.String(),
			"user": person("Ann Example", "ann@example.org"), "inviter": person("Ben Example", "ben@example.org"),
			"organization": map[string]any{"id": "o1", "name": "Example Club"},
			"application":  map[string]any{"id": "a1", "name": "Example App", "displayName": "Example App"},
		},
	}
	if t, known := builtInType(kind); known && t.Needs == "code" { // few send one beside it
		delete(r.Variables, "link")
	}
	return r
}
