package upstream

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
)

// What a host may send as one reply. RFC 5321 §4.5.3.1.5 asks for lines of 512 octets; hosts go beyond that.
const (
	maxReplyLine  = 2 << 10
	maxReplyLines = 200
	maxReplySize  = 64 << 10
	maxReplyText  = 1 << 10 // what a verdict keeps of it
)

// smtpReply is one reply (RFC 5321 §4.2), of one line or several.
type smtpReply struct {
	code     int
	enhanced string   // of the first line (RFC 2034); "" where there is none
	lines    []string // without codes
}

// text returns the words of the reply in one line.
func (r smtpReply) text() string {
	s := strings.Join(r.lines, " ")
	if len(s) > maxReplyText {
		s = s[:maxReplyText]
	}
	return strings.ToValidUTF8(s, "?")
}

// class returns the first digit of the code.
func (r smtpReply) class() int { return r.code / 100 }

// readReply reads one reply. br's buffer bounds the line. After an error the dialogue cannot go on: what is answered
// to what is no longer known.
func readReply(br *bufio.Reader) (smtpReply, error) {
	var r smtpReply
	size := 0
	for {
		line, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return r, fmt.Errorf("malformed reply: a line is longer than %d octets", br.Size())
		}
		if err != nil {
			return r, err
		}
		if size += len(line); size > maxReplySize || len(r.lines) == maxReplyLines {
			return r, errors.New("malformed reply: it does not end")
		}
		more, err := r.add(strings.TrimRight(string(line), "\r\n"))
		if err != nil || !more {
			return r, err
		}
	}
}

// add takes one line of a reply and reports whether more follow.
func (r *smtpReply) add(line string) (more bool, err error) {
	code, ok := replyCode(line)
	if !ok {
		return false, errors.New("malformed reply: a line does not start with a code")
	}
	if len(r.lines) > 0 && code != r.code {
		return false, errors.New("malformed reply: its lines have different codes")
	}
	text := line[3:]
	if text != "" {
		more = text[0] == '-'
		text = text[1:]
	}
	enhanced, text := cutEnhanced(text)
	if len(r.lines) == 0 {
		r.code, r.enhanced = code, enhanced
	}
	r.lines = append(r.lines, text)
	return more, nil
}

// replyCode reads the code of a reply line: 2yz to 5yz, then a space, a hyphen or nothing.
func replyCode(line string) (int, bool) {
	if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
		return 0, false
	}
	code := 0
	for _, c := range []byte(line[:3]) {
		if c < '0' || c > '9' {
			return 0, false
		}
		code = code*10 + int(c-'0')
	}
	return code, code >= 200 && code < 600
}

// cutEnhanced splits a leading RFC 3463 code from text.
func cutEnhanced(text string) (enhanced, rest string) {
	word, rest, _ := strings.Cut(text, " ")
	parts := strings.Split(word, ".")
	if len(parts) != 3 || parts[0] != "2" && parts[0] != "4" && parts[0] != "5" {
		return "", text
	}
	for _, p := range parts[1:] {
		if len(p) < 1 || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return "", text
		}
	}
	return word, rest
}

// providerID returns the id that a host gave an accepted message, where its words have a form we know: "queued as ID"
// (Postfix, gatepost), "id=ID" (Exim) or "Ok ID" (Amazon SES). It is for an operator's search, and decides nothing.
func providerID(text string) string {
	words := strings.Fields(text)
	for i, w := range words {
		id, isExim := strings.CutPrefix(w, "id=")
		afterQueued := i > 1 && strings.EqualFold(words[i-2], "queued") && strings.EqualFold(words[i-1], "as")
		afterOk := i == 1 && len(words) == 2 && strings.EqualFold(words[0], "ok") && len(w) >= 16
		if isExim || afterQueued || afterOk {
			return cleanID(id)
		}
	}
	return ""
}

// cleanID returns id without the punctuation around it, or "" where it does not look like one.
func cleanID(id string) string {
	id = strings.Trim(id, "<>.,;()")
	for _, c := range []byte(id) {
		if c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	if len(id) > 128 {
		return ""
	}
	return id
}
