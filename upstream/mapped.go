package upstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	netmail "net/mail"
	"slices"
	"strings"

	"gatepost/letter"
	"gatepost/message"
	"gatepost/reply"
)

// What the services that take the pieces of a mail as JSON have in common: SendGrid and Postmark.

// wholeMail returns wire in one piece, copied only where it is not one.
func wholeMail(wire net.Buffers) message.Raw {
	if len(wire) == 1 {
		return wire[0]
	}
	return slices.Concat(wire...)
}

// encodeJSON returns v as JSON. Text stays as it is, also in HTML.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// jsonMail is the body of requests for one mail to several recipients. What all of them share is made once, in pieces:
// files are not copied together, so that a big mail is in memory as seldom as can be.
type jsonMail struct {
	shared net.Buffers // an object
	most   int         // octets that the service takes
}

// jsonFile is a file in a request: an object with its content, in base64, as one more member.
type jsonFile struct {
	about any // an object
	data  []byte
}

// newJSONMail makes what requests share: the members of about, an object, and files as the list called list, each with
// its content in the member called content.
func newJSONMail(most int, about any, list, content string, files []jsonFile) (jsonMail, error) {
	head, err := encodeJSON(about)
	if err != nil || len(files) == 0 {
		return jsonMail{net.Buffers{head}, most}, err
	}
	m := jsonMail{net.Buffers{head[:len(head)-1]}, most}
	before := `,"` + list + `":[`
	for _, f := range files {
		about, err := encodeJSON(f.about)
		if err != nil {
			return jsonMail{}, err
		}
		encoded := make([]byte, base64.StdEncoding.EncodedLen(len(f.data)))
		base64.StdEncoding.Encode(encoded, f.data)
		m.shared = append(m.shared, []byte(before), about[:len(about)-1], []byte(`,"`+content+`":"`), encoded)
		before = `"},`
	}
	m.shared = append(m.shared, []byte(`"}]}`))
	return m, nil
}

// with returns the body of a request that has the members of own, an object, beside the shared ones.
func (m jsonMail) with(own any) (net.Buffers, error) {
	head, err := encodeJSON(own)
	if err != nil {
		return nil, err
	}
	body := slices.Concat(net.Buffers{head[:len(head)-1], []byte(","), m.shared[0][1:]}, m.shared[1:])
	if n := length(body); n > m.most {
		return nil, reply.New(552, "5.3.4", "The message is too big for the mail service: %d octets of a request, %d are taken", n, m.most)
	}
	return body, nil
}

func length(pieces net.Buffers) int {
	n := 0
	for _, b := range pieces {
		n += len(b)
	}
	return n
}

// ask makes what sends body to url.
func (m jsonMail) ask(url string, header map[string]string, body net.Buffers) func(ctx context.Context, x *exchange) error {
	return func(ctx context.Context, x *exchange) error {
		pieces := slices.Clone(body)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, io.NopCloser(&pieces))
		if err != nil {
			return err
		}
		req.ContentLength = int64(length(body))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Accept", "application/json")
		for name, value := range header {
			req.Header.Set(name, value)
		}
		_, err = x.Do(req)
		return err
	}
}

// positions returns where the recipients of c stand in the envelope.
func positions(c letter.Call) []int {
	var all []int
	for _, r := range c.All() {
		all = append(all, r.N)
	}
	return all
}

// refusedOnly makes the verdicts on a request that was refused as a whole because of some of its recipients: those are
// refused, and the others have their turn without them.
func refusedOnly(refused message.Verdict, recipients []letter.Recipient, is func(i int, r letter.Recipient) bool) []message.Verdict {
	put := message.Verdict{Class: message.Temporary, Scope: message.ScopeRecipient, Code: refused.Code, Text: "put off: the service refused another recipient of the same request"}
	vs := put.Verdicts(len(recipients))
	for i, r := range recipients {
		if is(i, r) {
			vs[i] = refused
		}
	}
	return vs
}

// quoted returns text as a quoted-string (RFC 5322 §3.2.4).
func quoted(text string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`
}

// boxText writes a mailbox as services read it: its name in UTF-8, quoted.
func boxText(b netmail.Address) string {
	if b.Name == "" {
		return b.Address
	}
	return quoted(b.Name) + " <" + b.Address + ">"
}

func boxesText(boxes []netmail.Address) string {
	var all []string
	for _, b := range boxes {
		all = append(all, boxText(b))
	}
	return strings.Join(all, ", ")
}

// uniqueBoxes returns boxes without the second and later ones of an address.
func uniqueBoxes(boxes []netmail.Address) []netmail.Address {
	var unique []netmail.Address
	for _, b := range boxes {
		if !slices.ContainsFunc(unique, func(u netmail.Address) bool { return strings.EqualFold(u.Address, b.Address) }) {
			unique = append(unique, b)
		}
	}
	return unique
}
