package relay

import (
	"context"
	"time"

	"gatepost/event"
	"gatepost/message"
)

// Spool is the durable queue as the relay uses it. Package store implements it on SQLite.
type Spool interface {
	// Put queues ms, all or none, for the next shared flush and returns at once. own: their rows are born ours, no
	// Claim follows. The messages are shared with the caller and not changed. Older messages with the same Supersede key
	// that only wait, with no attempt in flight, end in the same commit.
	Put(ms []*message.Message, own bool) Write
	// Claim stamps up to max due recipients of lane (and about maxBytes of bodies; at least one message) as ours in one
	// commit, grouped by message, oldest due first, only those whose need is in can. Bodies come with it. Rows past
	// their lifetime are left to Expire.
	Claim(ctx context.Context, lane string, can []string, max int, maxBytes int64) ([]*message.Delivery, error)
	// Settle applies all of s or none in the next flush and returns when durable. Rows that are no longer ours under
	// their epoch are left alone and come back as lost. A row that stays queued becomes unowned. A Notification is
	// queued in the same commit.
	Settle(ctx context.Context, s []message.Settlement) (lost []message.RecipientID, err error)
	// Release gives rows back unowned with their due time unchanged (shutdown, pause) in the next flush.
	Release(ctx context.Context, ids []message.RecipientID) error
	// Needs returns the distinct values of need among lane's unowned queued recipients.
	Needs(ctx context.Context, lane string) ([]string, error)
	// NextDue returns when the earliest unowned queued recipient of lane whose need is in can is due.
	NextDue(ctx context.Context, lane string, can []string) (time.Time, bool, error)
	// NextExpiry returns when the lifetime of the earliest message with an unowned recipient ends.
	NextExpiry(ctx context.Context) (time.Time, bool, error)
	// Expire ends up to max unowned rows past their lifetime, of whatever lane and state, each with an event: expired,
	// or unconfirmed where a copy may have reached somebody. For the rows of a message that has a NotifyTo, notify makes
	// the message that tells its sender, or returns nil; it is queued in the same commit. notify sees the first 64 KB of
	// Raw, is called by the store's writer, and must not wait for the store.
	Expire(ctx context.Context, max int, notify func(failed []message.Settlement) *message.Message) (n int, err error)
	// NewID returns an id above every id in message and event.
	NewID() message.ID
	// Wake returns the channel that gets a value when something of lane may have become due: put unowned, released,
	// retried by an operator. It is the same channel at every call and holds at most one value.
	Wake(lane string) <-chan struct{}
	// Lease returns the epoch under which rows are ours now, and whether it stays so for margin: asked before every
	// hand-over.
	Lease() (epoch int64, valid func(margin time.Duration) bool)
	// Ready says whether mail of that kind can be stored now: nil, or a 452 while the disk is full or failing. Cheap.
	Ready(kind message.Kind) error
	// Record appends events that belong to no settlement, in the next flush; it does not wait.
	Record(events ...event.Event)
	// StreamHeld reports whether an operator holds the whole stream.
	StreamHeld(stream string) bool
}

// Write is a Put under way. An alias, so that a spool need not know this package.
type Write = interface {
	Done() <-chan struct{}
	Result() (message.PutResult, error) // after Done
}
