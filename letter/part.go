package letter

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"gatepost/message"
	"gatepost/reply"
)

const (
	maxDepth      = 20       // multiparts inside one another; policy lets no more in
	maxParts      = 500      // of one mail
	maxPartHeader = 64 << 10 // octets of one part's header
	maxFields     = 1000     // of one header
)

// fields are the unfolded values of header fields by their name in lower case.
type fields map[string][]string

// readFields reads a header.
func readFields(header []byte) (fields, error) {
	found := fields{}
	n := 0
	for f := range message.Fields(header) {
		name := f.Name()
		if n++; n > maxFields {
			return nil, unfit("5.6.0", "A header has more than %d fields", maxFields)
		}
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, unfit("5.6.0", "A header has a line without a valid field name")
		}
		name = strings.ToLower(name)
		found[name] = append(found[name], f.Value())
	}
	return found, nil
}

// first returns the value of the first field called so, "" for none.
func (f fields) first(name string) string {
	if len(f[name]) == 0 {
		return ""
	}
	return f[name][0]
}

// readContent takes apart what a message with these fields has for a body.
func readContent(f fields, body []byte) (Content, error) {
	r := &reader{}
	c, err := r.entity(f, body, place{})
	if err != nil {
		return Content{}, err
	}
	c.settle()
	return c, nil
}

// reader takes one message apart.
type reader struct{ parts int }

// place says where a part stands.
type place struct {
	depth       int
	aside       bool // beside the root of a multipart/related: what the text shows
	alternative bool // directly in a multipart/alternative
	digest      bool // without a type it is a message (RFC 2046 §5.1.5)
}

// entity takes a message or part in.
func (r *reader) entity(f fields, body []byte, at place) (Content, error) {
	if r.parts++; r.parts > maxParts || at.depth > maxDepth {
		return Content{}, unfit("5.6.3", "The message has more than %d parts, or nests them more than %d levels deep", maxParts, maxDepth)
	}
	p, err := readPart(f, at)
	if err != nil {
		return Content{}, err
	}
	if strings.HasPrefix(p.kind, "multipart/") {
		return r.multipart(p, body, at)
	}
	if err := p.check(at); err != nil {
		return Content{}, err
	}
	data, err := decodeTransfer(body, p.encoding)
	if err != nil {
		return Content{}, err
	}
	return p.leaf(data, at)
}

// joins says how the parts of a multipart make up what it says. A type that is not here means more than its parts do.
var joins = map[string]func(whole *Content, next Content){
	"multipart/mixed":       (*Content).follow,
	"multipart/parallel":    (*Content).follow, // RFC 2046 §5.1.6
	"multipart/digest":      (*Content).follow,
	"multipart/related":     (*Content).follow,
	"multipart/alternative": (*Content).replace,
}

// multipart takes the parts of a multipart in.
func (r *reader) multipart(p *part, body []byte, at place) (Content, error) {
	join := joins[p.kind]
	switch {
	case join == nil:
		return Content{}, unfit("5.6.3", "The message has a part of type %s, which this service would break", printable(p.kind))
	case !isIdentity(p.encoding):
		return Content{}, unfit("5.6.0", "A multipart has a transfer encoding, which RFC 2045 section 6.4 forbids")
	}
	parts := split(body, p.params["boundary"])
	if len(parts) == 0 {
		return Content{}, unfit("5.6.0", "A multipart of the message has no boundary or no part")
	}
	var whole Content
	rooted := false
	for _, next := range parts {
		if len(next.Header()) > maxPartHeader {
			return Content{}, unfit("5.6.0", "The header of a part has more than %d octets", maxPartHeader)
		}
		f, err := readFields(next.Header())
		if err != nil {
			return Content{}, err
		}
		below := place{depth: at.depth + 1, aside: at.aside, alternative: p.kind == "multipart/alternative", digest: p.kind == "multipart/digest"}
		if p.kind == "multipart/related" {
			root := !rooted && p.isRoot(f.first("content-id"))
			rooted = rooted || root
			below.aside = below.aside || !root
		}
		c, err := r.entity(f, next.Body(), below)
		if err != nil {
			return Content{}, err
		}
		join(&whole, c)
	}
	if p.kind == "multipart/related" && !rooted {
		return Content{}, unfit("5.6.0", "A multipart/related has no root")
	}
	return whole, nil
}

// split returns what stands between the delimiter lines of a multipart (RFC 2046 §5.1.1): one part more than a message
// may have, at most. The CRLF in front of a delimiter belongs to it. Some writers leave out the closing one.
func split(body []byte, boundary string) (parts []message.Raw) {
	if boundary == "" {
		return nil
	}
	dashed := []byte("--" + boundary)
	start := -1 // of a part; none in the preamble
	for at := 0; at < len(body) && len(parts) <= maxParts; {
		end := len(body)
		if n := bytes.IndexByte(body[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		rest, found := bytes.CutPrefix(body[at:end], dashed)
		rest = bytes.TrimRight(rest, " \t\r\n")
		if last := string(rest) == "--"; found && (last || len(rest) == 0) {
			if start >= 0 {
				parts = append(parts, bytes.TrimSuffix(body[start:at], []byte("\r\n")))
			}
			if last {
				return parts
			}
			start = end
		}
		at = end
	}
	if start >= 0 {
		parts = append(parts, body[start:])
	}
	return parts
}

// isRoot reports whether the part with this Content-ID can be what a multipart/related is about: the one that its start
// parameter names, or else the first (RFC 2387 §3.2).
func (p *part) isRoot(cid string) bool {
	start := p.params["start"]
	return start == "" || bare(start) == bare(cid)
}

// bare returns a message id without its brackets.
func bare(id string) string {
	return strings.TrimSuffix(strings.TrimPrefix(spaced(id), "<"), ">")
}

// part is what the header of a part says of it.
type part struct {
	kind       string // media type in lower case
	params     map[string]string
	attachment bool // not to be shown with the text
	inline     bool // said to be shown
	name       string
	cid        string // without brackets
	location   bool   // it has a Content-Location (RFC 2557)
	encoding   string // in lower case
}

// readPart reads the fields that describe a part.
func readPart(f fields, at place) (*part, error) {
	for _, name := range []string{"Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Content-ID"} {
		if len(f[strings.ToLower(name)]) > 1 {
			return nil, unfit("5.6.0", "A part has more than one %s field", name)
		}
	}
	kind, params, err := described("Content-Type", f)
	if err != nil {
		return nil, err
	}
	switch {
	case kind == "" && at.digest:
		kind = "message/rfc822"
	case kind == "":
		kind = "text/plain"
	}
	disposition, more, err := described("Content-Disposition", f)
	if err != nil {
		return nil, err
	}
	p := &part{
		kind: kind, params: params,
		inline:     disposition == "inline",
		attachment: disposition != "" && disposition != "inline", // RFC 2183 §2.8
		name:       spaced(more["filename"]),
		cid:        bare(f.first("content-id")),
		location:   len(f["content-location"]) > 0,
	}
	if p.name == "" {
		p.name = spaced(params["name"])
	}
	encoding, _, _ := strings.Cut(f.first("content-transfer-encoding"), ";")
	p.encoding = strings.ToLower(strings.TrimSpace(encoding))
	return p, nil
}

// described reads the field called name, which may be absent or empty.
func described(name string, f fields) (string, map[string]string, error) {
	value, params, err := parameters(f.first(strings.ToLower(name)))
	if _, ok := errors.AsType[*reply.Error](err); ok {
		return "", nil, err
	}
	if err != nil {
		return "", nil, unfit("5.6.0", "The %s field of a part cannot be read: %v", name, err)
	}
	return value, params, nil
}

// check refuses a leaf that would not mean the same behind a service that builds the message itself.
func (p *part) check(at place) error {
	main, sub, ok := strings.Cut(p.kind, "/")
	switch {
	case !ok || !isToken(main) || !isToken(sub):
		return unfit("5.6.0", "A part has the type %q, which is not a media type", printable(p.kind))
	case slices.Contains([]string{"pkcs7-mime", "x-pkcs7-mime", "pkcs7-signature", "x-pkcs7-signature"}, sub):
		return unfit("5.6.3", "The message is signed or encrypted with S/MIME, which this service would break")
	case main == "message" && sub != "rfc822":
		return unfit("5.6.3", "The message has a part of type %s, which this service would break", printable(p.kind))
	case at.aside && p.location && p.cid == "":
		return unfit("5.6.3", "The text shows a part by its Content-Location, which this service cannot be told")
	}
	return nil
}

// isToken reports whether s is a token (RFC 2045 §5.1).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`()<>@,;:\"/[]?=`, r) })
}

// leaf turns the decoded body of a part into text or a file.
func (p *part) leaf(data []byte, at place) (Content, error) {
	plain := p.kind == "text/plain" || p.kind == "text/html"
	isText := strings.HasPrefix(p.kind, "text/") && !p.attachment && !at.aside &&
		(plain && p.name == "" || !plain && at.alternative)
	if !isText {
		f := File{Name: p.name, Type: p.kind, CID: p.cid, Inline: at.aside || p.inline, Data: data}
		return Content{Files: []File{f}}, nil
	}
	text, err := decodeText(data, p.params["charset"])
	if err != nil || strings.TrimSpace(text) == "" {
		return Content{}, err
	}
	switch p.kind {
	case "text/plain":
		return Content{Text: text}, nil
	case "text/html":
		return Content{HTML: text}, nil
	}
	return Content{Alternatives: []Alternative{{Type: p.kind, Method: p.params["method"], Text: text}}}, nil
}
