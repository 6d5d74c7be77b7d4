//go:build !linux

package ingress

import "net"

func refuseNew(net.Listener) {}
