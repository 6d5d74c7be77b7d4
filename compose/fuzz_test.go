package compose_test

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"gatepost/compose"
	"gatepost/letter"
)

// FuzzMarkup holds that no value changes the elements and attributes of any template that is taken, and that none of its
// links leads to a script.
func FuzzMarkup(f *testing.F) {
	for _, value := range hostileValues {
		if len(value) < 1000 {
			f.Add(everywhere, value)
		}
	}
	for _, src := range []string{"<a {{x}}>", "<a href={{ x }}>", "<{{x}}>", "<a b=c{{x}}/>", "<a b=c\"d={{x}}>", "<a b=c'd\"{{x}} e='f'>", "<a =b={{x}}>", "<!--{{x}}", "<![CDATA[{{x}}]]>", "<a b='{{x}}", "<!--[if mso]><a{{x}}<![endif]-->",
		"<script>{{x}}</script>", "<a \"b='{{x}}'>", "<style>{{x}}", "<a/href='{{x}}'/b={{x}}>", "<title>{{x}}</title>{{x}}", "<svg><style>{{x}}</style></svg>", "<plaintext>{{x}}",
		"<a href='java{{x}}'>", "<a href=' {{x}}script:'>", "<table>{{x}}<tr><td>{{x}}", "<!DOCTYPE {{x}}>", "<?{{x}}>", "</a {{x}}>", "<a a{{x}}=b>", "<select><option>{{x}}"} {
		f.Add(src, `" x='y`+"`><b>--></style></title>javascript:")
	}
	f.Fuzz(func(t *testing.T, src, value string) {
		if strings.ContainsRune(src, 0) || !utf8.ValidString(src) || strings.Contains(src, "\r") || len(src) > 4000 {
			return // refused when it is read
		}
		plain, ok := compose.FillMarkup(src, "x")
		if !ok {
			return
		}
		filled, ok := compose.FillMarkup(src, value)
		if !ok {
			return
		}
		if got, want := shape(t, filled), shape(t, plain); got != want && clean(value) != "" {
			t.Fatalf("%q with %q is\n%s\nnot of the shape\n%s", src, value, got, want)
		}
		before := strings.Join(links(t, plain), " ")
		for _, link := range links(t, filled) {
			if isScript(link) && !isScript(before) {
				t.Fatalf("%q with %q leads to %q", src, value, link)
			}
		}
		if text, err := letter.TextOf(filled); err == nil && !utf8.ValidString(text) {
			t.Fatalf("%q", text)
		}
	})
}

func clean(s string) string { return compose.Clean(s) }

func isScript(link string) bool {
	link = strings.ToLower(strings.Join(strings.Fields(link), ""))
	return strings.Contains(link, "javascript:") && !strings.Contains(link, "/") || strings.HasPrefix(link, "javascript:") || strings.HasPrefix(link, "data:")
}

// FuzzPlaceholders holds that a value stays on its line and that it is never filled in again.
func FuzzPlaceholders(f *testing.F) {
	f.Add("Hello {{ user.name }}, {{code}}", "{{ code }}\r\nBcc: x")
	f.Add("{{{x}}}{{ a.b.c.d.e.f.g.h.i.j }}{{}}{{ x", "}}{{x}}")
	f.Add("=?utf-8?q?{{x}}?=", "=?utf-8?b?AAA=?=")
	f.Fuzz(func(t *testing.T, src, value string) {
		body, header, ok := compose.FillPlain(src, value)
		if strings.ContainsFunc(header, unicode.IsControl) || strings.Contains(header, "=?") || utf8.RuneCountInString(header) > 600 {
			t.Fatalf("%q with %q is the header field %q", src, value, header)
		}
		if one, _, _ := compose.FillPlain(src, "x"); ok && strings.Count(body, "\n") > strings.Count(one, "\n") && clean(value) != "" {
			t.Fatalf("%q with %q has more lines: %q", src, value, body)
		}
	})
}

// FuzzText holds that whatever HTML becomes text of bounded size, without an end in sight of tags.
func FuzzText(f *testing.F) {
	f.Add(everywhere)
	f.Add("<ul><li>a<li>b<ol><li>c</ul><table><tr><td>1<td>2<tr><td>3</table><pre>\n x\n  y</pre><br><br><br>z")
	f.Add(strings.Repeat("<div><b>", 300) + "x")
	f.Add("<a href=\"https://example.com/\">here</a> <a href=#x>y</a> <img alt='logo'> <p hidden style='DISPLAY : none'>secret</p>")
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 4000 {
			return
		}
		text, err := letter.TextOf(src)
		if err != nil {
			return
		}
		if strings.Contains(text, "\n\n\n") || !strings.HasSuffix(text, "\n") || len(text) > 20*len(src)+10 {
			t.Fatalf("%q becomes %q", src, text)
		}
	})
}
