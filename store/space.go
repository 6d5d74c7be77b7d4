package store

import (
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatepost/message"
	"gatepost/reply"
)

const (
	spaceFresh   = 250 * time.Millisecond // how long a look at the file system holds
	maxReserve   = 64 << 20               // octets kept free for auth mail's settlements …
	reserveShare = 50                     // … or one part in so many of a small file system
)

// space knows whether the disk has room. Refusing early, with some left, is what keeps the room that settlements need.
type space struct {
	dir  string
	full atomic.Bool // a write found no room, and none has succeeded since

	mu      sync.Mutex
	looked  time.Time
	free    uint64
	reserve uint64
}

// enough reports whether mail of that kind may still be taken. Marketing is refused first: it leaves auth as much
// again as auth leaves for settlements.
func (s *space) enough(kind message.Kind) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.looked) > spaceFresh {
		s.look()
	}
	need := s.reserve
	if kind != message.Auth {
		need *= 2
	}
	return s.free >= need
}

// look asks the file system. If it does not answer, the next write will tell.
func (s *space) look() {
	s.looked = time.Now()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &fs); err != nil {
		s.free, s.reserve = 0, 0
		return
	}
	size := uint64(fs.Bsize)
	s.free = fs.Bavail * size
	s.reserve = min(maxReserve, fs.Blocks*size/reserveShare)
}

// Ready says whether mail of that kind can be stored now: nil, or a 452 (RFC 5321 §4.2.3) while the disk is full, nearly
// full or failing. It recovers without traffic: the writer probes a full disk every second.
func (s *Store) Ready(kind message.Kind) error {
	switch {
	case s.closed.Load():
		return reply.New(451, "4.3.2", "gatepost is stopping, please try again later")
	case s.failing.Load():
		return reply.New(452, "4.3.1", "Mail cannot be stored right now, please try again later")
	case s.space.full.Load() || !s.space.enough(kind):
		return reply.New(452, "4.3.1", "Insufficient system storage, please try again later")
	}
	return nil
}
