package cli

import (
	"context"
	"log/slog"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// eventLog writes one line for each event. It implements event.Sink.
type eventLog struct{ log *logging }

// logLines is how each kind of event reads in the log, and how loud it is.
var logLines = map[event.Kind]struct {
	level slog.Level
	text  string
}{
	event.Accepted:    {slog.LevelInfo, "message accepted"},
	event.Deferred:    {slog.LevelInfo, "message deferred"},
	event.Delivered:   {slog.LevelInfo, "message delivered"},
	event.Captured:    {slog.LevelInfo, "message captured"},
	event.Bounced:     {slog.LevelWarn, "message bounced"},
	event.Unconfirmed: {slog.LevelWarn, "message unconfirmed"},
	event.Expired:     {slog.LevelWarn, "message expired"},
	event.Superseded:  {slog.LevelInfo, "message superseded"},
	event.Suppressed:  {slog.LevelInfo, "message suppressed"},
	event.Dropped:     {slog.LevelInfo, "message dropped"},
	event.Held:        {slog.LevelInfo, "message held"},
	event.Released:    {slog.LevelInfo, "message released"},
	event.Recovered:   {slog.LevelWarn, "message recovered"},
	event.Paused:      {slog.LevelWarn, "upstream paused"},
	event.Resumed:     {slog.LevelInfo, "upstream resumed"},
	event.ClockJump:   {slog.LevelWarn, "clock jumped"},
	event.Alarm:       {slog.LevelError, "alarm"},
	event.FailedOver:  {slog.LevelWarn, "upstream failed over"},
	event.CameBack:    {slog.LevelInfo, "upstream came back"},
	event.Hedged:      {slog.LevelInfo, "message hedged"},
	event.Answered:    {slog.LevelInfo, "late answer"},
	event.Limited:     {slog.LevelWarn, "mail refused by a limit"},
}

// Emit implements event.Sink.
func (l *eventLog) Emit(events []event.Event) {
	ctx := context.Background()
	for i := range events {
		e := &events[i]
		line := logLines[e.Kind]
		level := line.level
		if e.Data.Alarm {
			level = slog.LevelError
		}
		if l.log.Enabled(ctx, level) {
			l.log.LogAttrs(ctx, level, line.text, l.attrs(e)...)
		}
	}
}

// attrs returns what is known of e under keys that mean the same everywhere; what is not known has no key.
func (l *eventLog) attrs(e *event.Event) []slog.Attr {
	d := &e.Data
	a := make([]slog.Attr, 0, 16)
	text := func(key, value string) {
		if value != "" {
			a = append(a, slog.String(key, value))
		}
	}
	number := func(key string, value int) {
		if value != 0 {
			a = append(a, slog.Int(key, value))
		}
	}
	if e.Message != 0 {
		text("msg_id", e.Message.String())
		a = append(a, slog.Int("n", e.N))
	}
	text("stream", e.Stream)
	text("client", d.Client)
	text("hook", d.Hook)
	text("type", d.Type)
	text("to", l.address(e))
	text("upstream", e.Upstream)
	text("egress", d.Egress)
	text("local_ip", d.Local)
	number("attempt", d.Attempt)
	text("verdict", string(d.Class))
	text("scope", string(d.Scope))
	number("code", d.Code)
	text("reply", d.Reply)
	text("provider_id", d.ProviderID)
	number("size", d.Size)
	millis := func(key string, value time.Duration) {
		if value != 0 {
			a = append(a, slog.Float64(key, float64(value.Microseconds())/1000))
		}
	}
	millis("took_ms", time.Duration(d.Took))
	millis("total_ms", time.Duration(d.Total))
	if !d.DueAt.IsZero() {
		a = append(a, slog.Time("due_at", d.DueAt))
	}
	if d.MaybeSent {
		a = append(a, slog.Bool("maybe_sent", true))
	}
	number("copies", d.Copies)
	text("text", d.Text)
	return a
}

// address returns the recipient as the log may hold it. An event whose kind of mail is not known is masked.
func (l *eventLog) address(e *event.Event) string {
	if how := *l.log.addresses.Load(); how == "clear" || how == "" && e.MailKind == message.Marketing {
		return e.Address
	}
	return message.MaskAddress(e.Address)
}
