package config

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// resolve returns the absolute path of a file that the config names, and says where it looked. A relative name that
// exists among systemd's credentials means that one, else it is relative to the config's directory.
func (l *loader) resolve(name string) (file, looked string) {
	if filepath.IsAbs(name) {
		return filepath.Clean(name), ""
	}
	file = filepath.Join(l.c.Dir, name)
	credentials := os.Getenv("CREDENTIALS_DIRECTORY")
	if credentials == "" || !filepath.IsLocal(name) {
		return file, "relative paths start at " + l.c.Dir
	}
	if c := filepath.Join(credentials, name); exists(c) {
		return c, ""
	}
	return file, fmt.Sprintf("looked in %s (CREDENTIALS_DIRECTORY) and %s", credentials, l.c.Dir)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// isCredential reports whether systemd handed the file over. Such files are root's and may be 0440: who may read them is
// settled by the directory.
func isCredential(file string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	rel, err := filepath.Rel(dir, file)
	return dir != "" && err == nil && filepath.IsLocal(rel)
}

// private returns the path of the file named at key, which must be there, hold something and be nobody else's to read.
func (t *table) private(key string) string { return t.privateMade(key, "") }

// privateMade is private for a file that a command makes.
func (t *table) privateMade(key, command string) string {
	name := t.text(key)
	if name == "" {
		return ""
	}
	file, looked := t.resolve(name)
	if command != "" {
		looked = strings.TrimPrefix(looked+"; make one with: "+command, "; ")
	}
	t.checkPrivate(t.at(key), file, looked)
	return file
}

func (l *loader) checkPrivate(path, file, looked string) {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.bad(path, looked, "%s does not exist", file)
	case err != nil:
		l.bad(path, "", "%s cannot be looked at: %v", file, cause(err))
	case !info.Mode().IsRegular():
		l.bad(path, "", "%s is not a regular file", file)
	case info.Mode().Perm()&0o077 != 0 && !isCredential(file):
		l.bad(path, "chmod 600 "+file, "%s can be read or written by group or others (mode %04o)", file, info.Mode().Perm())
	default:
		l.checkContents(path, file)
	}
}

func (l *loader) checkContents(path, file string) {
	data, err := readBounded(file)
	switch {
	case err != nil:
		l.bad(path, "it must belong to the user that gatepost runs as, or come from systemd: LoadCredential= in the unit", "%s cannot be read: %v", file, cause(err))
	case len(bytes.TrimSpace(data)) == 0:
		l.bad(path, "write into it what belongs there, with an editor", "%s is empty", file)
	}
}

// secret returns the secret whose file is named at key.
func (t *table) secret(key string) Secret {
	before := len(t.problems)
	s := Secret{t.private(key)}
	if !s.Set() || len(t.problems) > before {
		return s
	}
	if _, err := s.Read(); err != nil {
		t.bad(t.at(key), "the first line is the secret", "%v", err)
	}
	return s
}

// certificates returns the path of the PEM file named at key, which must hold at least one certificate.
func (t *table) certificates(key string) string {
	name := t.text(key)
	if name == "" {
		return ""
	}
	file, looked := t.resolve(name)
	info, err := os.Stat(file)
	var pem []byte
	if err == nil && info.Mode().IsRegular() { // opening a pipe could wait forever
		pem, err = readBounded(file)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		t.bad(t.at(key), looked, "%s does not exist", file)
	case err != nil:
		t.bad(t.at(key), "", "%s cannot be read: %v", file, cause(err))
	case !x509.NewCertPool().AppendCertsFromPEM(pem):
		t.bad(t.at(key), "it begins with -----BEGIN CERTIFICATE-----", "%s holds no PEM certificate", file)
	}
	return file
}

// stateDir returns where the daemon keeps its data: state_dir, or what systemd's StateDirectory= made.
func (l *loader) stateDir(top *table) string {
	dir := top.text("state_dir")
	if dir == "" && !top.has("state_dir") {
		dir, _, _ = strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	}
	if dir == "" {
		if !top.has("state_dir") {
			top.bad("state_dir", `write state_dir = "/var/lib/gatepost"`, "is missing")
		}
		return ""
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(l.c.Dir, dir)
	}
	return filepath.Clean(dir)
}
