package policy

import (
	"bytes"
	"mime"
	"strings"

	"gatepost/message"
	"gatepost/reply"
)

const (
	maxNesting     = 20      // multiparts and messages inside one another; render encodes no deeper either
	maxContentType = 8 << 10 // octets of a part's Content-Type that are looked at
)

// checkNesting refuses a message whose parts are nested so deep that readers choke on it. It looks at nothing but
// delimiters and the Content-Type of parts, in one pass.
func checkNesting(contentType string, body []byte) error {
	n := nesting{}
	if n.enter(contentType); len(n.levels) == 0 {
		return nil
	}
	for len(body) > 0 && len(n.levels) <= maxNesting {
		end := bytes.IndexByte(body, '\n') + 1
		if end == 0 {
			end = len(body)
		}
		n.line(bytes.TrimRight(body[:end], "\r\n"))
		body = body[end:]
	}
	if len(n.levels) > maxNesting {
		return reply.New(554, "5.6.0", "The parts of the message are nested more than %d levels deep", maxNesting)
	}
	return nil
}

// nesting is where in the structure of a message a line stands.
type nesting struct {
	levels   []string // delimiters of the multiparts that are open, "" for a message
	inHeader bool     // of a part or an enclosed message
	field    []byte   // its Content-Type as far as it has been read; nil while none has begun
	reading  bool     // the last line belonged to field
}

// enter opens a level where contentType has parts.
func (n *nesting) enter(contentType string) {
	n.inHeader, n.field, n.reading = false, nil, false
	kind, params, err := mime.ParseMediaType(contentType)
	switch {
	case err != nil && kind == "":
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
		n.levels = append(n.levels, "--"+params["boundary"])
	case kind == "message/rfc822" || kind == "message/global":
		n.levels = append(n.levels, "")
		n.inHeader = true
	}
}

func (n *nesting) line(line []byte) {
	if bytes.HasPrefix(line, []byte("--")) && n.delimiter(line) || !n.inHeader {
		return
	}
	switch {
	case len(line) == 0:
		n.enter(message.Field(n.field).Value())
	case line[0] == ' ' || line[0] == '\t':
		if n.reading && len(n.field) < maxContentType {
			n.field = append(n.field, line...)
		}
	default:
		if n.reading = message.Field(line).Is("Content-Type"); n.reading {
			n.field = bytes.Clone(line[:min(len(line), maxContentType)])
		}
	}
}

// delimiter reports whether line delimits a part of a multipart that is open, and goes there.
func (n *nesting) delimiter(line []byte) bool {
	for i := len(n.levels) - 1; i >= 0; i-- {
		rest, ok := bytes.CutPrefix(line, []byte(n.levels[i]))
		if !ok || n.levels[i] == "" {
			continue
		}
		switch rest = bytes.TrimRight(rest, " \t"); string(rest) {
		case "":
			n.levels, n.inHeader = n.levels[:i+1], true
		case "--":
			n.levels, n.inHeader = n.levels[:i], false
		default:
			continue
		}
		n.field, n.reading = nil, false
		return true
	}
	return false
}
