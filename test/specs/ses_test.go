package specs

import (
	"regexp"
	"testing"
)

// model is a service model as AWS publishes them for its libraries.
type model struct {
	Metadata   struct{ EndpointPrefix, SigningName string }
	Operations map[string]struct {
		HTTP  struct{ Method, RequestURI string }
		Input struct{ Shape string }
	}
	Shapes map[string]shape
}

type shape struct {
	Type     string
	Required []string
	Members  map[string]struct {
		Shape        string
		Location     string
		LocationName string
	}
	Member  struct{ Shape string }
	Min     *int
	Max     *int
	Enum    []string
	Pattern string
}

func ses(t *testing.T, file string) service {
	var m model
	read(t, file, &m)
	operation, ok := m.Operations["SendEmail"]
	if !ok {
		t.Fatalf("%s does not describe SendEmail", file)
	}
	definitions := object{}
	for name, s := range m.Shapes {
		definitions[name] = s.schema(t, name)
	}
	return service{
		method: operation.HTTP.Method, hosts: []string{regexp.QuoteMeta(m.Metadata.EndpointPrefix) + `\.[a-z]+(-[a-z]+)+-[0-9]\.amazonaws\.com`},
		path: regexp.QuoteMeta(operation.HTTP.RequestURI), content: "application/json",
		body: compile(t, object{"$ref": "#/$defs/" + operation.Input.Shape, "$defs": definitions}, ""),
	}
}

// named lists what the developer guide says of names that the model leaves open.
var named = map[string]string{
	"MessageTagName": "^[A-Za-z0-9_-]{1,256}$", "MessageTagValue": "^[A-Za-z0-9_-]{1,256}$",
	"ConfigurationSetName": "^[A-Za-z0-9_-]{1,64}$", "TenantName": "^[A-Za-z0-9_-]{1,64}$",
}

// schema returns s as a JSON schema.
func (s shape) schema(t *testing.T, name string) object {
	t.Helper()
	o := object{}
	bound := func(least, most string) {
		if s.Min != nil {
			o[least] = *s.Min
		}
		if s.Max != nil {
			o[most] = *s.Max
		}
	}
	switch s.Type {
	case "structure":
		fields := object{}
		for member, to := range s.Members {
			if to.Location != "" || to.LocationName != "" {
				t.Fatalf("%s.%s does not stand in the body under its own name: this knows only such", name, member)
			}
			fields[member] = object{"$ref": "#/$defs/" + to.Shape}
		}
		o["type"], o["properties"], o["additionalProperties"] = "object", fields, false
		if s.Required != nil {
			o["required"] = s.Required
		}
	case "list":
		o["type"], o["items"] = "array", object{"$ref": "#/$defs/" + s.Member.Shape}
		bound("minItems", "maxItems")
	case "blob":
		o["type"], o["pattern"] = "string", "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
	case "string":
		o["type"] = "string"
		bound("minLength", "maxLength")
		if s.Enum != nil {
			o["enum"] = s.Enum
		}
		if s.Pattern != "" {
			o["pattern"] = s.Pattern
		}
		if p, ok := named[name]; ok {
			o["pattern"] = p
		}
	default:
		t.Fatalf("shape %s is a %q: this does not know such", name, s.Type)
	}
	return o
}
