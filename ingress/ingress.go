// Package ingress holds the doors: it speaks SMTP to clients, bounds everything they can send, and hands whole
// messages to an Acceptor. It decides nothing about what mail may pass; it turns errors into replies as its last act.
package ingress

import (
	"context"
	"net/netip"

	"gatepost/message"
)

// Acceptor takes submissions over and says who may make them. Package relay implements it.
type Acceptor interface {
	// Identify returns the client that from is on listener, or a *reply.Error (550 5.7.1) for a stranger.
	Identify(listener string, from netip.Addr) (client string, err error)
	// Ready says whether client's mail would be taken now: nil, or a 4xx while disk, memory or every upstream is out.
	// Asked at MAIL; cheap.
	Ready(client string) error
	// Accept takes all of s or none and answers as early as is honest (the stream's verdict setting). It returns a
	// receipt for each, or an error for reply.Of. ctx ending does not undo what has begun.
	Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error)
}
