package policy

import (
	"fmt"
	"strings"

	"gatepost/config"
)

// domains finds the one stream that a sender domain belongs to.
type domains struct {
	exact map[string]*config.Stream // by the domain itself
	below map[string]*config.Stream // by what follows "*."
}

func newDomains(streams []*config.Stream) (domains, error) {
	d := domains{map[string]*config.Stream{}, map[string]*config.Stream{}}
	for _, s := range streams {
		for _, name := range s.Domains {
			table, key := d.exact, name
			if parent, ok := strings.CutPrefix(name, "*."); ok {
				table, key = d.below, parent
			}
			if other := table[key]; other != nil && other != s {
				return d, fmt.Errorf("domain %s belongs to the streams %s and %s; it must belong to one", name, other.Name, s.Name)
			}
			table[key] = s
		}
	}
	return d, nil
}

// stream returns whose domain it is, nil for nobody's. The name itself wins over a wildcard, a longer wildcard over a
// shorter one; a wildcard does not cover the name it is made of.
func (d domains) stream(domain string) *config.Stream {
	if s := d.exact[domain]; s != nil {
		return s
	}
	for _, parent, ok := strings.Cut(domain, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		if s := d.below[parent]; s != nil {
			return s
		}
	}
	return nil
}
