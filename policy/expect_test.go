package policy

import "testing"

func TestMAILTellsWhetherSignInMailIsComing(t *testing.T) {
	t.Parallel()
	p := newPolicy(t)
	for _, c := range []struct {
		client, from string
		want         bool
	}{
		{"both", "no-reply@auth.example.com", true},
		{"both", "no-reply@eu.login.example.com", true}, // by a wildcard
		{"both", "shop@news.example.com", false},
		{"both", "", false}, // may be either
		{"both", "who@example.org", false},
		{"logto", "no-reply@auth.example.com", true},
		{"logto", "", true}, // it sends nothing else
		{"logto", "shop@news.example.com", true},
		{"news", "no-reply@auth.example.com", false}, // which it may not send
		{"news", "", false},
		{"nobody", "no-reply@auth.example.com", false},
	} {
		if got := p.ExpectsAuth(c.client, c.from); got != c.want {
			t.Errorf("%s says MAIL FROM:<%s>: sign-in mail is expected: %v, want %v", c.client, c.from, got, c.want)
		}
	}
}
