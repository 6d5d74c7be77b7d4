package admin

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"gatepost/config"
)

func TestAReloadTellsWhatChanged(t *testing.T) {
	r := start(t)
	done, err := r.client.Reload(t.Context())
	if err != nil || !slices.Equal(done.Streams.Added, []string{"news"}) || done.Held != 3 || done.Count() != 2 {
		t.Errorf("Reload = %+v, %v", done, err)
	}
}

func TestEveryProblemOfABrokenConfigReachesWhoReloads(t *testing.T) {
	r := start(t)
	r.engine.broken = &Problem{Text: "the config has problems", Code: http.StatusUnprocessableEntity, Problems: []*config.Problem{
		{File: "gatepost.toml", Line: 3, Key: "hostname", Text: "it is missing", Hint: "add it"}, {File: "gatepost.toml", Line: 9, Text: "what is this"}}}
	_, err := r.client.Reload(t.Context())
	got := config.Problems(err)
	if len(got) != 2 || got[0].Error() != "gatepost.toml:3: hostname: it is missing" || got[0].Hint != "add it" {
		t.Errorf("Reload of a broken config: %v with problems %v, want both", err, got)
	}
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != http.StatusUnprocessableEntity {
		t.Errorf("Reload of a broken config: %v, want status 422", err)
	}
}
