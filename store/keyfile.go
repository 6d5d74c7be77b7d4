package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// The key file of a fleet has the format of spool.key, one key a line (id, time from which it seals in ms, base64), and
// one line more: "history", a time, and the key under which history finds addresses. All nodes have the same file and
// none writes it. The newest key whose time has come seals. A key is added with its time ahead, so that every node knows
// it before any uses it.

const (
	historyWord  = "history"
	rereadEvery  = time.Second // how often a change of the file is looked for
	sharedKeyEnd = "copy the key file from a node that runs, or make one with gatepost store init-key where there is none yet"
)

// sharedKeys is what a keyring knows of a file that others write.
type sharedKeys struct {
	now    func() time.Time
	looked atomic.Int64 // bootTime of the last look
	seen   atomic.Pointer[[]byte]
}

// openSharedKeys reads the key file of a fleet.
func openSharedKeys(path string, now func() time.Time) (*keyring, addressKey, error) {
	text, keys, history, err := readKeyFile(path)
	if err != nil {
		return nil, nil, err
	}
	k := &keyring{path: path, shared: &sharedKeys{now: now}, keys: keys, pinned: map[int64]int{}}
	k.shared.seen.Store(&text)
	k.shared.looked.Store(int64(bootTime()))
	return k, history, nil
}

// readKeyFile reads a key file, which must hold a history key and a key that seals.
func readKeyFile(path string) (text []byte, keys map[int64]sealKey, history addressKey, err error) {
	if text, err = readPrivate(path); err != nil {
		return nil, nil, nil, fmt.Errorf("read the key file: %w", err)
	}
	if text == nil {
		return nil, nil, nil, fmt.Errorf("key file %s is not there: %s", path, sharedKeyEnd)
	}
	keys = map[int64]sealKey{}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		bad := fmt.Errorf("%s:%d: not a key (id, time, base64): %s", path, n, sharedKeyEnd)
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == historyWord {
			secret, err := base64.StdEncoding.DecodeString(f[2])
			if err != nil || len(secret) != keySize || history != nil {
				return nil, nil, nil, bad
			}
			history = secret
			continue
		}
		key, err := parseSealKey(line)
		if _, twice := keys[key.id]; err != nil || twice {
			return nil, nil, nil, bad
		}
		keys[key.id] = key
	}
	if history == nil || len(keys) == 0 {
		return nil, nil, nil, fmt.Errorf("key file %s lacks its line history, or has no other: %s", path, sharedKeyEnd)
	}
	return text, keys, history, nil
}

// chooseShared returns the newest key whose time has come. The caller holds turn.
func (k *keyring) chooseShared(now time.Time) (sealKey, error) {
	k.reread()
	k.mu.RLock()
	defer k.mu.RUnlock()
	var newest, first sealKey
	for _, key := range k.keys {
		if !key.created.After(now) && (newest.aead == nil || newer(key, newest)) {
			newest = key
		}
		if first.aead == nil || newer(first, key) {
			first = key
		}
	}
	if newest.aead == nil {
		newest = first // the clock is behind: every node that has the file knows the oldest
	}
	return newest, nil
}

func newer(a, b sealKey) bool {
	return a.created.After(b.created) || a.created.Equal(b.created) && a.id > b.id
}

// reread takes in a file that has changed, and reports whether it did. One that can't be read changes nothing: its old
// keys are as good as before, and a sign-in code should not wait for a mistake to be undone.
func (k *keyring) reread() bool {
	looked, now := k.shared.looked.Load(), int64(bootTime())
	if now-looked < int64(rereadEvery) || !k.shared.looked.CompareAndSwap(looked, now) {
		return false
	}
	text, keys, _, err := readKeyFile(k.path)
	if err != nil || bytes.Equal(text, *k.shared.seen.Load()) {
		return false
	}
	k.shared.seen.Store(&text)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	return true
}

// check is what tells two history keys apart without giving away either.
func (k addressKey) check() string {
	h := hmac.New(sha256.New, k)
	h.Write([]byte("gatepost history key"))
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// NewKeyFile makes the key file of a new fleet, with mode 0600. It refuses to replace one.
func NewKeyFile(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = errors.New("it is there already: gatepost store rotate-key adds a key to it")
		}
		return fmt.Errorf("make key file %s: %w", path, err)
	}
	history := make([]byte, keySize)
	rand.Read(history)
	keys := map[int64]sealKey{}
	now := time.Now()
	if _, err := addKey(keys, now); err != nil {
		return err
	}
	return writeFile(path, formatKeyFile(now, history, keys))
}

// formatKeyFile writes what readKeyFile reads.
func formatKeyFile(now time.Time, history addressKey, keys map[int64]sealKey) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %s\n", historyWord, ms(now), base64.StdEncoding.EncodeToString(history))
	writeKeys(&b, keys)
	return []byte(b.String())
}
