package store

import (
	"bytes"
	"context"
	"testing"

	"gatepost/message"
	"gatepost/store/storetest/pgtest"
)

func TestTheKeyOfASubmissionIsNotInTheDatabase(t *testing.T) {
	t.Parallel()
	server := pgtest.Shared(t)
	for name, open := range map[string]func() *Store{
		"sqlite":   func() *Store { return openTest(t, Options{Dir: t.TempDir()}, nil) },
		"postgres": func() *Store { return newTestFleet(t, server).node(t, "a") },
	} {
		t.Run(name, func(t *testing.T) {
			s := open()
			m := newMessage(s, message.Auth, 10)
			m.Key = []byte("hash of a request with a code in it")
			mustPut(t, s, false, m)
			var stored []byte
			if err := s.read(context.Background(), func(r scanner) (bool, error) { return false, r.Scan(&stored) }, "SELECT key FROM submission"); err != nil {
				t.Fatal(err)
			}
			if len(stored) == 0 || bytes.Contains(stored, m.Key) {
				t.Errorf("the database has the key as %q", stored)
			}
		})
	}
}
