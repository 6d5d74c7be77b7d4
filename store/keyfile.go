package store

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Key is a key in the file that the nodes of a fleet share, without its secret.
type Key struct {
	ID   int64     `json:"id"`   // stored beside what it has sealed
	From time.Time `json:"from"` // when it begins to seal; the one that began last seals
}

var (
	errKeyFileExists = errors.New("it is there already: gatepost store rotate-key adds a key to it")
	errKeyFileBusy   = errors.New("another gatepost changes it at this moment: try again when that has ended")
)

// InitKeyFile makes the file of keys for a fleet, with one key that seals from now on. It never replaces a file.
func InitKeyFile(path string, now time.Time) (Key, error) {
	key, err := generateSealKey(nil, now, now)
	if err != nil {
		return Key{}, err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		err = errKeyFileExists
	}
	if err != nil {
		return Key{}, fmt.Errorf("make %s: %w", path, err)
	}
	_, err = f.Write(formatKeys(map[int64]sealKey{key.id: key}))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return Key{}, fmt.Errorf("make %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return Key{key.id, key.created}, syncDir(filepath.Dir(path))
}

// AddKey adds a key that seals from a moment on, which leaves time to bring the file to every node before. Mail that one
// node seals with a key that another has not got would be held there.
func AddKey(path string, now, from time.Time) (added Key, err error) {
	err = changeKeyFile(path, func(keys map[int64]sealKey) error {
		key, err := generateSealKey(keys, now, from)
		if err != nil {
			return err
		}
		keys[key.id] = key
		added = Key{key.id, key.created}
		return nil
	})
	return added, err
}

// RemoveKeys takes keys out of the file. What they have sealed can never be read again.
func RemoveKeys(path string, ids ...int64) error {
	return changeKeyFile(path, func(keys map[int64]sealKey) error {
		for _, id := range ids {
			delete(keys, id)
		}
		if len(keys) == 0 {
			return errors.New("no key would be left")
		}
		return nil
	})
}

// ReadKeys returns what is in the file of keys, oldest first.
func ReadKeys(path string) ([]Key, error) {
	keys, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	var all []Key
	for _, k := range keys {
		all = append(all, Key{k.id, k.created})
	}
	slices.SortFunc(all, func(a, b Key) int { return cmp.Or(a.From.Compare(b.From), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// Sealing returns which of keys, sorted as ReadKeys does, seals at a moment: the last that has begun. Before the first
// has begun, because the clock of this host is behind that of the one that made it, that is the first.
func Sealing(keys []Key, now time.Time) Key {
	seals := keys[0]
	for _, k := range keys {
		if !k.From.After(now) {
			seals = k
		}
	}
	return seals
}

// Replaced returns those of keys, sorted as ReadKeys does, in whose place another had begun to seal at that moment. Once no
// row needs such a key it can be destroyed.
func Replaced(keys []Key, then time.Time) []Key {
	begun := slices.DeleteFunc(slices.Clone(keys), func(k Key) bool { return k.From.After(then) })
	return begun[:max(0, len(begun)-1)]
}

// readKeyFile reads a file that must be there and hold a key.
func readKeyFile(path string) (map[int64]sealKey, error) {
	text, err := readPrivate(path)
	if err == nil && text == nil {
		err = errors.New("it does not exist: gatepost store init-key makes it, once for all nodes")
	}
	if err != nil {
		return nil, fmt.Errorf("read the keys in %s: %w", path, err)
	}
	keys, err := parseKeys(path, text)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("%s holds no key: restore it, or copy it from another node", path)
	}
	return keys, err
}

// changeKeyFile replaces the file by what change makes of its keys. The new one belongs to whom the old one did: root
// changes what the daemon's user reads.
func changeKeyFile(path string, change func(keys map[int64]sealKey) error) error {
	lock, err := lockKeyFile(path)
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	defer lock.Close()
	keys, err := readKeyFile(path)
	if err != nil {
		return err
	}
	if err := change(keys); err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	info, err := lock.Stat()
	if err != nil {
		return fmt.Errorf("change %s: %w", path, err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return writeFileAs(path, formatKeys(keys), int(owner.Uid), int(owner.Gid))
}

// lockKeyFile keeps others from changing the file until it is closed.
func lockKeyFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errKeyFileBusy
	}
	if err == nil && !isStill(f, path) {
		err = errKeyFileBusy // replaced between our opening and our locking it
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func isStill(f *os.File, path string) bool {
	opened, err1 := f.Stat()
	there, err2 := os.Stat(path)
	return err1 == nil && err2 == nil && os.SameFile(opened, there)
}

// writeFileAs is writeFile for a file of somebody else's.
func writeFileAs(path string, data []byte, uid, gid int) error {
	tmp := path + ".new"
	err := writeSynced(tmp, data)
	if err == nil {
		err = os.Chown(tmp, uid, gid)
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}
