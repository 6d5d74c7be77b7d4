package store

import (
	"context"
	"fmt"
	"time"
)

// Node is one of those that share a database.
type Node struct {
	Name       string
	Alive      bool      // its lease has not ended, by the clock of the database
	LeaseUntil time.Time // by that clock; of a node that is not alive, in its last life
}

// Where names the database that is shared, without a password: "database gatepost on db.example.com:5432"; "" where the
// store is a file.
func (s *Store) Where() string {
	if s.fleet == nil {
		return ""
	}
	return s.fleet.where()
}

const nodeSelect = "SELECT name, lease_until, lease_until > extract(epoch FROM clock_timestamp()) * 1000 FROM node ORDER BY name"

// Nodes returns all that have ever shared the database, by name; none where the store is a file.
func (s *Store) Nodes(ctx context.Context) (all []Node, err error) {
	if s.fleet == nil {
		return nil, nil
	}
	err = s.read(ctx, func(r scanner) (bool, error) {
		var n Node
		var until int64
		err := r.Scan(&n.Name, &until, &n.Alive)
		n.LeaseUntil = at(until)
		all = append(all, n)
		return true, err
	}, nodeSelect)
	if err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	return all, nil
}
