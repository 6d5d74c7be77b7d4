package store

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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
			err = errors.New("it is there already: what was sealed with its keys could not be opened any more")
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
	return writeKeyFile(path, now, history, keys)
}

// RotateKeyFile adds a key to the file of a fleet that seals from a time on: later than every node has the new file. It
// returns the key's id.
func RotateKeyFile(path string, from time.Time) (id int64, err error) {
	_, keys, history, err := readKeyFile(path)
	if err != nil {
		return 0, err
	}
	if id, err = addKey(keys, from); err != nil {
		return 0, err
	}
	return id, writeKeyFile(path, time.Now(), history, keys)
}

// DropKeys removes from the file of a fleet those keys that are not needed: not the one that seals, nor any newer, nor
// one that older reports rows of. It returns their ids. needed is what Store.SealedUnder returns.
func DropKeys(path string, needed map[int64]int) (dropped []int64, err error) {
	text, keys, history, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	k := &keyring{path: path, shared: &sharedKeys{}, keys: keys}
	k.shared.seen.Store(&text)
	k.shared.looked.Store(int64(bootTime()))
	current, err := k.chooseShared(time.Now())
	if err != nil {
		return nil, err
	}
	left := maps.Clone(keys)
	for id, key := range keys {
		if needed[id] == 0 && newer(current, key) {
			delete(left, id)
			dropped = append(dropped, id)
		}
	}
	if len(dropped) == 0 {
		return nil, nil
	}
	return dropped, writeKeyFile(path, time.Now(), history, left)
}

func writeKeyFile(path string, now time.Time, history addressKey, keys map[int64]sealKey) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %s\n", historyWord, ms(now), base64.StdEncoding.EncodeToString(history))
	writeKeys(&b, keys)
	return writeFile(path, []byte(b.String()))
}

// SealedUnder returns how many queued bodies are sealed with each key, by its id.
func (s *Store) SealedUnder(ctx context.Context) (map[int64]int, error) {
	keys := map[int64]int{}
	err := s.read(ctx, func(r scanner) (bool, error) {
		var id int64
		var n int
		err := r.Scan(&id, &n)
		keys[id] = n
		return err == nil, err
	}, "SELECT key_id, count(*) FROM body WHERE key_id <> 0 GROUP BY key_id")
	if err != nil {
		return nil, fmt.Errorf("count what is sealed under each key: %w", err)
	}
	return keys, nil
}
