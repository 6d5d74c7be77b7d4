package policy

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/crypto/argon2"

	"gatepost/config"
)

// What HashPassword uses: the recommendation of RFC 9106 for little memory, in the form that OWASP gives it. Two
// computations at once stay below 40 MiB.
const (
	hashMemory = 19 << 10 // KiB
	hashTime   = 2
	hashLanes  = 1
	saltSize   = 16
	keySize    = 32
)

// HashPassword returns password as an argon2id hash, in the form that a client's password_file takes.
func HashPassword(password string) (string, error) {
	switch {
	case password == "":
		return "", errors.New("hash a password: it is empty")
	case len(password) > config.MaxPassword:
		return "", fmt.Errorf("hash a password: it is longer than %d octets", config.MaxPassword)
	case strings.ContainsAny(password, "\r\n\x00"):
		return "", errors.New("hash a password: it has a line end or a NUL, which no login can carry")
	}
	h := config.Argon2id{Memory: hashMemory, Time: hashTime, Threads: hashLanes, Salt: make([]byte, saltSize)}
	rand.Read(h.Salt)
	h.Key = argon2.IDKey([]byte(password), h.Salt, h.Time, h.Memory, h.Threads, keySize)
	return h.String(), nil
}

const (
	hashesAtOnce = 2   // each takes up to 64 MiB and a processor
	maxWaiting   = 200 // for one of them
)

// errBusy says that too many logins wait for their turn.
var errBusy = errors.New("too many logins are being checked")

// hashing lets two argon2 computations run at once, those of auth clients first. Go's channels have no priorities.
type hashing struct {
	mu     sync.Mutex
	free   int
	first  []chan struct{}
	others []chan struct{}
}

func newHashing() *hashing { return &hashing{free: hashesAtOnce} }

// enter waits for a turn until ctx ends.
func (h *hashing) enter(ctx context.Context, first bool) error {
	turn, err := h.queue(first)
	if err != nil {
		return err
	}
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		h.giveUp(turn)
		return context.Cause(ctx)
	}
}

// giveUp takes a turn out of the line, or ends it where it came at the same moment.
func (h *hashing) giveUp(turn chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	is := func(other chan struct{}) bool { return other == turn }
	select {
	case <-turn:
		h.pass()
	default:
		h.first, h.others = slices.DeleteFunc(h.first, is), slices.DeleteFunc(h.others, is)
	}
}

func (h *hashing) queue(first bool) (chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	turn := make(chan struct{})
	switch {
	case h.free > 0:
		h.free--
		close(turn)
	case len(h.first)+len(h.others) >= maxWaiting:
		return nil, errBusy
	case first:
		h.first = append(h.first, turn)
	default:
		h.others = append(h.others, turn)
	}
	return turn, nil
}

// leave ends a turn: the next one's begins.
func (h *hashing) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pass()
}

// pass gives the turn that ended to the next in line. mu is held.
func (h *hashing) pass() {
	line := &h.first
	if len(*line) == 0 {
		line = &h.others
	}
	if len(*line) == 0 {
		h.free++
		return
	}
	close((*line)[0])
	*line = slices.Delete(*line, 0, 1)
}

// verify reports whether password is one of ps. All of them are tried, so that the time does not tell which.
func (h *hashing) verify(ctx context.Context, ps []config.Password, password string, first bool) (bool, error) {
	found := 0
	for _, p := range ps {
		if p.Hash == nil {
			found |= equal(p.Plain, password)
			continue
		}
		if err := h.enter(ctx, first); err != nil {
			return false, err
		}
		key := argon2.IDKey([]byte(password), p.Hash.Salt, p.Hash.Time, p.Hash.Memory, p.Hash.Threads, uint32(len(p.Hash.Key)))
		h.leave()
		found |= subtle.ConstantTimeCompare(key, p.Hash.Key)
	}
	return found == 1, nil
}
