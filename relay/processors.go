package relay

import (
	"context"
	"runtime"
	"time"

	"gatepost/message"
)

// A signature holds a processor for a millisecond, and neither Go's scheduler nor the system's knows which goroutine has
// sign-in mail in its hands. So who signs marketing mail makes room:
const (
	// onTheWay is how long after each sign of a sign-in mail (MAIL, its end, its signature) the others sign one at a time.
	onTheWay = 10 * time.Millisecond

	// lately is how long after the last such sign the next sign-in mail may come any moment. Then each of the others takes a
	// breath before it signs: while all processors always have something to run, Go looks at the network, and notices that
	// a client has connected, only every 10 ms.
	lately = 500 * time.Millisecond
	breath = 250 * time.Microsecond
)

// processors shares the processors between those who sign.
type processors struct{ gate *gate }

func newProcessors() processors {
	n := max(2, runtime.GOMAXPROCS(0))
	p := processors{newGate(n)}
	p.gate.kept = n - 1
	return p
}

// expect notes that sign-in mail is on its way.
func (p processors) expect() { p.gate.expect(time.Now().Add(onTheWay)) }

// sign runs do, which signs mail of kind, when it has its turn; sign-in mail goes first. It fails when ctx ends before.
func (p processors) sign(ctx context.Context, kind message.Kind, do func()) error {
	auth := kind == message.Auth
	if auth {
		p.expect()
	}
	if err := p.gate.enter(ctx, auth); err != nil {
		return err
	}
	defer p.gate.leave()
	if !auth && p.gate.since() < lately {
		time.Sleep(breath)
	}
	do()
	return nil
}
