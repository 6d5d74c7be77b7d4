package upstream

import "gatepost/config"

// What the tests outside the package need to see: they use upstreamtest, which imports this package.
var NewSMTPOver = newSMTPOver

const (
	IdleTime     = idleTime
	MaxMails     = maxMails
	MaxAge       = maxAge
	ConnectTime  = connectTime
	RecoverEvery = recoverEvery
)

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
