package store

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"gatepost/message"
)

const (
	keySize = 32               // AES-256
	keyLife = 10 * time.Minute // after which the next sealed body gets a new key
)

// errNoKey says that a sealed body cannot be opened any more.
var errNoKey = errors.New("the key that sealed it is gone")

// keyring holds the keys that bodies of auth mail are sealed with at rest. Destroying a key is what really deletes the
// bodies under it: SQL leaves copies in log frames, free pages and backups. One key is used for ten minutes of mail,
// so that what is settled soon becomes unreadable soon.
type keyring struct {
	path   string
	shared *sharedKeys // nil where this process alone writes the file

	turn   sync.Mutex    // held to choose or change keys; taken before mu
	pinned map[int64]int // bodies on their way that no row tells of yet; guarded by turn

	mu      sync.RWMutex // held to replace keys and current
	keys    map[int64]sealKey
	current int64 // 0 where the next body needs a new key
}

type sealKey struct {
	id      int64
	created time.Time
	secret  []byte
	aead    cipher.AEAD
}

func newSealKey(id int64, created time.Time, secret []byte) (sealKey, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return sealKey{}, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return sealKey{id, created, secret, aead}, err
}

// openKeyring reads the file of one key a line (id, time of creation in ms, base64) and adds a new key, which the bodies of
// this incarnation are sealed with.
func openKeyring(path string, now time.Time) (*keyring, error) {
	k := &keyring{path: path, keys: map[int64]sealKey{}, pinned: map[int64]int{}}
	text, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("read spool key: %w", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		key, err := parseSealKey(line)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: not a key (id, time, base64): restore the file, or take that line out; auth mail sealed with it will be held", path, n)
		}
		k.keys[key.id] = key
	}
	return k, k.rotate(now)
}

func parseSealKey(line string) (sealKey, error) {
	f := strings.Fields(line)
	if len(f) != 3 {
		return sealKey{}, errors.New("not three fields")
	}
	id, err1 := strconv.ParseInt(f[0], 10, 64)
	created, err2 := strconv.ParseInt(f[1], 10, 64)
	secret, err3 := base64.StdEncoding.DecodeString(f[2])
	if err := errors.Join(err1, err2, err3); err != nil || id <= 0 || len(secret) != keySize {
		return sealKey{}, errors.New("malformed field")
	}
	return newSealKey(id, at(created), secret)
}

// save writes keys to the file. Nobody else writes it: the state directory is locked.
func (k *keyring) save(keys map[int64]sealKey) error {
	var b strings.Builder
	writeKeys(&b, keys)
	return writeFile(k.path, []byte(b.String()))
}

func writeKeys(b *strings.Builder, keys map[int64]sealKey) {
	for _, key := range slices.SortedFunc(maps.Values(keys), func(a, b sealKey) int { return cmp.Compare(a.id, b.id) }) {
		fmt.Fprintf(b, "%d %d %s\n", key.id, ms(key.created), base64.StdEncoding.EncodeToString(key.secret))
	}
}

// rotate adds a key and makes it the current one once it is durable. Ids follow the clock, so that the number of a
// destroyed key never comes back to rows in a backup.
func (k *keyring) rotate(now time.Time) error {
	keys := maps.Clone(k.keys)
	id, err := addKey(keys, now)
	if err != nil {
		return err
	}
	if err := k.save(keys); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys, k.current = keys, id
	return nil
}

// addKey adds a new key to keys.
func addKey(keys map[int64]sealKey, created time.Time) (id int64, err error) {
	id = created.UnixMilli()
	for old := range keys {
		id = max(id, old+1)
	}
	secret := make([]byte, keySize)
	rand.Read(secret)
	keys[id], err = newSealKey(id, created, secret)
	return id, err
}

// choose returns the key for the next body. One that is due for rotation but cannot be replaced just now goes on: it is
// durable, and a sign-in code should not wait for a better one. The caller holds turn.
func (k *keyring) choose(now time.Time) (sealKey, error) {
	if k.shared != nil {
		return k.chooseShared(now)
	}
	key, ok := k.keys[k.current]
	if !ok || now.Sub(key.created) >= keyLife || now.Before(key.created) {
		if err := k.rotate(now); err != nil && !ok {
			return sealKey{}, fmt.Errorf("make a spool key: %w", err)
		}
		key = k.keys[k.current]
	}
	return key, nil
}

// seal encrypts the body of id. Only the writer calls it, in the transaction that stores the body.
func (k *keyring) seal(now time.Time, id message.ID, body []byte) (keyID int64, sealed []byte, err error) {
	k.turn.Lock()
	key, err := k.choose(now)
	k.turn.Unlock()
	if err != nil {
		return 0, nil, err
	}
	return key.id, key.aead.Seal(nil, nil, body, aad(id)), nil
}

// sealPinned is seal for any goroutine and a body that is stored later: until unpin its key is not destroyed.
func (k *keyring) sealPinned(now time.Time, id message.ID, body []byte) (keyID int64, sealed []byte, err error) {
	k.turn.Lock()
	key, err := k.choose(now)
	if err == nil {
		k.pinned[key.id]++
	}
	k.turn.Unlock()
	if err != nil {
		return 0, nil, err
	}
	return key.id, key.aead.Seal(nil, nil, body, aad(id)), nil
}

// unpin ends what sealPinned began. A keyID of 0 is fine.
func (k *keyring) unpin(keyID int64) {
	k.turn.Lock()
	defer k.turn.Unlock()
	if k.pinned[keyID]--; k.pinned[keyID] <= 0 {
		delete(k.pinned, keyID)
	}
}

// open decrypts what seal made. It may be called from any goroutine.
func (k *keyring) open(keyID int64, id message.ID, sealed []byte) ([]byte, error) {
	key, ok := k.find(keyID)
	if !ok && k.shared != nil && k.reread() {
		key, ok = k.find(keyID)
	}
	if !ok {
		return nil, errNoKey
	}
	body, err := key.aead.Open(nil, nil, sealed, aad(id))
	if err != nil {
		return nil, errNoKey // another key under the same number, or bytes changed on disk: as good as gone
	}
	return body, nil
}

func (k *keyring) find(keyID int64) (sealKey, bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	key, ok := k.keys[keyID]
	return key, ok
}

// retire destroys the keys that no row needs any more, the current one too once it has had its time. Only the writer
// calls it, between transactions.
func (k *keyring) retire(now time.Time, needed func(keyID int64) (bool, error)) (n int, err error) {
	k.turn.Lock()
	defer k.turn.Unlock()
	keys := maps.Clone(k.keys)
	for id, key := range k.keys {
		if k.pinned[id] > 0 || id == k.current && now.Sub(key.created) < keyLife {
			continue
		}
		used, err := needed(id)
		if err != nil {
			return 0, err
		}
		if !used {
			delete(keys, id)
		}
	}
	if n = len(k.keys) - len(keys); n == 0 {
		return 0, nil
	}
	if err := k.save(keys); err != nil {
		return 0, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = keys
	if _, ok := keys[k.current]; !ok {
		k.current = 0
	}
	return n, nil
}

// aad binds a sealed body to its row.
func aad(id message.ID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }
