package upstreamtest

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goldenRequests is where the requests of each type are kept, as seen from the tests of package upstream. They are also
// what make test-specs holds against the vendors' own descriptions.
const goldenRequests = "testdata/requests"

// hidden stands for what is secret or new in every request.
const hidden = "…"

// always lists header fields that are secret, new in every request or none of ours.
var always = map[string]bool{"Authorization": true, "X-Postmark-Server-Token": true, "X-Amz-Date": true, "X-Amz-Security-Token": true,
	"X-Acs-Date": true, "X-Acs-Signature-Nonce": true, "X-Acs-Content-Sha256": true, "Webhook-Timestamp": true, "Webhook-Signature": true,
	"Amz-Sdk-Invocation-Id": true, "User-Agent": true}

// goldenRequest is the form of a request in a file. Of the last four it has the one that its body is.
type goldenRequest struct {
	Method string                  `json:"method"`
	URL    string                  `json:"url"`
	Header map[string]string       `json:"header"`
	JSON   any                     `json:"json,omitempty"`
	Form   map[string][]string     `json:"form,omitempty"`  // also of a multipart form, beside its files
	Files  map[string][]goldenFile `json:"files,omitempty"` // of a multipart form
	Text   string                  `json:"text,omitempty"`
}

type goldenFile struct {
	Name    string `json:"name"`
	Type    string `json:"type,omitempty"`
	Content string `json:"content"`
}

// CheckRequest compares r, as a service received it, with testdata/requests/NAME.json. A name begins with the
// type and a hyphen: "sendgrid-inline". service is the address that the type has without an endpoint of its own in the
// config, as "https://api.sendgrid.com": the request stands there as if it had gone to it. With GATEPOST_UPDATE=1 in
// the environment the file is written anew instead.
func CheckRequest(tb testing.TB, name, service string, r Request) {
	tb.Helper()
	got := marshalRequest(tb, service, r)
	file := filepath.Join(goldenRequests, name+".json")
	if os.Getenv("GATEPOST_UPDATE") != "" {
		if err := os.MkdirAll(goldenRequests, 0o755); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			tb.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		tb.Fatalf("read the golden request: %v; GATEPOST_UPDATE=1 writes it", err)
	}
	if !bytes.Equal(got, want) {
		tb.Errorf("the request differs from %s (GATEPOST_UPDATE=1 writes it anew):\n%s\nwant\n%s", file, got, want)
	}
}

func marshalRequest(tb testing.TB, service string, r Request) []byte {
	tb.Helper()
	g := goldenRequest{Method: r.Method, URL: service + r.Path, Header: map[string]string{}}
	for name, values := range r.Header {
		switch {
		case name == "Content-Length" || name == "Accept-Encoding":
		case always[name]:
			g.Header[name] = hidden
		default:
			g.Header[name] = strings.Join(values, ", ")
		}
	}
	if err := g.read(r.Header.Get("Content-Type"), r.Body); err != nil {
		tb.Fatalf("the body of the request cannot be read as what it says that it is: %v\n%s", err, r.Body)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	if err := e.Encode(g); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// read takes in the body by its type.
func (g *goldenRequest) read(contentType string, body []byte) error {
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return err
	}
	switch kind {
	case "application/json":
		d := json.NewDecoder(bytes.NewReader(body))
		d.UseNumber()
		return d.Decode(&g.JSON)
	case "application/x-www-form-urlencoded":
		g.Form, err = url.ParseQuery(string(body))
		return err
	case "multipart/form-data":
		g.Header["Content-Type"] = kind + "; boundary=b" // which is new in every request
		return g.readParts(multipart.NewReader(bytes.NewReader(body), params["boundary"]))
	}
	g.Text = string(body)
	return nil
}

func (g *goldenRequest) readParts(r *multipart.Reader) error {
	g.Form, g.Files = map[string][]string{}, map[string][]goldenFile{}
	for {
		part, err := r.NextRawPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(part)
		if err != nil {
			return err
		}
		name := part.FormName()
		if part.FileName() == "" {
			g.Form[name] = append(g.Form[name], string(content))
			continue
		}
		g.Files[name] = append(g.Files[name], goldenFile{part.FileName(), part.Header.Get("Content-Type"), string(content)})
	}
}
