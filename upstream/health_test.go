package upstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"gatepost/message"
)

// checks counts the check calls that an account is proven by, and answers each with err.
type checks struct {
	n   int
	err error
}

func (c *checks) check(context.Context) error {
	c.n++
	return c.err
}

// mayTry reports whether h lets a mail be tried.
func mayTry(t *testing.T, h *health, c *checks) bool {
	t.Helper()
	err := h.prove(t.Context(), c.check)
	if _, paused := errors.AsType[*Paused](err); err != nil && !paused {
		t.Fatalf("prove: %v", err)
	}
	return err == nil
}

func down(class message.Class) message.Verdict { return upstreamDown(class, "down") }

func TestAnAccountThatWasNotWellIsLookedAtBeforeTheNextMailButNotAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		c := &checks{err: &Paused{Verdict: down(message.Temporary)}}
		if !mayTry(t, &h, c) || c.n != 0 {
			t.Fatalf("%d check calls for an account that is well", c.n)
		}
		h.ill(down(message.Temporary))
		for range 20 { // as a relay that tries every half second
			if mayTry(t, &h, c) {
				t.Fatal("a mail may be tried though the check fails")
			}
			time.Sleep(500 * time.Millisecond)
		}
		if c.n != 2 {
			t.Errorf("%d check calls in 10 seconds, want 2", c.n)
		}
		c.err = nil
		if !mayTry(t, &h, c) || c.n != 3 {
			t.Error("no mail may be tried though the check succeeds")
		}
		if !mayTry(t, &h, c) || c.n != 3 {
			t.Error("an account that is well again is still looked at")
		}
	})
}

func TestWhereTheCredentialsMayNotReadAMailTriesButNotAllTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		c := &checks{err: ErrUnproven}
		tried := 0
		for range 20 {
			if mayTry(t, &h, c) {
				tried++
				h.ill(down(message.Temporary))
			}
			time.Sleep(500 * time.Millisecond)
		}
		if tried != 3 { // the first, and one every 5 seconds
			t.Errorf("%d mails were tried in 10 seconds, want 3", tried)
		}
	})
}

func TestNewCredentialsAreLookedAtAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		c := &checks{err: &Paused{Verdict: down(message.Unauthorised)}}
		h.ill(down(message.Unauthorised))
		mayTry(t, &h, c)
		c.err = nil
		if !mayTry(t, &h, c) || c.n != 2 {
			t.Errorf("after %d check calls no mail may be tried", c.n)
		}
	})
}

func TestNobodyIsKeptFromLookingByATimeThatMakesNoSense(t *testing.T) {
	for class, longest := range map[message.Class]time.Duration{message.Temporary: longestWait, message.Unauthorised: 0} {
		synctest.Test(t, func(t *testing.T) {
			var h health
			v := down(class)
			v.RetryAfter = maxRetryAfter
			h.ill(v)
			time.Sleep(longest)
			if c := (&checks{}); !mayTry(t, &h, c) || c.n != 1 {
				t.Errorf("%s: no mail may be tried after %v, though a check call would succeed", class, longest)
			}
		})
	}
}

func TestAServiceThatThrottlesIsLeftAloneAsLongAsItSaysOrLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		c := &checks{}
		v := down(message.Throttled)
		v.RetryAfter = 30 * time.Second
		h.ill(v)
		time.Sleep(v.RetryAfter - time.Nanosecond)
		if mayTry(t, &h, c) {
			t.Error("it is tried before the time that it asked for")
		}
		time.Sleep(time.Nanosecond)
		if !mayTry(t, &h, c) || c.n != 0 {
			t.Errorf("it is not tried after that time, or was asked with %d check calls", c.n)
		}
		v.RetryAfter = 0
		var pauses []time.Duration
		for range 12 {
			h.ill(v)
			h.ill(v) // one more that was under way
			start := time.Now()
			for !mayTry(t, &h, c) {
				time.Sleep(100 * time.Millisecond)
			}
			pauses = append(pauses, time.Since(start))
		}
		for i, p := range pauses {
			want := min(firstPause<<i, longestPause)
			if p < want || p > want+want/10+100*time.Millisecond {
				t.Errorf("pause %d lasts %v, want about %v", i+1, p, want)
			}
		}
		h.well()
		h.ill(v)
		time.Sleep(firstPause + firstPause/10)
		if !mayTry(t, &h, c) {
			t.Error("after a success the pauses do not start over")
		}
	})
}

func TestRetryAfterIsReadAndCapped(t *testing.T) {
	now := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"":                               0,
		"2":                              2 * time.Second,
		" 30 ":                           30 * time.Second,
		"0":                              0,
		"-5":                             0,
		"1.5":                            0,
		"soon":                           0,
		"600":                            10 * time.Minute,
		"3600":                           maxRetryAfter,
		"99999":                          maxRetryAfter,
		"999999999999999999999999":       maxRetryAfter,
		"Mon, 05 Jan 2026 10:00:07 GMT":  7 * time.Second,
		"Mon, 05 Jan 2026 09:00:00 GMT":  0,
		"Mon, 05 Jan 2126 10:00:00 GMT":  maxRetryAfter,
		"Monday, 05-Jan-26 10:00:07 GMT": 7 * time.Second,
		"Mon, 99 Jan 2026 10:00:07 GMT":  0,
		"2026-01-05T10:00:07Z":           0,
		"١٢":                             0,
	} {
		if got := parseRetryAfter(text, now); got != want {
			t.Errorf("Retry-After: %s means %v, want %v", text, got, want)
		}
	}
	for words, want := range map[string]time.Duration{
		"Domain x limit exceeded, try again after 120 seconds":         2 * time.Minute,
		"limit exceeded, try again after Mon, 5 Jan 2026 10:00:40 UTC": 40 * time.Second,
		"limit exceeded, try again after 999999999 seconds":            maxRetryAfter,
		"limit exceeded": 10 * time.Second, // the header's
		"limit exceeded, try again after a while or after Mon, 99 Foo 2026": 10 * time.Second,
	} {
		if got := mailgunRetryAfter(words, 10*time.Second, now); got != want {
			t.Errorf("%q means %v, want %v", words, got, want)
		}
	}
	if got := mailgunRetryAfter("limit exceeded", 0, now); got != mailgunPause {
		t.Errorf("a 429 without any time means %v, want %v", got, mailgunPause)
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, s := range []string{"", "5", "-1", "99999999999999999999", "Mon, 05 Jan 2026 10:00:07 GMT", "try again after 5 seconds"} {
		f.Add(s)
	}
	now := time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, s string) {
		for _, d := range []time.Duration{parseRetryAfter(s, now), mailgunRetryAfter(s, 0, now)} {
			if d < 0 || d > maxRetryAfter {
				t.Errorf("%q means %v", s, d)
			}
		}
	})
}
