package config_test

import (
	"maps"
	"slices"
	"testing"
	"time"

	"gatepost/config"
)

func TestARouteSharesItsMailByWeight(t *testing.T) {
	for route, want := range map[string]map[string]int{
		`["sink", "spare"]`:                                                                    nil,
		`["sink", { upstream = "spare" }]`:                                                     nil,
		`[{ upstream = "sink", weight = 100 }, "spare"]`:                                       nil,
		`["sink", { upstream = "spare", weight = 5 }]`:                                         {"sink": 95, "spare": 5},
		`["sink", "third", { upstream = "spare", weight = 5 }]`:                                {"sink": 95, "spare": 5},
		`[{ upstream = "sink", weight = 60 }, { upstream = "spare", weight = 40 }, "third"]`:   {"sink": 60, "spare": 40},
		`[{ upstream = "sink", weight = 50 }, { upstream = "spare", weight = 50 }]`:            {"sink": 50, "spare": 50},
		`["sink", { upstream = "spare", weight = 100 }]`:                                       {"spare": 100},
		"[\n  \"sink\",\n  { upstream = \"spare\", weight = 1 }, # a comment\n  \"third\",\n]": {"sink": 99, "spare": 1},
	} {
		dir := t.TempDir()
		write(t, dir, "auth.pem", "marketing.pem")
		text := show2
		for _, e := range []edit{withSpare(route), spare, third} {
			text = e.apply(t, text)
		}
		c := parse(t, dir, text)
		for range 2 {
			s := c.Stream["auth"]
			if names := []string{"sink", "spare", "third"}; len(s.Route) < 2 || slices.ContainsFunc(s.Route, func(n string) bool { return !slices.Contains(names, n) }) {
				t.Errorf("%s: the route is %q", route, s.Route)
			}
			if !maps.Equal(s.Weights, want) {
				t.Errorf("%s: the weights are %v, want %v", route, s.Weights, want)
			}
			c = parse(t, dir, c.Effective())
		}
	}
}

func TestASecondCopyWaitsAsTheUpstreamSaysElseAsTheStreamDoes(t *testing.T) {
	auth := &config.Stream{Kind: "auth", HedgeAfter: 2 * time.Second}
	news := &config.Stream{Kind: "marketing"}
	slow, usual := &config.Upstream{HedgeAfter: 5 * time.Second}, &config.Upstream{}
	for _, tt := range []struct {
		s    *config.Stream
		u    *config.Upstream
		want time.Duration
	}{{auth, usual, 2 * time.Second}, {auth, slow, 5 * time.Second}, {news, slow, 0}, {news, usual, 0}} {
		if got := config.HedgeAfterOf(tt.s, tt.u); got != tt.want {
			t.Errorf("a second copy after %v, want %v", got, tt.want)
		}
	}
}
