package ingress

import (
	"net"
	"testing"
	"time"
)

func TestAFinalDotDoesNotWaitForADelayedAcknowledgement(t *testing.T) {
	c := openTCP(t, nil).dial(t)
	c.Conn.(*net.TCPConn).SetNoDelay(false) // as other languages' clients have it
	c.hello()
	fastest := time.Hour
	for range 8 {
		c.toData()
		start := time.Now()
		c.send(mail)
		c.send(".\r\n")
		c.want("250 ")
		fastest = min(fastest, time.Since(start))
	}
	if fastest > 30*time.Millisecond { // the shortest delay of an acknowledgement is 40 ms
		t.Errorf("the fastest of 8 mails took %v", fastest)
	}
}
