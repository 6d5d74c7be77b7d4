package config

import (
	"errors"
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with a config, or for a warning, that somebody should know. It never holds a secret.
type Problem struct {
	File string `json:"file"`           // as given to Load
	Line int    `json:"line,omitempty"` // from 1; 0 where the file could not be read at all
	Key  string `json:"key,omitempty"`  // "egress.auth.ipv4"; "" where it concerns the whole file
	Text string `json:"text"`           // what is wrong
	Hint string `json:"hint,omitempty"` // what to do about it; "" where the text says it
}

// Error returns file:line: key: text, without the hint.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	b.WriteString(": " + p.Text)
	return b.String()
}

// Problems returns every Problem inside err, in order: by line, as Load joined them.
func Problems(err error) []*Problem {
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Problem
		for _, e := range many.Unwrap() {
			all = append(all, Problems(e)...)
		}
		return all
	}
	if p, ok := err.(*Problem); ok {
		return []*Problem{p}
	}
	if err = errors.Unwrap(err); err != nil {
		return Problems(err)
	}
	return nil
}
