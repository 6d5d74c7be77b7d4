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

func TestAKeyFileIsMadeOnceAndBelongsToItsOwnerAlone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.key")
	now := time.Now()
	first := must(InitKeyFile(path, now))
	info := must(os.Stat(path))
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	before := must(os.ReadFile(path))
	if _, err := InitKeyFile(path, now); !errors.Is(err, errKeyFileExists) {
		t.Errorf("a second one is made, or refused with %v", err)
	}
	if !slices.Equal(must(os.ReadFile(path)), before) {
		t.Error("the file changed")
	}
	keys := must(ReadKeys(path))
	if len(keys) != 1 || keys[0].ID != first.ID || Sealing(keys, now) != keys[0] {
		t.Errorf("it holds %v, want %v, which seals", keys, first)
	}
}

func TestAnAddedKeySealsFromItsMomentOnAndNotBefore(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.key")
	now := time.Now().Truncate(time.Millisecond)
	first := must(InitKeyFile(path, now))
	second := must(AddKey(path, now, now.Add(time.Hour)))
	third := must(AddKey(path, now, now.Add(time.Minute)))
	keys := must(ReadKeys(path))
	for after, want := range map[time.Duration]Key{
		-time.Hour: first, // this clock is behind that of the host where the file was made
		0:          first, time.Minute - 1: first,
		time.Minute: third, time.Hour - 1: third,
		time.Hour: second, 100 * time.Hour: second,
	} {
		if got := Sealing(keys, now.Add(after)); got.ID != want.ID {
			t.Errorf("after %v key %d seals, want %d of %v", after, got.ID, want.ID, keys)
		}
	}
	for after, want := range map[time.Duration]int{-1: 0, 0: 0, time.Minute - 1: 0, time.Minute: 1, time.Hour - 1: 1, time.Hour: 2} {
		if got := Replaced(keys, now.Add(after)); !slices.Equal(got, keys[:want]) {
			t.Errorf("after %v %v are replaced, want %d of %v", after, got, want, keys)
		}
	}
	if err := RemoveKeys(path, first.ID, third.ID); err != nil {
		t.Fatal(err)
	}
	if keys := must(ReadKeys(path)); len(keys) != 1 || keys[0].ID != second.ID {
		t.Errorf("%v is left, want %v", keys, second)
	}
	if err := RemoveKeys(path, second.ID); err == nil {
		t.Error("the last key could be removed")
	}
	if keys := must(ReadKeys(path)); len(keys) != 1 {
		t.Errorf("after a refusal there are %d keys", len(keys))
	}
}

func TestAChangedKeyFileKeepsItsOwnerAndItsOldKeys(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Fatal("run as root: the daemon's user owns the file that root changes")
	}
	path := filepath.Join(t.TempDir(), "store.key")
	must(InitKeyFile(path, time.Now()))
	line := strings.TrimSpace(string(must(os.ReadFile(path))))
	if err := os.Chown(path, 64242, 64243); err != nil {
		t.Fatal(err)
	}
	must(AddKey(path, time.Now(), time.Now()))
	info := must(os.Stat(path))
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 64242 || s.Gid != 64243 || info.Mode().Perm() != 0o600 {
		t.Errorf("it belongs to %d:%d with mode %v", s.Uid, s.Gid, info.Mode())
	}
	if text := string(must(os.ReadFile(path))); !strings.HasPrefix(text, line+"\n") || strings.Count(text, "\n") != 2 {
		t.Error("the old key is not in it unchanged, with one more")
	}
}

func TestKeysAddedAtOnceAreAllThereOrRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "store.key")
	must(InitKeyFile(path, time.Now()))
	var wg sync.WaitGroup
	var mu sync.Mutex
	added := 0
	for range 16 {
		wg.Go(func() {
			_, err := AddKey(path, time.Now(), time.Now())
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
		"empty":                {"", 0o600, "holds no key"},
		"readable by all":      {"x", 0o644, "chmod 600"},
		"not a key":            {"1 2 3\n", 0o600, "store.key:1: not a key"},
		"a broken second line": {"", 0o600, "store.key:2: not a key"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.key")
			if strings.Contains(name, "second") {
				must(InitKeyFile(path, time.Now()))
				tt.text = string(must(os.ReadFile(path))) + "c2VjcmV0\n"
			}
			if err := os.WriteFile(path, []byte(tt.text), tt.mode); err != nil {
				t.Fatal(err)
			}
			_, err := ReadKeys(path)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "c2VjcmV0") {
				t.Errorf("told %v, want %q", err, tt.want)
			}
			if _, err := AddKey(path, time.Now(), time.Now()); err == nil {
				t.Error("a key could be added")
			}
		})
	}
	if _, err := ReadKeys(filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "init-key") {
		t.Errorf("without a file: %v", err)
	}
}
