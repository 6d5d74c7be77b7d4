package cli

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatepost/admin"
	"gatepost/event"
	"gatepost/message"
)

func TestATraceFitsATerminalAndTellsTheDayOnlyWhereItChanges(t *testing.T) {
	id, err := message.ParseID("06b7v2c80g000")
	if err != nil {
		t.Fatal(err)
	}
	begin := id.Time()
	deferred := event.Data{Hook: "logto", Type: "SignIn", Class: message.Temporary, Reply: "451 4.3.0 try later please", Local: "203.0.113.10",
		Took: event.Millis(123456 * time.Microsecond), Total: event.Millis(26 * time.Hour), DueAt: begin.Add(30 * time.Hour)}
	trace := admin.Trace{Events: []event.Event{
		{At: begin, Kind: event.Accepted, Message: id, Stream: "auth"},
		{At: begin.Add(26 * time.Hour), Kind: event.Deferred, Message: id, Stream: "auth", Upstream: "esp", Data: deferred},
	}}
	var out strings.Builder
	if err := printTrace(&out, trace, begin); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(line); n > 81 {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	later := begin.Add(26 * time.Hour).Local().Format(time.DateOnly)
	if !strings.Contains(out.String(), "\n  "+begin.Local().Format("15:04:05.000")+"  accepted\n") || !strings.Contains(out.String(), "\n  "+later+" ") {
		t.Errorf("the day should stand only before what happened on another one:\n%s", out.String())
	}
	if !strings.Contains(out.String(), "\n  ordered as SignIn through hook logto\n") {
		t.Errorf("what the mail is for is not told:\n%s", out.String())
	}
}

func TestEverythingThatKeepsALaneWaitingIsTold(t *testing.T) {
	now := time.Now()
	works := message.PairStatus{Upstream: "esp", Egress: "auth"}
	paused := message.PairStatus{Upstream: "esp", Egress: "auth", Paused: true, Since: now.Add(-time.Minute), Reply: "535 5.7.8 no"}
	asked := message.PairStatus{Upstream: "esp", Egress: "auth", Paused: true, Since: now.Add(-time.Minute), Asked: now.Add(time.Minute), Reply: "429 slow"}
	for name, tt := range map[string]struct {
		lane message.LaneStatus
		want []string
	}{
		"a lane that runs":          {message.LaneStatus{Pairs: []message.PairStatus{works}}, nil},
		"a hold":                    {message.LaneStatus{Held: true, Pairs: []message.PairStatus{works}}, []string{"is on hold"}},
		"a pause":                   {message.LaneStatus{Pairs: []message.PairStatus{paused}}, []string{"paused for 1m0s:\n  535 5.7.8 no"}},
		"a pause that it asked for": {message.LaneStatus{Pairs: []message.PairStatus{asked}}, []string{"paused for 1m0s, asked to wait until " + asked.Asked.Local().Format("15:04:05") + ":\n  429 slow"}},
		"a hold and a pause":        {message.LaneStatus{Held: true, Pairs: []message.PairStatus{paused}}, []string{"is on hold", "paused for"}},
		"a pause of one of two":     {message.LaneStatus{Pairs: []message.PairStatus{paused, works}}, []string{"does without upstream esp, which is paused for 1m0s:\n  535 5.7.8 no"}},
		"a stream without a place":  {message.LaneStatus{Held: true}, []string{"is not in the config"}},
	} {
		t.Run(name, func(t *testing.T) {
			tt.lane.Lane = "auth"
			got := hindrances(admin.Lane{LaneStatus: tt.lane}, now)
			if len(got) != len(tt.want) {
				t.Fatalf("told %q, want %d sentences", got, len(tt.want))
			}
			for i, want := range tt.want {
				if !strings.Contains(got[i], want) || !strings.HasPrefix(got[i], "Stream auth ") {
					t.Errorf("told %q, want %q", got[i], want)
				}
			}
		})
	}
}

func TestTheEndOfAMessageIsToldBehindItsAttempts(t *testing.T) {
	at := time.Now()
	events := []event.Event{
		{Seq: 5, At: at.Add(time.Second), Kind: event.Answered},
		{Seq: 4, At: at, Kind: event.Answered},
		{Seq: 3, At: at, Kind: event.Deferred, Upstream: "second"},
		{Seq: 2, At: at, Kind: event.Delivered},
		{Seq: 1, At: at, Kind: event.Accepted},
		{Seq: 6, At: at.Add(-time.Second), Kind: event.Deferred, Upstream: "first"},
	}
	slices.SortFunc(events, inTime)
	var told []string
	for _, e := range events {
		told = append(told, strings.TrimSpace(e.Kind.String()+" "+e.Upstream))
	}
	if got := strings.Join(told, ", "); got != "deferred first, accepted, deferred second, delivered, answered, answered" {
		t.Errorf("told in the order %s", got)
	}
}

func TestStatusTellsANodeThatWasStoppedFromOneThatDied(t *testing.T) {
	var out strings.Builder
	now := time.Now()
	s := admin.Status{Store: admin.Store{Engine: "postgres", Where: "database gatepost on db", Node: "mail-1", Nodes: []admin.Node{
		{Name: "mail-1", Alive: true, LeaseUntil: now.Add(12 * time.Second)}, {Name: "mail-2", LeaseUntil: now.Add(-4 * time.Second)}, {Name: "mail-3"},
	}}, Lanes: []admin.Lane{{LaneStatus: message.LaneStatus{Lane: "auth", Refuses: true}}}}
	if err := (&app{out: &out}).printStatus(s, now); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"node mail-1: alive, lease ends in 12s\n", "node mail-2: not alive since 4s ago\n", "node mail-3: stopped\n", "runs, refuses new mail\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not told:\n%s", want, out.String())
		}
	}
}

func TestStatsCompareTheUpstreamsOfAStream(t *testing.T) {
	var out strings.Builder
	now := time.Now()
	s := admin.Stats{StartedAt: now.Add(-time.Hour), Arms: []message.ArmStats{
		{Stream: "auth", Upstream: "ses", Share: 95, Began: 950, Attempts: 951, Verdicts: map[message.Class]int64{message.Accepted: 940, message.Throttled: 11},
			FailedOver: 10, Hedged: 2, P50: 81.5, P99: 1234.5},
		{Stream: "auth", Upstream: "postmark", Share: 5},
	}}
	if err := (&app{out: &out}).printStats(s, now); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if lines[0] != "since the start 1h0m0s ago" || strings.Join(strings.Fields(lines[2]), " ") != "auth ses 95% 950 951 940 0 0 11 0 0 10 2 81.5ms 1.23s" ||
		strings.Join(strings.Fields(lines[3]), " ") != "auth postmark 5% 0 0 0 0 0 0 0 0 0 0 - -" {
		t.Errorf("printed\n%s", out.String())
	}
}
