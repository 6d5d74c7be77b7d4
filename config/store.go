package config

import (
	"slices"
	"strings"
)

// maxNode is what the name of a node may have, in octets: as much as that of a host.
const maxNode = 253

// Store is [store]: where the queue and the history are kept.
type Store struct {
	Engine  string // "sqlite": a file in StateDir; or "postgres": a database that several nodes share
	DSN     Secret // of PostgreSQL: how to reach the database, as libpq has it (URL or key=value); holds the password
	KeyFile string // of PostgreSQL: absolute; the keys that seal auth mail, the same on all nodes; re-read when it changes
	Node    string // of PostgreSQL: this process's name in the fleet, no other's; "" for SQLite
}

// ofPostgres lists the keys of [store] that only engine "postgres" has.
var ofPostgres = []string{"dsn_file", "key_file", "node"}

func (l *loader) store(t *table) Store {
	before := len(l.problems)
	s := Store{Engine: t.choice("engine", "sqlite", "sqlite", "postgres")}
	if len(l.problems) > before {
		return s // which keys belong to it is not known
	}
	if s.Engine == "sqlite" {
		t.onlyPostgres()
		return s
	}
	t.require("dsn_file", `a file with the address of the database: postgres://gatepost:PASSWORD@HOST/gatepost`)
	s.DSN = t.dsn()
	t.require("key_file", "a file that is the same on all nodes; make it with: gatepost store init-key FILE")
	s.KeyFile = t.privateMade("key_file", "gatepost store init-key FILE")
	s.Node = t.node()
	return s
}

// onlyPostgres notes the keys that have no meaning for SQLite. Somebody who wrote one believes to use PostgreSQL.
func (t *table) onlyPostgres() {
	for _, key := range ofPostgres {
		if t.text(key) != "" {
			t.bad(t.at(key), `write engine = "postgres", or leave the key out`, `is for engine "postgres" only`)
		}
	}
}

// dsn returns the secret at dsn_file. A DSN in the place of its file's name is told without showing it.
func (t *table) dsn() Secret {
	if s := t.text("dsn_file"); strings.Contains(s, "://") || strings.ContainsAny(s, "= ") {
		t.bad(t.at("dsn_file"), "write the DSN into a file of its own, chmod 600, and name that here", "is a DSN, not the name of a file that holds one")
		return Secret{}
	}
	return t.secret("dsn_file")
}

// node returns the node's name. It defaults to hostname, which tells hosts apart; where the config is the same on all
// of them, the environment can.
func (t *table) node() string {
	name := t.text("node")
	if name == "" {
		return t.c.Hostname
	}
	if len(name) > maxNode || slices.ContainsFunc(strings.Split(name, "."), func(part string) bool { return !isName(part) }) {
		t.bad(t.at("node"), `use letters, digits, - and _, with dots in between, such as node = "${HOSTNAME}"`, "%q cannot be a node's name", name)
	}
	return name
}
