// Package doctor looks for what would keep mail from arriving, before it is sent: listeners that cannot have their
// address, certificates that clients will not take, source addresses that are not on this host, keys that do not load,
// DNS records that do not match them, upstreams that do not let us in. It sends no mail and changes nothing.
package doctor

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"gatepost/config"
	"gatepost/upstream"
)

// Level says how bad a finding is.
type Level string

// The levels. Only Fail means that mail will not get through.
const (
	OK   Level = "OK"
	Warn Level = "WARN"
	Fail Level = "FAIL"
)

// Finding is the result of one check.
type Finding struct {
	Level   Level  `json:"level"`
	Check   string `json:"check"`          // listener, certificate, client ca, password, egress, dkim key, database, dkim record, upstream, template
	Subject string `json:"subject"`        // what was looked at: a name in the config or in DNS
	Text    string `json:"text"`           // what was found
	Hint    string `json:"hint,omitempty"` // what to do about it
	Way     *Way   `json:"way,omitempty"`  // of an upstream: how it was reached
}

// Resolver looks up TXT records; *net.Resolver is one. A name that does not exist is a *net.DNSError with IsNotFound.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

const (
	lookupTime = 3 * time.Second  // for one record
	loginTime  = 15 * time.Second // for one upstream: connect, TLS, login
)

// Options says how far Run may go.
type Options struct {
	Resolver Resolver                    // nil: it stays on this host, without database, DNS and logins
	Ours     func(l *config.Listen) bool // whether a running gatepost has the address of l; nil where none runs
}

// Run makes all checks and returns what it found, in the order of the config's names.
func Run(ctx context.Context, cfg *config.Config, o Options) []Finding {
	found := slices.Concat(listeners(cfg, o), passwords(cfg), egresses(cfg), keys(cfg))
	if o.Resolver == nil {
		return found
	}
	var base, records, logins, templates []Finding
	var wg sync.WaitGroup
	wg.Go(func() { base = database(ctx, cfg) })
	wg.Go(func() { records = publishedRecords(ctx, cfg, o.Resolver) })
	wg.Go(func() { logins = Logins(ctx, cfg) })
	wg.Go(func() { templates = Templates(ctx, cfg) })
	wg.Wait()
	return slices.Concat(found, base, records, logins, templates)
}

// egresses checks that every source address is on this host.
func egresses(cfg *config.Config) []Finding {
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Egress)) {
		f := Finding{Level: OK, Check: "egress", Subject: name, Text: "its addresses are on this host"}
		if err := upstream.NewEgress(cfg.Egress[name]).Check(); err != nil {
			f.Level, f.Text = Fail, strings.NewReplacer("egress "+name+": ", "", "\n", "; ").Replace(err.Error())
			f.Hint = "mail that needs it waits until the address is there; nothing leaves from another one"
		}
		found = append(found, f)
	}
	return found
}

// together runs do for every element of in at the same time and returns the results in order.
func together[T any](in []T, do func(T) Finding) []Finding {
	found := make([]Finding, len(in))
	var wg sync.WaitGroup
	for i, v := range in {
		wg.Go(func() { found[i] = do(v) })
	}
	wg.Wait()
	return found
}
