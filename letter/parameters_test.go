package letter

import (
	"maps"
	"mime"
	"strings"
	"testing"
)

func TestParametersOfEveryForm(t *testing.T) {
	for field, want := range map[string]map[string]string{
		`text/plain; charset=us-ascii (Plain text; really)`:                 {"charset": "us-ascii"},
		`x; name=my file.pdf`:                                               {"name": "my file.pdf"},
		`x; name="a;b\"c\d"; ; size=1;`:                                     {"name": `a;b"c\d`, "size": "1"},
		`x; name="=?iso-2022-jp?B?GyRCM04bKEI=?=.pdf"`:                      {"name": "確.pdf"},
		`x; filename*=utf-8'ja'%E7%A2%BA.pdf; filename="=?.pdf"`:            {"filename": "確.pdf"},
		`x; filename*=iso-2022-jp''%1B%24B3N%1B%28B`:                        {"filename": "確"},
		`x; filename*1*=%BA; filename*0*=utf-8''%E7%A2; filename*2=" .pdf"`: {"filename": "確 .pdf"},
		`x; filename*0=a; filename*1=b`:                                     {"filename": "ab"},
		`x; a=1; A=1`:                                                       {"a": "1"},
		`x; a="(b)"`:                                                        {"a": "(b)"},
		`x; 名=1`:                                                            {"名": "1"},
		`x; a=é`:                                                            {"a": "é"},
		``:                                                                  {},
	} {
		if _, got, err := parameters(field); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: %q, %v, want %q", field, got, err, want)
		}
	}
	for _, field := range []string{`x; a`, `x; =b`, `x; a="b`, `x; a="b"c"`, `x; a=b; a=c`, `x; (a=b`, `x; a*1=b`, `x; a*=b`, `x; a*=utf-8''%zz`, `x; a*0=b; a*2=c`,
		`x; a*0=b; a*0=c`, `x; a*-1=b`, `x; a*00=b`, "x; a=\xff", `x; a=` + strings.Repeat("b", maxParameters)} {
		if kind, got, err := parameters(field); err == nil {
			t.Errorf("%s: read as %q with %q", field, kind, got)
		}
	}
}

// Where package mime reads a field in full, it is read as that does.
func FuzzParameters(f *testing.F) {
	f.Add(`text/plain; charset=utf-8; name="a b"`)
	f.Add(`attachment; filename*=utf-8''%E7%A2%BA; filename*0*=utf-8''%41`)
	f.Add(`inline; a="\\\""; b=(c)`)
	f.Fuzz(func(t *testing.T, field string) {
		kind, got, err := parameters(field)
		theirs, want, theirErr := mime.ParseMediaType(field)
		if err != nil || theirErr != nil || strings.ContainsAny(field, `*(\`) || strings.Contains(field, "=?") {
			return
		}
		if kind != theirs || !maps.Equal(got, want) {
			t.Errorf("%q is %q with %q, mime says %q with %q", field, kind, got, theirs, want)
		}
	})
}
