package compose_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"gatepost/compose"
	"gatepost/config"
)

// told returns problems without the directory in front.
func told(dir string, problems []*config.Problem) (all []string) {
	for _, p := range problems {
		all = append(all, strings.TrimPrefix(p.Error(), dir+"/"))
	}
	return all
}

// upstreams are those that templates may name.
var upstreams = map[string]*config.Upstream{
	"mailgun": {Type: "mailgun", DKIM: "none"}, "sendgrid": {Type: "sendgrid", DKIM: "none"}, "ses": {Type: "ses", DKIM: "sign"},
	"host": {Type: "smtp", DKIM: "sign"}, "alibaba": {Type: "aliyun", DKIM: "none"},
}

// manyUpstreams names n upstreams in a template's TOML file.
func manyUpstreams(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "[upstream.u%d]\ntemplate = 't'\n", i)
	}
	return b.String()
}

func TestWhatIsWrongWithTemplatesIsToldByFileAndLineWhenTheyAreLoaded(t *testing.T) {
	const body = "<body>\n{{ code }}\n"
	for name, tt := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"a value in a script":          {map[string]string{"SignIn/en.html": body + "<script>\nlet x = '{{ code }}'</script>"}, []string{"SignIn/en.html:4: {{ code }} stands where no value can be made safe; put it into text or the value of an attribute"}},
		"a value in a handler":         {map[string]string{"SignIn/en.html": body + "<p onclick='{{ user.name }}'>"}, []string{"SignIn/en.html:3: {{ user.name }} stands in onclick of <p>, where no value can be made safe"}},
		"a value as an attribute":      {map[string]string{"SignIn/en.html": body + "<p {{ code }}>"}, []string{"SignIn/en.html:3: {{ code }} stands in a tag without quotes around it"}},
		"a value without quotes":       {map[string]string{"SignIn/en.html": body + "<a href={{ link }}>"}, []string{"SignIn/en.html:3: {{ link }} stands in a tag without quotes around it"}},
		"a value as a tag":             {map[string]string{"SignIn/en.html": body + "<{{ code }}>"}, []string{"SignIn/en.html:3: {{ code }} stands right behind a <, so its value would become a tag; write &lt;"}},
		"a value in a refresh":         {map[string]string{"SignIn/en.html": "<meta http-equiv=refresh content='0;{{ link }}'>" + body}, []string{"SignIn/en.html:1: {{ link }} stands in content of <meta>, where no value can be made safe"}},
		"a link that is a script":      {map[string]string{"SignIn/en.html": body + "<a href=' java&#10;script:x()'>"}, []string{"SignIn/en.html:3: href of <a> leads to a javascript: URL, which no mail program opens"}},
		"a code mail without code":     {map[string]string{"SignIn/en.html": "<body>hello"}, []string{"SignIn/en.html:1: does not have the code, without which mail of type SignIn is of no use"}},
		"a text without what HTML has": {map[string]string{"SignIn/en.html": body, "SignIn/en.txt": "hello"}, []string{"SignIn/en.txt:1: does not have the code, without which mail of type SignIn is of no use"}},
		"an invitation without link":   {map[string]string{"OrganizationInvitation/en.html": body}, []string{"OrganizationInvitation/en.html:1: does not have the link, without which mail of type OrganizationInvitation is of no use"}},
		"a language with no subject":   {map[string]string{"SignIn/fi.html": body}, []string{"SignIn/fi.html:1: has no subject"}},
		"a language with no text":      {map[string]string{"SignIn/fi.toml": "subject = 'x'"}, []string{"SignIn/fi.toml:1: has no text, and there is no built-in one of this type and language"}},
		"a language that is none":      {map[string]string{"SignIn/english language.html": body}, []string{`SignIn/english language.html: "english language" is not a language`}},
		"one language twice":           {map[string]string{"SignIn/zh-TW.toml": "subject='x'", "SignIn/zh_TW.html": body}, []string{`SignIn/zh-TW.toml: "zh-TW" is the same language as "zh_TW"`, "SignIn/zh_TW.html:1: has no subject"}},
		"a type but for its case":      {map[string]string{"signin/en.html": body}, []string{"signin: is the type SignIn but for its case, so it would never be used"}},
		"a type that is no word":       {map[string]string{"sign in/en.html": body}, []string{"sign in: cannot be a type"}},
		"NUL":                          {map[string]string{"SignIn/en.html": body + "a\x00b"}, []string{"SignIn/en.html:3: has a NUL character"}},
		"Latin-1":                      {map[string]string{"SignIn/en.html": body + "\xe9"}, []string{"SignIn/en.html: is not valid UTF-8"}},
		"a book":                       {map[string]string{"SignIn/en.html": body + strings.Repeat("x", 256<<10)}, []string{"SignIn/en.html: is larger than 256 KB"}},
		"no TOML":                      {map[string]string{"SignIn/en.toml": "subject = 'x'\nfrom ="}, []string{"SignIn/en.toml:2: not valid TOML: unexpected EOF; expected value"}},
		"an unknown key, several wrong": {map[string]string{"SignIn/en.toml": "subject = 7\nfrom = '<>'\nreply-to = 'x@y.example'\npreheader = \"a\\nb\"\nreply_to = ''"}, []string{
			"SignIn/en.toml:1: subject: is not a string", "SignIn/en.toml:2: from: is empty",
			"SignIn/en.toml:3: reply-to: unknown key", "SignIn/en.toml:4: preheader: has a line end or another control character", "SignIn/en.toml:5: reply_to: is empty"}},
		"a sender that is none":                   {map[string]string{"SignIn/en.toml": "\nfrom = 'a@b.example <c@d.example>'"}, []string{"SignIn/en.toml:2: from: is no mailbox: write Name <address@example.com>"}},
		"a preheader without body":                {map[string]string{"SignIn/en.html": "{{ code }}", "SignIn/en.toml": "preheader = 'x'"}, []string{"SignIn/en.html:1: has no <body>, so the preheader has no place"}},
		"an upstream that is not there":           {map[string]string{"SignIn/en.toml": "subject = 'x'\n[upstream.mailgum]\ntemplate = 't'"}, []string{`SignIn/en.toml:2: upstream.mailgum: there is no upstream "mailgum"`}},
		"an upstream without template":            {map[string]string{"SignIn/en.toml": "[upstream.mailgun]\nname = 't'\nvariables = 1"}, []string{"SignIn/en.toml:1: upstream.mailgun.template: is missing", "SignIn/en.toml:2: upstream.mailgun.name: unknown key", "SignIn/en.toml:3: upstream.mailgun.variables: is not a table"}},
		"an upstream that keeps none":             {map[string]string{"SignIn/en.toml": "[upstream.host]\ntemplate = 't'\n[upstream.alibaba]\ntemplate = 't'"}, []string{`SignIn/en.toml:1: upstream.host: upstream "host" keeps no templates, since its type is "smtp"`, `SignIn/en.toml:3: upstream.alibaba: upstream "alibaba" keeps no templates, since its type is "aliyun"`}},
		"an upstream that is to be signed for":    {map[string]string{"SignIn/en.toml": "[upstream.ses]\ntemplate = 't'"}, []string{`SignIn/en.toml:1: upstream.ses: upstream "ses" has dkim = "sign": mail that the service makes of its template cannot carry our signature`}},
		"an old template of SendGrid":             {map[string]string{"SignIn/en.toml": "[upstream.sendgrid]\ntemplate = '1b656da9-6864-463e-8c1a-e0491f900b2f'"}, []string{`SignIn/en.toml:1: upstream.sendgrid.template: "1b656da9-6864-463e-8c1a-e0491f900b2f" is not one`}},
		"a variable that JSON has no word for":    {map[string]string{"SignIn/en.toml": "[upstream.mailgun]\ntemplate = 't'\nvariables = { x = [nan] }"}, []string{"SignIn/en.toml:3: upstream.mailgun.variables: cannot be written as JSON"}},
		"an upstream for each day":                {map[string]string{"SignIn/en.toml": manyUpstreams(17)}, []string{"SignIn/en.toml:1: upstream: names more than 16 upstreams"}},
		"a sender that no value makes an address": {map[string]string{"SignIn/en.toml": "from = 'x <{{ user.name }}>'"}, []string{"SignIn/en.toml:1: cannot be filled in with sample values: from cannot be used: the address has no local part or no domain"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := config.DefaultTemplates()
			s.Dir = writeFiles(t, tt.files)
			all, err := compose.Load(s, upstreams)
			if all != nil {
				t.Error("it loads all the same")
			}
			if got := told(s.Dir, config.Problems(err)); !slices.Equal(got, tt.want) {
				t.Errorf("told\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

func TestWhatLooksLikeAMistakeInATemplateIsAWarning(t *testing.T) {
	s := config.DefaultTemplates()
	s.Dir = writeFiles(t, map[string]string{
		"README.md": "x", "SignIn/en.html": "<body>{{ code }}\n{{ usr.name }}\n{{#if x}}{{{ code }}}{{ x-y }}", "SignIn/logo.png": "x", "SignIn/de.toml": "\nreply_to = 'Help {{ organization.name }}'", "SignIn/.en.html.swp": "x", "SignIn/en.html~": "x",
		"Welcome/en.txt": "x", "Welcome/en.toml": "subject = 'x {{ user.name'", "Register/en.html": "<body>{{ code }}" + strings.Repeat("x", 101<<10),
	})
	all, err := compose.Load(s, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"README.md: is not used: templates are TYPE/LOCALE.html, .txt and .toml",
		"Register/en.html:1: is larger than 100 KB: Gmail shows only the beginning",
		"SignIn/de.toml:2: reply_to has no address: it is used only where a request brings one",
		`SignIn/en.html:2: "usr.name" is filled in only where the auth server sends it`,
		"SignIn/en.html:3: {{ stands here as it is",
		"SignIn/en.html:3: {{ stands here as it is",
		"SignIn/logo.png: is not used: templates are TYPE/LOCALE.html, .txt and .toml",
		"Welcome: is a type of your own: only mail of exactly this type uses it",
		"Welcome/en.toml:1: {{ stands here as it is",
	}
	if got := told(s.Dir, all.Warnings); !slices.Equal(got, want) {
		t.Errorf("warned of\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestNothingOutsideTheDirectoryOfTemplatesIsRead(t *testing.T) {
	s := config.DefaultTemplates()
	s.Dir = writeFiles(t, map[string]string{"SignIn/de.toml": "subject = 'x'"})
	secret := filepath.Join(writeFiles(t, map[string]string{"secret": "hunter2 {{ code }}"}), "secret")
	if err := os.Symlink(secret, filepath.Join(s.Dir, "SignIn/en.html")); err != nil {
		t.Fatal(err)
	}
	_, err := compose.Load(s, nil)
	if err == nil || !strings.Contains(err.Error(), "SignIn/en.html: cannot be opened") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a link that leads out of the directory: %v", err)
	}
}

func TestAPipeAmongTheTemplatesHangsNobody(t *testing.T) {
	s := config.DefaultTemplates()
	s.Dir = writeFiles(t, map[string]string{"SignIn/de.toml": "subject = 'x'"})
	if err := syscall.Mkfifo(filepath.Join(s.Dir, "SignIn/en.html"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := compose.Load(s, nil); err == nil || !strings.HasSuffix(err.Error(), "SignIn/en.html: is not a regular file") {
		t.Errorf("told %v", err)
	}
}

func TestADirectoryThatIsGoneAndADefaultThatNobodyWroteAreTold(t *testing.T) {
	s := config.DefaultTemplates()
	s.Dir = filepath.Join(t.TempDir(), "gone")
	if _, err := compose.Load(s, nil); len(config.Problems(err)) != 1 || !strings.Contains(err.Error(), "gone: cannot be opened") {
		t.Errorf("a directory that is gone: %v", err)
	}
	s = config.DefaultTemplates()
	s.DefaultLocale = "sw"
	if _, err := compose.Load(s, nil); len(config.Problems(err)) != 1 || !strings.Contains(err.Error(), `default_locale: there is no Generic template in "sw"`) {
		t.Errorf("a default that nobody wrote: %v", err)
	}
}
