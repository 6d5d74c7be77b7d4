package cli

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"gatepost/config"
	"gatepost/doctor"
	"gatepost/ingress"
	"gatepost/upstream"
)

func (a *app) serveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon in the foreground",
		Long: `Run the daemon in the foreground, with its log on standard error. SIGHUP
reloads the config. SIGTERM and SIGINT end it within ten seconds: sessions are
answered, hand-overs end, and what waits stays on disk. A second one ends it at
once.`,
		Args: takesNothing,
		RunE: run(func(ctx context.Context, _ []string) error {
			cfg, err := loadConfig(a.file())
			if err != nil {
				return err
			}
			a.printProblems(cfg.Warnings)
			return a.serve(ctx, cfg)
		}),
	}
}

func (a *app) serve(ctx context.Context, cfg *config.Config) error {
	ctx, stop := untilSignal(ctx)
	defer stop()
	signal.Ignore(syscall.SIGPIPE) // that the reader of the log has gone is no reason to stop
	hup := hangups()
	lines := newLogWriter(a.err, newLog(a.err, cfg.Log).Logger)
	defer lines.close()
	log := newLog(lines, cfg.Log)
	d, err := open(ctx, cfg, options{log, &eventLog{log}, ingress.Listen})
	if err != nil {
		return err
	}
	d.warnOfEgress()
	err = d.run(ctx, d.sayReady, d.watchdog, d.warnOfUpstreams, d.sayStopping, d.reloadOn(hup))
	if err == nil {
		log.LogAttrs(ctx, slog.LevelInfo, "stopped")
	}
	return err
}

// untilSignal returns a context that the first SIGINT or SIGTERM ends. A second one kills, as if nobody listened.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func (d *daemon) sayReady() {
	ctx := context.Background()
	for _, o := range d.now.Load().doors {
		d.logDoor(o, "listening")
	}
	d.log.LogAttrs(ctx, slog.LevelInfo, "ready", slog.String("version", buildInfo().Version), slog.String("state_dir", d.cfg().StateDir),
		slog.Float64("took_ms", float64(time.Since(d.started).Microseconds())/1000))
	d.notify(sd.SdNotifyReady)
}

func (d *daemon) sayStopping(ctx context.Context) error {
	<-ctx.Done()
	d.log.LogAttrs(ctx, slog.LevelInfo, "stopping")
	d.notify(sd.SdNotifyStopping)
	return nil
}

// notify tells systemd, if it asked to be told.
func (d *daemon) notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		d.log.LogAttrs(context.Background(), slog.LevelWarn, "cannot notify systemd", slog.Any("err", err))
	}
}

// watchdog tells systemd that gatepost works, each time after it has shown that it does. When it stops doing so systemd
// starts it anew. It goes on while sessions and hand-overs end, since the stop has a time limit of its own.
func (d *daemon) watchdog(ctx context.Context) error {
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return nil // not asked for, or not for this process
	}
	tick := time.NewTicker(interval / 3)
	defer tick.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, interval/3)
		err := d.wedged(bounded)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			d.log.LogAttrs(ctx, slog.LevelError, "no sign of life", slog.Any("err", err))
		default:
			d.notify(sd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// warnOfEgress says at once which source addresses are not on this host. gatepost starts all the same: the mail waits,
// and leaves when the address is there.
func (d *daemon) warnOfEgress() {
	for _, name := range slices.Sorted(maps.Keys(d.cfg().Egress)) {
		if err := upstream.NewEgress(d.cfg().Egress[name]).Check(); err != nil {
			d.log.LogAttrs(context.Background(), slog.LevelError, "egress cannot be used", slog.String("egress", name), slog.Any("err", err))
		}
	}
}

// warnOfUpstreams logs in to every upstream once, so that a wrong password or address is in the log before the first
// mail needs it, and asks for the templates that they are to keep.
func (d *daemon) warnOfUpstreams(ctx context.Context) error {
	for _, f := range doctor.Logins(ctx, d.cfg()) {
		if f.Level == doctor.Fail && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelError, "upstream cannot be used", slog.String("upstream", f.Subject), slog.String("err", f.Text), slog.String("hint", f.Hint))
		}
	}
	for _, f := range doctor.Templates(ctx, d.cfg()) {
		if f.Level == doctor.Fail && ctx.Err() == nil {
			d.log.LogAttrs(ctx, slog.LevelError, "template of an upstream cannot be used", slog.String("template", f.Subject), slog.String("err", f.Text), slog.String("hint", f.Hint))
		}
	}
	return nil
}
