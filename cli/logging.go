package cli

import (
	"io"
	"log/slog"
	"os"
	"sync/atomic"

	"gatepost/config"
)

// logging is the daemon's log, whose level and care for addresses may change while it runs.
type logging struct {
	*slog.Logger
	level     slog.LevelVar
	addresses atomic.Pointer[string] // "masked", "clear", or "" for clear on marketing only
}

// newLog makes the daemon's log: text, or JSON where [log] format says so or systemd's journal reads it.
func newLog(w io.Writer, c config.Log) *logging {
	l := &logging{}
	l.use(c)
	o := &slog.HandlerOptions{Level: &l.level}
	if c.Format == "json" || c.Format == "" && os.Getenv("JOURNAL_STREAM") != "" {
		l.Logger = slog.New(slog.NewJSONHandler(w, o))
	} else {
		l.Logger = slog.New(slog.NewTextHandler(w, o))
	}
	return l
}

// use makes c hold from the next line on, but for its format.
func (l *logging) use(c config.Log) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // config.Load lets nothing else through but an empty one
	}
	l.level.Set(level)
	l.addresses.Store(&c.Addresses)
}
