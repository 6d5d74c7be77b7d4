package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/BurntSushi/toml"

	"gatepost/config"
)

// settings is what a template's TOML file says.
type settings struct {
	file                              string // "" for a built-in template
	subject, from, replyTo, preheader entry
	upstream                          map[string]providerEntry
}

// entry is a value and the line it stands on.
type entry struct {
	value string
	line  int
}

// providerEntry is [upstream.NAME].
type providerEntry struct {
	template  string
	variables map[string]any
	line      int
}

// override takes what over says in place of what s does.
func (s *settings) override(over settings) {
	s.file = over.file
	for _, e := range []struct{ to, from *entry }{{&s.subject, &over.subject}, {&s.from, &over.from}, {&s.replyTo, &over.replyTo}, {&s.preheader, &over.preheader}} {
		if e.from.line > 0 {
			*e.to = *e.from
		}
	}
	s.upstream = over.upstream
}

// parseSettings reads a template's TOML file.
func (l *loader) parseSettings(d document) settings {
	s := settings{file: d.file}
	var m map[string]any
	if _, err := toml.Decode(d.content, &m); err != nil {
		line, text := 1, err.Error()
		if e, ok := errors.AsType[toml.ParseError](err); ok {
			line, text = max(e.Position.Line, 1), e.Message
		}
		l.bad(d.file, line, "", "", "not valid TOML: %s", text)
		return s
	}
	line := config.Lines(d.content)
	entries := map[string]*entry{"subject": &s.subject, "from": &s.from, "reply_to": &s.replyTo, "preheader": &s.preheader}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if e := entries[key]; e != nil {
			*e = entry{l.line(d.file, line(key), key, m[key]), line(key)}
		} else if key == "upstream" {
			s.upstream = l.parseUpstreams(d.file, line, m[key])
		} else {
			l.bad(d.file, line(toml.Key{key}.String()), key, "known here: subject, from, reply_to, preheader, upstream", "unknown key")
		}
	}
	return s
}

// line returns the string v, which must be one line.
func (l *loader) line(file string, line int, key string, v any) string {
	s, ok := v.(string)
	switch {
	case !ok:
		l.bad(file, line, key, "", "is not a string")
	case strings.TrimSpace(s) == "":
		l.bad(file, line, key, "leave the key out", "is empty")
	case strings.ContainsFunc(s, unicode.IsControl):
		l.bad(file, line, key, "", "has a line end or another control character")
	case len(s) > 4*maxLine:
		l.bad(file, line, key, "", "is longer than %d octets", 4*maxLine)
	default:
		return s
	}
	return ""
}

func (l *loader) parseUpstreams(file string, line func(string) int, v any) map[string]providerEntry {
	all, ok := v.(map[string]any)
	if !ok {
		l.bad(file, line("upstream"), "upstream", "write [upstream.NAME]", "is not a table")
	}
	if len(all) > maxProviders {
		l.bad(file, line("upstream"), "upstream", "", "names more than %d upstreams", maxProviders)
		return nil
	}
	found := map[string]providerEntry{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		path := toml.Key{"upstream", name}.String()
		m, ok := all[name].(map[string]any)
		if !ok {
			l.bad(file, line(path), path, "write [upstream.NAME]", "is not a table")
			continue
		}
		p := l.parseProvider(file, line, path, m)
		l.checkProvider(file, path, name, p)
		found[name] = p
	}
	return found
}

// checkProvider refuses a template that the upstream called name could not be asked for.
func (l *loader) checkProvider(file, path, name string, p providerEntry) {
	u := l.upstreams[name]
	switch {
	case l.upstreams == nil:
	case u == nil:
		l.bad(file, p.line, path, "it must be the name of an [upstream.NAME] in the config", "there is no upstream %q", name)
	case !u.KeepsTemplates():
		l.bad(file, p.line, path, "take it out: upstreams of type "+strings.Join(config.TemplateTypes(), ", ")+" keep templates",
			"upstream %q keeps no templates, since its type is %q", name, u.Type)
	case u.DKIM == "sign":
		l.bad(file, p.line, path, fmt.Sprintf(`write dkim = "none" under [upstream.%s], and have the service sign for your domain`, name),
			`upstream %q has dkim = "sign": mail that the service makes of its template cannot carry our signature`, name)
	case u.Type == "sendgrid" && p.template != "" && !strings.HasPrefix(p.template, "d-"):
		l.bad(file, p.line, path+".template", "name the id of a dynamic template: it begins with d-", "%q is not one", p.template)
	}
}

func (l *loader) parseProvider(file string, line func(string) int, path string, m map[string]any) providerEntry {
	p := providerEntry{line: line(path)}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		at := path + "." + toml.Key{key}.String()
		switch key {
		case "template":
			p.template = l.line(file, line(at), at, m[key])
		case "variables":
			variables, ok := m[key].(map[string]any)
			if !ok {
				l.bad(file, line(at), at, `write variables = { name = "{{ user.name }}" }`, "is not a table")
			}
			if _, err := json.Marshal(variables); err != nil {
				l.bad(file, line(at), at, "JSON has neither inf nor nan", "cannot be written as JSON")
			}
			p.variables = variables
		default:
			l.bad(file, line(at), at, "known here: template, variables", "unknown key")
		}
	}
	if _, ok := m["template"]; !ok {
		l.bad(file, p.line, path+".template", fmt.Sprintf("name the template as the provider knows it: template = %q", "sign-in"), "is missing")
	}
	return p
}
