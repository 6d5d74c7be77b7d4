package store

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Key is a key in the key file of a fleet, without its secret.
type Key struct {
	ID   int64     `json:"id"`   // stored beside what it has sealed
	From time.Time `json:"from"` // when it begins to seal; the one that began last seals
}

var errKeyFileBusy = errors.New("another gatepost changes it at this moment: try again when that has ended")

// RotateKeyFile adds a key to the file of a fleet that seals from a time on: later than every node has the new file, since
// mail that one node seals with a key that another has not got is held there. It returns the key's id.
func RotateKeyFile(path string, from time.Time) (id int64, err error) {
	err = changeKeyFile(path, func(keys map[int64]sealKey) error {
		id, err = addKey(keys, from)
		return err
	})
	return id, err
}

// DropKeys removes from the file of a fleet the keys that are not needed: not the one that seals, nor any newer, nor one
// that needed has. It returns their ids. What they have sealed can never be read again.
func DropKeys(path string, needed map[int64]int) (dropped []int64, err error) {
	keys, err := ReadKeys(path)
	if err != nil {
		return nil, err
	}
	for _, k := range Replaced(keys, time.Now()) {
		if needed[k.ID] == 0 {
			dropped = append(dropped, k.ID)
		}
	}
	if len(dropped) == 0 {
		return nil, nil
	}
	return dropped, changeKeyFile(path, func(keys map[int64]sealKey) error {
		for _, id := range dropped {
			delete(keys, id)
		}
		return nil
	})
}

// ReadKeys returns what is in the key file of a fleet, in the order in which they begin to seal.
func ReadKeys(path string) ([]Key, error) {
	_, keys, _, err := readKeyFile(path)
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

// Replaced returns those of keys, sorted as ReadKeys does, in whose place another had begun to seal at that moment. Once no
// row needs such a key it can be removed.
func Replaced(keys []Key, then time.Time) []Key {
	begun := slices.DeleteFunc(slices.Clone(keys), func(k Key) bool { return k.From.After(then) })
	return begun[:max(0, len(begun)-1)]
}

// changeKeyFile replaces the file by what change makes of its keys. The new one belongs to whom the old one did: root
// changes what the daemon's user reads.
func changeKeyFile(path string, change func(keys map[int64]sealKey) error) error {
	lock, err := lockKeyFile(path)
	if err != nil {
		return fmt.Errorf("change key file: %w", err)
	}
	defer lock.Close()
	_, keys, history, err := readKeyFile(path)
	if err != nil {
		return err
	}
	if err := change(keys); err != nil {
		return fmt.Errorf("change key file %s: %w", path, err)
	}
	info, err := lock.Stat()
	if err != nil {
		return fmt.Errorf("change key file: %w", err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	return writeFileAs(path, formatKeyFile(time.Now(), history, keys), int(owner.Uid), int(owner.Gid))
}

// lockKeyFile keeps others from changing the file until it is closed.
func lockKeyFile(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) || err == nil && !isStill(f, path) { // replaced before it was locked
		err = errKeyFileBusy
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
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
