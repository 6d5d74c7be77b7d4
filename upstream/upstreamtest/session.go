package upstreamtest

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// session is one connection to a Host.
type session struct {
	host    *Host
	raw     net.Conn
	conn    net.Conn // raw, or TLS over it
	br      *bufio.Reader
	bw      *bufio.Writer
	peer    netip.AddrPort
	number  int
	mailNo  int
	crowded bool
	tls     bool
	user    string
	helo    string
	mail    *Mail // the transaction under way
}

func (s *session) over(conn net.Conn) {
	s.conn = conn
	s.br, s.bw = bufio.NewReader(conn), bufio.NewWriter(conn)
}

func (s *session) run() {
	s.over(s.conn)
	if s.host.opts.TLS == "implicit" && s.startTLS() != nil {
		return
	}
	usual := "220 test host"
	if s.crowded {
		usual = "421 4.7.0 too many connections"
	}
	if reply, err := s.say(Greeting, "", usual); err != nil || reply[0] != '2' {
		s.bw.Flush()
		return
	}
	for {
		// Replies to pipelined commands leave together, as a real host's do.
		if s.br.Buffered() == 0 && s.bw.Flush() != nil {
			return
		}
		line, err := s.br.ReadString('\n')
		if err != nil {
			return
		}
		verb, arg, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if s.command(strings.ToUpper(verb), arg) != nil {
			s.bw.Flush()
			return
		}
	}
}

// say asks the script and sends its reply, or the usual one. It returns what was sent.
func (s *session) say(verb, arg, usual string) (string, error) {
	a := s.ask(verb, arg, usual)
	return a.Reply, s.do(a)
}

// ask returns what the script wants, its reply filled in.
func (s *session) ask(verb, arg, usual string) Action {
	a := s.host.action(Step{Verb: verb, Arg: arg, Conn: s.number, Mail: s.mailNo})
	if a.Reply == "" {
		a.Reply = usual
	}
	return a
}

// do carries a out. Its error ends the session.
func (s *session) do(a Action) error {
	if a.Delay > 0 {
		s.bw.Flush()
		time.Sleep(a.Delay)
	}
	switch a.Reply {
	case "":
		return nil
	case Drop:
		return errGone
	case Hang:
		s.bw.Flush()
		io.Copy(io.Discard, s.conn)
		return errGone
	}
	s.write(a.Reply + "\r\n")
	if strings.HasPrefix(a.Reply, "421") {
		s.part()
		return errGone
	}
	return nil
}

// part ends the connection so that the last reply arrives: what the client is still sending is read.
func (s *session) part() {
	s.bw.Flush()
	if half, ok := s.raw.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
		s.raw.SetReadDeadline(time.Now().Add(time.Second))
		io.Copy(io.Discard, s.raw)
	}
}

func (s *session) write(text string) {
	for i := range len(text) {
		s.bw.WriteByte(text[i])
		if s.host.opts.SplitReplies {
			s.bw.Flush()
		}
	}
}

func (s *session) command(verb, arg string) error {
	switch verb {
	case "EHLO", "HELO":
		s.helo = arg
		s.mail = nil
		_, err := s.say(verb, arg, s.offer(verb))
		return err
	case "STARTTLS":
		reply, err := s.say(verb, arg, "220 go ahead")
		if err != nil || reply[0] != '2' {
			return err
		}
		s.bw.Flush()
		return s.startTLS()
	case "AUTH":
		return s.auth(arg)
	case "MAIL":
		return s.mailFrom(arg)
	case "RCPT":
		return s.rcptTo(arg)
	case "DATA":
		return s.data()
	case "BDAT":
		return s.chunk(arg)
	case "QUIT":
		s.say(verb, arg, "221 bye")
		return errGone
	case "RSET", "NOOP":
		s.mail = nil
		_, err := s.say(verb, arg, "250 2.0.0 ok")
		return err
	}
	_, err := s.say(verb, arg, "500 5.5.1 what?")
	return err
}

// offer returns the reply to EHLO.
func (s *session) offer(verb string) string {
	if verb == "HELO" {
		return "250 test host"
	}
	o := s.host.opts
	all := []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 26214400"}
	if o.TLS == "starttls" && !s.tls {
		all = append(all, "STARTTLS")
	}
	if o.Username != "" {
		all = append(all, "AUTH PLAIN LOGIN XOAUTH2")
	}
	if o.Chunking {
		all = append(all, "CHUNKING")
	}
	all = append(all, o.Extensions...)
	all = slices.DeleteFunc(all, func(line string) bool {
		keyword, _, _ := strings.Cut(line, " ")
		return slices.Contains(o.Without, keyword)
	})
	lines := append([]string{"test host"}, all...)
	return "250-" + strings.Join(lines[:len(lines)-1], "\r\n250-") + "\r\n250 " + lines[len(lines)-1]
}

func (s *session) startTLS() error {
	conn := tls.Server(s.raw, s.host.tls)
	if err := conn.Handshake(); err != nil {
		return err
	}
	s.over(conn)
	s.tls = true
	return nil
}

// auth checks PLAIN, LOGIN and XOAUTH2.
func (s *session) auth(arg string) error {
	mech, ir, _ := strings.Cut(arg, " ")
	var user, secret string
	switch mech {
	case "PLAIN":
		parts := strings.Split(s.answer(ir, ""), "\x00")
		if len(parts) == 3 {
			user, secret = parts[1], parts[2]
		}
	case "LOGIN":
		user = s.answer(ir, "Username:")
		secret = s.answer("", "Password:")
	case "XOAUTH2":
		user, secret, _ = strings.Cut(s.answer(ir, ""), "\x01auth=Bearer ")
		user, secret = strings.TrimPrefix(user, "user="), strings.TrimSuffix(secret, "\x01\x01")
	}
	o := s.host.opts
	want := o.Password
	if mech == "XOAUTH2" {
		want = o.Token
	}
	if user != o.Username || secret != want || want == "" {
		if mech == "XOAUTH2" {
			s.answer("", `{"status":"401"}`)
		}
		_, err := s.say("AUTH", arg, "535 5.7.8 wrong user name or password")
		return err
	}
	reply, err := s.say("AUTH", arg, "235 2.7.0 welcome")
	if err == nil && reply[0] == '2' {
		s.user = user
	}
	return err
}

// answer decodes ir or, where that is empty, the client's answer to a challenge.
func (s *session) answer(ir, challenge string) string {
	if ir == "" {
		s.write("334 " + base64.StdEncoding.EncodeToString([]byte(challenge)) + "\r\n")
		s.bw.Flush()
		ir, _ = s.br.ReadString('\n')
	}
	b, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(ir))
	return string(b)
}

func (s *session) mailFrom(arg string) error {
	s.mailNo++
	path, params, ok := cutPath(arg, "FROM:")
	usual := "250 2.1.0 ok"
	switch {
	case s.host.opts.Username != "" && s.user == "":
		usual = "530 5.7.0 authentication required"
	case s.mail != nil:
		usual = "503 5.5.1 nested MAIL"
	case !ok:
		usual = "501 5.5.4 syntax"
	}
	reply, err := s.say("MAIL", arg, usual)
	if err == nil && reply[0] == '2' {
		s.mail = &Mail{Peer: s.peer, Helo: s.helo, User: s.user, TLS: s.tls, From: path, Params: params}
	}
	return err
}

func (s *session) rcptTo(arg string) error {
	path, _, ok := cutPath(arg, "TO:")
	usual := "250 2.1.5 ok"
	switch {
	case s.mail == nil:
		usual = "503 5.5.1 MAIL first"
	case !ok || path == "":
		usual = "501 5.5.4 syntax"
	}
	reply, err := s.say("RCPT", arg, usual)
	if err == nil && reply[0] == '2' && s.mail != nil {
		s.mail.To = append(s.mail.To, path)
	}
	return err
}

// cutPath splits "FROM:<path> params".
func cutPath(arg, prefix string) (path, params string, ok bool) {
	if len(arg) < len(prefix) || !strings.EqualFold(arg[:len(prefix)], prefix) {
		return "", "", false
	}
	path, params, ok = strings.Cut(arg[len(prefix):], ">")
	path, open := strings.CutPrefix(path, "<")
	return path, strings.TrimSpace(params), ok && open
}

func (s *session) data() error {
	usual := "354 go ahead"
	switch {
	case s.mail == nil:
		usual = "503 5.5.1 MAIL first"
	case len(s.mail.To) == 0:
		usual = "554 5.5.1 no valid recipients"
	}
	reply, err := s.say("DATA", "", usual)
	if err != nil || reply[0] != '3' {
		return err
	}
	if err := s.bw.Flush(); err != nil {
		return err
	}
	return s.body()
}

// body reads the mail to its final dot.
func (s *session) body() error {
	m := s.mail
	if m == nil {
		m = &Mail{}
	}
	s.mail = nil
	var data []byte
	for first := true; ; first = false {
		line, err := s.br.ReadString('\n')
		if err != nil {
			return err
		}
		if first {
			if _, err := s.say(Body, "", ""); err != nil {
				return err
			}
			s.bw.Flush()
		}
		if line == ".\r\n" {
			break
		}
		data = append(data, strings.TrimPrefix(line, ".")...)
	}
	m.Data = data
	// A host takes a mail before it says so: a reply that is lost leaves a mail taken.
	a := s.ask(Dot, "", fmt.Sprintf("250 2.0.0 Ok: queued as T%d-%d", s.number, s.mailNo))
	if a.Reply == Drop || a.Reply == Hang || a.Reply[0] == '2' {
		s.host.take(*m)
	}
	return s.do(a)
}

// chunk takes a chunk (RFC 3030), and the mail with the last one. One that it refuses it reads and drops.
func (s *session) chunk(arg string) error {
	size, last, _ := strings.Cut(arg, " ")
	n, err := strconv.Atoi(size)
	usual, lacks := "250 2.0.0 chunk taken", "BDAT"
	switch {
	case err != nil || n < 0 || !s.host.opts.Chunking:
		_, err := s.say("BDAT", arg, "500 5.5.1 what?")
		return err
	case s.mail == nil:
		usual, lacks = "503 5.5.1 MAIL first", "MAIL"
	case len(s.mail.To) == 0:
		usual, lacks = "554 5.5.1 no valid recipients", "RCPT"
	}
	a := s.ask("BDAT", arg, usual)
	refused := a.Reply[0] == '4' || a.Reply[0] == '5'
	where := s.host.opts.ReadsWhere
	if refused && s.host.opts.ReadsRefused && (len(where) == 0 || slices.Contains(where, lacks)) {
		s.mail = nil
		return s.do(a)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(s.br, data); err != nil {
		return err
	}
	if s.mail != nil && !refused {
		s.mail.Data = append(s.mail.Data, data...)
	}
	if refused {
		s.mail = nil
	}
	if refused || last != "LAST" {
		return s.do(a)
	}
	m := s.mail
	s.mail = nil
	if a.Reply == usual {
		a = s.ask(Dot, "", fmt.Sprintf("250 2.0.0 Ok: queued as T%d-%d", s.number, s.mailNo))
	}
	if m != nil && len(m.To) > 0 && (a.Reply == Drop || a.Reply == Hang || a.Reply[0] == '2') {
		s.host.take(*m)
	}
	return s.do(a)
}
