package store

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// makeDir makes the state directory, private to us, if it is not there.
func makeDir(dir string, log *slog.Logger) error {
	if info, err := os.Stat(dir); err == nil {
		if mode := info.Mode().Perm(); mode&0o022 != 0 {
			log.Warn("state_dir can be written by others than its owner, who could replace the queue: chmod 700", "dir", dir, "mode", fmt.Sprintf("%o", mode))
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make state_dir: %w", err)
	}
	return syncDir(filepath.Dir(dir))
}

// lockDir takes the state directory for this process alone. The lock ends with the process, however it ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open state_dir: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errors.New("another gatepost runs on this state_dir: stop it first, or give this one a directory of its own")
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// writeFile replaces a private file so that after a crash either the old or the new one is there, whole.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := writeSynced(tmp, data); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// readPrivate reads a key file and refuses one that others may read. A file that is not there is nil.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	}
	return os.ReadFile(path)
}

// readOrMakeKey returns the 32 bytes in a file of one base64 line, and makes the file where there is none.
func readOrMakeKey(path string) ([]byte, error) {
	text, err := readPrivate(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if text == nil {
		key := make([]byte, keySize)
		rand.Read(key)
		return key, writeFile(path, []byte(base64.StdEncoding.EncodeToString(key)+"\n"))
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != keySize {
		return nil, fmt.Errorf("%s does not hold a key (one line, %d bytes in base64): restore it from a backup, or move it away; history kept so far can then no longer be found by address", path, keySize)
	}
	return key, nil
}
