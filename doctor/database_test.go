package doctor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatepost/config"
	"gatepost/store"
	"gatepost/store/storetest/pgtest"
)

// sharing returns a config that only names a database.
func sharing(t *testing.T, dsn string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	c := &config.Config{Store: config.Store{Engine: "postgres", DSN: config.Secret{File: filepath.Join(dir, "dsn")}, KeyFile: filepath.Join(dir, "key"), Node: "a"}}
	if err := os.WriteFile(c.Store.DSN.File, []byte(dsn+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.NewKeyFile(c.Store.KeyFile); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestADatabaseIsLookedAtUnlessWeStayOnThisHost(t *testing.T) {
	s := pgtest.New(t)
	good := sharing(t, s.Database(t))
	found := Run(t.Context(), good, Options{Resolver: zone{}})
	if len(found) != 1 || found[0].Level != OK || found[0].Check != "database" || !strings.HasPrefix(found[0].Text, "PostgreSQL ") || strings.Contains(found[0].Text, s.Password) {
		t.Errorf("of a good database is told %+v", found)
	}
	bad := sharing(t, s.DSN(pgtest.Role, "nowhere"))
	found = Run(t.Context(), bad, Options{Resolver: zone{}})
	if len(found) != 1 || found[0].Level != Fail || !strings.Contains(found[0].Hint, "CREATE DATABASE") {
		t.Errorf("of a database that is not there is told %+v", found)
	}
	if found := Run(t.Context(), bad, Options{}); len(found) > 0 {
		t.Errorf("without leaving the host %+v is told", found)
	}
}
