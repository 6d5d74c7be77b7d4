package upstream

import (
	"slices"
	"time"

	"gatepost/config"
)

// What the tests outside the package need to see: they use upstreamtest, which imports this package.
var NewSMTPOver = newSMTPOver

const (
	IdleTime     = idleTime
	MaxMails     = maxMails
	MaxAge       = maxAge
	ConnectTime  = connectTime
	RecoverEvery = recoverEvery
	NoopTime     = noopTime
	LookTime     = lookTime
	LearnedFor   = learnedFor
)

// LookAfter looks at the connections that wait in u's pool as if they had waited for d longer.
func LookAfter(u Upstream, d time.Duration) {
	s := u.(*smtpUpstream)
	s.mu.Lock()
	waiting := slices.Clone(s.pool)
	for _, c := range waiting {
		c.restsSince, c.born = c.restsSince.Add(-d), c.born.Add(-d)
	}
	s.mu.Unlock()
	for _, c := range waiting {
		s.look(c)
	}
}

// Answered reports whether a connection that waits in u's pool has answered NOOP.
func Answered(u Upstream) bool {
	s := u.(*smtpUpstream)
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.pool, func(c *smtpConn) bool { return c.outlived > 0 })
}

// Waiting returns how many connections wait in u's pool.
func Waiting(u Upstream) int {
	s := u.(*smtpUpstream)
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pool)
}

// Bounds returns how long u's connections may rest, and last.
func Bounds(u Upstream) (rest, life time.Duration) { return u.(*smtpUpstream).bounds() }

// AliyunLost is what docs/upstreams.md has to name.
var AliyunLost = aliyunLost

// AliyunEndpoint returns where mail of a region goes.
func AliyunEndpoint(region string) string {
	return newAliyun(&config.Upstream{Region: region}).endpoint()
}

// SendgridEndpoint returns where mail of a region goes.
func SendgridEndpoint(region string) string {
	return newSendgrid(&config.Upstream{Region: region}).endpoint()
}
