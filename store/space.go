package store

import (
	"math"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

const (
	spaceFresh   = 250 * time.Millisecond // how long a look at the file system holds
	reserveShare = 50                     // of the file system one part in so many is kept free for settlements,
	minReserve   = 8 << 20                // … at least these octets: the log of a few large batches,
	maxReserve   = 64 << 20               // … at most these,
	smallShare   = 4                      // … and of a very small one no more than one part in so many
	writeCost    = 2                      // octets on disk for one of mail: in the log, then in the database
)

// space knows whether the disk has room. Refusing early, with some left, is what keeps the room that settlements need:
// a spool that has none left can neither send nor forget, so it would stay full.
type space struct {
	dir  string
	full atomic.Bool // a write found no room, and none has succeeded since

	mu      sync.Mutex
	looked  time.Time
	free    uint64 // less what mail let in is still going to take
	pending uint64 // octets that mail let in and not yet written is going to take
	reserve uint64
}

// enough reports whether mail of that kind may still be taken.
func (s *space) enough(kind message.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.has(kind, 0)
}

// letIn reports whether there is room for mail of that kind, and keeps it for that mail until letOut.
func (s *space) letIn(kind message.Kind, octets int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	cost := uint64(octets) * writeCost
	if !s.has(kind, cost) {
		return false
	}
	s.free -= cost
	s.pending += cost
	return true
}

// letOut says that mail that was let in is on disk, or never will be.
func (s *space) letOut(octets int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending -= uint64(octets) * writeCost
}

// has reports whether so many octets may be taken by mail of that kind. Marketing is refused first: it leaves auth as
// much again as auth leaves for settlements. The caller holds mu.
func (s *space) has(kind message.Kind, octets uint64) bool {
	if time.Since(s.looked) > spaceFresh {
		s.look()
	}
	reserve := s.reserve
	if kind != message.Auth {
		reserve *= 2
	}
	return s.free >= reserve+octets
}

// look asks the file system. If it does not answer, the next write will tell.
func (s *space) look() {
	s.looked = time.Now()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &fs); err != nil {
		s.free, s.reserve = math.MaxInt64, 0
		return
	}
	size := uint64(fs.Bsize)
	s.free = fs.Bavail*size - min(fs.Bavail*size, s.pending)
	s.reserve = reserveOf(&fs)
}

// reserveOf returns the octets of a file system that are kept free.
func reserveOf(fs *syscall.Statfs_t) uint64 {
	size := fs.Blocks * uint64(fs.Bsize)
	return min(max(size/reserveShare, minReserve), maxReserve, size/smallShare)
}

// Ready says whether mail of that kind can be stored now: nil, or a 452 (RFC 5321 §4.2.3) while the disk is full, nearly
// full or failing. It recovers without traffic: the writer probes a full disk every second.
func (s *Store) Ready(kind message.Kind) error {
	switch {
	case s.closed.Load():
		return reply.New(451, "4.3.2", "gatepost is stopping, please try again later")
	case s.failing.Load() && s.fleet != nil:
		return reply.New(451, "4.3.0", "Mail cannot be stored right now, please try again later")
	case s.failing.Load():
		return reply.New(452, "4.3.1", "Mail cannot be stored right now, please try again later")
	case s.space.full.Load() || !s.space.enough(kind):
		return reply.New(452, "4.3.1", "Insufficient system storage, please try again later")
	}
	return nil
}
