package hook

import (
	"html/template"
	"regexp"
	"strings"
)

// letter is a mail in parts: what Zitadel sends, and what our own notices are made of.
type letter struct {
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

// render gives l a form, as HTML and as text.
func (l letter) render() *Rendered {
	var b strings.Builder
	err := page.Execute(&b, struct {
		letter
		Primary, Background, Font template.CSS
		Link                      template.URL
		Paragraphs                []string
	}{l, colourOr(l.Primary, "#1f4fd8"), colourOr(l.Background, "#ffffff"), colourOr(l.Font, "#1c1c1c"), template.URL(l.URL), lines(l.Text)})
	if err != nil {
		return &Rendered{Subject: clean(l.Subject, maxSubject), Text: l.text()}
	}
	return &Rendered{Subject: clean(l.Subject, maxSubject), Text: l.text(), HTML: b.String()}
}

func lines(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' })
}

// text is the letter without any form.
func (l letter) text() string {
	var parts []string
	for _, p := range []string{l.Greeting, l.Text, l.URL, l.Footer} {
		if p = strings.TrimSpace(p); p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "\n\n") + "\n"
}

// page is the form. Everything in it is escaped for where it stands; Link was checked before.
var page = template.Must(template.New("letter").Parse(`<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Subject}}</title></head>
<body style="margin:0;padding:24px 12px;background:{{.Background}};color:{{.Font}};font-family:-apple-system,'Segoe UI',Roboto,Arial,sans-serif;font-size:16px;line-height:1.5">
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
