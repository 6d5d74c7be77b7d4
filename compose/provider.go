package compose

import (
	"maps"
	"slices"

	"golang.org/x/text/language"
)

// provided is a template kept at an upstream.
type provided struct {
	name      string
	variables map[string]any // strings in it are of type plain
}

func providers(entries map[string]providerEntry) map[string]*provided {
	all := map[string]*provided{}
	for name, e := range entries {
		p := &provided{name: e.template, variables: map[string]any{}}
		for key, v := range e.variables {
			p.variables[key] = cutAll(v)
		}
		all[name] = p
	}
	return all
}

// cutAll returns v with its strings cut at their placeholders.
func cutAll(v any) any {
	switch v := v.(type) {
	case string:
		return cut(v)
	case map[string]any:
		m := map[string]any{}
		for key, e := range v {
			m[key] = cutAll(e)
		}
		return m
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = cutAll(e)
		}
		return list
	}
	return v
}

// fill returns what the provider is given: all that came with the request, as Logto's connectors send it, the language of
// the template, the brand, and over them the variables that the template names.
func (p *provided) fill(v *values, locale language.Tag) map[string]any {
	all, _ := v.bounded(v.variables, 0).(map[string]any)
	if all == nil {
		all = map[string]any{}
	}
	if _, ok := all["locale"]; !ok {
		all["locale"] = locale.String()
	}
	for name, value := range v.brand {
		if value != "" {
			all[name] = value
		}
	}
	for name, value := range p.variables {
		all[name] = fillAll(value, v)
	}
	return all
}

func fillAll(value any, v *values) any {
	switch value := value.(type) {
	case plain:
		return value.fill(v)
	case map[string]any:
		m := map[string]any{}
		for key, e := range value {
			m[key] = fillAll(e, v)
		}
		return m
	case []any:
		list := make([]any, len(value))
		for i, e := range value {
			list[i] = fillAll(e, v)
		}
		return list
	}
	return value
}

// bounded copies a JSON value with clean strings, to a bounded depth and width.
func (v *values) bounded(value any, depth int) any {
	switch value := value.(type) {
	case string:
		if v.isLink(value) {
			return value
		}
		return clean(value)
	case map[string]any:
		m := map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(value)) {
			if depth < maxPath && len(m) < maxMembers {
				m[clean(key)] = v.bounded(value[key], depth+1)
			}
		}
		return m
	case []any:
		list := []any{}
		for _, e := range value[:min(len(value), maxMembers)] {
			if depth < maxPath {
				list = append(list, v.bounded(e, depth+1))
			}
		}
		return list
	}
	return value
}
