package doctor

import (
	"maps"
	"slices"

	"gatepost/config"
)

// passwords checks what the clients that log in have in their password files. What is in them is not told.
func passwords(cfg *config.Config) []Finding {
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(cfg.Client)) {
		c := cfg.Client[name]
		if !c.Password.Set() {
			continue
		}
		f := Finding{Level: OK, Check: "password", Subject: "client " + name}
		f.Level, f.Text, f.Hint = password(c.Password)
		found = append(found, f)
	}
	return found
}

func password(file config.Secret) (level Level, text, hint string) {
	ps, err := file.Passwords()
	if err != nil {
		return Fail, err.Error(), "the daemon's user has to be able to read it: under systemd by LoadCredential=; gatepost hash-password makes a line of it"
	}
	text = "one"
	if len(ps) == 2 {
		text = "two: take the old one out once all clients have the new one"
	}
	if slices.ContainsFunc(ps, func(p config.Password) bool { return p.Hash == nil }) {
		return OK, text + ", not hashed", "gatepost hash-password makes a line that betrays nothing to who can read it"
	}
	return OK, text + ", hashed", ""
}
