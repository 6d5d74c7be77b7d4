package doctor

import (
	"context"
	"errors"
	"slices"
	"time"

	"gatepost/compose"
	"gatepost/config"
	"gatepost/upstream"
)

// kept is a template that an upstream should keep.
type kept struct {
	way
	template string
}

// Templates asks the services whether they keep the templates that those of cfg name: some take mail for one that is not
// there, and throw it away. No mail is sent.
func Templates(ctx context.Context, cfg *config.Config) []Finding {
	if cfg.Templates.Dir == "" {
		return nil // none is built in
	}
	t, err := compose.Load(cfg.Templates, cfg.Upstream)
	if err != nil {
		return []Finding{{Level: Fail, Check: "template", Subject: cfg.Templates.Dir, Text: "cannot be used", Hint: "gatepost template lint tells why"}}
	}
	names := map[string][]string{} // by upstream
	for _, l := range t.List() {
		for upstream, name := range l.Kept {
			names[upstream] = append(names[upstream], name)
		}
	}
	var all []kept
	for _, w := range waysOf(cfg) {
		for _, name := range slices.Compact(slices.Sorted(slices.Values(names[w.upstream.Name]))) {
			all = append(all, kept{w, name})
		}
	}
	return together(all, func(k kept) Finding { return keeps(ctx, cfg, k) })
}

func keeps(ctx context.Context, cfg *config.Config, k kept) Finding {
	f := Finding{Level: OK, Check: "template", Subject: k.upstream.Name + " " + k.template, Text: "the service keeps it"}
	ctx, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	switch there, err := askFor(ctx, cfg, k); {
	case errors.Is(err, upstream.ErrUnproven):
		f.Level, f.Text = Warn, "the credentials may not read templates, so it is not known whether the service keeps it"
		f.Hint = "look there: mail for a template that is not there may be lost; docs/upstreams.md has what to allow"
	case err != nil:
		f.Level, f.Text = Warn, plain("it is not known whether the service keeps it: "+printable(err))
		f.Hint = "see what is said of the upstream, and try again"
	case !there:
		f.Level, f.Text = Fail, "the service has no such template, and may take mail for it and throw it away"
		f.Hint = "make it there, or take [upstream." + k.upstream.Name + "] out of the templates that name it (gatepost template list)"
	}
	return f
}

// askFor asks k's service for its template.
func askFor(ctx context.Context, cfg *config.Config, k kept) (bool, error) {
	u, err := upstream.New(k.upstream, cfg.Hostname, upstream.NewEgress(cfg.Egress[k.egress]), []upstream.LaneKind{k.lane})
	if err != nil {
		return false, err
	}
	there, err := u.(upstream.TemplateKeeper).Keeps(ctx, k.template)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	return there, errors.Join(err, u.Close(closing))
}
