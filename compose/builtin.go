package compose

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	texttemplate "text/template"

	"github.com/BurntSushi/toml"
	"golang.org/x/text/language"

	"gatepost/config"
	"gatepost/letter"
)

// The built-in templates are made of one layout and a file of strings for each language. Layouts are Go templates in [[ ]],
// whose output has the placeholders of Logto.
//
//go:embed builtin
var builtin embed.FS

// wording is what a language says in all types, and in each.
type wording struct {
	Expires, Keep, Ignore, Button, Fallback, Or, Continue string
	Type                                                  map[string]typeWording
}

// Note says how long a code is good for and that it is nobody else's.
func (w *wording) Note() string {
	if strings.HasSuffix(w.Expires, "。") {
		return w.Expires + w.Keep
	}
	return w.Expires + " " + w.Keep
}

// typeWording is what a language says in one type; an empty Ignore takes that of all types.
type typeWording struct{ Subject, Title, Intro, Ignore string }

// page is what the layouts are filled in with.
type page struct {
	typeWording
	Lang                string
	Strings             *wording
	Invitation          bool
	Link                bool   // there is one beside the code
	Button              string // what the link's says
	Name, Logo, Company bool   // the brand has them
	Font                string
	Color, OnColor      string
	Light, Dark         scheme
}

// scheme is the colours of one mode. Text and Muted have a contrast of at least 4.5:1 to all others but Line.
type scheme struct{ Page, Card, Field, Line, Text, Muted string }

var (
	light = scheme{Page: "#f3f4f6", Card: "#ffffff", Field: "#f3f4f6", Line: "#d9dce3", Text: "#16191f", Muted: "#535a66"}
	dark  = scheme{Page: "#101216", Card: "#1b1e24", Field: "#292d35", Line: "#3c424d", Text: "#f2f4f7", Muted: "#b4bac6"}
)

// fonts are those that each system shows its own interface in; those of a language go first, since Han characters are
// written differently in each.
func fonts(locale string) string {
	const latin = "-apple-system,BlinkMacSystemFont,'Segoe UI',Roboto,'Helvetica Neue',Arial"
	own := map[string]string{
		"ja":    "'Hiragino Sans','Hiragino Kaku Gothic ProN','Noto Sans CJK JP','Noto Sans JP','Yu Gothic UI',Meiryo,",
		"ko":    "'Apple SD Gothic Neo','Noto Sans CJK KR','Noto Sans KR','Malgun Gothic',",
		"zh-CN": "'PingFang SC','Noto Sans CJK SC','Noto Sans SC','Microsoft YaHei',",
	}
	return latin + "," + own[locale] + "sans-serif"
}

// builtIns makes the built-in templates for a brand, each when it is first asked for: a gatepost that starts, or checks a
// config, uses few of them or none. That nothing is wrong with them, tests hold.
type builtIns struct {
	settings config.Templates
	layouts  func() *texttemplate.Template
	wordings map[language.Tag]func() *wording
	names    map[language.Tag]string // of the languages, as the files have them
}

func newBuiltIns(s config.Templates) *builtIns {
	b := &builtIns{settings: s, wordings: map[language.Tag]func() *wording{}, names: map[language.Tag]string{}}
	b.layouts = sync.OnceValue(func() *texttemplate.Template {
		return texttemplate.Must(texttemplate.New("").Delims("[[", "]]").ParseFS(builtin, "builtin/layout.html", "builtin/layout.txt"))
	})
	files, err := fs.Glob(builtin, "builtin/*.toml")
	if err != nil {
		panic(err) // the pattern is wrong
	}
	for _, file := range files {
		name := strings.TrimSuffix(path.Base(file), ".toml")
		tag := language.Make(name)
		b.names[tag] = name
		b.wordings[tag] = sync.OnceValue(func() *wording {
			w, err := readWording(file)
			if err != nil {
				panic(fmt.Errorf("read the built-in templates of %s: %w", file, err))
			}
			return w
		})
	}
	return b
}

// source returns the built-in template of a type and language; nil where there is none.
func (b *builtIns) source(name string, tag language.Tag) *source {
	kind, known := builtInType(name)
	if !known || b.wordings[tag] == nil {
		return nil
	}
	build := func(link bool) *source {
		s, err := makeSource(b.layouts(), b.wordings[tag](), kind, b.names[tag], b.settings, link)
		if err != nil {
			panic(fmt.Errorf("make the built-in template %s/%s: %w", name, tag, err))
		}
		return s
	}
	s := build(false)
	if kind.Needs == "code" {
		s.linked = build(true)
	}
	return s
}

// template returns what makes the built-in template of a type and language, once.
func (b *builtIns) template(kind Type, tag language.Tag) func() *template {
	return sync.OnceValue(func() *template {
		l := &loader{settings: b.settings}
		t := l.template(kind, tag, b.source(kind.Name, tag))
		for _, p := range l.problems {
			panic(fmt.Errorf("the built-in template %s/%s: %w", kind.Name, tag, p))
		}
		return t
	})
}

// readWording reads a language's strings. A string that is missing is an error: nobody would see it before a reader does.
func readWording(file string) (*wording, error) {
	data, err := builtin.ReadFile(file)
	if err != nil {
		return nil, err
	}
	w := &wording{Type: map[string]typeWording{}}
	if _, err := toml.Decode(string(data), w); err != nil {
		return nil, err
	}
	if slices.Contains([]string{w.Expires, w.Keep, w.Ignore, w.Button, w.Fallback, w.Or, w.Continue}, "") {
		return nil, errors.New("it lacks a string that all types share")
	}
	var m map[string]toml.Primitive
	md, err := toml.Decode(string(data), &m)
	if err != nil {
		return nil, err
	}
	for _, t := range types {
		tw := typeWording{Ignore: w.Ignore}
		if err := md.PrimitiveDecode(m[t.Name], &tw); err != nil {
			return nil, err
		}
		if tw.Subject == "" || tw.Title == "" || tw.Intro == "" || tw.Ignore == "" {
			return nil, fmt.Errorf("%s lacks a string", t.Name)
		}
		w.Type[t.Name] = tw
	}
	return w, nil
}

// makeSource makes the template of a type in one language. link gives a code a link beside it.
func makeSource(layouts *texttemplate.Template, w *wording, t Type, locale string, s config.Templates, link bool) (*source, error) {
	p := page{
		typeWording: w.Type[t.Name], Lang: locale, Strings: w, Invitation: t.Needs == "link", Link: link, Button: w.Continue,
		Name: s.SenderName != "", Logo: s.AppLogo != "", Company: s.CompanyInformation != "",
		Font: fonts(locale), Color: s.Color, OnColor: onColor(s.Color), Light: light, Dark: dark,
	}
	if p.Invitation {
		p.Button = w.Button
	}
	var text, markup strings.Builder
	if err := layouts.ExecuteTemplate(&text, "layout.txt", p); err != nil {
		return nil, err
	}
	if err := layouts.ExecuteTemplate(&markup, "layout.html", p); err != nil {
		return nil, err
	}
	preview := "{{ code }} · " + w.Expires
	if p.Invitation {
		preview = p.Intro
	}
	return &source{
		html:  document{content: markup.String()},
		text:  document{content: letter.CloseUp(text.String())},
		about: settings{subject: entry{p.Subject, 0}, preheader: entry{preview, 0}},
	}, nil
}
