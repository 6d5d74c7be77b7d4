package ingress

import (
	"sync"

	"gatepost/reply"
)

// Connections counts the connections of each client over all doors that share it. Those of nobody in particular, who
// have yet to log in, are not counted here.
type Connections struct {
	limit func(client string) int

	mu   sync.Mutex
	open map[string]int
}

// NewConnections returns a count that allows each client limit of them; 0 is no limit. limit is asked for each
// connection, so it may follow a reload.
func NewConnections(limit func(client string) int) *Connections {
	return &Connections{limit: limit, open: make(map[string]int)}
}

// acquire counts one more connection of client, or says no with a 421.
func (n *Connections) acquire(client string) error {
	if client == "" {
		return nil
	}
	limit := n.limit(client)
	n.mu.Lock()
	defer n.mu.Unlock()
	if limit > 0 && n.open[client] >= limit {
		return reply.New(421, "4.7.0", "too many connections of this client, try again later (max_connections of the client)")
	}
	n.open[client]++
	return nil
}

// release gives one back.
func (n *Connections) release(client string) {
	if client == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[client]--; n.open[client] == 0 {
		delete(n.open, client)
	}
}
