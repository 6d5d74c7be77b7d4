package message

import "time"

// QueueFilter chooses rows of the queue. Zero fields do not restrict.
type QueueFilter struct {
	IDs     []ID   `json:"ids,omitempty"`
	Stream  string `json:"stream,omitempty"`
	Address string `json:"address,omitempty"` // of a recipient, exact
	State   *State `json:"state,omitempty"`
	After   ID     `json:"after,omitzero"`  // for paging: only ids above it
	Limit   int    `json:"limit,omitempty"` // rows; 0 for 100 where rows are listed, all where they are changed
}

// QueueRow is one recipient of the queue as operators see it.
type QueueRow struct {
	ID           ID        `json:"msg_id"`
	N            int       `json:"n"`
	Stream       string    `json:"stream"`
	Client       string    `json:"client"`
	MailFrom     string    `json:"mail_from"`
	Address      string    `json:"address"`
	Size         int       `json:"size"`
	State        string    `json:"state"` // queued, held, held-unconfirmed, in-flight
	AcceptedAt   time.Time `json:"accepted_at"`
	DueAt        time.Time `json:"due_at"`
	ExpiresAt    time.Time `json:"expires_at"`
	Attempts     int       `json:"attempts"`
	MaybeSent    bool      `json:"maybe_sent,omitempty"`
	Copies       int       `json:"copies,omitempty"`
	LastUpstream string    `json:"last_upstream,omitempty"`
	LastReply    string    `json:"last_reply,omitempty"`
}

// LaneCount sums up one lane of the queue.
type LaneCount struct {
	Lane     string    `json:"lane"`
	Queued   int       `json:"queued"`
	InFlight int       `json:"in_flight"`
	Held     int       `json:"held"` // by an operator or unconfirmed
	Oldest   time.Time `json:"oldest,omitzero"`
}

// LaneStatus is how a lane stands in this process.
type LaneStatus struct {
	Lane     string       `json:"lane"`
	Kind     Kind         `json:"kind"`
	InFlight int          `json:"in_flight"` // hand-overs under way
	Limit    int          `json:"limit"`     // hand-overs at once
	Held     bool         `json:"held,omitempty"`
	Refuses  bool         `json:"refuses,omitempty"` // new mail, since all of its upstreams are down
	Pairs    []PairStatus `json:"upstreams"`
}

// PairStatus is how one upstream stands for one lane.
type PairStatus struct {
	Upstream string    `json:"upstream"`
	Egress   string    `json:"egress"`
	Paused   bool      `json:"paused"`
	Since    time.Time `json:"since,omitzero"` // of the trouble that has not ended yet
	Verdict  Class     `json:"verdict,omitempty"`
	Reply    string    `json:"reply,omitempty"`
	Asked    time.Time `json:"asked_to_wait_until,omitzero"` // by a service that throttles, or is in trouble; while paused
	Share    int       `json:"share"`                        // percent of the lane's mail that begins here
	PassedBy int       `json:"failed_over,omitempty"`        // mails that began here and were taken by others since it last took one itself
	Barred   []string  `json:"refused_domains,omitempty"`    // sending domains that it does not take mail from
}

// ArmStats is how one upstream has done for one stream since the process began.
type ArmStats struct {
	Stream     string          `json:"stream"`
	Upstream   string          `json:"upstream"`
	Share      int             `json:"share"`       // percent of the stream's mail that begins there, as configured now
	Began      int64           `json:"began"`       // messages that began there
	Attempts   int64           `json:"attempts"`    // verdicts, one for each recipient of a hand-over
	Verdicts   map[Class]int64 `json:"verdicts"`    // of those, by class
	FailedOver int64           `json:"failed_over"` // recipients that began there and were taken by another upstream
	Hedged     int64           `json:"hedged"`      // second copies sent elsewhere because it was slow to answer
	P50        float64         `json:"p50_ms"`      // of hand-overs, from check-out to verdict; half are at or below it
	P99        float64         `json:"p99_ms"`      // … 99 of 100
}
