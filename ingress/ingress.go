// Package ingress holds the doors: it speaks SMTP and HTTP to clients, bounds everything they can send, and hands whole
// messages to an Acceptor or a Caller. It decides nothing about what mail may pass; it turns errors into replies as its last act.
package ingress

import (
	"context"

	"gatepost/message"
)

// Acceptor takes submissions over and says who may make them. Package relay implements it.
type Acceptor interface {
	// Identify returns the client that p is on listener by its address, user id or certificate; "" where p may only
	// become one by a login; or a *reply.Error (550 5.7.1) for a stranger. Asked when a connection begins, and again once
	// TLS has shown a certificate.
	Identify(listener string, p message.Peer) (client string, err error)
	// Login returns the client that user and password make of p on listener, or a *reply.Error: 535 5.7.8 with one text
	// for every reason, or 454 4.7.0 where tries are too many for now. It takes its time when the answer is no.
	Login(ctx context.Context, listener string, p message.Peer, user, password string) (client string, err error)
	// Offers reports whether AUTH is offered on listener.
	Offers(listener string) bool
	// Ready says whether client's mail would be taken now: nil, or a 4xx while disk, memory or every upstream is out.
	// Asked at MAIL, whose reverse-path from is: it tells what kind of mail to make ready for. Cheap.
	Ready(client, from string) error
	// Limit returns how many octets a message of client may have, asked at MAIL, and, once its header is there, how many
	// it may have in its stream; 0 means the listener's limit. header is nil at MAIL.
	Limit(client string, header []byte) int64
	// Accept takes all of s or none and answers as early as is honest (the stream's verdict setting). It returns a
	// receipt for each, or an error for reply.Of. ctx ending does not undo what has begun. Raw of s is the Acceptor's.
	Accept(ctx context.Context, s []*message.Submission) ([]message.Receipt, error)
}
