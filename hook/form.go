package hook

import (
	"html/template"
	"regexp"
	"strings"

	"gatepost/letter"
)

// form is a mail in parts: what Zitadel sends, and what our own notices are made of.
type form struct {
	Title      string `json:"title"`
	PreHeader  string `json:"preHeader"`
	Subject    string `json:"subject"`
	Greeting   string `json:"greeting"`
	Text       string `json:"text"`
	URL        string `json:"url"` // checked
	Button     string `json:"buttonText"`
	Primary    string `json:"primaryColor"`
	Background string `json:"backgroundColor"`
	Font       string `json:"fontColor"`
	Footer     string `json:"footerText"`
}

var colour = regexp.MustCompile(`^#[0-9A-Fa-f]{3}([0-9A-Fa-f]{3})?$`)

// colourOr returns c where it is a colour, else def.
func colourOr(c, def string) template.CSS {
	if colour.MatchString(c) {
		return template.CSS(c)
	}
	return template.CSS(def)
}

// render gives f a look, as HTML and as text.
func (f form) render() *Rendered {
	var b strings.Builder
	err := page.Execute(&b, struct {
		form
		Primary, Background, Font template.CSS
		Link                      template.URL
		Paragraphs                []string
	}{f, colourOr(f.Primary, "#1f4fd8"), colourOr(f.Background, "#ffffff"), colourOr(f.Font, "#1c1c1c"), template.URL(f.URL), lines(f.Text)})
	if err != nil {
		return &Rendered{Subject: clean(f.Subject, maxSubject), Text: f.text()}
	}
	return &Rendered{Subject: clean(f.Subject, maxSubject), Text: f.text(), HTML: b.String()}
}

// plain makes plain text of what Zitadel sends: HTML, as its administrators wrote it, with names and codes escaped in it.
func (f *form) plain() error {
	for _, s := range []*string{&f.Title, &f.PreHeader, &f.Subject, &f.Greeting, &f.Text, &f.Button, &f.Footer} {
		text, err := letter.TextOf(strings.ReplaceAll(*s, "\n", "<br>"))
		if err != nil {
			return invalid("templateData", "cannot be read as HTML")
		}
		all := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		for i, line := range all {
			all[i] = clean(line, len(line))
		}
		*s = strings.Join(all, "\n")
	}
	f.URL = unescapeArgs.Replace(f.URL)
	return nil
}

// unescapeArgs undoes what Zitadel's escaping makes of a name in a URL. Other entities are none there: &copy=1 is a parameter.
var unescapeArgs = strings.NewReplacer("&amp;", "&", "&#39;", "'", "&#34;", "%22", "&lt;", "%3C", "&gt;", "%3E")

func lines(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
}

// text is what f says in plain text.
func (f form) text() string {
	var parts []string
	for _, p := range []string{f.Greeting, f.Text, f.URL, f.Footer} {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "\n\n") + "\n"
}

// page is how a form looks. Everything in it is escaped for where it stands; Link was checked before.
var page = template.Must(template.New("page").Parse(`<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Subject}}</title></head>
<body style="margin:0;padding:24px 12px;background:{{.Background}};color:{{.Font}};font-family:-apple-system,'Segoe UI',Roboto,Arial,sans-serif;font-size:16px;line-height:1.5;overflow-wrap:anywhere;word-break:break-word">
{{with .PreHeader}}<div style="display:none;max-height:0;overflow:hidden">{{.}}</div>
{{end}}<table role="presentation" width="100%" style="max-width:560px;margin:0 auto"><tr><td>
{{with .Title}}<h1 style="font-size:22px;line-height:1.3">{{.}}</h1>
{{end}}{{with .Greeting}}<p>{{.}}</p>
{{end}}{{range .Paragraphs}}<p>{{.}}</p>
{{end}}{{if .Link}}<p><a href="{{.Link}}" style="display:inline-block;padding:12px 20px;border-radius:6px;background:{{.Primary}};color:#ffffff;text-decoration:none">{{or .Button .Title .Subject}}</a></p>
<p style="font-size:13px;word-break:break-all">{{.Link}}</p>
{{end}}{{with .Footer}}<p style="font-size:13px">{{.}}</p>
{{end}}</td></tr></table>
</body></html>
`))
