package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Password is what a login is verified against: one line of a client's password file, plain or hashed. It never prints.
type Password struct {
	Plain string    // "" where it is hashed
	Hash  *Argon2id // nil where it is plain
}

// String tells the form, never the secret.
func (p Password) String() string {
	if p.Hash != nil {
		return "argon2id hash"
	}
	return "plain password"
}

// GoString is String, so that %#v does not print it either.
func (p Password) GoString() string { return p.String() }

// MaxPassword bounds a password, in octets.
const MaxPassword = 1024

// Argon2id is a hash of a password (RFC 9106) with what is needed to make it again.
type Argon2id struct {
	Memory  uint32 // KiB
	Time    uint32 // passes
	Threads uint8  // lanes
	Salt    []byte
	Key     []byte
}

// The bounds of what is accepted from a file: a hash is computed for every wrong password, and two may be at once.
const (
	minHashMemory = 8 << 10 // KiB
	maxHashMemory = 64 << 10
	maxHashTime   = 10
	maxHashLanes  = 4
)

// String writes the hash in the PHC string format: $argon2id$v=19$m=19456,t=2,p=1$salt$key.
func (h *Argon2id) String() string {
	e := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", h.Memory, h.Time, h.Threads, e(h.Salt), e(h.Key))
}

// parseArgon2id reads what String writes.
func parseArgon2id(s string) (*Argon2id, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return nil, errors.New("not of the form $argon2id$v=19$m=…,t=…,p=…$salt$hash")
	}
	settings := strings.Split(parts[3], ",")
	if len(settings) != 3 {
		return nil, errors.New("its settings are not m=…,t=…,p=…")
	}
	memory, errM := setting(settings[0], "m=", minHashMemory, maxHashMemory)
	passes, errT := setting(settings[1], "t=", 1, maxHashTime)
	lanes, errP := setting(settings[2], "p=", 1, maxHashLanes)
	salt, errS := decodePart(parts[4], "salt", 8)
	key, errK := decodePart(parts[5], "hash", 16)
	if err := errors.Join(errM, errT, errP, errS, errK); err != nil {
		return nil, errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return &Argon2id{Memory: memory, Time: passes, Threads: uint8(lanes), Salt: salt, Key: key}, nil
}

func setting(s, name string, least, most uint64) (uint32, error) {
	digits, ok := strings.CutPrefix(s, name)
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || n < least || n > most {
		return 0, fmt.Errorf("%s is not from %d to %d", name[:1], least, most)
	}
	return uint32(n), nil
}

func decodePart(s, what string, least int) ([]byte, error) {
	b, err := base64.RawStdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < least || len(b) > 64 {
		return nil, fmt.Errorf("the %s is not base64 of %d to 64 octets", what, least)
	}
	return b, nil
}

// Passwords returns the passwords that the file holds, one a line: one, or two while one replaces the other.
func (s Secret) Passwords() ([]Password, error) {
	b, err := readBounded(s.File)
	if err != nil {
		return nil, fmt.Errorf("read passwords %s: %w", s.File, cause(err))
	}
	ps, err := ParsePasswords(string(b))
	if err != nil {
		return nil, fmt.Errorf("read passwords %s: %w", s.File, err)
	}
	return ps, nil
}

// ParsePasswords reads the contents of a password file. Its errors name lines, never what stands there.
func ParsePasswords(contents string) (ps []Password, err error) {
	for n, line := range strings.Split(contents, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		p, err := parsePassword(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n+1, err)
		}
		ps = append(ps, p)
	}
	if len(ps) == 0 || len(ps) > 2 {
		return nil, fmt.Errorf("it has %d passwords; it must have one, or two while one replaces the other", len(ps))
	}
	return ps, nil
}

func parsePassword(line string) (Password, error) {
	if strings.HasPrefix(line, "$argon2") {
		h, err := parseArgon2id(line)
		if err != nil {
			return Password{}, fmt.Errorf("the hash cannot be used: %w", err)
		}
		return Password{Hash: h}, nil
	}
	if len(line) > MaxPassword || !utf8.ValidString(line) || strings.ContainsFunc(line, unicode.IsControl) {
		return Password{}, fmt.Errorf("the password is longer than %d octets, or has a control character or invalid UTF-8", MaxPassword)
	}
	return Password{Plain: line}, nil
}

// passwords returns the file of a client's passwords, which must be private and readable.
func (l *loader) passwords(t *table) Secret {
	before := len(t.problems)
	s := Secret{t.private("password_file")}
	if !s.Set() || len(t.problems) > before {
		return s
	}
	ps, err := s.Passwords()
	if err != nil {
		t.bad(t.at("password_file"), "a line is a password, or what gatepost hash-password prints", "%v", err)
	}
	for _, p := range ps {
		if p.Hash == nil && len(p.Plain) < 8 {
			t.warn(t.at("password_file"), "take a longer one: openssl rand -base64 18", "%s holds a password of less than 8 characters", s.File)
		}
	}
	return s
}
