package config

import (
	"fmt"
	"strings"
)

// Secret is a credential that lives in a file. It is read when it is needed, so a rotated one works without a reload,
// and it never prints.
type Secret struct {
	File string // absolute; "" where none is configured
}

// Set reports whether one is configured.
func (s Secret) Set() bool { return s.File != "" }

// Read returns the file's first line without its line end. Files above 1 MB are refused.
func (s Secret) Read() (string, error) {
	b, err := readBounded(s.File)
	if err != nil {
		return "", fmt.Errorf("read secret %s: %w", s.File, cause(err))
	}
	line, _, _ := strings.Cut(string(b), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", fmt.Errorf("read secret %s: its first line is empty", s.File)
	}
	return line, nil
}

// Lines returns all lines of the file that are not empty, of which there may be most: several while one replaces another.
func (s Secret) Lines(most int) ([]string, error) {
	b, err := readBounded(s.File)
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w", s.File, cause(err))
	}
	lines := strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 || len(lines) > most {
		return nil, fmt.Errorf("read secret %s: it has %d lines, and must have one to %d", s.File, len(lines), most)
	}
	return lines, nil
}

// String names the file, never what is in it.
func (s Secret) String() string {
	if !s.Set() {
		return ""
	}
	return "file " + s.File
}
