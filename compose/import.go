package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/language"
)

// Import makes files of the templates in JSON that Logto has: the config of an email connector (templates, or Mailgun's
// deliveries), alone or as the Management API returns the connector, or the list of email templates with their
// languages. locale is the language of those that do not say theirs, upstream the name of the upstream that keeps those
// of Mailgun and Postmark; it may be empty. notes tell what was left out.
func Import(data []byte, locale, upstream string) (files []File, notes []string, err error) {
	found, err := readImport(data)
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, t := range found {
		made, note := t.files(locale, upstream)
		if len(made) > 0 && seen[made[0].Name] {
			made, note = nil, fmt.Sprintf("%s stands there twice; the first was taken", t.kind())
		}
		if note != "" {
			notes = append(notes, note)
		}
		for _, f := range made {
			seen[f.Name] = true
		}
		files = append(files, made...)
	}
	if len(files) == 0 {
		return nil, notes, errors.New("there are no templates in it")
	}
	return files, notes, nil
}

// imported is a template in any of the shapes that Logto's connectors have.
type imported struct {
	UsageType    string         `json:"usageType"`
	TemplateType string         `json:"templateType"` // of the list of email templates
	LanguageTag  string         `json:"languageTag"`
	Details      *imported      `json:"details"`
	ContentType  string         `json:"contentType"`
	Type         string         `json:"type"` // SendGrid's contentType
	Subject      string         `json:"subject"`
	Content      string         `json:"content"`
	HTML         string         `json:"html"` // Mailgun's content
	Text         string         `json:"text"`
	SendFrom     string         `json:"sendFrom"`
	ReplyTo      string         `json:"replyTo"`
	Template     string         `json:"template"`      // kept at Mailgun
	Alias        string         `json:"templateAlias"` // kept at Postmark
	Variables    map[string]any `json:"variables"`
}

// readImport reads all the templates in data.
func readImport(data []byte) ([]imported, error) {
	var list []imported
	if json.Unmarshal(data, &list) == nil {
		return list, nil
	}
	type connector struct {
		Templates  []imported          `json:"templates"`
		Deliveries map[string]imported `json:"deliveries"`
	}
	var c struct {
		connector
		Config connector `json:"config"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("it is not the JSON of a Logto connector: %w", err)
	}
	list = append(c.Templates, c.Config.Templates...)
	for _, deliveries := range []map[string]imported{c.Deliveries, c.Config.Deliveries} {
		for kind, t := range deliveries {
			t.UsageType = kind
			list = append(list, t)
		}
	}
	slices.SortStableFunc(list, func(a, b imported) int { return strings.Compare(a.kind(), b.kind()) })
	return list, nil
}

func (t imported) kind() string {
	if t.UsageType != "" {
		return t.UsageType
	}
	return t.TemplateType
}

// files returns the files of t, or a note why there are none.
func (t imported) files(locale, upstream string) ([]File, string) {
	kind := t.kind()
	if _, known := builtInType(kind); !known {
		return nil, fmt.Sprintf("%q was left out: it is no type of Logto's email connectors", kind)
	}
	if t.LanguageTag != "" {
		locale = t.LanguageTag
	}
	if tag, err := language.Parse(locale); err != nil || tag == language.Und {
		return nil, fmt.Sprintf("%s was left out: %q is not a language", kind, locale)
	}
	if t.Details != nil {
		t.Details.UsageType = kind
		t = *t.Details
	}
	kept := t.Template + t.Alias
	if kept != "" && upstream == "" {
		return nil, fmt.Sprintf("%s was left out: it is the template %q of a provider; name the upstream that has it with --upstream", kind, kept)
	}
	name := kind + "/" + locale
	files := t.bodies(name)
	if len(files) == 0 && kept == "" {
		return nil, fmt.Sprintf("%s was left out: it has no content", kind)
	}
	about := t.about(upstream, kept)
	if about != "" {
		files = append(files, File{name + ".toml", about})
	}
	return files, ""
}

// bodies returns the parts. Where a connector says nothing of the kind of its content, Logto sends it as HTML.
func (t imported) bodies(name string) (files []File) {
	html, text := t.HTML, t.Text
	switch {
	case t.Content == "":
	case t.ContentType == "text/plain" || t.ContentType == "" && t.Type == "text/plain":
		text = t.Content
	default:
		html = t.Content
	}
	if html != "" {
		files = append(files, File{name + ".html", html})
	}
	if text != "" {
		files = append(files, File{name + ".txt", text})
	}
	return files
}

// about returns the TOML file of t, "" where there is nothing to say.
func (t imported) about(upstream, kept string) string {
	var b strings.Builder
	for _, e := range []struct{ key, value string }{{"subject", t.Subject}, {"from", t.SendFrom}, {"reply_to", t.ReplyTo}} {
		if e.value != "" {
			fmt.Fprintf(&b, "%s = %s\n", e.key, quote(strings.Join(strings.Fields(e.value), " ")))
		}
	}
	if kept == "" {
		return b.String()
	}
	fmt.Fprintf(&b, "\n[upstream.%s]\ntemplate = %s\n", quote(upstream), quote(kept))
	if len(t.Variables) > 0 {
		fmt.Fprintf(&b, "variables = %s\n", inline(t.Variables))
	}
	return b.String()
}

// inline writes a JSON value as TOML on one line; what TOML has no word for is left out.
func inline(v any) string {
	switch v := v.(type) {
	case string:
		return quote(v)
	case bool, float64:
		return fmt.Sprint(v)
	case []any:
		var all []string
		for _, e := range v {
			if s := inline(e); s != "" {
				all = append(all, s)
			}
		}
		return "[" + strings.Join(all, ", ") + "]"
	case map[string]any:
		var all []string
		for key, e := range v {
			if s := inline(e); s != "" {
				all = append(all, quote(key)+" = "+s)
			}
		}
		slices.Sort(all)
		return "{ " + strings.Join(all, ", ") + " }"
	}
	return ""
}
