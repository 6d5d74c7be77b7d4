package ingress

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// inBubble runs f with a door whose clock is fake. Its clients come through l.pipe.
func inBubble(t *testing.T, change func(o *SMTPOptions, f *fakeRelay), f func(t *testing.T, d *door, l *connListener)) {
	synctest.Test(t, func(t *testing.T) {
		l := newConnListener()
		f(t, open(t, l, change), l)
	})
}

// took returns how long f takes, to the second.
func took(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start).Round(time.Second)
}

// drip sends s n octets at a time and so often, until the connection ends. It returns at once; the test waits for it.
func (c *client) drip(s string, n int, every time.Duration) {
	var wg sync.WaitGroup
	wg.Go(func() {
		for ; s != ""; s = s[min(n, len(s)):] {
			if _, err := io.WriteString(c, s[:min(n, len(s))]); err != nil {
				return
			}
			time.Sleep(every)
		}
	})
	c.t.Cleanup(func() {
		c.Close()
		wg.Wait()
	})
}

func TestAnIdleClientIsSentAwayAfterFiveMinutes(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, _ *door, l *connListener) {
		c := l.pipe(t)
		c.hello()
		time.Sleep(4*time.Minute + 59*time.Second)
		c.do("NOOP", "250 ")
		if d := took(func() { c.want("421 4.4.2 ") }); d != 5*time.Minute {
			t.Errorf("after %v", d)
		}
		if rest := c.rest(); rest != "" {
			t.Errorf("then came %q", rest)
		}
	})
}

func TestADrippingCommandGainsNoTime(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, _ *door, l *connListener) {
		c := l.pipe(t)
		c.hello()
		c.drip(strings.Repeat("NOOP ", 1000), 1, time.Second)
		if d := took(func() { c.want("421 4.4.2 ") }); d != 5*time.Minute {
			t.Errorf("cut off after %v", d)
		}
	})
}

func TestAMessageMustComeAtTheMinimumRate(t *testing.T) {
	for name, tt := range map[string]struct {
		octets int           // at a time
		every  time.Duration // and so often
		total  int
		want   string
		took   time.Duration // at most
	}{
		"an octet a second is cut off":           {1, time.Second, 10_000, "421 4.4.2 ", 3 * time.Minute},
		"silence is cut off":                     {1, 6 * time.Minute, 2, "421 4.4.2 ", 2 * time.Minute},
		"half the rate is cut off":               {512, time.Second, 1 << 20, "421 4.4.2 ", 4*time.Minute + time.Second},
		"twice the rate may go on":               {2048, time.Second, 1<<20 - 100, "250 ", 10 * time.Minute},
		"a pause may come after a quick start":   {500_000, 4 * time.Minute, 1_000_000, "250 ", 10 * time.Minute},
		"but not one longer than the idle limit": {500_000, 6 * time.Minute, 1_000_000, "421 4.4.2 ", 11 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, d *door, l *connListener) {
				c := l.pipe(t)
				c.hello()
				c.toData()
				c.send("\r\n")
				c.drip(strings.Repeat("x", tt.total)+"\r\n.\r\n", tt.octets, tt.every)
				if took := took(func() { c.want(tt.want) }); took > tt.took {
					t.Errorf("%s after %v, want at most %v", tt.want, took, tt.took)
				}
				if tt.want[0] == '4' && (c.rest() != "" || len(d.relay.submissions()) != 0) {
					t.Errorf("the connection went on, or %d messages were accepted", len(d.relay.submissions()))
				}
			})
		})
	}
}

func TestASessionHasAnEnd(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, _ *door, l *connListener) {
		busy := l.pipe(t)
		busy.hello()
		for range 58 {
			time.Sleep(time.Minute)
			busy.do("NOOP", "250 ")
		}
		mailing := l.pipe(t)
		mailing.hello()
		if d := took(func() { busy.want("421 4.4.2 ") }); d != 2*time.Minute {
			t.Errorf("sent away %v late", d-2*time.Minute)
		}
		for range 57 {
			time.Sleep(time.Minute)
			mailing.do("NOOP", "250 ")
		}
		mailing.do("MAIL FROM:<>", "250 ")
		time.Sleep(4 * time.Minute)
		mailing.do("RCPT TO:<b@example.net>", "250 ")
		time.Sleep(time.Minute)
		mailing.do("DATA", "354 ")
		mailing.do(mail+".", "250 ")
		mailing.want("421 4.4.2 ")
	})
}

func TestAClientThatReadsNoRepliesIsCutOff(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *door, l *connListener) {
		c := l.pipe(t)
		c.hello()
		c.send("NOOP\r\n")
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if n := d.count(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

func TestStoppingSendsIdleClientsAwayAndLetsMailsBeFinished(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, d *door, l *connListener) {
		idle, mailing, sending := l.pipe(t), l.pipe(t), l.pipe(t)
		for _, c := range []*client{idle, mailing, sending} {
			c.hello()
		}
		mailing.do("MAIL FROM:<>", "250 ")
		sending.toData()
		sending.send("Subject: x\r\n")
		synctest.Wait()
		d.stop()
		if took := took(func() { idle.want("421 4.3.2 ") }); took != 0 {
			t.Errorf("the idle client was told after %v", took)
		}
		time.Sleep(6 * time.Second)
		mailing.do("RCPT TO:<b@example.net>", "250 ")
		mailing.do("DATA", "354 ")
		for _, c := range []*client{mailing, sending} {
			c.do(mail+".", "250 2.0.0 queued")
			c.want("421 4.3.2 ")
			c.rest()
		}
		if took := took(func() {
			if err := d.wait(t); err != nil {
				t.Errorf("Serve: %v", err)
			}
		}); took != 0 {
			t.Errorf("Serve returned %v after the last client had left", took)
		}
	})
}

func TestStoppingWaitsForNobodyLongerThanTenSeconds(t *testing.T) {
	inBubble(t, func(_ *SMTPOptions, f *fakeRelay) {
		f.accept = func(ctx context.Context, _ *message.Submission) error {
			<-ctx.Done()
			return ctx.Err()
		}
	}, func(t *testing.T, d *door, l *connListener) {
		slow, stuck := l.pipe(t), l.pipe(t)
		slow.hello()
		slow.toData()
		stuck.hello()
		stuck.toData()
		stuck.send(mail + ".\r\n")
		synctest.Wait()
		d.stop()
		if took := took(func() { slow.want("421 4.3.2 ") }); took != 8*time.Second {
			t.Errorf("the slow client was told after %v", took)
		}
		slow.rest()
		start := time.Now()
		if err := d.wait(t); err == nil || !strings.Contains(err.Error(), "1 sessions were cut off") {
			t.Errorf("Serve: %v, want that a session was cut off", err)
		}
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("Serve returned %v later", took)
		}
		if rest := stuck.rest(); rest != "" {
			t.Errorf("the client whose message had no answer was told %q", rest)
		}
	})
}

func TestASessionPipelinedAheadDoesNotOutliveTheStop(t *testing.T) {
	d := openTCP(t, nil)
	c := d.dial(t)
	c.hello()
	answered := make(chan string)
	go func() {
		one := "MAIL FROM:<>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n" + mail + ".\r\n"
		for {
			if _, err := fmt.Fprint(c, one); err != nil {
				return
			}
		}
	}()
	go func() { answered <- c.rest() }()
	d.until(t, "mail comes in", func() bool { return len(d.relay.submissions()) > 10 })
	d.stop()
	if err := d.wait(t); err != nil {
		t.Error(err)
	}
	if n, all := strings.Count(<-answered, "queued as"), len(d.relay.submissions()); n > all {
		t.Errorf("%d of %d messages were answered with 250", n, all)
	}
}
