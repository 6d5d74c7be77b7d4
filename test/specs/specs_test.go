// Package specs holds the requests that gatepost makes against the services' own descriptions of them. It is a module of
// its own, so that what it needs is no part of gatepost; it shares no code with it, and reads the requests from where
// the tests of package upstream keep them. The descriptions are not part of the project: GATEPOST_SPECS names their
// folder.
package specs

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	requests = "../../upstream/testdata/requests"
	usual    = "../../../shared/reference/esp-specs"
)

// undescribed lists types whose service nobody has described: a webhook's receiver is the user's own.
var undescribed = []string{"webhook"}

// request is a request as a file of requests has it.
type request struct {
	Method string
	URL    string
	Header map[string]string
	JSON   any
	Form   map[string][]string
	Files  map[string][]struct{ Name, Type, Content string }
	Text   string
}

func specs(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("GATEPOST_SPECS")
	if dir == "" {
		dir = usual
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("look for the services' descriptions: %v; GATEPOST_SPECS names their folder", err)
	}
	return dir
}

// kept returns the requests by the name of their file, without those of undescribed types.
func kept(t *testing.T) map[string]request {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(requests, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]request{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		if slices.Contains(undescribed, kind(name)) {
			continue
		}
		var r request
		read(t, file, &r)
		all[name] = r
	}
	return all
}

// described returns the name of the description that a file of requests is held against: its own, or that of its type.
func described(services map[string]service, name string) string {
	if _, ok := services[name]; ok {
		return name
	}
	return kind(name)
}

// kind returns the type of upstream that a file of requests is about.
func kind(name string) string {
	k, _, _ := strings.Cut(name, "-")
	return k
}

func read(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("read %s: %v", file, err)
	}
}

func TestRequestsAreAsTheServicesDescribeThem(t *testing.T) {
	services := describe(t, specs(t))
	count := map[string]int{}
	for name, r := range kept(t) {
		s, ok := services[described(services, name)]
		if !ok {
			t.Errorf("%s: no service is described that it could go to", name)
			continue
		}
		count[described(services, name)]++
		if err := s.check(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(services)) {
		if count[k] == 0 {
			t.Errorf("%s: there is no request in %s to check", k, requests)
		}
	}
}

// What is above can only be relied on where it finds something.
func TestARequestThatIsWrongIsFound(t *testing.T) {
	services := describe(t, specs(t))
	for name := range kept(t) {
		s := services[described(services, name)]
		for what, spoil := range map[string]func(r *request) bool{
			"another method":        func(r *request) bool { r.Method = "PUT"; return true },
			"another host":          func(r *request) bool { r.URL = strings.Replace(r.URL, "://", "://x.", 1); return true },
			"another path":          func(r *request) bool { r.URL += "x"; return true },
			"another type of body":  func(r *request) bool { r.Header["Content-Type"] = "text/plain"; return true },
			"a field nobody knows":  func(r *request) bool { return r.set("nobodyKnows", "x") },
			"a field's wrong type":  func(r *request) bool { return r.retype() },
			"no recipient, no body": func(r *request) bool { return r.empty() },
		} {
			var r request
			read(t, filepath.Join(requests, name+".json"), &r)
			if spoil(&r) && s.check(r) == nil {
				t.Errorf("%s: nothing was found wrong with %s", name, what)
			}
		}
	}
}

// set adds a field to the body.
func (r *request) set(name, value string) bool {
	if o, ok := r.JSON.(map[string]any); ok {
		o[name] = value
	} else {
		r.Form[name] = []string{value}
	}
	return true
}

// retype makes every field of a JSON body a number. A form has no types.
func (r *request) retype() bool {
	o, ok := r.JSON.(map[string]any)
	for name := range o {
		o[name] = 7
	}
	return ok
}

func (r *request) empty() bool {
	if r.JSON != nil {
		r.JSON = map[string]any{}
	}
	r.Form, r.Files = map[string][]string{}, nil
	return true
}
