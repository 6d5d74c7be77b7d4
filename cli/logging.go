package cli

import (
	"io"
	"log/slog"
	"os"

	"gatepost/config"
)

// newLog makes the daemon's logger: text, or JSON where [log] format says so or systemd's journal reads it.
func newLog(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo // config.Load lets nothing else through but an empty one
	}
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" || c.Format == "" && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
