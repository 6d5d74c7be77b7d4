package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"syscall"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"gatepost/admin"
	"gatepost/config"
	"gatepost/message"
)

// allowReload makes reloads possible from now on, with what serves new doors, or with nil impossible. A reload under way
// comes to its end first.
func (d *daemon) allowReload(serve func(door)) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.serveNew = serve
}

// reload reads the config file anew and makes it what holds. All that can fail is done first: after an error, which is
// in the log then, everything is as it was. Two at once wait for each other.
func (d *daemon) reload(ctx context.Context) (admin.Reloaded, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if d.serveNew == nil {
		return admin.Reloaded{}, &admin.Problem{Text: "gatepost is starting or stopping", Code: http.StatusServiceUnavailable}
	}
	d.sayReloading()
	defer d.notify(sd.SdNotifyReady)
	old := d.now.Load()
	now, err := d.replace(ctx, old)
	if err != nil {
		d.log.LogAttrs(ctx, slog.LevelError, "reload failed, the config in force stays", slog.String("err", strings.ReplaceAll(err.Error(), "\n", "; ")))
		return admin.Reloaded{}, refusedReload(err)
	}
	for _, w := range now.cfg.Warnings {
		d.log.LogAttrs(ctx, slog.LevelWarn, "config warning", slog.String("text", w.Error()), slog.String("hint", w.Hint))
	}
	done, err := d.changes(ctx, old, now)
	d.log.LogAttrs(ctx, slog.LevelInfo, "config reloaded", slog.Int("changes", done.Count()), slog.Int("held", done.Held))
	return done, err
}

// replace does the work of reload and returns what holds now.
func (d *daemon) replace(ctx context.Context, old *setup) (*setup, error) {
	cfg, err := loadConfig(old.cfg.File)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(fixed(old.cfg, cfg), takenPorts(old.doors, cfg)); err != nil {
		return nil, err
	}
	templates, err := loadTemplates(cfg)
	if err != nil {
		return nil, err
	}
	doors, err := d.openDoors(context.WithoutCancel(ctx), cfg, templates, old.doors)
	if err != nil {
		return nil, err
	}
	added, removed := without(doors, old.doors), without(old.doors, doors)
	apply, err := reconfigure(doors, cfg, templates)
	if err == nil {
		err = d.relay.Reload(cfg) // from here on nothing fails
	}
	if err != nil {
		return nil, errors.Join(err, closeDoors(added))
	}
	for _, o := range removed {
		o.stop() // before others, since its clients may be gone
	}
	now := &setup{cfg, doors, templates}
	d.now.Store(now)
	d.log.use(cfg.Log)
	apply()
	for _, o := range added {
		d.serveNew(o)
		d.logDoor(o, "listening")
	}
	for _, o := range removed {
		d.logDoor(o, "listener closes")
		o.unbind() // before the next reload, which may want the address
	}
	return now, nil
}

// fixed returns a Problem for each key that differs and cannot change while gatepost runs.
func fixed(old, now *config.Config) error {
	var problems []error
	check := func(key string, same bool) {
		if !same {
			problems = append(problems, &config.Problem{File: now.File, Key: key, Text: "it cannot change while gatepost runs",
				Hint: "restart gatepost, or set it back"})
		}
	}
	check("state_dir", old.StateDir == now.StateDir)
	check("store", old.Store == now.Store)
	check("history.keep", old.History.Keep == now.History.Keep)
	check("limits.bytes_in_flight", old.Limits.BytesInFlight == now.Limits.BytesInFlight)
	check("log.format", old.Log.Format == now.Log.Format)
	return errors.Join(problems...)
}

// refusedReload is err for who asked for the reload.
func refusedReload(err error) error {
	if problems := config.Problems(err); len(problems) > 0 {
		return &admin.Problem{Text: "the config has problems, and the one in force stays", Problems: problems, Code: http.StatusUnprocessableEntity}
	}
	return &admin.Problem{Text: err.Error() + "; the config in force stays", Code: http.StatusUnprocessableEntity}
}

// changes tells how now differs from old, and how much mail waits for a stream that is not there.
func (d *daemon) changes(ctx context.Context, before, after *setup) (admin.Reloaded, error) {
	old, now := before.cfg, after.cfg
	r := admin.Reloaded{
		Listeners: differ(old.Listen, now.Listen), Clients: differ(old.Client, now.Client), Streams: differ(old.Stream, now.Stream),
		Egresses: differ(old.Egress, now.Egress), Upstreams: differ(old.Upstream, now.Upstream), Hooks: differ(old.Hook, now.Hook),
		Templates: differ(before.templates.Sums(), after.templates.Sums()), Warnings: now.Warnings,
	}
	if old.Templates != now.Templates {
		r.Templates.Changed = append([]string{"[templates]"}, r.Templates.Changed...)
	}
	waiting, err := d.store.Lanes(ctx)
	if err != nil {
		return r, fmt.Errorf("the config holds, but what waits cannot be counted: %w", err)
	}
	turning := d.relay.Status()
	for _, w := range waiting {
		if !slices.ContainsFunc(turning, func(l message.LaneStatus) bool { return l.Lane == w.Lane }) {
			r.Held += w.Queued + w.Held
		}
	}
	return r, nil
}

// differ tells which sections of one kind only now has, only old has, and which are not the same in both.
func differ[S any](old, now map[string]*S) admin.Changes {
	var c admin.Changes
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if before := old[name]; before == nil {
			c.Added = append(c.Added, name)
		} else if !reflect.DeepEqual(before, now[name]) {
			c.Changed = append(c.Changed, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if now[name] == nil {
			c.Removed = append(c.Removed, name)
		}
	}
	return c
}

// sayReloading tells systemd that a reload begins; READY=1 ends it (sd_notify(3)).
func (d *daemon) sayReloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return // then systemd is not told, which harms nobody
	}
	d.notify(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sd.SdNotifyReloading, now.Nano()/1000))
}

// hangups returns a channel that is told of SIGHUP. It is to be made before anything else: until then the signal kills.
func hangups() chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGHUP)
	return c
}

// reloadOn reloads at each signal until ctx ends.
func (d *daemon) reloadOn(signals <-chan os.Signal) func(context.Context) error {
	return func(ctx context.Context) error {
		_ = d.relay.Alive(ctx) // one that came early waits until lanes turn
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-signals:
				_, _ = d.reload(ctx) // the log has told
			}
		}
	}
}
