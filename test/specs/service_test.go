package specs

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// service is the description of one call, brought into one form.
type service struct {
	method  string
	hosts   []string // patterns
	path    string   // pattern
	content string
	body    *jsonschema.Schema
	lists   []string // fields of a form that may stand there more than once
}

// check returns what is wrong with r.
func (s service) check(r request) error {
	u, err := url.Parse(r.URL)
	if err != nil {
		return err
	}
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	fits := func(pattern string) bool { return matches(pattern, u.Host) }
	if r.Method != s.method {
		bad("method %s, want %s", r.Method, s.method)
	}
	if u.Scheme != "https" || !slices.ContainsFunc(s.hosts, fits) {
		bad("goes to %s://%s, want one of %q by https", u.Scheme, u.Host, s.hosts)
	}
	if !matches(s.path, u.Path) {
		bad("path %s, want %s", u.Path, s.path)
	}
	if kind, _, err := mime.ParseMediaType(r.Header["Content-Type"]); err != nil || kind != s.content {
		bad("content type %q, want %s", r.Header["Content-Type"], s.content)
	}
	if err := s.body.Validate(s.fields(r)); err != nil {
		bad("body: %v", err)
	}
	return errors.Join(errs...)
}

func matches(pattern, s string) bool {
	return regexp.MustCompile("^(?:" + pattern + ")$").MatchString(s)
}

// fields returns the body as a JSON value: a form's fields are text, or lists of it where the service says so.
func (s service) fields(r request) any {
	if r.JSON != nil {
		return r.JSON
	}
	all := map[string][]any{}
	for name, values := range r.Form {
		for _, v := range values {
			all[name] = append(all[name], v)
		}
	}
	for name, files := range r.Files {
		for _, f := range files {
			all[name] = append(all[name], f.Content)
		}
	}
	body := map[string]any{}
	for name, values := range all {
		if len(values) == 1 && !slices.Contains(s.lists, name) {
			body[name] = values[0]
		} else {
			body[name] = values
		}
	}
	return body
}

// describe reads the descriptions in dir. Where a service is known to differ from what describes it, that is mended
// here.
func describe(t *testing.T, dir string) map[string]service {
	t.Helper()
	return map[string]service{
		"ses":      ses(t, filepath.Join(dir, "ses-v2.model.json")),
		"mailgun":  mailgun(t, filepath.Join(dir, "mailgun-messages.openapi.json"), "messages.mime"),
		"sendgrid": sendgrid(t, filepath.Join(dir, "sendgrid-mail-send.oai.json")),
		"postmark": postmark(t, filepath.Join(dir, "postmark-email.schema.json")),

		"mailgun-template":  mailgun(t, filepath.Join(dir, "mailgun-messages.openapi.json"), "messages"),
		"postmark-template": postmarkTemplate(t, filepath.Join(dir, "postmark-email.schema.json")),
		"aliyun":            aliyun(t, filepath.Join(dir, "aliyun-dm-SingleSendMail.meta.json")),
	}
}

// object is a JSON object.
type object = map[string]any

// at returns what is inside o under those names.
func at(t *testing.T, o object, names ...string) object {
	t.Helper()
	for _, n := range names {
		inner, ok := o[n].(object)
		if !ok {
			t.Fatalf("the description has no %q in %q", n, names)
		}
		o = inner
	}
	return o
}

// closed returns v with every object of known fields limited to them: descriptions leave it open, but a service drops a
// field that it does not know, or refuses the mail.
func closed(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = closed(v[i])
		}
	case object:
		for name := range v {
			v[name] = closed(v[name])
		}
		if _, ok := v["properties"].(object); ok && v["additionalProperties"] == nil {
			v["additionalProperties"] = false
		}
	}
	return v
}

// compile makes a schema of the part of doc that pointer names.
func compile(t *testing.T, doc any, pointer string) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	b, err := json.Marshal(doc) // numbers must be as the compiler reads them
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddResource("description.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("description.json#" + pointer)
	if err != nil {
		t.Fatalf("compile the description of a body: %v", err)
	}
	return schema
}

// servers returns patterns of the hosts that an OpenAPI document names.
func servers(t *testing.T, doc object) []string {
	t.Helper()
	var hosts []string
	list, _ := doc["servers"].([]any)
	for _, s := range list {
		u, err := url.Parse(fmt.Sprint(s.(object)["url"]))
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, regexp.QuoteMeta(u.Host))
	}
	return hosts
}

func postmark(t *testing.T, file string) service {
	var doc object
	read(t, file, &doc)
	return service{method: "POST", hosts: []string{`api\.postmarkapp\.com`}, path: "/email", content: "application/json", body: compile(t, doc, "")}
}

func sendgrid(t *testing.T, file string) service {
	var doc object
	read(t, file, &doc)
	at(t, doc, "paths", "/v3/mail/send", "post") // it is what the requests are held against
	mail := at(t, doc, "components", "requestBodies", "PostMailSend", "content", "application/json", "schema")
	texts := object{"type": "object", "additionalProperties": object{"type": "string"}}
	fields := at(t, mail, "properties")
	fields["custom_args"], fields["headers"] = texts, texts // described as one text, and as anything
	closed(at(t, doc, "components"))
	const pointer = "/components/requestBodies/PostMailSend/content/application~1json/schema"
	return service{method: "POST", hosts: servers(t, doc), path: "/v3/mail/send", content: "application/json", body: compile(t, doc, pointer)}
}

// postmarkTemplate makes of the description of mail with words that of mail with a template, as the vendor's pages have it.
func postmarkTemplate(t *testing.T, file string) service {
	var doc object
	read(t, file, &doc)
	fields := at(t, doc, "properties")
	for _, words := range []string{"Subject", "TextBody", "HtmlBody"} {
		delete(fields, words)
	}
	fields["TemplateId"], fields["TemplateAlias"], fields["TemplateModel"] = object{"type": "integer"}, object{"type": "string", "minLength": 1}, object{"type": "object"}
	doc["required"] = []string{"From", "To", "TemplateModel"}
	doc["oneOf"] = []object{{"required": []string{"TemplateId"}}, {"required": []string{"TemplateAlias"}}}
	return service{method: "POST", hosts: []string{`api\.postmarkapp\.com`}, path: "/email/withTemplate", content: "application/json", body: compile(t, doc, "")}
}

func mailgun(t *testing.T, file, call string) service {
	var doc object
	read(t, file, &doc)
	form := at(t, doc, "paths", "/v3/{domain_name}/"+call, "post", "requestBody", "content", "multipart/form-data", "schema")
	pointer := strings.TrimPrefix(fmt.Sprint(form["$ref"]), "#")
	body := at(t, doc, strings.Split(strings.Trim(pointer, "/"), "/")...)
	fields := at(t, body, "properties")
	delete(fields, "h:X-My-Header") // these two stand for all of their kind
	delete(fields, "v:my-var")
	body["patternProperties"] = object{"^[hv]:[!-9;-~]+$": object{"type": "string"}}
	body["additionalProperties"] = false
	s := service{method: "POST", hosts: servers(t, doc), path: "/v3/[a-z0-9.-]+/" + regexp.QuoteMeta(call), content: "multipart/form-data"}
	for name, f := range fields {
		if f.(object)["type"] == "array" {
			s.lists = append(s.lists, name)
		}
	}
	s.body = compile(t, doc, pointer)
	return s
}

func aliyun(t *testing.T, file string) service {
	var doc struct {
		Product struct {
			RegionalEndpoints map[string]string `json:"regional_endpoints"`
		}
		API struct {
			Name       string
			Parameters []struct {
				Name, Position, Type string
				Required             bool
			}
		}
	}
	read(t, file, &doc)
	if doc.API.Name != "SingleSendMail" {
		t.Fatalf("%s describes %q, want SingleSendMail", file, doc.API.Name)
	}
	fields, required := object{}, []string{}
	for _, p := range doc.API.Parameters {
		switch {
		case p.Position != "Body":
			t.Fatalf("parameter %s is in the %s: this knows only bodies", p.Name, p.Position)
		case p.Name == "Attachments": // only the vendor's own libraries can send them
			continue
		}
		fields[p.Name] = object{"type": "string", "pattern": map[string]string{"Integer": "^-?[0-9]+$", "Boolean": "^(true|false)$", "String": ""}[p.Type]}
		if p.Required {
			required = append(required, p.Name)
		}
	}
	s := service{method: "POST", path: "/", content: "application/x-www-form-urlencoded"}
	for _, host := range doc.Product.RegionalEndpoints {
		s.hosts = append(s.hosts, regexp.QuoteMeta(host))
	}
	s.body = compile(t, object{"type": "object", "properties": fields, "required": required, "additionalProperties": false}, "")
	return s
}
