package config_test

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gatepost/config"
)

// withPostgres is the small config with a database.
const withPostgres = show2 + "[store]\nengine = \"postgres\"\ndsn_file = \"dsn\"\nkey_file = \"store.key\"\n"

// badStores is about [store], which begins on line 36 of the small config.
var badStores = map[string]badConfig{
	"PostgreSQL without what it needs": {
		[]edit{{"", "[store]\nengine = \"postgres\"\n"}},
		[]string{
			"36: store.dsn_file: is missing",
			"36: store.key_file: is missing",
		},
	},
	"keys of PostgreSQL beside SQLite": {
		[]edit{{"", "[store]\ndsn_file = \"p\"\nkey_file = \"p\"\nnode = \"a\"\n"}},
		[]string{
			`37: store.dsn_file: is for engine "postgres" only`,
			`38: store.key_file: is for engine "postgres" only`,
			`39: store.node: is for engine "postgres" only`,
		},
	},
	"an engine that does not exist": {
		[]edit{{"", "[store]\nengine = \"postgre\"\ndsn_file = \"p\"\n"}},
		[]string{
			`37: store.engine: "postgre" is not "sqlite" or "postgres"`,
		},
	},
	"files that are not there, and a name that cannot be one": {
		[]edit{{"", "[store]\nengine = \"postgres\"\ndsn_file = \"dsn\"\nkey_file = \"store.key\"\nnode = \"node 1\"\n"}},
		[]string{
			"38: store.dsn_file: DIR/dsn does not exist",
			"39: store.key_file: DIR/store.key does not exist",
			`40: store.node: "node 1" cannot be a node's name`,
		},
	},
	"a DSN in the place of its file, which is not repeated": {
		[]edit{{"", "[store]\nengine = \"postgres\"\ndsn_file = \"postgres://gatepost:hunter2@db/gatepost\"\nkey_file = \"p\"\n"}},
		[]string{
			"38: store.dsn_file: is a DSN, not the name of a file that holds one",
		},
	},
	"a DSN of the other form in the place of its file": {
		[]edit{{"", "[store]\nengine = \"postgres\"\ndsn_file = \"host=db password=hunter2\"\nkey_file = \"p\"\n"}},
		[]string{
			"38: store.dsn_file: is a DSN, not the name of a file that holds one",
		},
	},
}

func TestTheFilesOfADatabaseMustBePrivate(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(dsn, key string) error
		want  []string
	}{
		"private files pass": {func(dsn, key string) error { return nil }, nil},
		"others could read the password": {
			func(dsn, key string) error { return os.Chmod(dsn, 0o644) },
			[]string{"38: store.dsn_file: DIR/dsn can be read or written by group or others (mode 0644)"},
		},
		"the group could read the keys": {
			func(dsn, key string) error { return os.Chmod(key, 0o640) },
			[]string{"39: store.key_file: DIR/store.key can be read or written by group or others (mode 0640)"},
		},
		"nothing in the first line": {
			func(dsn, key string) error { return os.WriteFile(dsn, []byte("\nhost=db\n"), 0o600) },
			[]string{"38: store.dsn_file: read secret DIR/dsn: its first line is empty"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "auth.pem", "marketing.pem", "dsn", "store.key")
			if err := tt.spoil(filepath.Join(dir, "dsn"), filepath.Join(dir, "store.key")); err != nil {
				t.Fatal(err)
			}
			if got := told(t, dir, withPostgres); !slices.Equal(got, tt.want) {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAMissingKeyFileIsToldWithTheCommandThatMakesOne(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "dsn")
	_, err := config.Parse(filepath.Join(dir, "gatepost.toml"), []byte(withPostgres))
	if p := config.Problems(err); len(p) != 1 || !strings.HasSuffix(p[0].Hint, "; make one with: gatepost store init-key FILE") {
		t.Errorf("told %+v", p)
	}
}

func TestANodeIsNamedAfterTheHostUnlessTheConfigSaysOtherwise(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "dsn", "store.key")
	want := config.Store{Engine: "postgres", DSN: config.Secret{File: dir + "/dsn"}, KeyFile: dir + "/store.key", Node: "gw.auth.example.com"}
	c := parse(t, dir, withPostgres)
	if c.Store != want {
		t.Errorf("[store] is %+v, want %+v", c.Store, want)
	}
	if again := parse(t, dir, c.Effective()); !reflect.DeepEqual(again, c) {
		t.Errorf("after a round trip the config is\n%s", again.Effective())
	}
	t.Setenv("GATEPOST_TEST_NODE", "mail-2.b")
	if got := parse(t, dir, withPostgres+"node = \"${GATEPOST_TEST_NODE}\"\n").Store.Node; got != "mail-2.b" {
		t.Errorf("the node is %q, want what the environment says", got)
	}
	if got := parse(t, dir, show2).Store; got != (config.Store{Engine: "sqlite"}) {
		t.Errorf("without [store] it is %+v", got)
	}
}

func TestTheEffectiveConfigNamesTheFileOfTheDSNAndNotWhatIsInIt(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "auth.pem", "marketing.pem", "store.key")
	if err := os.WriteFile(filepath.Join(dir, "dsn"), []byte("postgres://gatepost:hunter2@db/gatepost\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := parse(t, dir, withPostgres)
	json, err := c.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{c.Effective(), string(json)} {
		if strings.Contains(text, "hunter2") || !strings.Contains(text, dir+"/dsn") {
			t.Errorf("shown: %s", text)
		}
	}
}
