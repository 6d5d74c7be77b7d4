package compose_test

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/text/language"

	"gatepost/compose"
	"gatepost/config"
)

func TestAnExportLoadsAndMeansWhatTheBuiltInTemplatesMean(t *testing.T) {
	s := branded()
	before, err := compose.Load(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	files := compose.Export(s)
	if len(files) != 9*8*3 {
		t.Errorf("%d files", len(files))
	}
	content := map[string]string{}
	for _, f := range files {
		content[f.Name] = f.Content
	}
	s.Dir = writeFiles(t, content)
	after, err := compose.Load(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Warnings) > 0 {
		t.Errorf("warnings: %v", told(s.Dir, after.Warnings))
	}
	for _, kind := range compose.Types() {
		for _, locale := range locales {
			r := compose.Sample(kind.Name, language.MustParse(locale))
			if a, b := render(t, before, r), render(t, after, r); string(a.Raw) != string(b.Raw) {
				t.Errorf("%s in %s becomes\n%s\nnot\n%s", kind.Name, locale, b.Raw, a.Raw)
			}
		}
	}
	for _, l := range after.List() {
		if len(l.Files) != 3 || l.Subject == "" {
			t.Errorf("listed: %+v", l)
		}
	}
}

// imports are what Logto's connectors and its Management API have, by what it is.
var imports = map[string]struct {
	data  string
	files map[string]string
	notes []string
}{
	"the config of the SMTP connector": {`{"host":"smtp.example.com","auth":{"pass":"hunter2"},"templates":[
		{"usageType":"SignIn","contentType":"text/html","subject":"Your code {{code}}","content":"<p>{{code}}</p>"},
		{"usageType":"Register","contentType":"text/plain","subject":"A \"quoted\" code","content":"{{code}}\nis it"},
		{"usageType":"Generic","subject":"x","content":"{{code}}"},
		{"usageType":"SignIn","subject":"again","content":"{{code}}"},
		{"usageType":"../x","subject":"x","content":"{{code}}"},
		{"usageType":"BindMfa","subject":"x"}]}`,
		map[string]string{
			"SignIn/de.html": "<p>{{code}}</p>", "SignIn/de.toml": "subject = \"Your code {{code}}\"\n",
			"Register/de.txt": "{{code}}\nis it", "Register/de.toml": "subject = \"A \\\"quoted\\\" code\"\n",
			"Generic/de.html": "{{code}}", "Generic/de.toml": "subject = \"x\"\n",
		},
		[]string{`"../x" was left out: it is no type of Logto's email connectors`, "BindMfa was left out: it has no content", "SignIn stands there twice; the first was taken"}},
	"the email templates of the Management API": {`[{"languageTag":"ja","templateType":"SignIn","details":{"subject":"コード","content":"<b>{{code}}</b>","contentType":"text/html","sendFrom":"{{ application.name }}","replyTo":"help@example.com"}},
		{"languageTag":"../../x","templateType":"SignIn","details":{"subject":"x","content":"{{code}}"}}]`,
		map[string]string{"SignIn/ja.html": "<b>{{code}}</b>", "SignIn/ja.toml": "subject = \"コード\"\nfrom = \"{{ application.name }}\"\nreply_to = \"help@example.com\"\n"},
		[]string{`SignIn was left out: "../../x" is not a language`}},
	"a connector as the Management API returns it": {`{"id":"x","connectorId":"sendgrid-email","config":{"templates":[{"usageType":"Generic","type":"text/plain","subject":"x\r\ny","content":"{{code}}"}]}}`,
		map[string]string{"Generic/de.txt": "{{code}}", "Generic/de.toml": "subject = \"x y\"\n"}, nil},
	"the config of the Mailgun connector": {`{"domain":"mg.example.com","deliveries":{"SignIn":{"html":"<p>{{code}}</p>","text":"{{code}}","subject":"x"},"Generic":{"template":"generic","variables":{"b":1,"a":["x",null]},"subject":"y"}}}`,
		map[string]string{"SignIn/de.html": "<p>{{code}}</p>", "SignIn/de.txt": "{{code}}", "SignIn/de.toml": "subject = \"x\"\n",
			"Generic/de.toml": "subject = \"y\"\n\n[upstream.\"mg\"]\ntemplate = \"generic\"\nvariables = { \"a\" = [\"x\"], \"b\" = 1 }\n"}, nil},
	"the config of the Postmark connector": {`{"serverToken":"hunter2","templates":[{"usageType":"SignIn","templateAlias":"sign-in"}]}`,
		map[string]string{"SignIn/de.toml": "\n[upstream.\"mg\"]\ntemplate = \"sign-in\"\n"}, nil},
}

func TestTemplatesOfLogtosConnectorsMoveOverUnchanged(t *testing.T) {
	for name, tt := range imports {
		t.Run(name, func(t *testing.T) {
			files, notes, err := compose.Import([]byte(tt.data), "de", "mg")
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, f := range files {
				got[f.Name] = f.Content
			}
			if !maps.Equal(got, tt.files) || !slices.Equal(notes, tt.notes) {
				t.Errorf("it becomes %q\nwant %q\nnotes %q", got, tt.files, notes)
			}
			s := config.DefaultTemplates()
			s.Dir = writeFiles(t, got)
			if _, err := compose.Load(s, map[string]*config.Upstream{"mg": {Type: "mailgun", DKIM: "none"}}); err != nil {
				t.Error(err)
			}
			if strings.Contains(strings.Join(notes, ""), "hunter2") {
				t.Error("a secret is told")
			}
		})
	}
}

func TestWhatIsNoConnectorIsNotImported(t *testing.T) {
	for _, data := range []string{"", "null", "{}", "[]", "7", `{"templates":7}`, `[{"usageType":7}]`, strings.Repeat("[", 1<<17)} {
		if files, _, err := compose.Import([]byte(data), "en", ""); err == nil {
			t.Errorf("%.40q is imported as %v", data, files)
		}
	}
	if _, notes, err := compose.Import([]byte(imports["the config of the Postmark connector"].data), "en", ""); err == nil || len(notes) != 1 ||
		notes[0] != `SignIn was left out: it is the template "sign-in" of a provider; name the upstream that has it with --upstream` {
		t.Errorf("a template of an upstream without name: %q, %v", notes, err)
	}
}

func FuzzImport(f *testing.F) {
	for _, tt := range imports {
		f.Add(tt.data)
	}
	f.Fuzz(func(t *testing.T, data string) {
		files, _, err := compose.Import([]byte(data), "en", "mg")
		for _, file := range files {
			kind, name, ok := strings.Cut(file.Name, "/")
			if !ok || err != nil || !slices.ContainsFunc(compose.Types(), func(t compose.Type) bool { return t.Name == kind }) || strings.ContainsAny(name, "/\\") || strings.HasPrefix(name, ".") {
				t.Errorf("%q becomes the file %q (%v)", data, file.Name, err)
			}
		}
	})
}
