package doctor

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

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
		f.Level, f.Text, f.Hint = password(c.Password.File)
		found = append(found, f)
	}
	return found
}

func password(file string) (level Level, text, hint string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return Fail, fmt.Sprintf("it cannot be read: %v", err), "the daemon's user has to be able to: under systemd by LoadCredential="
	}
	lines, hashed := 0, 0
	for line := range strings.Lines(string(b)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		lines++
		if strings.HasPrefix(line, "$argon2id$") {
			hashed++
		}
	}
	switch {
	case lines == 0:
		return Fail, "its file holds none", "gatepost hash-password makes a line of it"
	case lines == 1:
		text = "one"
	default:
		text = "two: take the old one out once all clients have the new one"
	}
	if hashed < lines {
		return OK, text + ", not hashed", "gatepost hash-password makes a line that betrays nothing to who can read it"
	}
	return OK, text + ", hashed", ""
}
