package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/mail"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/dkim"
	"gatepost/event"
	"gatepost/message"
)

const (
	demoAddress = "127.0.0.1:2525"
	demoDomain  = "auth.example.com"
	demoPatient = 8 * time.Second // for the sample to come through
)

// demoConfig is a whole config; the listener's address is filled in.
const demoConfig = `hostname  = "gw.auth.example.com"
state_dir = "state"

[listen.smtp]
address = %q
clients = ["app"]

[client.app]
networks = ["127.0.0.0/8", "::1"]
streams  = ["auth"]

[stream.auth]
kind    = "auth"
domains = ["auth.example.com"]
route   = ["capture"]
egress  = "any"
dkim    = { selector = "gp1", key_file = "auth.pem" }

[upstream.capture]
type = "capture"

[log]
level = "warn"
`

// demoMail is what an auth server sends to somebody who signs in.
const demoMail = "From: Example <no-reply@auth.example.com>\r\n" +
	"To: ann@example.org\r\n" +
	"Subject: Your sign-in code\r\n" +
	"MIME-Version: 1.0\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"\r\n" +
	"Your sign-in code is 482913. It is valid for 10 minutes.\r\n"

func (a *app) demoCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show a sample sign-in code on its way; needs nothing at all",
		Long: `Make a key and a config in a temporary directory, listen on 127.0.0.1, send a
sample sign-in code through, and print what an upstream would get, its verified
signature and the DNS records to publish. Nothing leaves this host. It goes on
until Ctrl-C, for mail of your own.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error { return a.demo(ctx) }),
	}
}

// demo is a gatepost in a temporary directory, with a key just made and an upstream that keeps what it is given.
func (a *app) demo(ctx context.Context) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	dir, err := os.MkdirTemp("", "gatepost-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	defer os.RemoveAll(dir)
	ln, err := a.listenForDemo()
	if err != nil {
		return err
	}
	defer ln.Close()
	cfg, err := writeDemo(dir, ln.Addr().String())
	if err != nil {
		return err
	}
	log := newLog(a.err, cfg.Log)
	captured := make(captures, 100)
	bind := func(context.Context, *config.Listen) (net.Listener, error) { return ln, nil }
	d, err := open(ctx, cfg, options{log, captured, bind})
	if err != nil {
		return err
	}
	show := func(ctx context.Context) error { return a.showDemo(ctx, d, captured) }
	return d.run(ctx, func() {}, show)
}

// listenForDemo binds the usual port or, where another program has it, any.
func (a *app) listenForDemo() (net.Listener, error) {
	ln, err := net.Listen("tcp", demoAddress)
	if errors.Is(err, syscall.EADDRINUSE) {
		fmt.Fprintf(a.out, "%s is in use, so the demo takes another port.\n", demoAddress)
		ln, err = net.Listen("tcp", "127.0.0.1:0")
	}
	if err != nil {
		return nil, fmt.Errorf("listen for the demo: %w", err)
	}
	return ln, nil
}

// writeDemo writes key and config into dir, so that every other command works with the demo too.
func writeDemo(dir, address string) (*config.Config, error) {
	key, err := dkim.GenerateKey("rsa", 2048)
	if err != nil {
		return nil, err
	}
	if err := dkim.WriteKey(filepath.Join(dir, "auth.pem"), key); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "gatepost.toml")
	if err := os.WriteFile(file, fmt.Appendf(nil, demoConfig, address), 0o600); err != nil {
		return nil, fmt.Errorf("write the demo's config: %w", err)
	}
	return config.Load(file)
}

// captures hands on the ids of captured mail. It implements event.Sink.
type captures chan message.ID

func (c captures) Emit(events []event.Event) {
	for _, e := range events {
		if e.Kind == event.Captured {
			select {
			case c <- e.Message:
			default: // nobody reads that fast; `gatepost trace` knows it still
			}
		}
	}
}

// showDemo sends the sample, shows what became of it, and then what else comes in, until ctx ends.
func (a *app) showDemo(ctx context.Context, d *daemon, captured captures) error {
	address := d.now.Load().doors[0].address()
	fmt.Fprintf(a.out, "gatepost listens for SMTP on %s and signs mail of %s.\n", address, demoDomain)
	err := smtp.SendMail(address, nil, "no-reply@"+demoDomain, []string{"ann@example.org"}, []byte(demoMail))
	if err != nil {
		return fmt.Errorf("send the sample: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, demoPatient)
	defer cancel()
	m, err := d.nextCaptured(bounded, captured)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("the sample did not come through: %w", err)
	}
	if err := a.showSample(d, m); err != nil {
		return err
	}
	a.showHowTo(d, address)
	for {
		m, err := d.nextCaptured(ctx, captured)
		if err != nil {
			fmt.Fprintln(a.out, "\nThe demo ends; its directory is removed.")
			return nil
		}
		a.showCaptured(d, m)
	}
}

// nextCaptured waits for the next mail that the upstream kept.
func (d *daemon) nextCaptured(ctx context.Context, captured captures) (admin.Captured, error) {
	for {
		select {
		case <-ctx.Done():
			return admin.Captured{}, ctx.Err()
		case id := <-captured:
			for _, m := range (engine{d}).Captured() {
				if m.ID == id {
					return m, nil
				}
			}
		}
	}
}

// showSample prints the sample as the upstream got it, its signature, and the DNS records that would make it pass.
func (a *app) showSample(d *daemon, m admin.Captured) error {
	fmt.Fprintf(a.out, "\nA sample sign-in code went in by SMTP, was queued on disk as %s, and reached the upstream as:\n\n", m.ID)
	for line := range strings.Lines(string(m.Wire)) {
		fmt.Fprintf(a.out, "    %s\n", strings.TrimRight(line, "\r\n"))
	}
	records, err := recordsOf(d.cfg())
	if err != nil {
		return err
	}
	found, err := verify(m.Wire, dkim.Published(records...))
	if err != nil {
		return err
	}
	fmt.Fprintln(a.out, "\nIts DKIM signature, checked against the key below:")
	for _, s := range found {
		fmt.Fprintf(a.out, "    %s\n", s)
	}
	fmt.Fprintln(a.out, "\nWith these DNS records the world would accept it too:")
	for _, r := range records {
		fmt.Fprintf(a.out, "    %s\n", r.Zone())
	}
	fmt.Fprintf(a.out, "    %s. IN TXT \"v=spf1 include:spf.your-mail-service.example -all\"\n", demoDomain)
	fmt.Fprintf(a.out, "    _dmarc.%s. IN TXT \"v=DMARC1; p=reject; adkim=r; aspf=r\"\n", demoDomain)
	return nil
}

func (a *app) showHowTo(d *daemon, address string) {
	host, port, _ := net.SplitHostPort(address)
	fmt.Fprintf(a.out, `
Nothing left this host: the upstream is one that only keeps mail. Send your own through it:
    swaks --server %[1]s:%[2]s --from no-reply@%[3]s --to you@example.org
    printf 'From: no-reply@%[3]s\nTo: you@example.org\nSubject: hello\n\nhello\n' | curl -sS smtp://%[1]s:%[2]s --mail-from no-reply@%[3]s --mail-rcpt you@example.org --upload-file - --crlf
and look at it from another terminal:
    %[5]s -c %[4]s trace you@example.org
    %[5]s -c %[4]s status

The demo goes on until Ctrl-C. Mail that comes in:
`, host, port, demoDomain, d.cfg().File, self())
}

// self returns how this program can be called again: by its name where the shell finds it, else by its path.
func self() string {
	if _, err := exec.LookPath("gatepost"); err == nil {
		return "gatepost"
	}
	return os.Args[0]
}

// showCaptured prints one line about a mail.
func (a *app) showCaptured(d *daemon, m admin.Captured) {
	fmt.Fprintf(a.out, "%s  %s  from %s to %s  %q  %d octets  %s\n", m.At.Local().Format(time.TimeOnly), m.ID,
		dash(m.From), strings.Join(m.To, " "), subjectOf(m.Wire), len(m.Wire), a.signed(d, m.Wire))
}

func (a *app) signed(d *daemon, wire []byte) string {
	records, err := recordsOf(d.cfg())
	if err != nil {
		return err.Error()
	}
	found, err := verify(wire, dkim.Published(records...))
	if err != nil || len(found) == 0 {
		return "not signed"
	}
	return found[0].String()
}

// subjectOf returns the subject as a person reads it, or "".
func subjectOf(wire []byte) string {
	m, err := mail.ReadMessage(bytes.NewReader(wire))
	if err != nil {
		return ""
	}
	var words mime.WordDecoder
	words.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	s, err := words.DecodeHeader(m.Header.Get("Subject"))
	if err != nil {
		return m.Header.Get("Subject")
	}
	return s
}
