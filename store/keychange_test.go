package store

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// newKeyFile makes a key file and returns its path and its key.
func newKeyFile(t *testing.T) (path string, first Key) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.key")
	if err := NewKeyFile(path); err != nil {
		t.Fatal(err)
	}
	return path, must(ReadKeys(path))[0]
}

func TestAKeyFileIsMadeOnceAndBelongsToItsOwnerAlone(t *testing.T) {
	t.Parallel()
	path, _ := newKeyFile(t)
	info := must(os.Stat(path))
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	before := must(os.ReadFile(path))
	if err := NewKeyFile(path); err == nil || !strings.Contains(err.Error(), "gatepost store rotate-key") {
		t.Errorf("a second one is made, or refused with %v", err)
	}
	if !slices.Equal(must(os.ReadFile(path)), before) {
		t.Error("the file changed")
	}
}

func TestAnAddedKeySealsFromItsMomentOnAndNotBefore(t *testing.T) {
	t.Parallel()
	path, first := newKeyFile(t)
	second := Key{must(RotateKeyFile(path, first.From.Add(time.Hour))), first.From.Add(time.Hour)}
	third := Key{must(RotateKeyFile(path, first.From.Add(time.Minute))), first.From.Add(time.Minute)}
	keys := must(ReadKeys(path))
	if want := []Key{first, third, second}; !slices.Equal(keys, want) {
		t.Fatalf("the file holds %v, want %v", keys, want)
	}
	ring, _, err := openSharedKeys(path, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for after, want := range map[time.Duration]Key{
		-time.Hour: first, // this clock is behind that of the host where the file was made
		0:          first, time.Minute - 1: first,
		time.Minute: third, time.Hour - 1: third,
		time.Hour: second, 100 * time.Hour: second,
	} {
		if got := must(ring.chooseShared(first.From.Add(after))); got.id != want.ID {
			t.Errorf("after %v key %d seals, want %d of %v", after, got.id, want.ID, keys)
		}
	}
	for after, want := range map[time.Duration]int{-1: 0, 0: 0, time.Minute - 1: 0, time.Minute: 1, time.Hour - 1: 1, time.Hour: 2} {
		if got := Replaced(keys, first.From.Add(after)); !slices.Equal(got, keys[:want]) {
			t.Errorf("after %v %v are replaced, want %d of %v", after, got, want, keys)
		}
	}
}

func TestOnlyKeysThatWereReplacedAndThatNothingNeedsAreDropped(t *testing.T) {
	t.Parallel()
	path, seals := newKeyFile(t)
	needed := must(RotateKeyFile(path, seals.From.Add(-2*time.Hour)))
	spent := must(RotateKeyFile(path, seals.From.Add(-time.Hour)))
	next := must(RotateKeyFile(path, seals.From.Add(time.Hour)))
	if dropped := must(DropKeys(path, map[int64]int{needed: 1})); !slices.Equal(dropped, []int64{spent}) {
		t.Errorf("dropped %v, want %d", dropped, spent)
	}
	if dropped := must(DropKeys(path, nil)); !slices.Equal(dropped, []int64{needed}) {
		t.Errorf("dropped %v, want %d, which nothing needs any more", dropped, needed)
	}
	if dropped := must(DropKeys(path, nil)); dropped != nil {
		t.Errorf("dropped %v, want nothing", dropped)
	}
	if keys := must(ReadKeys(path)); len(keys) != 2 || keys[0].ID != seals.ID || keys[1].ID != next {
		t.Errorf("left are %v, want the one that seals and the next", keys)
	}
}

func TestAChangedKeyFileKeepsItsOwnerAndItsOldKeys(t *testing.T) {
	t.Parallel()
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 { // who may give files away, and changes those of the daemon's user
		uid, gid = 64242, 64243
	}
	path, _ := newKeyFile(t)
	before := strings.Fields(string(must(os.ReadFile(path))))
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	must(RotateKeyFile(path, time.Now().Add(time.Hour)))
	info := must(os.Stat(path))
	if s := info.Sys().(*syscall.Stat_t); int(s.Uid) != uid || int(s.Gid) != gid || info.Mode().Perm() != 0o600 {
		t.Errorf("it belongs to %d:%d with mode %v", s.Uid, s.Gid, info.Mode())
	}
	after := strings.Fields(string(must(os.ReadFile(path))))
	if len(before) != 6 || len(after) != 9 || after[2] != before[2] || after[5] != before[5] {
		t.Error("the history key and the old key are not in it unchanged, with one more")
	}
}

func TestKeysAddedAtOnceAreAllThereOrRefused(t *testing.T) {
	t.Parallel()
	path, _ := newKeyFile(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	added := 0
	for range 16 {
		wg.Go(func() {
			_, err := RotateKeyFile(path, time.Now())
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				added++
			} else if !errors.Is(err, errKeyFileBusy) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if keys := must(ReadKeys(path)); len(keys) != 1+added || added == 0 {
		t.Errorf("%d keys after %d were added to one", len(keys), added)
	}
}

func TestAKeyFileThatCannotBeUsedIsToldWithItsLine(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"empty":               {"", 0o600, "lacks its line history"},
		"readable by all":     {"x", 0o644, "chmod 600"},
		"not a key":           {"1 2 3\n", 0o600, "store.key:1: not a key"},
		"a broken third line": {"", 0o600, "store.key:3: not a key"},
	} {
		t.Run(name, func(t *testing.T) {
			path, _ := newKeyFile(t)
			if strings.Contains(name, "third") {
				tt.text = string(must(os.ReadFile(path))) + "c2VjcmV0\n"
			}
			if err := errors.Join(os.WriteFile(path, []byte(tt.text), tt.mode), os.Chmod(path, tt.mode)); err != nil {
				t.Fatal(err)
			}
			_, err := ReadKeys(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("told %v, want %q", err, tt.want)
			}
			if _, err := RotateKeyFile(path, time.Now()); err == nil {
				t.Error("a key could be added")
			}
		})
	}
	if _, err := ReadKeys(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "init-key") {
		t.Errorf("without a file: %v", err)
	}
}
