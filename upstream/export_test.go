package upstream

// What the tests outside the package need to see: they use upstreamtest, which imports this package.
var NewSMTPOver = newSMTPOver

const (
	IdleTime     = idleTime
	MaxMails     = maxMails
	MaxAge       = maxAge
	ConnectTime  = connectTime
	RecoverEvery = recoverEvery
)
