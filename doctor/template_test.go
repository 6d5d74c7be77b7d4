package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/upstream/upstreamtest"
)

func TestATemplateThatItsServiceDoesNotKeepIsFoundBeforeAMailIsLost(t *testing.T) {
	cfg, _ := loadService(t, upstreamtest.Reply{})
	s := upstreamtest.NewService(t, upstreamtest.ServiceOptions{}, func(r upstreamtest.Request) upstreamtest.Reply {
		switch {
		case strings.HasSuffix(r.Path, "/templates/d-there"):
			return upstreamtest.Reply{Body: `{"id":"d-there"}`}
		case strings.HasSuffix(r.Path, "/templates/d-closed"):
			return upstreamtest.Reply{Status: 403}
		case strings.HasSuffix(r.Path, "/templates/d-down"):
			return upstreamtest.Reply{Status: 503}
		}
		return upstreamtest.Reply{Status: 404}
	})
	key := cfg.Upstream["sink"].AccessKeyID
	cfg.Upstream["sink"] = &config.Upstream{Name: "sink", Type: "sendgrid", Endpoint: s.URL(), TLSCAFile: s.CAFile(), APIKey: key, Connections: 1, DKIM: "none"}
	cfg.Templates = config.DefaultTemplates()
	if found := Templates(t.Context(), cfg); found != nil {
		t.Errorf("without a directory: %+v", found)
	}
	cfg.Templates.Dir = t.TempDir()
	for file, template := range map[string]string{"SignIn/en": "d-there", "SignIn/ja": "d-there", "Register/en": "d-gone", "Register/ja": "d-closed", "Generic/en": "d-down"} {
		path := filepath.Join(cfg.Templates.Dir, file+".toml")
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("[upstream.sink]\ntemplate = \""+template+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, f := range Templates(t.Context(), cfg) {
		if got = append(got, string(f.Level)+" "+f.Check+" "+f.Subject); f.Level != OK && f.Hint == "" {
			t.Errorf("%+v does not say what to do", f)
		}
	}
	if want := []string{"WARN template sink d-closed", "WARN template sink d-down", "FAIL template sink d-gone", "OK template sink d-there"}; !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	if n := len(s.Requests()); n != 0 {
		t.Errorf("%d requests brought something", n)
	}
	if err := os.WriteFile(filepath.Join(cfg.Templates.Dir, "SignIn/en.html"), []byte("<p>no code"), 0o600); err != nil {
		t.Fatal(err)
	}
	if found := Templates(t.Context(), cfg); len(found) != 1 || found[0].Level != Fail {
		t.Errorf("with a broken template: %+v", found)
	}
}
