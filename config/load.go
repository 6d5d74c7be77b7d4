package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds a config file, a secret file and a certificate file, in octets.
const maxFile = 1 << 20

// Load reads and checks a config file. Its error joins a *Problem for everything that is wrong, by line; Problems takes
// them apart. It reads the environment (${NAME}, CREDENTIALS_DIRECTORY, STATE_DIRECTORY) and looks at the files that
// the config names.
func Load(file string) (*Config, error) {
	data, err := readBounded(file)
	if err != nil {
		hint := "name another file with -c, or begin one: gatepost config init DOMAIN"
		if errors.Is(err, fs.ErrPermission) {
			hint = "let the user that gatepost runs as read it: chmod 644, since secrets are in files of their own; or use sudo"
		}
		return nil, &Problem{File: file, Text: fmt.Sprintf("the config cannot be read: %v", cause(err)), Hint: hint}
	}
	return Parse(file, data)
}

// Parse is Load for a file whose contents are already at hand. The file's name is used in problems and to find what the
// config names.
func Parse(file string, data []byte) (*Config, error) {
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, &Problem{File: file, Text: fmt.Sprintf("its directory cannot be found: %v", err)}
	}
	l := &loader{c: &Config{File: file, Dir: dir}, lines: strings.Count(string(data), "\n") + 1}
	var top map[string]any
	if _, err := toml.Decode(string(data), &top); err != nil {
		l.badSyntax(err)
	} else {
		l.at = index(string(data))
		l.read(top)
		l.check()
	}
	byLine := func(a, b *Problem) int { return cmp.Compare(a.Line, b.Line) }
	slices.SortStableFunc(l.problems, byLine)
	slices.SortStableFunc(l.c.Warnings, byLine)
	if len(l.problems) > 0 {
		errs := make([]error, len(l.problems))
		for i, p := range l.problems {
			errs[i] = p
		}
		return nil, errors.Join(errs...)
	}
	return l.c, nil
}

// loader holds one file while it is read. It carries on after a problem, so that all are told at once.
type loader struct {
	c        *Config
	at       positions
	lines    int
	problems []*Problem
}

// bad notes a problem with the key at path, which may end in the index of a list's element.
func (l *loader) bad(path, hint, format string, a ...any) {
	l.problems = append(l.problems, l.problem(path, hint, format, a...))
}

// warn notes what works but somebody should know.
func (l *loader) warn(path, hint, format string, a ...any) {
	l.c.Warnings = append(l.c.Warnings, l.problem(path, hint, format, a...))
}

func (l *loader) problem(path, hint, format string, a ...any) *Problem {
	line := l.at.line(path)
	if i := strings.LastIndexByte(path, '['); i >= 0 && strings.HasSuffix(path, "]") {
		path = path[:i]
	}
	return &Problem{l.c.File, line, path, fmt.Sprintf(format, a...), hint}
}

// badSyntax notes what the TOML library says. It stops at the first error.
func (l *loader) badSyntax(err error) {
	p := &Problem{File: l.c.File, Line: 1, Text: "not valid TOML: " + err.Error()}
	if e, ok := errors.AsType[toml.ParseError](err); ok {
		p.Line = min(max(e.Position.Line, 1), l.lines)
		p.Text = "not valid TOML: " + e.Message
	}
	l.problems = append(l.problems, p)
}

// read fills the Config from the decoded file.
func (l *loader) read(m map[string]any) {
	top := l.table("", "", m)
	l.c.Hostname = l.hostname(top)
	l.c.StateDir = l.stateDir(top)
	l.c.Store = l.store(top.sub("store", "store"))
	l.c.Listen = sections(top, "listen", l.listen)
	l.c.Client = sections(top, "client", l.client)
	l.c.Stream = sections(top, "stream", l.stream)
	l.c.Egress = sections(top, "egress", l.egress)
	l.c.Upstream = sections(top, "upstream", l.upstream)
	l.c.Hook = sections(top, "hook", l.hook)
	l.c.History = l.history(top.sub("history", "history"))
	l.c.Log = l.log(top.sub("log", "log"))
	l.c.Limits = l.limits(top.sub("limits", "limits"))
	l.c.Templates = l.templates(top.sub("templates", "templates"))
}

// sections reads every [kind.NAME], in the order of names.
func sections[S any](top *table, kind string, read func(t *table, name string) *S) map[string]*S {
	found := map[string]*S{}
	if !top.has(kind) {
		return found
	}
	all, ok := top.m[kind].(map[string]any)
	if !ok {
		top.wrongType(kind, top.m[kind], "tables with names", fmt.Sprintf("write [%s.NAME]", kind))
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		path := join(kind, name)
		m, ok := all[name].(map[string]any)
		if !ok {
			top.wrongType(path, all[name], "a table", fmt.Sprintf("write [%s.NAME] above the keys of each %s", kind, kind))
			continue
		}
		if !isName(name) {
			top.bad(path, "use up to 64 letters, digits, - and _", "%q cannot be a name", name)
		}
		found[name] = read(top.table(path, kind, m), name)
	}
	return found
}

// isName reports whether s may name a section. Names end up in logs, metrics, file names and comma-joined lists.
func isName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// readBounded reads a file of at most maxFile octets.
func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it is larger than %s", formatSize(maxFile))
	}
	return data, nil
}

// cause strips the operation and path from a file error: the problem has named both.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}
