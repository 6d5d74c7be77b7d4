package relay

import (
	"context"
	"runtime"
	"sync"
	"time"

	"gatepost/message"
)

// A signature holds a processor for a millisecond, and neither Go's scheduler nor the system's knows which goroutine has
// sign-in mail in its hands. So who signs marketing mail makes room:
const (
	// onTheWay is how long after each sign of a sign-in mail (MAIL, its end, its signature) the others leave keptFree
	// processors, or all but one, to it.
	onTheWay = 10 * time.Millisecond
	keptFree = 3

	// lately is how long after that the next sign-in mail may come any moment. Then each of the others takes a
	// breath before it signs: while all processors always have something to run, Go looks at the network, and notices that
	// a client has connected, only every 10 ms.
	lately = 500 * time.Millisecond
	breath = 250 * time.Microsecond

	// announced is how many sign-in mails that were announced, by MAIL, may not have come. Then MAIL is no sign of one, for a
	// second: a client that announces mail and sends none holds up nobody's for long.
	announced = 16
)

// processors shares the processors between those who sign.
type processors struct {
	gate *gate

	mu       sync.Mutex
	awaited  int       // sign-in mails that were announced and have not come
	forgetAt time.Time // when they are forgotten
}

func newProcessors() *processors {
	n := max(2, runtime.GOMAXPROCS(0))
	p := &processors{gate: newGate(n)}
	p.gate.kept = min(n-1, keptFree)
	return p
}

// announce notes that sign-in mail may be on its way, as MAIL tells.
func (p *processors) announce() {
	now := time.Now()
	p.mu.Lock()
	if now.After(p.forgetAt) {
		p.awaited, p.forgetAt = 0, now.Add(time.Second)
	}
	p.awaited++
	believed := p.awaited <= announced
	p.mu.Unlock()
	if believed {
		p.expect()
	}
}

// came notes that sign-in mail is here.
func (p *processors) came() {
	p.mu.Lock()
	p.awaited = max(0, p.awaited-1)
	p.mu.Unlock()
	p.expect()
}

func (p *processors) expect() { p.gate.expect(time.Now().Add(onTheWay)) }

// sign runs do, which signs mail of kind, when it has its turn; sign-in mail goes first. It fails when ctx ends before.
func (p *processors) sign(ctx context.Context, kind message.Kind, do func()) error {
	auth := kind == message.Auth
	if auth {
		p.expect()
	}
	place, err := p.gate.enter(ctx, auth)
	if err != nil {
		return err
	}
	defer place.leave()
	if since := p.gate.since(); !auth && since >= 0 && since < lately {
		time.Sleep(breath)
	}
	do()
	return nil
}
