// Sink is an SMTP host for measurements and trials: it takes mail in clear text or over TLS, offers CHUNKING where it is
// told to, refuses what it is told to refuse, and prints every mail that arrives, with the time, as a line of JSON.
//
//	go run ./bench/sink -tls starttls -ca sink.pem -chunking -refuse RCPT=10:451 -refuse DOT=1:554 -max 20
//
// It keeps all that arrives in memory, about twice the size of the mail: start it anew for each measurement.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatepost/upstream/upstreamtest"
)

// options says what a sink is like beside what its host is.
type options struct {
	host    upstreamtest.HostOptions
	refuse  refusals
	delay   time.Duration // before the answer to a mail
	discard bool          // tells no arrivals
}

// sink is a host that follows options.
type sink struct {
	*upstreamtest.Host
	opts     options
	refused  atomic.Int64 // commands and mails
	mails    atomic.Int64 // that were whole, whatever became of them
	executed atomic.Int64 // lines of mails that were taken for commands
}

func newSink(tb testing.TB, o options) *sink {
	s := &sink{opts: o, Host: upstreamtest.NewHost(tb, o.host)}
	s.Script(s.answer)
	return s
}

// commands are the verbs of a client; in a Step beside what upstreamtest itself has.
var commands = []string{"EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "NOOP", "RSET", "QUIT",
	upstreamtest.Greeting, upstreamtest.Body, upstreamtest.Dot}

// inBody marks a command that stands in the body of a mail, for whoever wants to know whether it is executed.
const inBody = "executed.from.body.example"

// answer is the script of the host.
func (s *sink) answer(step upstreamtest.Step) (a upstreamtest.Action) {
	if !slices.Contains(commands, step.Verb) || strings.Contains(step.Arg, inBody) {
		s.executed.Add(1)
	}
	if step.Verb == upstreamtest.Dot {
		s.mails.Add(1)
		a.Delay = s.opts.delay
	}
	for _, r := range s.opts.refuse {
		if r.verb == step.Verb && rand.Float64() < r.share {
			s.refused.Add(1)
			a.Reply = fmt.Sprintf("%d %d.3.0 refused, as the script says", r.code, r.code/100)
			break
		}
	}
	return a
}

// refusal makes a host refuse a share of one verb, or of whole mails (DOT).
type refusal struct {
	verb  string
	share float64 // 0 to 1
	code  int
}

// refusals implements flag.Value.
type refusals []refusal

func (r *refusals) String() string { return "" }

// Set adds VERB=PERCENT:CODE.
func (r *refusals) Set(s string) error {
	verb, rest, _ := strings.Cut(s, "=")
	percent, code, _ := strings.Cut(rest, ":")
	share, err1 := strconv.ParseFloat(percent, 64)
	n, err2 := strconv.Atoi(code)
	if err1 != nil || err2 != nil || share < 0 || share > 100 || n < 400 || n > 599 {
		return errors.New("write VERB=PERCENT:CODE, such as RCPT=10:451")
	}
	verb = strings.ToUpper(verb)
	if !slices.Contains(commands, verb) {
		return fmt.Errorf("%s is none of %s", verb, strings.Join(commands, ", "))
	}
	*r = append(*r, refusal{verb, share / 100, n})
	return nil
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("sink: ")
	var o options
	flag.StringVar(&o.host.Addr, "listen", "127.0.0.1:2526", "`address`; a certificate is for 127.0.0.1 and localhost")
	flag.StringVar(&o.host.TLS, "tls", "", `"starttls" or "implicit"`)
	ca := flag.String("ca", "sink.pem", "`file` to write the certificate to, for tls_ca_file")
	flag.BoolVar(&o.host.Chunking, "chunking", false, "offer CHUNKING and take BDAT")
	flag.BoolVar(&o.host.ReadsRefused, "reads-refused", false, "do not discard a refused chunk: take what is in it for commands")
	flag.IntVar(&o.host.MaxConnections, "max", 0, "answer 421 above so many connections")
	flag.Var(&o.refuse, "refuse", "refuse a share: `VERB=PERCENT:CODE`; DOT is the whole mail; may be repeated")
	flag.DurationVar(&o.delay, "delay", 0, "wait before the answer to a mail")
	flag.BoolVar(&o.discard, "quiet", false, "print no arrivals, only the counts at the end")
	flag.Parse()
	if o.host.TLS != "" && o.host.TLS != "starttls" && o.host.TLS != "implicit" {
		log.Fatalf("-tls %s: use starttls or implicit", o.host.TLS)
	}
	if err := run(o, *ca); err != nil {
		log.Fatal(err)
	}
}

// run serves until a signal comes.
func run(o options, ca string) error {
	dir, err := os.MkdirTemp("", "sink-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p := &process{dir: dir}
	defer p.end()
	s := newSink(p, o)
	if o.host.TLS != "" {
		pem, err := os.ReadFile(s.CAFile())
		if err != nil {
			return err
		}
		if err := os.WriteFile(ca, pem, 0o644); err != nil {
			return fmt.Errorf("write the certificate, as -ca says: %w", err)
		}
		fmt.Fprintln(os.Stderr, "certificate in", ca)
	}
	fmt.Fprintln(os.Stderr, "listening on", s.Addr())
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	told := 0
	for tick := time.NewTicker(100 * time.Millisecond); ; {
		select {
		case <-tick.C:
			told += s.tell(told)
		case <-stop:
			s.tell(told)
			fmt.Fprintf(os.Stderr, "mails %d, refused %d, connections %d, lines of mails executed as commands %d\n",
				len(s.Messages()), s.refused.Load(), s.Accepted(), s.executed.Load())
			return nil
		}
	}
}

// tell prints the arrivals behind the first n, and returns how many those are.
func (s *sink) tell(n int) int {
	arrivals := s.Messages()[n:]
	if s.opts.discard {
		return len(arrivals)
	}
	e := json.NewEncoder(os.Stdout)
	for _, m := range arrivals {
		e.Encode(map[string]any{"at": m.At.UTC(), "peer": m.Peer, "from": m.From, "to": m.To, "bytes": len(m.Data), "tls": m.TLS})
	}
	return len(arrivals)
}

// process is what a host of upstreamtest asks of the test that it lives in, for a program instead.
type process struct {
	testing.TB
	dir  string
	last []func()
}

func (p *process) Helper()                   {}
func (p *process) Fatal(args ...any)         { log.Fatal(args...) }
func (p *process) Fatalf(f string, a ...any) { log.Fatalf(f, a...) }
func (p *process) Cleanup(f func())          { p.last = append(p.last, f) }

// TempDir returns a folder that is there already.
func (p *process) TempDir() string { return filepath.Clean(p.dir) }

func (p *process) end() {
	for _, f := range slices.Backward(p.last) {
		f()
	}
}
