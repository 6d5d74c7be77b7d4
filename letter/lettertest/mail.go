// Package lettertest makes mail at random for tests of what is told to services in pieces: it knows every piece that it
// put into a mail, and whether the mail can be told at all.
package lettertest

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"mime"
	"mime/quotedprintable"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/japanese"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"

	"gatepost/message"
)

// Mail is a mail and what is in it.
type Mail struct {
	Raw    message.Raw
	Pieces []Piece
	Unfit  string // why it must be refused by everybody who takes it apart; "" where it must not
	To     []string
}

// Piece is something that a mail says. Its text is to be found nowhere else in it.
type Piece struct {
	What string // "field", "subject", "name", "address", "text", "file", "file name" or "cid"
	Name string // of a field; the type of a text or file
	Text string // decoded, in UTF-8
	Data string // of text: its octets in the mail, which it has where it is sent as a file
	Over bool   // a later alternative of the same type may stand in for it
}

// In reports whether one of the strings, or of the octets of files, has the piece in it.
func (p Piece) In(said []string) bool {
	return slices.ContainsFunc(said, func(s string) bool {
		return strings.Contains(s, p.Text) || p.Data != "" && strings.Contains(s, p.Data)
	})
}

func (p Piece) String() string { return fmt.Sprintf("%s %s %q", p.What, p.Name, p.Text) }

// Random makes a mail.
func Random(r *rand.Rand) Mail {
	g := &generator{Rand: r}
	head := g.header()
	part, _ := g.entity(0, false)
	g.mail.Raw = message.Raw(head + part)
	return g.mail
}

type generator struct {
	*rand.Rand
	mail   Mail
	number int
}

// word returns text that is nowhere else in the mail, and in letters that all character sets here have.
func (g *generator) word() string {
	g.number++
	letters := []string{"", "code ", "確認", "コード ", "日本"}
	return pick(g, letters) + fmt.Sprintf("w%dz", g.number)
}

// ascii is word without other letters.
func (g *generator) ascii() string {
	g.number++
	return fmt.Sprintf("w%dz", g.number)
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

// once reports true in one of n cases.
func (g *generator) once(n int) bool { return g.IntN(n) == 0 }

func (g *generator) piece(what, name, text string) string {
	g.mail.Pieces = append(g.mail.Pieces, Piece{What: what, Name: name, Text: text})
	return text
}

func (g *generator) unfit(why string) {
	if g.mail.Unfit == "" {
		g.mail.Unfit = why
	}
}

// charset is a character set that a text may be in.
type charset struct {
	name string
	encoding.Encoding
}

var charsets = []charset{
	{"utf-8", unicode.UTF8}, {"UTF-8", unicode.UTF8}, {"iso-2022-jp", japanese.ISO2022JP}, {"Shift_JIS", japanese.ShiftJIS},
	{"euc-jp", japanese.EUCJP}, {"gb18030", simplifiedchinese.GB18030}, {"gbk", simplifiedchinese.GBK},
}

func (c charset) encode(s string) string {
	encoded, err := c.NewEncoder().String(s)
	if err != nil {
		panic(fmt.Sprintf("%q has no form in %s: %v", s, c.name, err))
	}
	return encoded
}

// header returns the fields of a message that do not describe its body.
func (g *generator) header() string {
	var lines []string
	add := func(name, value string) { lines = append(lines, name+": "+value) }
	add("From", g.encodedWord(g.piece("name", "From", g.word()))+" <"+g.piece("address", "From", g.ascii()+"@auth.example.com")+">")
	for n := range 1 + g.IntN(3) {
		g.mail.To = append(g.mail.To, fmt.Sprintf("user%d@example.net", n))
	}
	add("To", g.encodedWord(g.word())+" <"+strings.Join(g.mail.To, ">, <")+">")
	add("Subject", g.encodedWord(g.piece("subject", "Subject", g.word())))
	if g.once(2) {
		var boxes []string
		for range 1 + g.IntN(3) {
			boxes = append(boxes, g.piece("address", "Reply-To", g.ascii()+"@example.com"))
		}
		add("Reply-To", strings.Join(boxes, ",\r\n "))
	}
	names := []string{"X-Trace", "List-ID", "Precedence", "Auto-Submitted", "X-Mailer", "Organization", "Message-ID", "In-Reply-To", "Sender", "Date",
		"Content-Language", "Received", "DKIM-Signature", "X-PM-Tag", "Resent-To", "MIME-Version"}
	g.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	for _, name := range names[:g.IntN(len(names))] {
		value := g.piece("field", name, g.ascii())
		add(name, pick(g, []string{value, value + "\r\n\tfolded", "<" + value + "@example.com>"}))
	}
	g.Shuffle(len(lines), func(i, k int) { lines[i], lines[k] = lines[k], lines[i] })
	return strings.Join(lines, "\r\n") + "\r\n"
}

// encodedWord writes s as RFC 2047 words where it needs them, or raw.
func (g *generator) encodedWord(s string) string {
	c := pick(g, charsets)
	switch encoded := c.encode(s); {
	case g.once(4):
		return s
	case g.once(2):
		return "=?" + c.name + "?B?" + base64.StdEncoding.EncodeToString([]byte(encoded)) + "?="
	default:
		return mime.QEncoding.Encode("utf-8", s)
	}
}

// entity returns the header and body of a part, and the numbers of the pieces of text in it.
func (g *generator) entity(depth int, aside bool) (part string, from int) {
	from = len(g.mail.Pieces)
	if depth < 4 && !g.once(3) {
		return g.multipart(depth, aside), from
	}
	return g.leaf(aside), from
}

func (g *generator) multipart(depth int, aside bool) string {
	kind := pick(g, []string{"mixed", "mixed", "alternative", "alternative", "related", "parallel"})
	if g.once(40) {
		kind = pick(g, []string{"signed", "encrypted", "report", "x-unknown"})
		g.unfit("a multipart/" + kind)
	}
	boundary := g.ascii()
	var parts []string
	for n := range 1 + g.IntN(4) {
		part, from := g.entity(depth+1, aside || kind == "related" && n > 0)
		if kind == "alternative" {
			g.standIn(from)
		}
		parts = append(parts, part)
	}
	delimiter := "\r\n--" + boundary
	head := "Content-Type: multipart/" + kind + ";\r\n boundary=\"" + boundary + "\"\r\n\r\n"
	ends := []string{delimiter + "--", delimiter + "--\r\n", delimiter + "-- \r\nepilogue", "\r\n"} // the last has none, as some writers do
	return head + pick(g, []string{"", "preamble"}) + delimiter + "\r\n" + strings.Join(parts, delimiter+"\r\n") + pick(g, ends)
}

// standIn marks the text of earlier alternatives whose type one of the pieces from here on has, too.
func (g *generator) standIn(from int) {
	for i, p := range g.mail.Pieces[:from] {
		if p.What == "text" && slices.ContainsFunc(g.mail.Pieces[from:], func(q Piece) bool { return q.What == "text" && q.Name == p.Name }) {
			g.mail.Pieces[i].Over = true
		}
	}
}

func (g *generator) leaf(aside bool) string {
	kind := pick(g, []string{"text/plain", "text/plain", "text/html", "text/html", "text/calendar", "image/png", "application/pdf", "message/rfc822"})
	if g.once(60) {
		kind = pick(g, []string{"application/pkcs7-mime", "message/partial"})
		g.unfit(kind)
	}
	var fields []string
	text := g.word()
	data, params := text, ""
	if strings.HasPrefix(kind, "text/") {
		c := pick(g, charsets)
		if g.once(8) {
			c = charset{"iso-8859-1", charmap.ISO8859_1}
			text = "é " + g.ascii()
		}
		data, params = c.encode(text), pick(g, []string{"; charset=", ";\r\n CHARSET = "})+c.name
		if c.Encoding == unicode.UTF8 && g.once(2) {
			params = ""
		}
		g.mail.Pieces = append(g.mail.Pieces, Piece{What: "text", Name: kind, Text: text, Data: data})
	} else {
		g.piece("file", kind, text)
		fields = append(fields, g.disposition()...)
	}
	if aside && g.once(2) {
		fields = append(fields, "Content-ID: <"+g.piece("cid", kind, g.ascii()+"@cid.example")+">")
	}
	if g.once(4) {
		fields = append(fields, "Content-Description: "+g.ascii())
	}
	encoding, body := g.transfer(kind, data)
	fields = append(fields, "Content-Type: "+kind+params, encoding)
	g.Shuffle(len(fields), func(i, k int) { fields[i], fields[k] = fields[k], fields[i] })
	return strings.Join(fields, "\r\n") + "\r\n\r\n" + body
}

// disposition returns the fields that name a file, perhaps none.
func (g *generator) disposition() []string {
	switch g.IntN(5) {
	case 0:
		return nil
	case 1:
		return []string{`Content-Disposition: attachment; filename="` + g.encodedWord(g.piece("file name", "", g.word())) + `"`}
	case 2:
		c, name := pick(g, charsets), g.piece("file name", "", g.word())
		return []string{"Content-Disposition: inline; filename*=" + c.name + "'ja'" + url.PathEscape(c.encode(name))}
	case 3:
		c, name := pick(g, charsets), g.piece("file name", "", g.word())
		escaped := url.PathEscape(c.encode(name))
		half := len(escaped) / 2
		for half > 0 && strings.Contains(escaped[half-min(half, 2):half], "%") {
			half--
		}
		return []string{"Content-Disposition: attachment;\r\n filename*1*=" + escaped[half:] + ";\r\n filename*0*=" + c.name + "''" + escaped[:half]}
	}
	return []string{"Content-Disposition: attachment; size=3"}
}

// transfer returns a Content-Transfer-Encoding field and the body in it.
func (g *generator) transfer(kind, data string) (field, body string) {
	switch {
	case g.once(80):
		g.unfit("a transfer encoding that is not known")
		return "Content-Transfer-Encoding: x-unknown", data
	case g.once(3) || strings.HasPrefix(kind, "message/"):
		return "Content-Transfer-Encoding: 8bit", data
	case g.once(2):
		return "Content-Transfer-Encoding: Base64", base64.StdEncoding.EncodeToString([]byte(data))
	}
	var b strings.Builder
	w := quotedprintable.NewWriter(&b)
	w.Write([]byte(data))
	w.Close()
	return "Content-Transfer-Encoding: quoted-printable", b.String()
}
