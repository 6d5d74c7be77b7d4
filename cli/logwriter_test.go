package cli

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// gated is a reader of the log that may stall.
type gated struct {
	gate chan struct{}
	got  bytes.Buffer
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.got.Write(p)
}

func TestAStalledReaderOfTheLogHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &gated{gate: make(chan struct{})}
		l := newLogWriter(r, slog.New(slog.NewTextHandler(r, nil)))
		begin := time.Now()
		for i := range logBacklog + 1000 {
			fmt.Fprintf(l, "line %d\n", i)
		}
		if took := time.Since(begin); took > 2*logPatience {
			t.Errorf("writing took %v", took)
		}
		close(r.gate)
		l.close()
		got := r.got.String()
		if !strings.HasPrefix(got, "line 0\n") || !strings.Contains(got, "line 4000\n") {
			t.Error("lines that found room are missing")
		}
		if !strings.Contains(got, "log lines were dropped") || strings.Count(got, "\n") > logBacklog+3 {
			t.Error("the missing lines are not told of")
		}
	})
}

func TestClosingTheLogGivesUpOnAReaderThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &gated{gate: make(chan struct{})}
		l := newLogWriter(r, slog.New(slog.DiscardHandler))
		io.WriteString(l, "line\n")
		begin := time.Now()
		l.close()
		if took := time.Since(begin); took != logFlush {
			t.Errorf("closing took %v, want %v", took, logFlush)
		}
		close(r.gate)
	})
}

func TestServeOutlivesTheReaderOfItsLog(t *testing.T) {
	g := newGateway(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	g.cmd = exec.Command("gatepost", "serve", "-c", g.config())
	g.cmd.Stdout, g.cmd.Stderr = w, w
	if err := g.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	g.exited = make(chan error, 1)
	var gone atomic.Bool
	go func(cmd *exec.Cmd, exited chan error) {
		err := cmd.Wait()
		gone.Store(true)
		exited <- err
	}(g.cmd, g.exited)
	g.until("mail is taken", func() bool {
		_, err := g.send("127.0.0.1", fromAuth, "ann@example.org", "hello")
		return err == nil
	})
	r.Close()
	for range 5 {
		g.queued("127.0.0.1", fromAuth, "ann@example.org")
		time.Sleep(20 * time.Millisecond) // its event is logged beside
	}
	if gone.Load() {
		t.Error("serve died with the reader of its log")
	}
	g.stop()
}
