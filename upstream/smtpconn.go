package upstream

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gatepost/config"
	"gatepost/message"
)

const (
	connectTime = 30 * time.Second      // connect, banner, TLS and login, at most
	quitTime    = time.Second           // what a host gets to answer QUIT
	closeTime   = 50 * time.Millisecond // … and to close the connection then
	sendBuffer  = 16 << 10
)

// smtpConn is one connection to a host, logged in and between two mails unless its methods say otherwise. It is used
// by one goroutine at a time.
type smtpConn struct {
	tcp        net.Conn // beneath TLS
	conn       net.Conn // what is spoken over
	br         *bufio.Reader
	bw         *bufio.Writer
	host       string // for errors
	extensions map[string]string
	caps       Caps
	maxMails   int // what the host lets pass on one connection
	born       time.Time
	mails      int           // handed over so far
	reused     bool          // has waited in the pool: the host may have closed it
	dirty      bool          // a transaction was refused: RSET comes first
	broken     bool          // only fit to be closed
	idle       *time.Timer   // looks at it while it waits in the pool
	restsSince time.Time     // when it came into the pool
	sender     string        // the command MAIL of the last mail that the host took
	offer      string        // all that the host offers
	owes       bool          // NOOP was said, and its answer was not read yet
	before     time.Duration // how long it had rested then
	outlived   time.Duration // the longest rest after which it answered
}

func newSMTPConn(tcp net.Conn, host string) *smtpConn {
	c := &smtpConn{tcp: tcp, host: host, born: time.Now()}
	c.over(tcp)
	return c
}

// over makes conn what c speaks over, and forgets all that was buffered.
func (c *smtpConn) over(conn net.Conn) {
	c.conn = conn
	c.br = bufio.NewReaderSize(conn, maxReplyLine)
	c.bw = bufio.NewWriterSize(conn, sendBuffer)
}

// until lets the end of ctx end whatever c does: reads and writes fail at once. The function it returns ends that, and
// marks c broken where ctx was first.
func (c *smtpConn) until(ctx context.Context) (stop func()) {
	release := context.AfterFunc(ctx, func() { c.tcp.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !release() {
			c.broken = true
		}
	}
}

// command sends one command line and reads the reply to it.
func (c *smtpConn) command(line string) (smtpReply, error) {
	c.bw.WriteString(line)
	c.bw.WriteString("\r\n")
	if err := c.bw.Flush(); err != nil {
		return smtpReply{}, err
	}
	return readReply(c.br)
}

// open makes a new connection ready for mail: TLS as configured, banner, EHLO, login. Its error is *Paused.
func (c *smtpConn) open(cfg *config.Upstream, hostname string, t *tls.Config) error {
	if cfg.TLS == "implicit" {
		if err := c.startTLS(cfg, t); err != nil {
			return err
		}
	}
	r, err := readReply(c.br)
	if err != nil {
		return c.paused("greeting", err)
	}
	if r.class() != 2 {
		return pausedBy("greeting", r)
	}
	if err := c.hello(hostname); err != nil {
		return err
	}
	if cfg.TLS == "starttls" {
		if err := c.upgrade(cfg, t); err != nil {
			return err
		}
		if err := c.hello(hostname); err != nil {
			return err
		}
	}
	if cfg.Username != "" {
		return c.login(cfg)
	}
	return nil
}

// hello says EHLO and reads what the host offers; a host from before ESMTP gets HELO (RFC 5321 §3.2).
func (c *smtpConn) hello(hostname string) error {
	r, err := c.command("EHLO " + hostname)
	if err != nil {
		return c.paused("EHLO", err)
	}
	if r.code == 500 || r.code == 502 {
		r, err = c.command("HELO " + hostname)
		if err != nil {
			return c.paused("HELO", err)
		}
		r.lines = r.lines[:1]
	}
	if r.class() != 2 {
		return pausedBy("EHLO", r)
	}
	c.learn(r.lines[1:])
	return nil
}

// learn takes in the keywords of an EHLO reply.
func (c *smtpConn) learn(lines []string) {
	c.extensions = map[string]string{}
	c.offer = strings.Join(slices.Sorted(slices.Values(lines)), "\n")
	for _, l := range lines {
		keyword, params, _ := strings.Cut(strings.TrimSpace(l), " ")
		c.extensions[strings.ToUpper(keyword)] = params
	}
	c.caps = Caps{
		EightBitMIME:  c.offers("8BITMIME"),
		SMTPUTF8:      c.offers("SMTPUTF8"),
		MaxRecipients: c.limit("RCPTMAX"),
		Auth:          c.extensions["AUTH"],
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(c.extensions["SIZE"]), 10, 64); err == nil && n > 0 {
		c.caps.Size = n
	}
	c.maxMails = maxMails
	if n := c.limit("MAILMAX"); n > 0 {
		c.maxMails = min(c.maxMails, n)
	}
}

func (c *smtpConn) offers(keyword string) bool {
	_, ok := c.extensions[keyword]
	return ok
}

// limit returns a number that the host told with LIMITS (RFC 9422); 0 for none.
func (c *smtpConn) limit(name string) int {
	for l := range strings.FieldsSeq(c.extensions["LIMITS"]) {
		if k, v, ok := strings.Cut(l, "="); ok && strings.EqualFold(k, name) {
			if n, err := strconv.Atoi(v); err == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// upgrade says STARTTLS (RFC 3207). It goes on in clear text under no circumstances.
func (c *smtpConn) upgrade(cfg *config.Upstream, t *tls.Config) error {
	if !c.offers("STARTTLS") {
		return c.paused("STARTTLS", fmt.Errorf("the host does not offer it: nothing is sent in clear text unless [upstream.%s] says tls = \"none\"", cfg.Name))
	}
	r, err := c.command("STARTTLS")
	if err != nil {
		return c.paused("STARTTLS", err)
	}
	if r.class() != 2 {
		return pausedBy("STARTTLS", r)
	}
	// Whoever can inject clear text here would have it read as part of the protected session.
	if c.br.Buffered() > 0 {
		return c.paused("STARTTLS", errors.New("the host, or somebody between, sent more in clear text after its reply"))
	}
	return c.startTLS(cfg, t)
}

func (c *smtpConn) startTLS(cfg *config.Upstream, t *tls.Config) error {
	conn := tls.Client(c.tcp, t)
	if err := conn.Handshake(); err != nil {
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			err = fmt.Errorf("%w: look at address, tls_server_name and tls_ca_file of [upstream.%s]", err, cfg.Name)
		}
		return c.paused("TLS", err)
	}
	c.over(conn)
	return nil
}

// paused is the error of a step that ended without a reply.
func (c *smtpConn) paused(step string, err error) *Paused {
	return &Paused{Verdict: upstreamDown(message.Temporary, fmt.Sprintf("%s: %s: %v", c.host, step, cause(err)))}
}

// stale reports whether c has waited for longer than timers say: the machine was asleep, and the host may have hung up
// without a word that arrived.
func (c *smtpConn) stale() bool {
	slept := time.Now().Round(0).Sub(c.restsSince.Round(0))
	return slept > 2*idleTime || slept < 0
}

// spoken reports whether the host has closed the connection or said something that nobody asked for, such as a 421
// before it goes. It does not wait.
func (c *smtpConn) spoken() bool {
	if c.br.Buffered() > 0 {
		return true
	}
	said, closed := c.peek()
	return said || closed
}

// peek tells what has come that was not read yet: something, or the end. It does not wait.
func (c *smtpConn) peek() (said, closed bool) {
	sc, ok := c.tcp.(syscall.Conn)
	if !ok {
		return false, false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false, true
	}
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		said, closed = n > 0, n == 0 && err == nil || err != nil && !errors.Is(err, syscall.EAGAIN)
		return true
	})
	return said, closed || err != nil
}

// local returns the local IP address; "" where there is none.
func (c *smtpConn) local() string {
	if a := localAddr(c.tcp); a.IsValid() {
		return a.String()
	}
	return ""
}

// quit ends the connection as RFC 5321 §4.1.1.10 asks, but does not wait for long.
func (c *smtpConn) quit() {
	c.tcp.SetDeadline(time.Now().Add(quitTime))
	if _, err := c.command("QUIT"); err == nil {
		c.tcp.SetDeadline(time.Now().Add(closeTime))
		c.br.ReadByte() // the host closes first, and has stopped counting us then
	}
	// Whatever the answer, the connection ends here.
	c.conn.Close()
	c.tcp.Close()
}
