// Package admin is how operators reach a running gatepost: JSON over HTTP, served on a unix socket in the state
// directory to root and to the daemon's own user, and the client that the command line uses. It shows and changes the
// queue, tells what became of a message, and holds no state of its own. It never returns a body, except those that a
// capture upstream kept, since those were made to be looked at.
package admin

import (
	"context"
	"time"

	"gatepost/config"
	"gatepost/event"
	"gatepost/message"
)

// Queue is the durable queue as operators handle it. Package store implements it.
type Queue interface {
	List(ctx context.Context, f message.QueueFilter) ([]message.QueueRow, error)
	Show(ctx context.Context, id message.ID) ([]message.QueueRow, error)
	// Retry makes rows due now, Hold keeps them from being sent, Unhold lets them go, Drop ends them. Rows in flight
	// are left alone and counted.
	Retry(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Hold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Unhold(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	Drop(ctx context.Context, f message.QueueFilter) (changed, inFlight int, err error)
	// HoldStream holds, or stops holding, all mail of a stream, also what is yet to come.
	HoldStream(ctx context.Context, stream string, hold bool) error
	Lanes(ctx context.Context) ([]message.LaneCount, error)
}

// Engine is what is asked of the running daemon beside its queue.
type Engine interface {
	// Events returns the newest limit events of a message, or of an address where id is 0, oldest first.
	Events(ctx context.Context, id message.ID, address string, limit int) ([]event.Event, error)
	// Status tells how the daemon is; Status.Lanes is left to the handler.
	Status(ctx context.Context) Status
	// Lanes tells how the lane of every stream in the config stands.
	Lanes() []message.LaneStatus
	// Stats tells how the upstreams of each stream have done since the daemon started.
	Stats() Stats
	// Submit makes a test message and queues it.
	Submit(ctx context.Context, t TestMail) (message.ID, error)
	// Captured returns what the capture upstreams keep, oldest first.
	Captured() []Captured
	// Orders counts the mail that was ordered over HTTP.
	Orders() Orders
	// Reload makes the config file, read anew, what holds. After an error everything is as it was.
	Reload(ctx context.Context) (Reloaded, error)
}

// Status is the daemon at a glance.
type Status struct {
	Version   string    `json:"version"`
	PID       int       `json:"pid"`
	Hostname  string    `json:"hostname"`
	StateDir  string    `json:"state_dir"`
	StartedAt time.Time `json:"started_at"`
	Alive     bool      `json:"alive"`
	Problem   string    `json:"problem,omitempty"` // why it is not alive
	Store     Store     `json:"store"`
	Doors     []Door    `json:"listeners"`
	Lanes     []Lane    `json:"lanes"`
}

// Store is where the queue is kept.
type Store struct {
	Engine string `json:"engine"`
	Where  string `json:"where,omitempty"` // the database, without a password
	Node   string `json:"node,omitempty"`  // this one's name in the fleet
	Nodes  []Node `json:"nodes,omitempty"` // all that have ever shared the queue, by name; none where the database is away
}

// Node is a daemon of a fleet, as the database has it.
type Node struct {
	Name       string    `json:"name"`
	Alive      bool      `json:"alive"`       // its lease has not ended, by the clock of the database
	LeaseUntil time.Time `json:"lease_until"` // in its last life, for one that is not alive
}

// Door is a listener and where it really listens.
type Door struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Address  string `json:"address"`
	As       string `json:"configured_as"` // the address in the config: ":2525" where Address is "[::]:2525"
}

// Lane is how a lane stands, and what waits in it.
type Lane struct {
	message.LaneStatus
	Queued int       `json:"queued"`          // recipients that wait for their turn
	Kept   int       `json:"held_recipients"` // by an operator, or because a copy may have been sent
	Oldest time.Time `json:"oldest,omitzero"` // when the message that waits longest was accepted
}

// Stats compares the upstreams that share a stream's mail.
type Stats struct {
	StartedAt time.Time          `json:"started_at"` // when counting began
	Arms      []message.ArmStats `json:"upstreams"`  // by stream, in the order of its route
}

// TestMail asks for a test message. Stream may be "" where there is only one, or From tells; From may be "" for
// no-reply@ the stream's first domain.
type TestMail struct {
	To     string `json:"to"`
	From   string `json:"from,omitempty"`
	Stream string `json:"stream,omitempty"`
}

// Queued is the answer to a TestMail.
type Queued struct {
	ID message.ID `json:"msg_id"`
}

// Change is an order to do something to the rows that Filter chooses. With Whole, hold stops the lane of
// Filter.Stream without touching its rows, and release starts it again. A release that names no messages and no state
// leaves rows alone that are held because a copy may already have been sent.
type Change struct {
	Filter message.QueueFilter `json:"filter"`
	All    bool                `json:"all,omitempty"`          // must be said where the filter is empty
	Whole  bool                `json:"whole_stream,omitempty"` // hold and release: the stream itself, so also mail yet to come
}

// Changed tells how many rows were changed, and how many were left alone because they are being sent right now.
type Changed struct {
	Changed  int `json:"changed"`
	InFlight int `json:"in_flight"`
}

// Trace is what is known of a message or an address.
type Trace struct {
	Events []event.Event      `json:"events"` // oldest first
	Queue  []message.QueueRow `json:"queue"`  // what still waits
}

// Captured is a message that a capture upstream kept instead of sending it.
type Captured struct {
	ID     message.ID `json:"msg_id"`
	Stream string     `json:"stream"`
	At     time.Time  `json:"at"`
	From   string     `json:"mail_from"`
	To     []string   `json:"to"`
	Wire   []byte     `json:"wire"` // as it would have left: base64 in JSON
}

// Reloaded tells what a reload changed.
type Reloaded struct {
	Listeners Changes           `json:"listeners"`
	Clients   Changes           `json:"clients"`
	Streams   Changes           `json:"streams"`
	Egresses  Changes           `json:"egresses"`
	Upstreams Changes           `json:"upstreams"`
	Hooks     Changes           `json:"hooks"`
	Templates Changes           `json:"templates"` // files as TYPE/LOCALE.EXT, and "[templates]" for the section
	Held      int               `json:"held"`      // recipients that wait for a stream that is not in the config
	Warnings  []*config.Problem `json:"warnings,omitempty"`
}

// Count returns how many sections and templates changed in any way.
func (r Reloaded) Count() (n int) {
	for _, c := range []Changes{r.Listeners, r.Clients, r.Streams, r.Egresses, r.Upstreams, r.Hooks, r.Templates} {
		n += len(c.Added) + len(c.Removed) + len(c.Changed)
	}
	return n
}

// Changes names the sections of one kind that a reload changed, sorted.
type Changes struct {
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
	Changed []string `json:"changed,omitempty"`
}

// Problem is an error as operators get it.
type Problem struct {
	Text     string            `json:"error"`
	Hint     string            `json:"hint,omitempty"`
	Problems []*config.Problem `json:"problems,omitempty"` // what is wrong with the config, where that is it
	Code     int               `json:"-"`                  // HTTP status
}

// Unwrap returns Problems, for config.Problems.
func (p *Problem) Unwrap() []error {
	var errs []error
	for _, c := range p.Problems {
		errs = append(errs, c)
	}
	return errs
}

func (p *Problem) Error() string { return p.Text }
