package cli

import (
	"bytes"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	logBacklog  = 4096                   // that may wait for the reader
	logPatience = 250 * time.Millisecond // what a reader that falls behind gets to go on
	logFlush    = time.Second            // what it gets at the end to take the last lines
)

// logWriter hands lines to whoever reads the log, on a goroutine of its own. That reader may stall, and mail must not
// wait for it: from then on lines that find no room are dropped and counted.
type logWriter struct {
	lines   chan []byte
	stalled atomic.Bool
	lost    atomic.Int64
	quit    chan struct{}
	done    chan struct{}
}

// newLogWriter starts writing to w; dropped says there how many lines are missing.
func newLogWriter(w io.Writer, dropped *slog.Logger) *logWriter {
	l := &logWriter{lines: make(chan []byte, logBacklog), quit: make(chan struct{}), done: make(chan struct{})}
	go l.run(w, dropped)
	return l
}

// Write implements io.Writer for one line. It never fails.
func (l *logWriter) Write(line []byte) (int, error) {
	line = bytes.Clone(line)
	select {
	case l.lines <- line:
		return len(line), nil
	default:
	}
	if !l.stalled.Load() {
		select {
		case l.lines <- line:
			return len(line), nil
		case <-time.After(logPatience):
			l.stalled.Store(true)
		}
	}
	l.lost.Add(1)
	return len(line), nil
}

// run writes until close is called and nothing is left.
func (l *logWriter) run(w io.Writer, dropped *slog.Logger) {
	defer close(l.done)
	for open := true; open || len(l.lines) > 0; {
		select {
		case line := <-l.lines:
			_, _ = w.Write(line) // nobody could be told of a failure
		case <-l.quit:
			open = false
			continue
		}
		l.stalled.Store(false)
		if n := l.lost.Swap(0); n > 0 {
			dropped.Warn("log lines were dropped, the log is read too slowly", slog.Int64("count", n))
		}
	}
}

// close returns once everything is written, or the reader has taken too long.
func (l *logWriter) close() {
	close(l.quit)
	select {
	case <-l.done:
	case <-time.After(logFlush):
	}
}
