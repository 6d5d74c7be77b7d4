package ingress

import (
	"net/netip"
	"sync"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

// table holds the connections of a listener and counts them. A quarter of the places is kept for connections of clients
// that may use the reserve, where the listener has such clients.
type table struct {
	kept func() bool // whether there is a reserve

	mu        sync.Mutex
	max       int // in all
	perSource int
	conns     map[*conn]*place
	sources   map[source]int
	taken     int           // without the reserve
	drained   chan struct{} // made by drain, closed when the last connection is gone
}

// source is where connections are counted together: an address, or a user of this host on a unix socket.
type source struct {
	addr netip.Addr
	uid  int
}

// unknown is the source of a connection whose PROXY header is still to come. It is not counted.
var unknown = source{uid: -2}

func sourceOf(p message.Peer) source { return source{p.Addr, p.UID} }

// place is what a connection is counted as.
type place struct {
	source   source
	reserved bool
}

var errFull = reply.New(421, "4.7.0", "too many connections, try again later (max_connections)")

func newTable(kept func() bool) *table {
	return &table{kept: kept, conns: make(map[*conn]*place), sources: make(map[source]int)}
}

// resize changes the limits for connections to come.
func (t *table) resize(max, perSource int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.max, t.perSource = max, perSource
}

// ordinary returns how many places may be taken without the reserve.
func (t *table) ordinary() int {
	if t.kept() {
		return t.max - t.max/4
	}
	return t.max
}

// add gives c a place, or a 421 where there is none.
func (t *table) add(c *conn, from source, reserved bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.conns) >= t.max {
		return errFull
	}
	p := &place{source: unknown, reserved: true}
	if err := t.settle(p, from, reserved); err != nil {
		return err
	}
	t.conns[c] = p
	return nil
}

// move notes where c, whose source was unknown, comes from, or returns a 421 where it cannot stay.
func (t *table) move(c *conn, from source, reserved bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.settle(t.conns[c], from, reserved)
}

// settle counts p, which is in the reserve and at no source yet, as what it turned out to be.
func (t *table) settle(p *place, from source, reserved bool) error {
	switch {
	case !reserved && t.taken >= t.ordinary():
		return errFull
	case from != unknown && t.sources[from] >= t.perSource:
		return reply.New(421, "4.7.0", "too many connections from your address, try again later (max_per_source)")
	}
	if from != unknown {
		t.sources[from]++
	}
	p.source = from
	t.reserve(p, reserved)
	return nil
}

func (t *table) leave(from source) {
	if from == unknown {
		return
	}
	if t.sources[from]--; t.sources[from] == 0 {
		delete(t.sources, from)
	}
}

// setReserved notes whether c, now that it is known whose it is, uses the reserve.
func (t *table) setReserved(c *conn, reserved bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserve(t.conns[c], reserved)
}

func (t *table) reserve(p *place, reserved bool) {
	switch {
	case p.reserved == reserved:
	case reserved:
		t.taken--
	default:
		t.taken++
	}
	p.reserved = reserved
}

// remove gives up the place of c, if it has one.
func (t *table) remove(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.conns[c]
	if p == nil {
		return
	}
	t.leave(p.source)
	if !p.reserved {
		t.taken--
	}
	delete(t.conns, c)
	if t.drained != nil && len(t.conns) == 0 {
		close(t.drained)
	}
}

// drain tells all connections to end, at the latest at until. The channel is closed when they are gone. No connection
// may be added from now on.
func (t *table) drain(until time.Time) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drained = make(chan struct{})
	for c := range t.conns {
		c.drain(until)
	}
	if len(t.conns) == 0 {
		close(t.drained)
	}
	return t.drained
}

// cut breaks the connections that are left and returns how many they were. Their sessions go on until they notice.
func (t *table) cut() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		c.raw.Close()
	}
	return len(t.conns)
}
