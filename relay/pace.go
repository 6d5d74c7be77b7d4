package relay

import "time"

// paceTime is how long a pace is measured for, and after twice as long without an end it is nothing.
const paceTime = 50 * time.Millisecond

// pace measures how fast messages come to their end.
type pace struct {
	since time.Time
	ended int     // since then
	last  float64 // a second, in the time before
}

// count notes an end.
func (p *pace) count() {
	switch d := time.Since(p.since); {
	case d > 2*paceTime:
		p.since, p.ended, p.last = time.Now(), 0, 0
	case d >= paceTime:
		p.last = float64(p.ended) / d.Seconds()
		p.since, p.ended = time.Now(), 0
	}
	p.ended++
}

// within returns how many ends can be expected in the next d.
func (p *pace) within(d time.Duration) int {
	now := time.Since(p.since)
	if now > 2*paceTime {
		return 0
	}
	rate := p.last
	if now > paceTime/4 {
		rate = max(rate, float64(p.ended)/now.Seconds())
	}
	return int(rate * d.Seconds())
}
