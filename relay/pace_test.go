package relay

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestAPaceFollowsWhatEndsNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		if n := p.within(time.Second); n != 0 {
			t.Errorf("before anything came to its end %d are expected", n)
		}
		steady := func(every, d time.Duration) {
			for range int(d / every) {
				p.count()
				time.Sleep(every)
			}
		}
		near := func(when string, want int) {
			t.Helper()
			if n := p.within(time.Second); n < want-want/10 || n > want+want/10 {
				t.Errorf("%s %d are expected in a second, want about %d", when, n, want)
			}
		}
		steady(time.Millisecond, 20*time.Millisecond)
		near("at the beginning", 1000)
		steady(time.Millisecond, time.Second)
		near("at a thousand a second", 1000)
		steady(10*time.Millisecond, time.Second)
		near("at a hundred a second", 100)
		time.Sleep(2 * paceTime)
		near("when all has come to a stop", 0)
		steady(time.Millisecond, 20*time.Millisecond)
		near("when it goes on", 1000)
	})
}
